"""Convolution of few channels on large maps, compiled for inference: the stems of networks.

Paddle's kernel writes the columns of all taps to memory, which costs more than the products where channels are few;
where they are many and maps small, its matrix product is the better one.
"""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from ppcls_ext.ops import native

_FEWEST_COLUMNS = 24  # of the result: vectors run along its rows
_MOST_CHANNELS = 128  # of the input: the rows that a strip needs stay in the cache


# as they are, not converted for a static graph
@paddle.jit.not_to_static
def dense_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """(N, C, H, W), (O, C, k, l), (O,) -> (N, O, H', W'), padded by (rows, columns) on either side."""
    n, channels, *size = x.shape
    if not native.usable_for_inference(x, weight, bias) or channels > _MOST_CHANNELS:
        return F.conv2d(x, weight, bias, stride, padding)
    out_channels, _, *kernel = weight.shape
    out = [(size[i] + 2 * padding[i] - kernel[i]) // stride[i] + 1 for i in (0, 1)]
    if out[0] < 1 or out[1] < _FEWEST_COLUMNS:
        return F.conv2d(x, weight, bias, stride, padding)
    x, weight = native.ready(x), native.ready(weight)
    y = paddle.empty([n, out_channels, *out], dtype="float32")
    sizes = native.sizes(n, channels, *size, out_channels, *kernel, *stride, *padding, *out)
    native.library().dense_forward(sizes, *(native.pointer(t) for t in (x, weight, bias, y)))
    return y
