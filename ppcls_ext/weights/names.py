"""Names that other projects give to the layers of our networks: theirs -> ours.

None of the rules needs to be asked for: `in_our_names` takes the one that finds the most layers of the network.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TypeVar

from ppcls_ext.weights import names_paddleclas, names_pytorch
from ppcls_ext.weights.layer_names import Layers, Rule

T = TypeVar("T")

_SAME, _SYMMETRIC = {"padding": "same"}, {"padding": "symmetric"}

RULES = (
    Rule("torchvision", names_pytorch.torchvision_efficientnet, graph=_SYMMETRIC),
    Rule("torchvision", names_pytorch.torchvision_densenet),
    Rule("torchvision", names_pytorch.torchvision_vit),
    Rule("timm", names_pytorch.timm_vgg),
    Rule("EfficientNet-PyTorch", names_pytorch.efficientnet_pytorch, graph=_SAME),
    Rule("PaddleClas", names_paddleclas.efficientnet, graph=_SAME),
    Rule("PaddleClas", names_paddleclas.shufflenet),
    Rule("PaddleClas", names_paddleclas.resnext),
    Rule("PaddleClas", names_paddleclas.resnet),
    Rule("PaddleClas", names_paddleclas.densenet),
    Rule("PaddleClas", names_paddleclas.vgg, finish=names_paddleclas.finish_vgg),
)

# Tensors that belong to no layer, or to one that is none here: theirs -> ours, as a layer and a tensor of it.
_TENSORS = {"class_token": "cls_token", "encoder.pos_embedding": "pos_embed"}
_PARTS = {"in_proj_weight": ("in_proj", "weight"), "in_proj_bias": ("in_proj", "bias")}

# What training programs wrap a network in: data-parallel training, averaging, compilation, Lightning.
WRAPPERS = ("module.", "_orig_mod.", "model.", "net.", "network.", "ema_model.", "ema.", "backbone.")
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


def in_our_names(tensors: Mapping[str, T], network: Collection[str]) -> tuple[dict[str, T], Rule | None]:
    """(the tensors of a file under the names of the network, the rule that was taken); the network's are `network`.

    If no rule finds more layers than the file's own names do, they stay. What a rule does not know keeps its name.
    """
    layers = Layers(network)
    tensors = unwrapped(tensors, network)
    best, taken = dict(tensors), None
    found = sum(name.rpartition(".")[0] in layers.names for name in tensors)
    for rule in RULES:
        named: dict[str, T] = {}
        hits = 0
        for name, tensor in tensors.items():
            layer, leaf = _split(name)
            ours = rule.layer(layer, layers)
            hits += ours in layers.names
            named[_TENSORS.get(name, name) if ours is None else f"{ours}.{leaf}"] = tensor
        if hits > found and len(named) == len(tensors):
            best, taken, found = named, rule, hits
    return best, taken


def _split(name: str) -> tuple[str, str]:
    """The layer of a tensor, and what it is there."""
    layer, _, leaf = name.rpartition(".")
    if leaf in _PARTS:
        part, leaf = _PARTS[leaf]
        layer = f"{layer}.{part}"
    return layer, leaf
