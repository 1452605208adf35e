"""Batch norm in training with an addition and a ReLU behind it, compiled: one pass through memory instead of four.

Paddle's CPU kernels of all three compute on one thread. docs/speed.md has the measurements.
"""

from __future__ import annotations

import ctypes
from typing import Any

import paddle
from paddle import Tensor

from ppcls_ext.ops import native


def batch_norm_relu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    added: Tensor | None,
    running: tuple[Tensor, Tensor],
    momentum: float,
    epsilon: float,
    relu: bool = True,
) -> Tensor:
    """(N, C, H, W), (C,), (C,), (N, C, H, W) -> (N, C, H, W), of the batch's own mean and biased variance.

    The two running statistics are changed in place. For tensors that `native.usable` takes.
    """
    return _BatchNorm.apply(x, weight, bias, added, running, momentum, epsilon, relu)


def _sizes(x: Tensor, relu: bool) -> ctypes.Array:
    n, channels, height, width = x.shape
    return native.sizes(n, channels, height * width, relu)


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
        relu: bool,
    ) -> Tensor:
        x = native.ready(x)
        kept, y = paddle.empty([2, x.shape[1]], dtype="float32"), paddle.empty(x.shape, dtype="float32")
        tensors = (x, weight, bias, None if added is None else native.ready(added), *running, kept, y)
        constants = (ctypes.c_float * 2)(epsilon, momentum)
        native.library().batch_norm_forward(_sizes(x, relu), constants, *(native.pointer(t) for t in tensors))
        ctx.save_for_backward(x, weight, kept, y if relu else x)
        ctx.relu, ctx.has_added = relu, added is not None
        ctx.wanted = [t is not None and not t.stop_gradient for t in (x, weight, bias, added)]
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, kept, y = ctx.saved_tensor()
        shapes = (x.shape, weight.shape, weight.shape, x.shape)
        results = native.empty_where(ctx.wanted, shapes)
        tensors = (x, weight, kept, y, native.ready(gradient), *results)
        native.library().batch_norm_backward(_sizes(x, ctx.relu), *(native.pointer(t) for t in tensors))
        return tuple(results if ctx.has_added else results[:3])
