"""1x1 convolution, compiled for the processor where that is possible: one product over the pixels of all images.

Paddle's CPU kernel multiplies image by image, and adds up a product of each for the gradient of the weights: where maps
are small, those are tiny products. docs/speed.md has the measurements.
"""

from __future__ import annotations

import ctypes
from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from ppcls_ext.ops import native


# as they are, not converted for a static graph
@paddle.jit.not_to_static
def pointwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(N, C, H, W), (O, C, 1, 1), (O,) -> (N, O, H, W)."""
    if not native.usable(x, weight, bias):
        return F.conv2d(x, weight, bias)
    if x.shape[1] != weight.shape[1]:
        raise ValueError(f"a weight of {weight.shape} does not fit {x.shape[1]} channels")
    wanted = [t is not None and not t.stop_gradient for t in (x, weight, bias)]
    if paddle.is_grad_enabled() and any(wanted):
        return _PointwiseConv.apply(x, weight, bias)
    return _forward(x, weight, bias)


def _sizes(x: Tensor, weight: Tensor) -> ctypes.Array:
    n, channels, height, width = x.shape
    return native.sizes(n, channels, height * width, weight.shape[0])


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    x, weight = native.ready(x), native.ready(weight)
    y = paddle.empty([x.shape[0], weight.shape[0], *x.shape[2:]], dtype="float32")
    native.library().pointwise_forward(_sizes(x, weight), *(native.pointer(t) for t in (x, weight, bias, y)))
    return y


class _PointwiseConv(paddle.autograd.PyLayer):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.wanted = [t is not None and not t.stop_gradient for t in (x, weight, bias)]
        ctx.has_bias = bias is not None
        return _forward(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = (native.ready(t) for t in ctx.saved_tensor())
        gradient = native.ready(gradient)
        shapes = (x.shape, weight.shape, [weight.shape[0]])
        results = native.empty_where(ctx.wanted, shapes)
        pointers = [native.pointer(t) for t in (x, weight, gradient, *results)]
        native.library().pointwise_backward(_sizes(x, weight), *pointers)
        return tuple(results if ctx.has_bias else results[:2])
