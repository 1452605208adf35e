"""Convolutions of few channels or many groups, computed in a way that is good for a CPU.

Paddle's CPU convolution works group by group and image by image: 64 images of 256 channels are 16,384 tiny matrix
products, whatever the size of the map, and the columns that it writes for them cost more than the products where
channels are few. In eager mode on a CPU these layers are computed by compiled operators (`ppcls_ext.ops.native`) where
that pays; where they are missing, and for 1x1 convolutions in groups, the same sums are computed by other operators of
Paddle. On other devices, and in an exported graph, these layers are plain convolutions; names and layouts of their
weights are a convolution's everywhere.

Not compiled, forward and backward, ms, batch 64, one core, PaddlePaddle 3.3.1 / 2.6.2, Paddle's kernel and ours:
depthwise 256 channels (3, 1) on 2x2: 67 / 245 and 3.9 / 9.0; depthwise 64 channels (5, 1) on 7x7: 33 / 84 and 10 / 24;
1x1 in 12 groups, 96 to 384 channels on 2x2: 4.6 / 23 and 1.4 / 1.6.
"""

from __future__ import annotations

from typing import Literal

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from ppcls_ext.ops import native
from ppcls_ext.ops.depthwise import compiled_takes, depthwise_conv
from ppcls_ext.ops.direct_conv import direct_conv
from ppcls_ext.ops.pointwise_conv import pointwise_conv

Padding = Literal["half", "same"]

# Columns are kernel area times as large as the map: above this size memory traffic eats the gain.
_LARGEST_COLUMNS = 256
# Channels that each sum of a compiled dense or grouped convolution mixes. Forward and backward, ms of one thread's
# processor time, Paddle's kernel and the compiled one, 3x3: 32 channels of batch 4 at 112: 101 and 25; 64 at 56: 63 and
# 22; 128 at 28: 36 and 23; 128 of batch 64 at 8: 54 and 44; 256 at 28 with stride 2: 40 and 45; 512 at 14 with stride
# 2: 52 and 85. From 256 on Paddle's matrix product wins where the result is small.
_MOST_MIXED = 128
# Pixels of a map up to which a 1x1 convolution is one compiled product over all images, and images from which on.
# Forward and backward, ms of one thread's processor time, batch 32, Paddle's kernel (image by image) and
# ours: 232 to 232 channels at 3: 1.7 and 1.3; 464 to 1024 at 3: 15.7 and 9.6; 1024 to 1024 at 3: 38 and 19; 192 to 1152
# at 5: 10.8 and 11.6; 116 to 116 at 6: 1.52 and 1.54; 58 to 58 at 12: 1.2 and 1.4.
_SMALL_MAP = 16
_SMALLEST_BATCH = 8


def eager_on_cpu() -> bool:
    """Whether tensors are computed now, on a CPU: no graph is being traced."""
    return paddle.in_dynamic_mode() and paddle.get_device() == "cpu"


class _PaddedConv2D(nn.Conv2D):
    """A convolution padded by half of its odd kernel ("half"), or as the map's size demands for H / s ("same")."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        padding: Padding,
        groups: int,
        bias: bool,
    ) -> None:
        half = (kernel[0] // 2, kernel[1] // 2)
        pad = "SAME" if padding == "same" else half
        super().__init__(
            in_channels, out_channels, kernel, stride, pad, groups=groups, bias_attr=None if bias else False
        )
        self.kernel, self.stride, self.half, self.same = kernel, stride, half, padding == "same"

    def padding_of(self, height: int, width: int) -> tuple[int, int, int, int]:
        """(top, bottom, left, right) for a map of this size; "same" pads more at the bottom and right."""
        pads = []
        for size, kernel, stride, half in zip((height, width), self.kernel, self.stride, self.half):
            if self.same:
                total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
                pads += [total // 2, total - total // 2]
            else:
                pads += [half, half]
        return tuple(pads)


class DirectConv2D(_PaddedConv2D):
    """A kernel of some width over all channels, or over those of a group: (N, C, H, W) -> (N, O, H', W').

    Here, and nowhere else, it is decided who computes it.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        padding: Padding = "half",
        groups: int = 1,
        bias: bool = False,
    ) -> None:
        super().__init__(in_channels, out_channels, (kernel, kernel), (stride, stride), padding, groups, bias)
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        if not eager_on_cpu():
            return nn.Conv2D.forward(self, x)  # Paddle 2.6 cannot trace super()
        if self.weight.shape[1] > _MOST_MIXED or not native.usable(x, self.weight, self.bias):
            return nn.Conv2D.forward(self, x)
        return direct_conv(x, self.weight, self.bias, self.stride, self.padding_of(*x.shape[2:]), self.groups)


class DepthwiseConv2D(_PaddedConv2D):
    """A group per input channel: (N, C, H, W) -> (N, m C, H', W').

    Here, and nowhere else, it is decided who computes a depthwise convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: tuple[int, int],
        stride: tuple[int, int] = (1, 1),
        padding: Padding = "half",
        bias: bool = False,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel, stride, padding, in_channels, bias)

    def forward(self, x: Tensor) -> Tensor:
        if not eager_on_cpu():
            return nn.Conv2D.forward(self, x)  # Paddle 2.6 cannot trace super()
        n, channels, *size = x.shape
        height, width = ((size[i] - 1) // self.stride[i] + 1 for i in (0, 1))
        taps = self.kernel[0] * self.kernel[1]
        if compiled_takes(x, self.weight, self.bias):
            return depthwise_conv(x, self.weight, self.bias, self.stride, self.padding_of(*size))
        if self.same or self.bias is not None or taps * height * width > _LARGEST_COLUMNS:
            return nn.Conv2D.forward(self, x)  # Paddle 2.6 cannot trace super()
        columns = F.unfold(x, self.kernel, self.stride, self.half).reshape([n, channels, 1, taps, height * width])
        weight = self.weight.reshape([channels, -1, taps, 1])  # (m C, 1, k, l) -> (C, m, k l, 1)
        return (columns * weight).sum(3).reshape([n, -1, height, width])


class PointwiseConv2D(nn.Conv2D):
    """1x1 convolution, of all channels or in groups, no bias: (N, C, H, W) -> (N, out_channels, H, W).

    Here, and nowhere else, it is decided who computes it.
    """

    def __init__(self, in_channels: int, out_channels: int, groups: int = 1) -> None:
        super().__init__(in_channels, out_channels, 1, groups=groups, bias_attr=False)
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        if not eager_on_cpu():
            return nn.Conv2D.forward(self, x)  # Paddle 2.6 cannot trace super()
        n, channels, height, width = x.shape
        if self.groups == 1:
            if n >= _SMALLEST_BATCH and 1 < height * width <= _SMALL_MAP and native.usable(x, self.weight):
                return pointwise_conv(x, self.weight)
            return nn.Conv2D.forward(self, x)
        weight = self.weight.reshape([1, self.groups, -1, channels // self.groups])
        # expanded by hand: the gradient of a broadcast matrix product fails for four dimensions
        weight = weight.expand([n, *weight.shape[1:]])
        x = x.reshape([n, self.groups, channels // self.groups, height * width])
        return paddle.matmul(weight, x).reshape([n, -1, height, width])
