"""Layer norm of tokens, alone or with the gate behind it, compiled for inference; training and graphs take Paddle's."""

from __future__ import annotations

import ctypes
import math

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from ppcls_ext.ops import native


# as they are, not converted for a static graph
@paddle.jit.not_to_static
def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """Over the last axis: (..., C), (C,), (C,) -> (..., C)."""
    if not native.usable_for_inference(x, weight, bias):
        return F.layer_norm(x, weight.shape, weight, bias, epsilon)
    return _forward(x, [weight], [bias], None, epsilon)


@paddle.jit.not_to_static
def gated_norm(x: Tensor, gate: Tensor, weights: list[Tensor], biases: list[Tensor], epsilon: float) -> Tensor:
    """Layer norm with weights for each group, times silu(gate): (G, N, L, C), the same -> (G, N, L, C)."""
    if not native.usable_for_inference(x, gate, *weights, *biases):
        parts = zip(paddle.unbind(x, 0), paddle.unbind(gate, 0), weights, biases)
        return paddle.stack([F.layer_norm(y, w.shape, w, b, epsilon) * F.silu(z) for y, z, w, b in parts])
    return _forward(x, weights, biases, native.ready(gate), epsilon)


def _forward(x: Tensor, weights: list[Tensor], biases: list[Tensor], gate: Tensor | None, epsilon: float) -> Tensor:
    x = native.ready(x)
    groups, channels = len(weights), x.shape[-1]
    y = paddle.empty(x.shape, dtype="float32")
    native.library().norm_forward(
        native.sizes(groups, math.prod(x.shape) // (groups * channels), channels),
        ctypes.c_float(epsilon),
        native.pointer(x),
        native.pointers(weights),
        native.pointers(biases),
        native.pointer(gate),
        native.pointer(y),
    )
    return y
