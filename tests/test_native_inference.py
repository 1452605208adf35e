"""The compiled operators of inference compute what Paddle's do, and leave training and graphs to these."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import paddle
import pytest

from ppcls_ext import create_model
from ppcls_ext.layers import LayerNorm, Linear
from ppcls_ext.ops import (
    gated_norm,
    group_linear,
    layer_norm,
    linear,
    merged_linear,
    native,
    split_linear,
)

TOLERANCE = 1e-5  # of the largest value


def draw(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    rng = np.random.default_rng([len(shapes), *shapes[0]])
    return [rng.normal(size=shape) for shape in shapes]


def assert_agrees(function: Callable, arrays: list[np.ndarray]) -> None:
    """In float32, compiled, with Paddle's operators in float64."""
    computed = []
    for dtype in ("float32", "float64"):
        tensors = [paddle.to_tensor(array.astype(dtype)) for array in arrays]
        assert native.usable_for_inference(*tensors) == (dtype == "float32")
        results = function(*tensors)
        computed.append([y.numpy() for y in (results if isinstance(results, (list, tuple)) else [results])])
    assert len(computed[0]) == len(computed[1])
    for mine, other in zip(*computed):
        np.testing.assert_allclose(mine, other, rtol=0, atol=TOLERANCE * np.abs(other).max() + 1e-12)


ROWS = [(1, 1), (2, 7), (1, 23), (3, 197)]  # images and places: single rows, uneven tiles, more than one part


@pytest.mark.parametrize("rows", ROWS, ids=str)
@pytest.mark.parametrize("width", [(1, 1), (16, 32), (7, 3), (87, 174), (64, 33), (300, 49)], ids=str)
def test_a_linear_layer_of_any_shape_is_paddles(rows: tuple[int, int], width: tuple[int, int], built: None) -> None:
    inner, columns = width
    assert_agrees(linear, draw((*rows, inner), (inner, columns), (columns,)))
    assert_agrees(linear, draw((*rows, inner), (inner, columns)))


@pytest.mark.parametrize("rows", ROWS, ids=str)
@pytest.mark.parametrize("channels", [1, 4, 16, 21, 40])
def test_products_of_groups_are_those_of_their_parts(rows: tuple[int, int], channels: int, built: None) -> None:
    groups, both = 4, 2 * channels
    shape = (groups, *rows, channels)
    weights = [(channels, both)] * groups
    assert_agrees(lambda x, *w: split_linear(x, list(w)), draw((*rows, groups * channels), *weights))
    weights = [(1, 5, channels)] * groups
    assert_agrees(lambda x, *w: group_linear(x, list(w), [3, 1, 1]), draw(shape, *weights))
    assert_agrees(lambda x, *w: group_linear(x, list(w), [5])[0], draw(shape, *weights))
    weights = [(channels, channels)] * groups
    arrays = draw(shape, (*rows, groups * channels), (rows[0], groups * channels), *weights)
    assert_agrees(lambda x, factor, scale, *w: merged_linear(x, list(w), factor, scale), arrays)


@pytest.mark.parametrize("rows", ROWS, ids=str)
@pytest.mark.parametrize("channels", [7, 16, 21, 87, 348])
def test_a_norm_is_paddles_with_or_without_a_gate(rows: tuple[int, int], channels: int, built: None) -> None:
    x, weight, bias = draw((*rows, channels), (channels,), (channels,))
    assert_agrees(lambda x, w, b: layer_norm(x, w, b, 1e-5), [3 + x, weight, bias])
    arrays = draw((3, *rows, channels), (3, *rows, channels), *[(channels,)] * 6)
    assert_agrees(lambda x, gate, *w: gated_norm(x, gate, list(w[:3]), list(w[3:]), 1e-6), arrays)


def test_values_that_are_not_finite_stay_so(built: None) -> None:
    x = paddle.randn([1, 9, 16])
    x[0, 4, 3] = float("nan")
    layer, norm = Linear(16, 20), LayerNorm(16)
    with paddle.no_grad():
        for y in (layer(x), norm(x)):
            np.testing.assert_array_equal(np.isnan(y.numpy()).any((0, 2)), np.arange(9) == 4)


def test_training_and_frozen_layers_get_the_gradients_of_paddle(built: None) -> None:
    x = paddle.randn([2, 9, 16])
    for layer in (Linear(16, 20), LayerNorm(16)):
        results = []
        for compiled in (True, False):
            layer.clear_gradients()
            if compiled:
                layer(x).square().sum().backward()
            else:
                with native.plain():
                    layer(x).square().sum().backward()
            results.append([parameter.grad.numpy() for parameter in layer.parameters()])
        for mine, other in zip(*results):
            np.testing.assert_array_equal(mine, other)


def test_weights_that_change_after_an_inference_are_used(built: None) -> None:
    layer, x = Linear(4, 4), paddle.ones([1, 4])
    with paddle.no_grad():
        before = layer(x).numpy()
        layer.weight.set_value(layer.weight * 2)
        np.testing.assert_allclose(layer(x).numpy(), before * 2, rtol=1e-5, atol=1e-6)


def test_a_network_gives_the_same_logits_with_and_without_the_compiled_operators(built: None) -> None:
    paddle.seed(0)
    network = create_model("GroupMamba_tiny", num_classes=10)
    network.eval()
    x = paddle.to_tensor(np.random.default_rng(0).normal(size=(2, 3, 64, 96)), "float32")
    with paddle.no_grad():
        mine = network(x).numpy()
        with native.plain():
            other = network(x).numpy()
    np.testing.assert_allclose(mine, other, rtol=0, atol=TOLERANCE * np.abs(other).max())
