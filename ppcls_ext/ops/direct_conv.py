"""Convolution without columns, in groups or in one, compiled for the processor where that is possible.

Paddle's CPU kernel writes the columns of all taps to memory and multiplies group by group and image by image: where
channels are few, that costs more than the products. docs/speed.md has the measurements.
"""

from __future__ import annotations

from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from ppcls_ext.ops import native


# as they are, not converted for a static graph
@paddle.jit.not_to_static
def direct_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    groups: int = 1,
) -> Tensor:
    """(N, C, H, W), (O, C / groups, k, l), (O,) -> (N, O, H', W'); the padding is (top, bottom, left, right)."""
    if not native.usable(x, weight, bias):
        return F.conv2d(x, weight, bias, stride, list(padding), groups=groups)
    wanted = [t is not None and not t.stop_gradient for t in (x, weight, bias)]
    if paddle.is_grad_enabled() and any(wanted):
        return _DirectConv.apply(x, weight, bias, stride, padding, groups)
    return _forward(x, weight, bias, stride, padding, groups)


def _sizes(
    x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int, int, int], groups: int
) -> tuple[int, ...]:
    n, channels, height, width = x.shape
    out_channels, inner, rows, columns = weight.shape
    if inner * groups != channels or out_channels % groups:
        raise ValueError(f"a weight of {weight.shape} in {groups} groups does not fit {channels} channels")
    top, bottom, left, right = padding
    out = (height + top + bottom - rows) // stride[0] + 1, (width + left + right - columns) // stride[1] + 1
    if min(out) < 1:
        raise ValueError(f"a kernel of {weight.shape[2:]} does not fit a map of {x.shape[2:]} with padding {padding}")
    return (n, channels, height, width, out_channels, groups, rows, columns, *stride, top, left, *out)


def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    groups: int,
) -> Tensor:
    x, weight = native.ready(x), native.ready(weight)
    sizes = _sizes(x, weight, stride, padding, groups)
    y = paddle.empty([x.shape[0], weight.shape[0], *sizes[-2:]], dtype="float32")
    native.library().conv_forward(native.sizes(*sizes), *(native.pointer(t) for t in (x, weight, bias, y)))
    return y


class _DirectConv(paddle.autograd.PyLayer):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int, int, int],
        groups: int,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.options = stride, padding, groups
        ctx.wanted = [t is not None and not t.stop_gradient for t in (x, weight, bias)]
        ctx.has_bias = bias is not None
        return _forward(x, weight, bias, stride, padding, groups)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = (native.ready(t) for t in ctx.saved_tensor())
        gradient = native.ready(gradient)
        shapes = (x.shape, weight.shape, [weight.shape[0]])
        results = native.empty_where(ctx.wanted, shapes)
        pointers = [native.pointer(t) for t in (x, weight, gradient, *results)]
        native.library().conv_backward(native.sizes(*_sizes(x, weight, *ctx.options)), *pointers)
        return tuple(results if ctx.has_bias else results[:2])
