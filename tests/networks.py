"""Which networks the tests run over: what is small by default, what is large with `-m slow`; and what goes in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from paddle import nn

from ppcls_ext import config
from ppcls_ext.backbones import facts, published_names
from ppcls_ext.export import Exported, export

# A published network with more parameters than this takes minutes in the tests of every network.
LARGE = 12_000_000

# Published networks that differ from a quicker one of their family in sizes alone: slow too, but for their counts.
REPEATED = frozenset(
    {
        *(f"ShuffleNetV2_{size}" for size in ("x0_33", "x0_5", "x1_0", "x1_5", "x2_0", "swish")),
        *(f"EfficientNet{size}" for size in ("B1", "B2", "Lite1", "Lite2", "Lite3")),
        "ViT_tiny_patch16_224",
    }
)

# Published networks in whose place the small member of the family goes through the tests of every network.
STOOD_FOR = frozenset({"ShuffleNetV2_x0_25", "EfficientNetB0", "EfficientNetLite0"})

# The generic builder of each family -> the arguments of a member that takes a second: what stands for the family in
# the default run.
SMALL: dict[str, dict[str, Any]] = {
    "MicroNet": {
        "rows": [
            [2, 1, 8, 3, 2, 2, 0, 4, 8, 2, 2, 2, 0, 1, 1],
            [2, 2, 8, 3, 1, 2, 4, 4, 8, 4, 4, 2, 2, 1, 1],
            [1, 1, 16, 3, 1, 2, 4, 4, 0, 0, 0, 2, 2, 1, 1],
        ],
        "stem_groups": [2, 2],
        "width": 24,
    },
    "ShuffleNetV2": {"widths": [8, 16, 24, 32], "depths": [2, 1]},
    "EfficientNet": {
        "widths": [8, 8, 12, 16, 32],
        "depths": [1, 2, 2],
        "kernels": [3, 3, 5],
        "strides": [1, 2, 2],
        "expansions": [1, 3, 4],
    },
    "ResNeXt": {"depths": [1, 2, 1], "groups": 4, "base_width": 16, "width": 16, "vd": True},
    "RepLKNet": {"kernels": [13, 7, 5], "depths": [1, 2, 1], "channels": [16, 16, 24], "small_kernel": 3},
    "ResNetV2": {"depths": [1, 2, 1], "width": 8},
    "VGG": {"depths": [1, 2], "widths": [8, 16], "batch_norm": True, "hidden": 24, "pooled": 3},
    "DenseNet": {"depths": [2, 3], "growth": 8, "width": 12, "bottleneck": 2},
    "GroupMamba": {"stem_width": 8, "channels": [32, 36, 64], "depths": [1, 2, 1], "mlp_ratios": [2, 2, 2]},
    "VisionTransformer": {"depth": 2, "width": 24, "num_heads": 3, "patch": 8, "image_size": 64},
}

# Parameters without a gradient by design: the class block of GroupMamba scans one token, from which nothing decays.
# The norm behind the class token's one scale takes that back but for its epsilon: 1e-10 in float64, noise in float32.
WITHOUT_GRADIENT = ("post_network.*.A_logs", "post_network.*.skip_scale")


def size_marks(name: str) -> list[pytest.MarkDecorator]:
    """The marks of a test of the published network `name`: `slow` for a large or repeated one."""
    return [pytest.mark.slow] if facts(name).params > LARGE or name in REPEATED else []


def published_params() -> list[Any]:
    """The names of the published networks, repeated ones too, for `pytest.fixture(params=...)`."""
    large = {name for name in published_names() if facts(name).params > LARGE}
    return [
        pytest.param(name, marks=[pytest.mark.slow] if name in large else [], id=name) for name in published_names()
    ]


def all_params() -> list[Any]:
    """(name, arguments) of every small member and of every published network, for `pytest.fixture(params=...)`."""
    small = [pytest.param((name, arguments), id=f"small {name}") for name, arguments in SMALL.items()]
    published = []
    for name in published_names():
        marks = [pytest.mark.slow] if name in STOOD_FOR else size_marks(name)
        published.append(pytest.param((name, {}), marks=marks, id=name))
    return small + published


def images(n: int = 2, channels: int = 3, height: int = 64, width: int = 64) -> paddle.Tensor:
    draw = np.random.default_rng([n, channels, height, width])
    return paddle.to_tensor(draw.normal(size=(n, channels, height, width)).astype(np.float32))


def rounding(network: nn.Layer, x: paddle.Tensor, y: np.ndarray) -> float:
    """How far results that are computed in another order may be from y, the network's of x.

    1e-5 of the largest. A large network, which is deep, makes more of rounding: twice that, since both sides round, or
    twice as far as it takes them to change x by one part in a million; what changes by a hundredth then proves nothing.
    """
    largest = np.abs(y).max()
    if sum(int(parameter.size) for parameter in network.parameters()) < 1_000_000:
        return 1e-5 * largest
    with paddle.no_grad():
        changed = np.abs(network(x * (1 + 1e-6)).numpy() - y).max()
    assert changed < 1e-2 * largest
    return 2 * max(1e-5 * largest, changed)


def lively(network: nn.Layer, seed: int = 0) -> nn.Layer:
    """The network with weights and statistics that keep signals large enough for differences to show in the logits."""
    draw = np.random.default_rng(seed)
    tame = type(network).__name__ == "GroupMamba"  # with larger products it makes of one part in a million the whole
    for parameter in network.parameters():
        if parameter.trainable and parameter.ndim > 1:
            # (out, in, k, l) of a convolution, (in, out) of a linear layer
            fan_in = int(np.prod(parameter.shape[1:])) if parameter.ndim == 4 else parameter.shape[0]
            gain = 0.25 if tame and parameter.ndim == 2 else 1.0
            parameter.set_value(draw.normal(0, gain * fan_in**-0.5, parameter.shape).astype(np.float32))
    norms = [layer for layer in network.sublayers() if isinstance(layer, (nn.BatchNorm1D, nn.BatchNorm2D))]
    network.train()
    paddle.seed(0)  # of the dropout
    for norm in norms:
        norm._momentum = 0.0  # one pass decides the statistics
    with paddle.no_grad():
        network(images(8, next(p for p in network.parameters() if p.ndim == 4).shape[1]))
    for norm in norms:
        norm._momentum = 0.9
    return network


def small_network() -> nn.Layer:
    """The smallest with parameters and statistics."""
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1D(3))


def arrays_of(network: nn.Layer) -> dict[str, np.ndarray]:
    """A network's tensors by name."""
    return {name: tensor.numpy() for name, tensor in network.state_dict().items()}


def export_network(
    network: nn.Layer, name: str, arguments: dict[str, Any], size: int, folder: Path, onnx: bool = False
) -> Exported:
    """The export of a network with its present weights, compared on scikit-learn's two photographs."""
    paddle.save(network.state_dict(), str(folder / "weights.pdparams"))
    operators = [{"DecodeImage": {}}, {"ResizeImage": {"size": size}}, {"NormalizeImage": {}}]
    given = {
        "Global": {
            "pretrained_model": str(folder / "weights"),
            "image_shape": [3, size, size],
            "save_inference_dir": str(folder / "inference"),
        },
        "Arch": {"name": name, "class_num": network.num_classes, **arguments},
        "Infer": {"transforms": operators},
    }
    (folder / "config.yaml").write_text(json.dumps(given), encoding="utf-8")
    return export(config.load(folder / "config.yaml", [], []), probe=False, onnx=onnx)
