"""1x1 convolution, compiled for the processor where that is possible: one product over the pixels of all images.

Paddle's CPU kernel multiplies image by image, and adds up a product of each for the gradient of the weights: where maps
are small, those are tiny products. docs/speed.md has the measurements.
"""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from ppcls_ext.ops import native
from ppcls_ext.ops.convolution import convolve


# as they are, not converted for a static graph
@paddle.jit.not_to_static
def pointwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(N, C, H, W), (O, C, 1, 1), (O,) -> (N, O, H, W)."""
    if not native.usable(x, weight, bias):
        return F.conv2d(x, weight, bias)
    if x.shape[1] != weight.shape[1]:
        raise ValueError(f"a weight of {weight.shape} does not fit {x.shape[1]} channels")
    n, channels, height, width = x.shape
    sizes = (n, channels, height * width, weight.shape[0])
    return convolve("pointwise", x, weight, bias, sizes, (height, width))
