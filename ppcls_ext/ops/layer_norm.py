"""Layer norm of tokens, compiled, with a gate where groups of channels have weights of their own.

Paddle's CPU kernel of the gradient takes ten times as long as that of the values. Graphs take Paddle's operators.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from ppcls_ext.ops import native


# as it is, not converted for a static graph
@paddle.jit.not_to_static
def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """Over the last axis: (..., C), (C,), (C,) -> (..., C)."""
    if not native.usable(x, weight, bias):
        return F.layer_norm(x, weight.shape, weight, bias, epsilon)
    return _applied(x, weight, bias, None, epsilon)


def gated_norm(x: Tensor, gate: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """Norm over the last axis, times SiLU of the gate: (G, ..., C) twice, (G, C) twice -> (G, ..., C).

    For tensors that `native.usable` takes.
    """
    return _applied(x, weight, bias, gate, epsilon)


def _applied(x: Tensor, weight: Tensor, bias: Tensor, gate: Tensor | None, epsilon: float) -> Tensor:
    tensors = (x, weight, bias) if gate is None else (x, weight, bias, gate)
    if paddle.is_grad_enabled() and not all(t.stop_gradient for t in tensors):
        return _LayerNorm.apply(*tensors, epsilon=epsilon)
    return _forward(x, weight, bias, gate, epsilon, keep=False)[0]


def _sizes(x: Tensor, weight: Tensor) -> ctypes.Array:
    groups = weight.shape[0] if len(weight.shape) == 2 else 1
    return native.sizes(groups, math.prod(x.shape[:-1]) // groups, x.shape[-1])


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor, gate: Tensor | None, epsilon: float, keep: bool
) -> tuple[Tensor, Tensor | None]:
    """The result, and with `keep` mean and 1 / deviation of each row."""
    x, gate = native.ready(x), None if gate is None else native.ready(gate)
    y = paddle.empty(x.shape, dtype="float32")
    kept = paddle.empty([math.prod(x.shape[:-1]), 2], dtype="float32") if keep else None
    pointers = [native.pointer(t) for t in (x, weight, bias, gate, kept, y)]
    native.library().norm_forward(_sizes(x, weight), ctypes.c_float(epsilon), *pointers)
    return y, kept


class _LayerNorm(paddle.autograd.PyLayer):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, gate: Tensor | None = None, *, epsilon: float
    ) -> Tensor:
        y, kept = _forward(x, weight, bias, gate, epsilon, keep=True)
        tensors = (x, weight, bias) if gate is None else (x, weight, bias, gate)
        ctx.save_for_backward(kept, *tensors)
        ctx.wanted = [not t.stop_gradient for t in tensors]
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        kept, x, weight, bias, *gate = (native.ready(t) for t in ctx.saved_tensor())
        results = [paddle.empty(t.shape, dtype="float32") for t in (x, weight, bias, *gate)]
        x_gradient, weight_gradient, bias_gradient, *gate_gradient = results
        ours = (x_gradient, gate_gradient[0] if gate else None, weight_gradient, bias_gradient)
        tensors = (x, weight, bias, gate[0] if gate else None, kept, native.ready(gradient), *ours)
        native.library().norm_backward(_sizes(x, weight), *(native.pointer(t) for t in tensors))
        return native.where(ctx.wanted, results)
