"""Names that projects in PyTorch give to the layers of our networks: torchvision, timm, EfficientNet-PyTorch."""

from __future__ import annotations

import re

from ppcls_ext.weights.layer_names import Layers, in_block, in_numbered_block


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
    return role and in_block(block, role, layers)


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
    return role and in_numbered_block(inner[1], role, layers)


def torchvision_densenet(name: str, layers: Layers) -> str | None:
    """As torchvision's weights of 2017 are stored: `norm.1` and `conv.1` within a layer."""
    found = re.fullmatch(r"(features\.denseblock\d{1,2}\.denselayer\d{1,3})\.(norm|conv)\.([12])", name)
    return f"{found[1]}.{found[2]}{found[3]}" if found else _known(name, layers)


def torchvision_vit(name: str, layers: Layers) -> str | None:
    """`encoder.layers.encoder_layer_N`; the attention's input matrix is a layer of its own here."""
    ends = {"conv_proj": "patch_embed.proj", "encoder.ln": "norm", "heads.head": "head"}
    if name in ends:
        return ends[name]
    found = re.fullmatch(r"encoder\.layers\.encoder_layer_(\d{1,3})\.(.+)", name)
    part = {
        "ln_1": "norm1", "ln_2": "norm2", "self_attention.in_proj": "attn.qkv", "self_attention.out_proj": "attn.proj",
        "mlp.0": "mlp.fc1", "mlp.3": "mlp.fc2", "mlp.linear_1": "mlp.fc1", "mlp.linear_2": "mlp.fc2",
    }.get(found[2]) if found else None  # fmt: skip
    return part and f"blocks.{found[1]}.{part}"


def timm_vgg(name: str, layers: Layers) -> str | None:
    """timm makes convolutions of the first two linear layers; their numbers are the same."""
    ends = {"pre_logits.fc1": "classifier.0", "pre_logits.fc2": "classifier.3", "head.fc": "classifier.6"}
    return ends.get(name) or _known(name, layers)


def _known(name: str, layers: Layers) -> str | None:
    return name if name in layers.names else None
