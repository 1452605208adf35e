"""Depthwise convolution, compiled for the processor where that is possible.

Paddle's CPU kernel takes 3 to 10 times as long as the compiled one; docs/speed.md has the measurements.
"""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from ppcls_ext.ops import native
from ppcls_ext.ops.convolution import convolve, out_size

_MOST_TAPS = 4096  # of one input channel's kernels together


# as they are, not converted for a static graph
@paddle.jit.not_to_static
def depthwise_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int], padding: tuple[int, int, int, int]
) -> Tensor:
    """(N, C, H, W), (m C, 1, k, l), (m C,) -> (N, m C, H', W'); the padding is (top, bottom, left, right)."""
    if not compiled_takes(x, weight, bias):
        return F.conv2d(x, weight, bias, stride, list(padding), groups=x.shape[1])
    n, channels, *size = x.shape
    out_channels, _, *kernel = weight.shape
    out = out_size(x, weight, stride, padding)
    top, _, left, _ = padding
    sizes = (n, channels, out_channels // channels, *size, *kernel, *stride, top, left, *out)
    return convolve("depthwise", x, weight, bias, sizes, out)


@paddle.jit.not_to_static
def compiled_takes(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the compiled kernel can compute this."""
    return native.usable(x, weight, bias) and weight.size <= _MOST_TAPS * x.shape[1]
