"""Operators of our own agree with the plain way of computing the same."""

from __future__ import annotations

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn

from ppcls_ext.ops import LargeDepthwiseConv2D, large_depthwise, large_depthwise_conv, linear_scan, selective_scan

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


# ------------------------------------------------------------------------------------------------ selective scan


def scanned_step_by_step(a: paddle.Tensor, b: paddle.Tensor) -> paddle.Tensor:
    h, states = paddle.zeros_like(a[:, :, 0]), []
    for t in range(a.shape[2]):
        h = a[:, :, t] * h + b[:, :, t]
        states.append(h)
    return paddle.stack(states, 2)


@pytest.mark.parametrize("length", [1, 2, 3, 49, 64, 65, 66, 129, 130, 143, 261])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-12)])
def test_a_scan_and_its_gradients_are_those_of_single_steps(length: int, dtype: str, tolerance: float) -> None:
    draw = np.random.default_rng(length)
    arrays = (
        draw.uniform(0, 1, (4, 2, length, 3)),
        draw.normal(size=(4, 2, length, 3)),
        draw.normal(size=(4, 2, length, 3)),
    )
    ours = forward_and_gradients(linear_scan, arrays, dtype)
    for mine, other in zip(ours, forward_and_gradients(scanned_step_by_step, arrays, dtype)):
        np.testing.assert_allclose(mine, other, rtol=0, atol=tolerance * np.abs(other).max())
    with paddle.no_grad():
        a, b, _ = (paddle.to_tensor(array.astype(dtype)) for array in arrays)
        np.testing.assert_array_equal(linear_scan(a, b).numpy(), ours[0])


def scan_arguments(length: int) -> list[paddle.Tensor]:
    draw = np.random.default_rng(length)
    shapes = [(4, 2, length, 3)] * 2 + [(4, 3)] * 2 + [(4, 2, length, 1)] * 2 + [(4, 3)]
    arrays = [draw.normal(size=shape).astype(np.float32) for shape in shapes]
    arrays[1][0, 0, 0] = 30.0  # beyond softplus's threshold
    arrays[3] = -np.exp(arrays[3])
    return [paddle.to_tensor(array, stop_gradient=False) for array in arrays]


def selective_step_by_step(*arguments: paddle.Tensor) -> paddle.Tensor:
    u, step, bias, a, b, c, d = arguments
    bias, a, d = (x.reshape([4, 1, 1, 3]) for x in (bias, a, d))
    step = paddle.log1p(paddle.exp(step + bias))
    return scanned_step_by_step(paddle.exp(step * a), step * b * u) * c + u * d


@pytest.mark.parametrize("length", [1, 35, 135])
def test_a_selective_scan_and_its_gradients_are_those_of_single_steps(length: int) -> None:
    results = []
    for function in (selective_scan, selective_step_by_step):
        arguments = scan_arguments(length)
        y = function(*arguments)
        (y * paddle.cos(paddle.arange(y.size, dtype="float32")).reshape(y.shape)).sum().backward()
        results.append([y.numpy()] + [argument.grad.numpy() for argument in arguments])
    for mine, other in zip(*results):
        np.testing.assert_allclose(mine, other, rtol=0, atol=2e-5 * np.abs(other).max())


class Scan(nn.Layer):
    def forward(self, u, step, bias, a, b, c, d):
        return selective_scan(u, step, bias, a, b, c, d)


@pytest.mark.parametrize("length", [35, 135, None])
def test_a_selective_scan_exports(length: int | None, tmp_path: object) -> None:
    sizes = [[4, None, length, 3]] * 2 + [[4, 3]] * 2 + [[4, None, length, 1]] * 2 + [[4, 3]]
    spec = [paddle.static.InputSpec(size, "float32") for size in sizes]
    layer = Scan()
    layer.eval()
    paddle.jit.save(layer, str(tmp_path / "graph"), input_spec=spec)
    graph = paddle.jit.load(str(tmp_path / "graph"))
    graph.eval()
    for own in (length,) if length else (1, 2, 35, 64, 135):
        arguments = [argument.detach() for argument in scan_arguments(own)]
        expected = layer(*arguments).numpy()
        np.testing.assert_allclose(graph(*arguments).numpy(), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
