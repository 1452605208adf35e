"""Batch norm in training with an addition and an activation behind it, compiled: each once through memory.

Paddle's CPU kernels of all three compute on one thread. docs/speed.md has the measurements.
"""

from __future__ import annotations

import ctypes
from typing import Any

import paddle
from paddle import Tensor

from ppcls_ext.ops import native

ACTIVATIONS = ("none", "relu", "relu6", "silu", "gelu")  # in the order of ops/native/batch_norm.cpp
AFTER_AN_ADDITION = ("none", "relu", "relu6")  # their gradients can be told from their results


def batch_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running: tuple[Tensor, Tensor],
    momentum: float,
    epsilon: float,
    activation: str = "none",
    added: Tensor | None = None,
) -> Tensor:
    """(N, C, H, W), (C,), (C,) -> (N, C, H, W), of the batch's own mean and biased variance.

    `added` (N, C, H, W) comes before the activation, which is one of `AFTER_AN_ADDITION` then, else one of
    `ACTIVATIONS`. The two running statistics are changed in place. For tensors that `native.usable` takes.
    """
    return _BatchNorm.apply(x, weight, bias, added, running, momentum, epsilon, activation)


def _sizes(x: Tensor, activation: str) -> ctypes.Array:
    n, channels, height, width = x.shape
    return native.sizes(n, channels, height * width, ACTIVATIONS.index(activation))


class _BatchNorm(paddle.autograd.PyLayer):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        added: Tensor | None,
        running: tuple[Tensor, Tensor],
        momentum: float,
        epsilon: float,
        activation: str,
    ) -> Tensor:
        x = native.ready(x)
        kept, y = paddle.empty([2, x.shape[1]], dtype="float32"), paddle.empty(x.shape, dtype="float32")
        tensors = (x, weight, bias, None if added is None else native.ready(added), *running, kept, y)
        constants = (ctypes.c_float * 2)(epsilon, momentum)
        native.library().batch_norm_forward(_sizes(x, activation), constants, *(native.pointer(t) for t in tensors))
        ctx.needs_y = added is not None and activation != "none"
        ctx.save_for_backward(x, weight, bias, kept, y if ctx.needs_y else x)
        ctx.activation, ctx.has_added = activation, added is not None
        ctx.wanted = [t is not None and not t.stop_gradient for t in (x, weight, bias, added)]
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, kept, y = ctx.saved_tensor()
        shapes = (x.shape, weight.shape, weight.shape, x.shape)
        results = native.empty_where(ctx.wanted, shapes)
        tensors = (x, weight, bias, kept, y if ctx.needs_y else None, native.ready(gradient), *results)
        native.library().batch_norm_backward(_sizes(x, ctx.activation), *(native.pointer(t) for t in tensors))
        return tuple(results if ctx.has_added else results[:3])
