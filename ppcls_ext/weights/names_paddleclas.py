"""Names that PaddleClas gives to the layers of our networks (ppcls/arch/backbone: model_zoo, legendary_models).

Its MicroNet and ViT have the names of the references, which are ours.
"""

from __future__ import annotations

import re
from collections.abc import Collection

import numpy as np

from ppcls_ext.weights.layer_names import Arrays, Layers, in_numbered_block

_CONV_NORM = {"_conv": "conv", "_batch_norm": "norm", "conv": "conv", "bn": "norm"}


def efficientnet(name: str, layers: Layers) -> str | None:
    """Blocks counted through the network, under `_blocks` where a stage begins and `block` elsewhere."""
    ends = {
        "_ef._conv_stem._conv._conv._conv": "conv_stem",
        "_ef._conv_stem._conv._bn": "bn1",
        "_conv._conv._conv": "conv_head",
        "_conv._bn": "bn2",
        "_fc": "classifier",
    }
    if name in ends:
        return ends[name]
    # two points: PaddleClas's own names of the blocks end with one
    inner = re.fullmatch(r"_ef\.(?:_blocks|block)\.(\d{1,3})\.\._(\wcn|se)\.(.*)", name)
    if not inner:
        return None
    role = {
        ("se", "_conv1._conv"): "reduce", ("se", "_conv2._conv"): "excite",
        ("ecn", "_conv._conv._conv"): "expand", ("ecn", "_conv._bn"): "expand norm",
        ("dcn", "_conv._conv._conv"): "depthwise", ("dcn", "_conv._bn"): "depthwise norm",
        ("pcn", "_conv._conv._conv"): "project", ("pcn", "_conv._bn"): "project norm",
    }.get((inner[2], inner[3]))  # fmt: skip
    return role and in_numbered_block(inner[1], role, layers)


def shufflenet(name: str, layers: Layers) -> str | None:
    """`STAGE_UNIT._conv_WHAT_BRANCH`, units counted from 1; a unit of one branch does not number it."""
    part = re.fullmatch(r"(.+?)\._(conv|batch_norm)", name)
    if not part:
        return "fc" if name == "_fc" else None
    conv, norm = part[1], part[2] == "batch_norm"
    if conv in ("_conv1", "_last_conv"):
        return f"{'conv1' if conv == '_conv1' else 'conv5'}.{int(norm)}"
    unit = re.fullmatch(r"(\d{1,3})_(\d{1,3})\._conv_(pw|dw|linear)(?:_([12]))?", conv)
    if not unit:
        return None
    branch = int(unit[4] or 2)
    # where each convolution stands in its branch; its batch norm follows
    start = {(1, "dw"): 0, (1, "linear"): 2, (2, "pw"): 0, (2, "dw"): 3, (2, "linear"): 5}.get((branch, unit[3]))
    return None if start is None else f"stage{unit[1]}.{int(unit[2]) - 1}.branch{branch}.{start + norm}"


def _bottleneck(unit: str, part: str, kind: str, layers: Layers) -> str | None:
    """`conv0` to `conv2` and `short` of a block -> `conv1` to `conv3` and `downsample`."""
    is_norm = _CONV_NORM[kind] == "norm"
    if part == "short":
        # a vd block averages before the convolution of its shortcut
        first = next((i for i in (0, 1) if f"{unit}.downsample.{i}" in layers.names), None)
        return None if first is None else f"{unit}.downsample.{first + is_norm}"
    return f"{unit}.{'bn' if is_norm else 'conv'}{int(part[-1]) + 1}"


def _stem(number: int, kind: str, layers: Layers) -> str:
    """The stem of one convolution, or of three, of which the last has its batch norm outside."""
    is_norm = _CONV_NORM[kind] == "norm"
    if "conv1.0" not in layers.names or (number == 2 and is_norm):
        return "bn1" if is_norm else "conv1"
    return f"conv1.{3 * number + is_norm}"


def resnext(name: str, layers: Layers) -> str | None:
    """`bb_STAGE_BLOCK`, both from 0; the vd stem is `conv1_1` to `conv1_3`."""
    if name == "out":
        return "fc"
    if stem := re.fullmatch(r"conv(?:1_([123]))?\.(_conv|_batch_norm)", name):
        return _stem(int(stem[1] or 1) - 1, stem[2], layers)
    found = re.fullmatch(r"bb_(\d)_(\d{1,3})\.(conv[012]|short)\.(_conv|_batch_norm)", name)
    return _bottleneck(f"layer{int(found[1]) + 1}.{found[2]}", found[3], found[4], layers) if found else None


def resnet(name: str, layers: Layers) -> str | None:
    """`blocks.N` counted through the network."""
    if name == "fc":
        return "fc"
    if stem := re.fullmatch(r"stem\.([012])\.(conv|bn)", name):
        return _stem(int(stem[1]), stem[2], layers)
    found = re.fullmatch(r"blocks\.(\d{1,3})\.(conv[012]|short)\.(conv|bn)", name)
    if not found or int(found[1]) >= len(layers.units):
        return None
    stage, number = layers.units[int(found[1])]
    return _bottleneck(f"layer{stage}.{number}", found[2], found[3], layers)


def densenet(name: str, layers: Layers) -> str | None:
    """Blocks and transitions are counted from 2, as the paper's stages; the last batch norm stands alone."""
    ends = {"conv1_func._conv": "features.conv0", "conv1_func._batch_norm": "features.norm0", "out": "classifier"}
    if name in ends:
        return ends[name]
    if name == "batch_norm":
        return (
            max(n for n in layers.names if n.startswith("features.norm")) if "features.norm0" in layers.names else None
        )
    if found := re.fullmatch(r"db_conv_(\d)\.conv\d_(\d{1,3})\.bn_ac_func([12])\.(_conv|_batch_norm)", name):
        return f"features.denseblock{int(found[1]) - 1}.denselayer{found[2]}.{_CONV_NORM[found[4]]}{found[3]}"
    found = re.fullmatch(r"tr_conv(\d)_blk\.conv_ac_func\.(_conv|_batch_norm)", name)
    return f"features.transition{int(found[1]) - 1}.{_CONV_NORM[found[2]]}" if found else None


def vgg(name: str, layers: Layers) -> str | None:
    """`conv_block_STAGE.convN`; ours are counted through activations and poolings."""
    linear = {"fc1": "classifier.0", "fc2": "classifier.3", "fc3": "classifier.6"}
    if name in linear:
        return linear[name]
    found = re.fullmatch(r"conv_block_(\d)\.conv(\d)", name)
    if not found:
        return None
    stages, number = _stages(layers), int(found[2]) - 1
    stage = stages[int(found[1]) - 1] if 0 < int(found[1]) <= len(stages) else []
    return f"features.{stage[number]}" if 0 <= number < len(stage) else None


def _stages(layers: Layers) -> list[list[int]]:
    """The numbers of a VGG's convolutions by stage: a pooling between two stages leaves a gap of 3."""
    stages: list[list[int]] = []
    last = -3
    for place in sorted(int(n[9:]) for n in layers.names if re.fullmatch(r"features\.\d{1,2}", n)):
        if place - last > 2:
            stages.append([])
        stages[-1].append(place)
        last = place
    return stages


def finish_vgg(tensors: Arrays, network: Collection[str]) -> tuple[Arrays, str]:
    """Its convolutions have no biases, and its dropout halves what it lets through at inference, not in training."""
    finished = dict(tensors)
    for name in network:
        weight = f"{name.removesuffix('bias')}weight"
        if name.startswith("features.") and name.endswith(".bias") and name not in tensors and weight in tensors:
            finished[name] = np.zeros(len(tensors[weight]), np.float32)
    for name in ("classifier.3.weight", "classifier.6.weight"):
        if name in tensors:
            finished[name] = tensors[name] * np.float32(0.5)
    return (
        finished,
        "its convolutions have no biases (0 here); its dropout's factor 0.5 went into the linear layers after it",
    )
