"""Names that other projects give to the layers of our networks, as rules: theirs -> ours.

A rule looks at the name of a layer, without the tensor's own last part, and says what the layer is called here. None of
them needs to be asked for: `in_our_names` takes the one that finds the most layers of the network.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import TypeVar

T = TypeVar("T")


class Layers:
    """The layers of a network, as its tensors name them."""

    def __init__(self, tensors: Collection[str]) -> None:
        self.names = {name.rpartition(".")[0] for name in tensors}
        places = (re.match(r"blocks\.(\d{1,3})\.(\d{1,3})\.", name) for name in self.names)
        # of an EfficientNet: (stage, number in the stage), in the order of the network
        self.blocks = sorted({(int(place[1]), int(place[2])) for place in places if place})


# --------------------------------------------------------------------------------------------- EfficientNet
# Ours are timm's names: the batch norms of a block are counted, so they shift by one where a block does not expand.

_EXPANDING = {
    "expand": "conv_pw", "expand norm": "bn1", "depthwise": "conv_dw", "depthwise norm": "bn2",
    "reduce": "se.conv_reduce", "excite": "se.conv_expand", "project": "conv_pwl", "project norm": "bn3",
}  # fmt: skip
_PLAIN = {
    "depthwise": "conv_dw", "depthwise norm": "bn1",
    "reduce": "se.conv_reduce", "excite": "se.conv_expand", "project": "conv_pw", "project norm": "bn2",
}  # fmt: skip


def _in_block(block: tuple[int, int], role: str, layers: Layers) -> str | None:
    stage, number = block
    roles = _EXPANDING if f"blocks.{stage}.{number}.conv_pwl" in layers.names else _PLAIN
    return f"blocks.{stage}.{number}.{roles[role]}" if role in roles else None


def _in_numbered_block(number: str, role: str, layers: Layers) -> str | None:
    """The same, for a project that counts the blocks of the whole network."""
    return _in_block(layers.blocks[int(number)], role, layers) if int(number) < len(layers.blocks) else None


def torchvision_efficientnet(name: str, layers: Layers) -> str | None:
    """`features.N`: 0 the stem, then the stages, then the last convolution; in a block a list of what follows."""
    if name == "classifier.1":
        return "classifier"
    last = max((stage for stage, _ in layers.blocks), default=0) + 2
    if outer := re.fullmatch(r"features\.(\d{1,3})\.([01])", name):
        ends = {0: ("conv_stem", "bn1"), last: ("conv_head", "bn2")}
        return ends[int(outer[1])][int(outer[2])] if int(outer[1]) in ends else None
    inner = re.fullmatch(r"features\.(\d{1,3})\.(\d{1,3})\.block\.(\d)\.(0|1|fc1|fc2)", name)
    if not inner:
        return None
    block = (int(inner[1]) - 1, int(inner[2]))
    # what a block that does not expand lacks is the first of the list
    position = int(inner[3]) + (f"blocks.{block[0]}.{block[1]}.conv_pwl" not in layers.names)
    role = {
        (0, "0"): "expand", (0, "1"): "expand norm", (1, "0"): "depthwise", (1, "1"): "depthwise norm",
        (2, "fc1"): "reduce", (2, "fc2"): "excite", (3, "0"): "project", (3, "1"): "project norm",
    }.get((position, inner[4]))  # fmt: skip
    return role and _in_block(block, role, layers)


def paddleclas_efficientnet(name: str, layers: Layers) -> str | None:
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
    return role and _in_numbered_block(inner[1], role, layers)


def efficientnet_pytorch(name: str, layers: Layers) -> str | None:
    """EfficientNet-PyTorch (L. Melas-Kyriazi) and what follows it: the authors' names, blocks counted through."""
    ends = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    if name in ends:
        return ends[name]
    inner = re.fullmatch(r"_blocks\.(\d{1,3})\._(\w+)", name)
    if not inner:
        return None
    role = {
        "expand_conv": "expand", "bn0": "expand norm", "depthwise_conv": "depthwise", "bn1": "depthwise norm",
        "se_reduce": "reduce", "se_expand": "excite", "project_conv": "project", "bn2": "project norm",
    }.get(inner[2])  # fmt: skip
    return role and _in_numbered_block(inner[1], role, layers)


# --------------------------------------------------------------------------------------------- ShuffleNetV2


def paddleclas_shufflenet(name: str, layers: Layers) -> str | None:
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


RULES: tuple[Callable[[str, Layers], str | None], ...] = (
    torchvision_efficientnet,
    paddleclas_efficientnet,
    efficientnet_pytorch,
    paddleclas_shufflenet,
)


# What training programs wrap a network in: data-parallel training, averaging, compilation, Lightning.
WRAPPERS = ("module.", "_orig_mod.", "model.", "net.", "network.", "ema_model.", "ema.", "backbone.", "encoder.")
_AVERAGED = "n_averaged"  # how many weights an average has seen


def unwrapped(tensors: Mapping[str, T], network: Collection[str]) -> dict[str, T]:
    """The tensors without the prefixes that all of them share and that the network's own names do not have."""
    found = dict(tensors)
    while True:
        if len(found) > 1 and all(name.startswith("module.") for name in found if name != _AVERAGED):
            found.pop(_AVERAGED, None)
        shared = [
            prefix
            for prefix in WRAPPERS
            if found
            and all(name.startswith(prefix) and name != prefix for name in found)
            and not all(name.startswith(prefix) for name in network)
        ]
        if not shared:
            return found
        found = {name.removeprefix(shared[0]): tensor for name, tensor in found.items()}


def in_our_names(tensors: Mapping[str, T], network: Collection[str]) -> dict[str, T]:
    """The tensors of a file under the names of the network, whose tensors are called `network`.

    The rule is taken that finds the most layers; if none finds more than the file's own names do, they stay. What a
    rule does not know keeps its name.
    """
    layers = Layers(network)
    tensors = unwrapped(tensors, network)
    best = dict(tensors)
    found = sum(name.rpartition(".")[0] in layers.names for name in tensors)
    for rule in RULES:
        named: dict[str, T] = {}
        hits = 0
        for name, tensor in tensors.items():
            layer, _, leaf = name.rpartition(".")
            ours = rule(layer, layers)
            hits += ours in layers.names
            named[name if ours is None else f"{ours}.{leaf}"] = tensor
        if hits > found and len(named) == len(tensors):
            best, found = named, hits
    return best
