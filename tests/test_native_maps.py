"""Compiled operators of maps besides convolutions of some width: 1x1 convolution and max pooling."""

from __future__ import annotations

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from test_native import assert_agrees, draw, result_and_gradients

from ppcls_ext.layers import PointwiseConv2D
from ppcls_ext.ops import max_pool, native, pointwise_conv


@pytest.mark.parametrize("channels", [(1, 1), (58, 58), (17, 160), (160, 17), (256, 3), (520, 13)], ids=str)
@pytest.mark.parametrize("maps", [(1, 1, 1), (33, 1, 1), (5, 3, 3), (3, 3, 5), (70, 3, 3), (2, 17, 31)], ids=str)
def test_a_pointwise_convolution_of_any_shape_is_paddles(
    channels: tuple[int, int], maps: tuple[int, int, int], built: None
) -> None:
    (inner, outer), (n, height, width) = channels, maps
    arrays = draw((n, inner, height, width), (outer, inner, 1, 1), (outer,))
    assert_agrees(pointwise_conv, arrays)


def test_a_pointwise_layer_gives_the_same_whoever_computes_it(built: None) -> None:
    layer = PointwiseConv2D(24, 40)
    x = draw((9, 24, 3, 4))
    ours = [*result_and_gradients(layer, x, "float32"), layer.weight.grad.numpy()]
    layer.clear_gradients()
    with native.plain():
        paddles = [*result_and_gradients(layer, x, "float32"), layer.weight.grad.numpy()]
    for mine, other in zip(ours, paddles):
        np.testing.assert_allclose(mine, other, rtol=0, atol=1e-5 * np.abs(other).max())


def test_frozen_weights_get_no_gradient_and_the_maps_theirs(built: None) -> None:
    layer = PointwiseConv2D(24, 40)
    layer.weight.stop_gradient = True
    x = paddle.ones([8, 24, 3, 3])
    x.stop_gradient = False
    layer(x).sum().backward()
    assert layer.weight.grad is None
    np.testing.assert_allclose(x.grad.numpy()[0, :, 1, 1], layer.weight.numpy().sum((0, 2, 3)), atol=1e-5)


def test_a_view_and_float64_are_convolved_too(built: None) -> None:
    x, w = (paddle.to_tensor(array) for array in draw((8, 5, 4, 3), (7, 5, 1, 1)))
    view = x.transpose([0, 1, 3, 2])
    expected = F.conv2d(view, w).numpy()
    np.testing.assert_array_equal(pointwise_conv(view, w).numpy(), expected)
    ours = pointwise_conv(x.astype("float32").transpose([0, 1, 3, 2]), w.astype("float32"))
    np.testing.assert_allclose(ours.numpy(), expected, rtol=0, atol=1e-5)


def test_a_weight_of_other_channels_is_refused(built: None) -> None:
    with pytest.raises(ValueError, match="does not fit 5 channels"):
        pointwise_conv(paddle.ones([1, 5, 2, 2]), paddle.ones([3, 4, 1, 1]))


@pytest.mark.parametrize("window", [(3, 2, 1), (2, 2, 0), (3, 1, 1), (5, 3, 2), (2, 4, 1), (1, 1, 0)], ids=str)
@pytest.mark.parametrize("maps", [(2, 3, 7, 9), (1, 1, 1, 2), (3, 2, 4, 33), (1, 2, 48, 48)], ids=str)
@pytest.mark.parametrize("ties", [False, True])
def test_max_pooling_and_its_gradient_are_paddles_bit_for_bit(
    maps: tuple[int, ...], window: tuple[int, int, int], ties: bool, built: None
) -> None:
    kernel, stride, padding = window
    if min(maps[2:]) + 2 * padding < kernel:
        with pytest.raises(ValueError, match=f"a window of {kernel} does not fit a map of"):
            max_pool(paddle.ones(maps), *window)
        return
    x = draw(maps)[0]
    x = np.maximum(np.round(x), 0.0) if ties else x  # many zeros, as behind a ReLU
    ours = result_and_gradients(lambda x: max_pool(x, *window), [x], "float32")
    paddles = result_and_gradients(lambda x: F.max_pool2d(x, *window), [x], "float32")
    for mine, other in zip(ours, paddles):
        np.testing.assert_array_equal(mine, other)
    with paddle.no_grad():
        np.testing.assert_array_equal(max_pool(paddle.to_tensor(x.astype(np.float32)), *window).numpy(), ours[0])
