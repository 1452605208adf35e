"""The Vision Transformer: what the tests of every network do not show."""

from __future__ import annotations

import math

import numpy as np
import paddle
import pytest
from networks import SMALL
from paddle import nn

from ppcls_ext import create_model
from ppcls_ext.errors import Refused
from ppcls_ext.optim.groups import set_layer_rates


def small(**arguments: object) -> nn.Layer:
    return create_model("VisionTransformer", **SMALL["VisionTransformer"] | {"num_classes": 5} | arguments)


def drawn(network: nn.Layer) -> dict[str, np.ndarray]:
    """Fill the network with numbers of size 1 and give them by name, in float64."""
    draw = np.random.default_rng(0)
    for tensor in network.state_dict().values():
        scale = tensor.shape[0] ** -0.5 if tensor.ndim == 2 else 0.5
        tensor.set_value(draw.normal(0, scale, tensor.shape).astype(np.float32))
    network.eval()
    return {name: tensor.numpy().astype(np.float64) for name, tensor in network.state_dict().items()}


def test_it_is_the_published_graph_written_down() -> None:
    network = small()
    weights = drawn(network)
    patch, heads, width = (SMALL["VisionTransformer"][key] for key in ("patch", "num_heads", "width"))
    images = np.random.default_rng(1).normal(size=(2, 3, 64, 64)).astype(np.float32)

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def attention(x: np.ndarray, name: str) -> np.ndarray:
        q, k, v = np.split(linear(x, f"{name}.qkv"), 3, axis=-1)
        mixed = []
        for part in np.split(np.arange(width), heads):
            share = np.exp(q[..., part] @ k[..., part].swapaxes(1, 2) / math.sqrt(width // heads))
            mixed.append(share / share.sum(-1, keepdims=True) @ v[..., part])
        return linear(np.concatenate(mixed, -1), f"{name}.proj")

    def mlp(x: np.ndarray, name: str) -> np.ndarray:
        x = linear(x, f"{name}.fc1")
        return linear(x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2, f"{name}.fc2")

    # (2, 3, 64, 64) -> (2, 8, 8, 3, 8, 8), a patch in the last three -> (2, 64, 192)
    patches = images.reshape(2, 3, 8, patch, 8, patch).transpose(0, 2, 4, 1, 3, 5).reshape(2, 64, -1)
    x = patches @ weights["patch_embed.proj.weight"].reshape(width, -1).T + weights["patch_embed.proj.bias"]
    x = np.concatenate([np.repeat(weights["cls_token"], 2, 0), x], 1) + weights["pos_embed"]
    for i in range(SMALL["VisionTransformer"]["depth"]):
        x = x + attention(norm(x, f"blocks.{i}.norm1"), f"blocks.{i}.attn")
        x = x + mlp(norm(x, f"blocks.{i}.norm2"), f"blocks.{i}.mlp")
    x = norm(x, "norm")
    found = network.forward_features(paddle.to_tensor(images))
    np.testing.assert_allclose(found.numpy(), x.swapaxes(1, 2), rtol=0, atol=1e-4)
    np.testing.assert_allclose(network.forward_head(found).numpy(), linear(x[:, 0], "head"), rtol=0, atol=1e-4)


def test_positions_follow_the_image() -> None:
    network = small()
    drawn(network)
    own = network.positions(paddle.zeros([1, 24, 8, 8])).numpy()
    np.testing.assert_array_equal(own.reshape(24, 64).T, network.pos_embed.numpy()[0, 1:])
    half = network.positions(paddle.zeros([1, 24, 4, 6])).numpy()
    assert half.shape == (1, 24, 4, 6)
    constant = paddle.ones_like(network.pos_embed)
    network.pos_embed.set_value(constant)
    np.testing.assert_allclose(network.positions(paddle.zeros([1, 24, 5, 3])).numpy(), 1.0, rtol=1e-6)


def test_what_lies_beside_the_last_patch_counts_as_zero() -> None:
    network = small()
    drawn(network)
    images = np.zeros((1, 3, 72, 64), np.float32)
    images[:, :, :67, :61] = np.random.default_rng(2).normal(size=(1, 3, 67, 61))
    cut = paddle.to_tensor(images[:, :, :67, :61].copy())
    np.testing.assert_allclose(network(cut).numpy(), network(paddle.to_tensor(images)).numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 5}, "VisionTransformer.num_heads: expected a divisor of the width 24, got 5"),
        ({"image_size": 60}, "VisionTransformer.image_size: expected a multiple of the patch 8, got 60"),
        ({"depth": 0}, "depth: expected a whole number above 0, got 0"),
        ({"drop_path": 1.0}, "expected 0 <= drop_path < 1, got 1.0"),
    ],
)
def test_a_vit_that_cannot_be_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(Refused, match=message):
        small(**arguments)


def test_fresh_weights_have_no_outliers() -> None:
    network = create_model("ViT_tiny_patch16_224")
    matrices = [parameter for parameter in network.parameters() if parameter.ndim == 2]
    assert len(matrices) == 12 * 4 + 1 and max(float(parameter.abs().max()) for parameter in matrices) < 7 * 0.02


def test_layer_decay_is_that_of_beit_and_timm() -> None:
    network = create_model("ViT_tiny_patch16_224", num_classes=3)
    set_layer_rates(0.75, network)
    factors = {name: parameter.optimize_attr["learning_rate"] for name, parameter in network.named_parameters()}
    assert factors["head.weight"] == 1 and factors["norm.weight"] == 0.75
    assert factors["blocks.11.norm1.weight"] == 0.75 and factors["blocks.0.norm1.weight"] == 0.75**12
    assert factors["cls_token"] == factors["pos_embed"] == 0.75**13
