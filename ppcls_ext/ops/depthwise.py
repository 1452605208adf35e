"""Depthwise convolution, compiled for the processor where that is possible.

Paddle's CPU kernel takes 3 to 10 times as long as the compiled one; docs/speed.md has the measurements.
"""

from __future__ import annotations

from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from ppcls_ext.ops import native

_MOST_TAPS = 4096  # of one input channel's kernels together


# as they are, not converted for a static graph
@paddle.jit.not_to_static
def depthwise_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int], padding: tuple[int, int, int, int]
) -> Tensor:
    """(N, C, H, W), (m C, 1, k, l), (m C,) -> (N, m C, H', W'); the padding is (top, bottom, left, right)."""
    if not compiled_takes(x, weight, bias):
        return F.conv2d(x, weight, bias, stride, list(padding), groups=x.shape[1])
    wanted = [t is not None and not t.stop_gradient for t in (x, weight, bias)]
    if paddle.is_grad_enabled() and any(wanted):
        return _Depthwise.apply(x, weight, bias, stride, padding)
    return _forward(x, weight, bias, stride, padding)


@paddle.jit.not_to_static
def compiled_takes(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the compiled kernel can compute this."""
    return native.usable(x, weight, bias) and weight.size <= _MOST_TAPS * x.shape[1]


def _sizes(x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int, int, int]) -> tuple[int, ...]:
    n, channels, height, width = x.shape
    out_channels, _, rows, columns = weight.shape
    top, bottom, left, right = padding
    out = (height + top + bottom - rows) // stride[0] + 1, (width + left + right - columns) // stride[1] + 1
    return (n, channels, out_channels // channels, height, width, rows, columns, *stride, top, left, *out)


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int], padding: tuple[int, int, int, int]
) -> Tensor:
    x, weight = native.ready(x), native.ready(weight)
    sizes = _sizes(x, weight, stride, padding)
    if min(sizes[-2:]) < 1:
        raise ValueError(f"a kernel of {weight.shape[2:]} does not fit a map of {x.shape[2:]} with padding {padding}")
    y = paddle.empty([x.shape[0], weight.shape[0], *sizes[-2:]], dtype="float32")
    pointers = [native.pointer(t) for t in (x, weight, bias, y)]
    native.library().depthwise_forward(native.sizes(*sizes), *pointers)
    return y


class _Depthwise(paddle.autograd.PyLayer):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int, int, int],
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.options = stride, padding
        ctx.wanted = [t is not None and not t.stop_gradient for t in (x, weight, bias)]
        ctx.has_bias = bias is not None
        return _forward(x, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = (native.ready(t) for t in ctx.saved_tensor())
        gradient = native.ready(gradient)
        bias_shape = [weight.shape[0]]
        shapes = (x.shape, weight.shape, bias_shape)
        results = native.empty_where(ctx.wanted, shapes)
        sizes = _sizes(x, weight, *ctx.options)
        pointers = [native.pointer(t) for t in (x, weight, gradient, *results)]
        native.library().depthwise_backward(native.sizes(*sizes), *pointers)
        return tuple(results if ctx.has_bias else results[:2])
