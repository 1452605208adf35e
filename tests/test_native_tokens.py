"""The compiled operators of tokens in training: values and gradients are Paddle's, whatever the number of threads."""

from __future__ import annotations

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from test_native import TOLERANCE, assert_agrees, draw

from ppcls_ext.backbones.groupmamba import GroupMambaLayer, are_plain
from ppcls_ext.ops import (
    cross_scan,
    gated_norm,
    joined_products,
    layer_norm,
    linear,
    native,
    parted_products,
    scan_of_products,
    weighed,
)

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


@pytest.mark.parametrize("rows", ROWS, ids=str)
@pytest.mark.parametrize("channels", [(1, 1), (8, 8), (17, 5), (12, 48)], ids=str)
def test_products_of_groups_are_those_of_each_by_itself(
    rows: tuple[int, int], channels: tuple[int, int], built: None
) -> None:
    inner, columns = channels

    def parted(x: paddle.Tensor, weight: paddle.Tensor) -> paddle.Tensor:
        if native.usable(x):
            return paddle.stack(parted_products(x, weight))
        parts = [part @ weight[i] for i, part in enumerate(paddle.split(x, 4, 2))]
        return paddle.stack(paddle.split(paddle.stack(parts), 2, 3))

    def joined(x: paddle.Tensor, weight: paddle.Tensor) -> paddle.Tensor:
        if native.usable(x):
            return joined_products(x, weight)
        return paddle.concat([x[i] @ weight[i] for i in range(4)], 2)

    assert_agrees(parted, draw((*rows, 4 * inner), (4, inner, 2 * columns)))
    assert_agrees(joined, draw((4, *rows, inner), (4, inner, columns)))


@pytest.mark.parametrize("rows", ROWS, ids=str)
@pytest.mark.parametrize("channels", [1, 17, 64])
def test_tokens_weighed_by_channel_and_their_gradients_are_paddles(
    rows: tuple[int, int], channels: int, built: None
) -> None:
    def function(x: paddle.Tensor, y: paddle.Tensor, weight: paddle.Tensor) -> paddle.Tensor:
        return weighed(x, y, weight) if native.usable(x) else x * y * weight.unsqueeze(1)

    assert_agrees(function, draw((*rows, channels), (*rows, channels), (rows[0], channels)))


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (8, 6)], ids=str)
@pytest.mark.parametrize("channels", [(1, 1), (17, 2), (32, 3)], ids=str)
def test_a_scan_of_products_is_the_scan_of_what_paddle_multiplies(
    size: tuple[int, int], channels: tuple[int, int], built: None
) -> None:
    width, rank = channels

    def function(u: paddle.Tensor, low: paddle.Tensor, step: paddle.Tensor, *others: paddle.Tensor) -> paddle.Tensor:
        if native.usable(u):
            return scan_of_products(u, low, step, *others, *size)

        def projected(u: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
            product = paddle.einsum("gnlc,grc->gnlr", u, low)
            return paddle.einsum("gnlr,gcr->gnlc", product[..., :rank], step), product[..., -2:-1], product[..., -1:]

        return cross_scan(u, projected, *others, *size)

    shapes = (4, 3, size[0] * size[1], width), (4, rank + 2, width), (4, width, rank), *[(4, width)] * 3
    u, low, step, bias, a, d = draw(*shapes)
    assert_agrees(function, [u, low / width**0.5, step, bias, -np.abs(a) - 0.1, d])


def test_a_layer_that_trains_all_groups_at_once_computes_what_its_parts_do(built: None) -> None:
    paddle.seed(0)
    layer = GroupMambaLayer(32)
    (tokens,) = draw((3, 15, 32))
    results = []
    for at_once in (True, False):
        hooks = [] if at_once else [layer.mamba_g3.out_proj.register_forward_post_hook(lambda *_: None)]
        layer.clear_gradients()
        x = paddle.to_tensor(tokens.astype("float32"), stop_gradient=False)
        assert are_plain([layer.mamba_g1, layer.mamba_g3]) == at_once
        y = layer(x, 3, 5)
        (y * paddle.arange(32, dtype="float32")).sum().backward()
        # the norm behind it takes the gradient of skip_scale away: what is left is error
        weights = [p for name, p in layer.named_parameters() if name != "skip_scale"]
        results.append([y.numpy(), x.grad.numpy(), *(p.grad.numpy() for p in weights)])
        for hook in hooks:
            hook.remove()
    for mine, other in zip(*results):
        np.testing.assert_allclose(mine, other, rtol=0, atol=5 * TOLERANCE * np.abs(other).max())


@pytest.mark.parametrize("trained", [[], ["mamba_g2.in_proj.weight"], ["mamba_g1.Ds", "fc2.bias"], ["proj.bias"]])
def test_a_layer_whose_groups_are_frozen_trains_the_rest(trained: list[str], built: None) -> None:
    layer = GroupMambaLayer(32)
    for name, parameter in layer.named_parameters():
        parameter.stop_gradient = name not in trained
    y = layer(paddle.randn([2, 6, 32]), 2, 3)
    assert y.stop_gradient == (not trained)
    if trained:
        y.square().sum().backward()
    assert [name for name, p in layer.named_parameters() if p.grad is not None] == sorted(trained, key=NAMES.index)


NAMES = [name for name, _ in GroupMambaLayer(16).named_parameters()]
