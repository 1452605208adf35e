"""Convolution without columns, in groups or in one, compiled for the processor where that is possible.

Paddle's CPU kernel writes the columns of all taps to memory and multiplies group by group and image by image: where
channels are few, that costs more than the products. docs/speed.md has the measurements.
"""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from ppcls_ext.ops import native
from ppcls_ext.ops.convolution import convolve, out_size


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
    n, channels, *size = x.shape
    out_channels, inner, *kernel = weight.shape
    if inner * groups != channels or out_channels % groups:
        raise ValueError(f"a weight of {weight.shape} in {groups} groups does not fit {channels} channels")
    out = out_size(x, weight, stride, padding)
    top, _, left, _ = padding
    sizes = (n, channels, *size, out_channels, groups, *kernel, *stride, top, left, *out)
    return convolve("conv", x, weight, bias, sizes, out)
