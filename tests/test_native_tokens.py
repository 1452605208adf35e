"""The compiled operators of tokens in training: values and gradients are Paddle's, whatever the number of threads."""

from __future__ import annotations

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from test_native import assert_agrees, draw

from ppcls_ext.ops import layer_norm, linear, native
from ppcls_ext.ops.layer_norm import gated_norm

ROWS = [(1, 1), (2, 7), (3, 197)]  # images and places: a single row, less than a chunk of the sums, more than one


@pytest.mark.parametrize("rows", ROWS, ids=str)
@pytest.mark.parametrize("channels", [3, 8, 16, 17, 58])
def test_a_norm_and_its_gradients_are_paddles(rows: tuple[int, int], channels: int, built: None) -> None:
    x, weight, bias = draw((*rows, channels), (channels,), (channels,))
    assert_agrees(lambda x, w, b: layer_norm(x, w, b, 1e-5), [3 + x, weight, bias])


@pytest.mark.parametrize("rows", ROWS, ids=str)
@pytest.mark.parametrize("channels", [3, 8, 16, 17, 58])
def test_a_norm_with_a_gate_and_its_gradients_are_paddles(rows: tuple[int, int], channels: int, built: None) -> None:
    def function(x: paddle.Tensor, gate: paddle.Tensor, w: paddle.Tensor, b: paddle.Tensor) -> paddle.Tensor:
        if native.usable(x):
            return gated_norm(x, gate, w, b, 1e-5)
        parts = [F.layer_norm(x[i], [channels], w[i], b[i], 1e-5) * F.silu(gate[i]) for i in range(4)]
        return paddle.stack(parts)

    assert_agrees(function, draw((4, *rows, channels), (4, *rows, channels), (4, channels), (4, channels)))


def test_frozen_weights_get_no_gradient_and_the_rest_theirs(built: None) -> None:
    x, weight, bias = (paddle.to_tensor(a.astype("float32")) for a in draw((5, 8), (8,), (8,)))
    bias.stop_gradient = False
    layer_norm(x, weight, bias, 1e-5).sum().backward()
    assert x.grad is None and weight.grad is None
    np.testing.assert_array_equal(bias.grad.numpy(), np.full(8, 5.0, np.float32))


@pytest.mark.parametrize("rows", [*ROWS, (2, 700)], ids=str)
@pytest.mark.parametrize("width", [(1, 1), (16, 32), (7, 3), (58, 17), (64, 33), (300, 49)], ids=str)
def test_a_linear_layer_and_its_gradients_are_paddles(
    rows: tuple[int, int], width: tuple[int, int], built: None
) -> None:
    inner, columns = width
    assert_agrees(linear, draw((*rows, inner), (inner, columns), (columns,)))
    assert_agrees(linear, draw((*rows, inner), (inner, columns)))
