"""Operators of our own agree with the plain way of computing the same."""

from __future__ import annotations

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn

from ppcls_ext.ops import LargeDepthwiseConv2D, large_depthwise, large_depthwise_conv

SIZES = [
    (2, 8, 31, 56, 56),
    (2, 4, 27, 14, 14),
    (2, 4, 13, 7, 7),
    (3, 4, 27, 11, 13),
    (2, 3, 13, 2, 3),
    (2, 3, 13, 1, 1),
    (1, 3, 13, 20, 5),
    (2, 3, 5, 9, 4),
]


def tensors(n: int, channels: int, kernel: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    draw = np.random.default_rng([n, channels, kernel, height, width])
    x, sent = (draw.normal(size=(n, channels, height, width)) for _ in range(2))
    return x, draw.normal(size=(channels, 1, kernel, kernel)) / kernel, sent


def plain(x: paddle.Tensor, weight: paddle.Tensor) -> paddle.Tensor:
    return F.conv2d(x, weight, padding=weight.shape[2] // 2, groups=weight.shape[0])


def forward_and_gradients(convolution: object, arrays: tuple[np.ndarray, ...], dtype: str) -> list[np.ndarray]:
    x, weight, sent = (paddle.to_tensor(array.astype(dtype)) for array in arrays)
    x.stop_gradient = weight.stop_gradient = False
    result = convolution(x, weight)
    result.backward(sent)
    return [result.numpy(), x.grad.numpy(), weight.grad.numpy()]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-12)])
@pytest.mark.parametrize("way", ["transform", "direct"])
def test_a_large_convolution_and_its_gradients_are_paddles(
    size: tuple[int, ...], dtype: str, tolerance: float, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large_depthwise, "transform_pays", lambda *_: way == "transform")
    arrays = tensors(*size)
    ours = forward_and_gradients(large_depthwise_conv, arrays, dtype)
    for mine, other in zip(ours, forward_and_gradients(plain, arrays, dtype)):
        np.testing.assert_allclose(mine, other, rtol=0, atol=tolerance * np.abs(other).max())


@pytest.mark.parametrize("frozen", ["x", "weight"])
def test_what_is_frozen_gets_no_gradient(frozen: str) -> None:
    x, weight, _ = (paddle.to_tensor(array.astype(np.float32)) for array in tensors(2, 64, 13, 14, 14))
    assert large_depthwise.transform_pays(x.shape, 13)
    x.stop_gradient, weight.stop_gradient = frozen == "x", frozen == "weight"
    large_depthwise_conv(x, weight).sum().backward()
    assert (x.grad is None) == (frozen == "x") and (weight.grad is None) == (frozen == "weight")


def test_the_way_is_chosen_by_size() -> None:
    for size in ((1, 128, 56, 56), (1, 512, 14, 14), (2, 1024, 7, 7), (-1, 512, 14, 14)):
        assert large_depthwise.transform_pays(list(size), 31)
    assert not large_depthwise.transform_pays([1, 16, 14, 14], 3)
    assert not large_depthwise.transform_pays([8, 512, 1, 1], 31)  # one tap is left
    assert not large_depthwise.transform_pays([1, 512, -1, -1], 31)


def test_an_evaluating_layer_keeps_the_kernels_transform_while_it_is_right() -> None:
    layer = LargeDepthwiseConv2D(64, 13, bias=True)
    layer.bias.set_value(paddle.arange(64, dtype="float32"))
    layer.eval()
    x = paddle.randn([2, 64, 14, 14])

    def agrees(x: paddle.Tensor) -> None:
        expected = F.conv2d(x, layer.weight, layer.bias, padding=6, groups=64).numpy()
        np.testing.assert_allclose(layer(x).numpy(), expected, rtol=0, atol=1e-5 * np.abs(expected).max())

    with paddle.no_grad():
        agrees(x)
        first = layer.kept
        agrees(x[:1])
        assert layer.kept is first
        agrees(paddle.randn([1, 64, 20, 14]))  # another size
        layer.weight.set_value(paddle.randn([64, 1, 13, 13]))
        agrees(paddle.randn([1, 64, 20, 14]))  # other weights
    layer.train()
    agrees(x)
    assert layer.kept is None


@pytest.mark.parametrize("shape", [[None, 64, 14, 10], [None, 64, None, None]])
def test_a_large_convolution_exports(shape: list[int | None], tmp_path: object) -> None:
    layer = LargeDepthwiseConv2D(64, 13, bias=True)
    layer.eval()
    paddle.jit.save(layer, str(tmp_path / "graph"), input_spec=[paddle.static.InputSpec(shape, "float32")])
    graph = paddle.jit.load(str(tmp_path / "graph"))
    graph.eval()
    for n in (1, 3):
        x = paddle.randn([n, 64, 14, 10])
        expected = nn.Conv2D.forward(layer, x).numpy()
        np.testing.assert_allclose(graph(x).numpy(), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
