"""Layer norm of tokens, compiled for inference; training and graphs take Paddle's."""

from __future__ import annotations

import ctypes
import math

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from ppcls_ext.ops import native


# as it is, not converted for a static graph
@paddle.jit.not_to_static
def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """Over the last axis: (..., C), (C,), (C,) -> (..., C)."""
    if not native.usable_for_inference(x, weight, bias):
        return F.layer_norm(x, weight.shape, weight, bias, epsilon)
    x = native.ready(x)
    y = paddle.empty(x.shape, dtype="float32")
    sizes = native.sizes(math.prod(x.shape[:-1]), x.shape[-1])
    native.library().norm_forward(sizes, ctypes.c_float(epsilon), *(native.pointer(t) for t in (x, weight, bias, y)))
    return y
