"""ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design (Ma et al., 2018, arXiv 1807.11164).

Layer names and graph are torchvision's, which PaddleClas computes too: the two halves of a unit are shuffled after they
were put together. The authors' release shuffles first and has other widths in x0.5 and x2.0: its weights do not fit.

Deviations: x0.25, x0.33 and the one with swish are not in the paper, but PaddleClas's.

Initial weights: convolutions normal with deviation sqrt(2 / fan-in), as in PaddleClas; the linear layer uniform within
1 / sqrt(inputs) with zero bias; batch norms 1 and 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import paddle
from paddle import Tensor, nn

from ppcls_ext.backbones.published import IMAGENET_MEAN, IMAGENET_STD, Facts, backbone
from ppcls_ext.errors import Refused
from ppcls_ext.layers import (
    DepthwiseConv2D,
    DirectConv2D,
    MaxPool2D,
    PermuteChannels,
    PointwiseConv2D,
    Sequential,
    global_mean,
    require_positive,
    shuffled,
)
from ppcls_ext.registry import BACKBONES

ACTIVATIONS: dict[str, type[nn.Layer]] = {"relu": nn.ReLU, "swish": nn.Silu}
Activation = Literal["relu", "swish"]


def depthwise(channels: int, stride: int) -> list[nn.Layer]:
    """3x3 convolution of each channel by itself, and batch norm; no activation."""
    return [DepthwiseConv2D(channels, channels, (3, 3), (stride, stride)), nn.BatchNorm2D(channels)]


def pointwise(in_channels: int, out_channels: int, activation: Activation) -> list[nn.Layer]:
    """1x1 convolution, batch norm, activation."""
    conv = PointwiseConv2D(in_channels, out_channels)
    return [conv, nn.BatchNorm2D(out_channels), ACTIVATIONS[activation]()]


class Unit(nn.Layer):
    """Half of the channels pass, half are convolved, and both are shuffled: (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, channels: int, activation: Activation) -> None:
        super().__init__()
        half = channels // 2
        self.branch2 = Sequential(
            *pointwise(half, half, activation), *depthwise(half, 1), *pointwise(half, half, activation)
        )
        self.shuffle = PermuteChannels(shuffled(np.arange(channels), 2))

    def forward(self, x: Tensor) -> Tensor:
        passed, convolved = paddle.split(x, 2, axis=1)
        return self.shuffle(paddle.concat([passed, self.branch2(convolved)], axis=1))


class DownUnit(nn.Layer):
    """Both halves of the output are made of the whole input, at stride 2: (N, C, H, W) -> (N, C', H/2, W/2)."""

    def __init__(self, in_channels: int, out_channels: int, activation: Activation) -> None:
        super().__init__()
        half = out_channels // 2
        self.branch1 = Sequential(*depthwise(in_channels, 2), *pointwise(in_channels, half, activation))
        self.branch2 = Sequential(
            *pointwise(in_channels, half, activation), *depthwise(half, 2), *pointwise(half, half, activation)
        )
        self.shuffle = PermuteChannels(shuffled(np.arange(out_channels), 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.shuffle(paddle.concat([self.branch1(x), self.branch2(x)], axis=1))


class ShuffleNetV2(nn.Layer):
    """A ShuffleNetV2 of checked sizes; see `shufflenet_v2` for the arguments."""

    def __init__(
        self,
        widths: Sequence[int],
        depths: Sequence[int],
        activation: Activation,
        num_classes: int,
        in_channels: int,
    ) -> None:
        super().__init__()
        stem, *stages, last = widths
        self.conv1 = Sequential(DirectConv2D(in_channels, stem, 3, 2), nn.BatchNorm2D(stem), ACTIVATIONS[activation]())
        self.maxpool = MaxPool2D(3, 2, 1)
        self.depths = tuple(depths)
        self.stage_names = [f"stage{i + 2}" for i in range(len(depths))]  # the paper counts the stem as stage 1
        channels = stem
        for name, width, depth in zip(self.stage_names, stages, depths):
            units = [DownUnit(channels, width, activation), *(Unit(width, activation) for _ in range(depth - 1))]
            self.add_sublayer(name, nn.Sequential(*units))
            channels = width
        self.conv5 = Sequential(*pointwise(channels, last, activation))
        self.fc = nn.Linear(last, num_classes)
        self.num_classes = num_classes
        self.num_features = last
        self.graph = {"activation": activation}  # what no tensor shows: weights of another would load as well
        self.stage_channels = [stem, stem, *stages[:-1], last]
        self.stage_strides = [2, 4, *(8 * 2**i for i in range(len(depths)))]
        initialise(self)

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, num_features, H/32, W/32) for the published members."""
        return self.forward_stages(x)[-1]

    def forward_head(self, x: Tensor) -> Tensor:
        """Feature map -> logits: (N, num_features, h, w) -> (N, num_classes)."""
        return self.fc(global_mean(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_stages(self, x: Tensor) -> list[Tensor]:
        """The last feature map of each resolution; channels and strides are in `stage_channels`, `stage_strides`."""
        x = self.conv1(x)
        maps = [x]
        x = self.maxpool(x)
        for name in self.stage_names:
            maps.append(x)
            x = self._sub_layers[name](x)
        maps.append(self.conv5(x))
        return maps

    def layer_groups(self) -> list[tuple[str, list[str]]]:
        """(group, prefixes of its parameter names) from input to output; "head" is what depends on the class count."""
        units = [
            (f"{name}.{i}", [f"{name}.{i}."])
            for name, depth in zip(self.stage_names, self.depths)
            for i in range(depth)
        ]
        return [("stem", ["conv1."]), *units, ("neck", ["conv5."]), ("head", ["fc."])]


def initialise(network: nn.Layer) -> None:
    """Fill convolutions and linear layers; batch norms are at 1 and 0 already."""
    for layer in network.sublayers():
        if isinstance(layer, nn.Conv2D):
            nn.initializer.Normal(0.0, math.sqrt(2.0 / math.prod(layer.weight.shape[1:])))(layer.weight)
        elif isinstance(layer, nn.Linear):
            bound = layer.weight.shape[0] ** -0.5
            nn.initializer.Uniform(-bound, bound)(layer.weight)


@BACKBONES.register("ShuffleNetV2")
def shufflenet_v2(
    widths: list[int],
    depths: tuple[int, ...] = (4, 8, 4),
    activation: Activation = "relu",
    num_classes: int = 1000,
    in_channels: int = 3,
) -> ShuffleNetV2:
    """A ShuffleNetV2 of one's own.

    `depths` are the units of each stage; `widths` the channels of the stem, of each stage (even numbers) and of the
    last convolution. Lists that do not fit together are refused.
    """
    require_positive(num_classes=num_classes, in_channels=in_channels)
    require_positive(**{f"ShuffleNetV2.widths[{i}]": width for i, width in enumerate(widths)})
    require_positive(**{f"ShuffleNetV2.depths[{i}]": depth for i, depth in enumerate(depths)})
    if not depths or len(widths) != len(depths) + 2:
        raise Refused(
            f"ShuffleNetV2: {len(widths)} widths do not fit {len(depths)} depths; expected the stem's, one for each "
            "stage (at least one), and the last convolution's."
        )
    for i, width in enumerate(widths[1:-1], start=1):
        if width % 2:
            raise Refused(f"ShuffleNetV2.widths[{i}]: a stage has two halves: expected an even number, got {width}.")
    if activation not in ACTIVATIONS:
        raise Refused(f"ShuffleNetV2.activation: expected one of {', '.join(ACTIVATIONS)}, got {activation!r}.")
    return ShuffleNetV2(widths, depths, activation, num_classes, in_channels)


def reported(
    params: int, macs: int, top1: float, top5: float, decay: float, batch: int = 1024, others: str = ""
) -> Facts:
    """Facts of one member, as PaddleClas trained it: what all share is written here once."""
    return Facts(
        params=params,
        macs=macs,
        top1=top1,
        top5=top5,
        input_size=224,
        resize=256,
        crop=224,
        interpolation="bilinear",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        recipe=f"240 epochs, SGD momentum 0.9, batch {batch} (4 cards), lr {batch / 2048:g}, cosine to 0, "
        f"5 epochs of warm-up, weight decay {decay:g}, random resized crop and flip",
        source="PaddleClas: docs/zh_CN/models/ImageNet1k/README.md, ppcls/configs/ImageNet/ShuffleNet" + others,
        measured_with="paddleclas",
    )


def torchvision(top1: float, resize: int) -> str:
    """What torchvision reports of its own weights, which load too."""
    return f"; torchvision's weights: top-1 {top1}, resize {resize}"


X0_25 = [24, 24, 48, 96, 512]
X0_33 = [24, 32, 64, 128, 512]
X0_5 = [24, 48, 96, 192, 1024]
X1_0 = [24, 116, 232, 464, 1024]
X1_5 = [24, 176, 352, 704, 1024]
X2_0 = [24, 244, 488, 976, 2048]


@backbone("ShuffleNetV2_x0_25", reported(603_688, 17_575_760, 49.9, 73.79, 3e-5))
def shufflenet_v2_x0_25(num_classes: int = 1000, in_channels: int = 3) -> ShuffleNetV2:
    """ShuffleNetV2 x0.25."""
    return shufflenet_v2(X0_25, num_classes=num_classes, in_channels=in_channels)


@backbone("ShuffleNetV2_x0_33", reported(647_272, 22_454_592, 53.73, 77.05, 3e-4))
def shufflenet_v2_x0_33(num_classes: int = 1000, in_channels: int = 3) -> ShuffleNetV2:
    """ShuffleNetV2 x0.33."""
    return shufflenet_v2(X0_33, num_classes=num_classes, in_channels=in_channels)


@backbone("ShuffleNetV2_x0_5", reported(1_366_792, 40_476_448, 60.32, 82.26, 3e-5, others=torchvision(60.552, 256)))
def shufflenet_v2_x0_5(num_classes: int = 1000, in_channels: int = 3) -> ShuffleNetV2:
    """ShuffleNetV2 x0.5."""
    return shufflenet_v2(X0_5, num_classes=num_classes, in_channels=in_channels)


@backbone("ShuffleNetV2_x1_0", reported(2_278_604, 144_907_992, 68.8, 88.45, 4e-5, others=torchvision(69.362, 256)))
def shufflenet_v2_x1_0(num_classes: int = 1000, in_channels: int = 3) -> ShuffleNetV2:
    """ShuffleNetV2 x1.0."""
    return shufflenet_v2(X1_0, num_classes=num_classes, in_channels=in_channels)


@backbone(
    "ShuffleNetV2_x1_5", reported(3_503_624, 295_759_392, 71.63, 90.15, 4e-4, 512, others=torchvision(72.996, 232))
)
def shufflenet_v2_x1_5(num_classes: int = 1000, in_channels: int = 3) -> ShuffleNetV2:
    """ShuffleNetV2 x1.5."""
    return shufflenet_v2(X1_5, num_classes=num_classes, in_channels=in_channels)


@backbone("ShuffleNetV2_x2_0", reported(7_393_996, 583_253_464, 73.15, 91.2, 4e-5, 512, others=torchvision(76.23, 232)))
def shufflenet_v2_x2_0(num_classes: int = 1000, in_channels: int = 3) -> ShuffleNetV2:
    """ShuffleNetV2 x2.0."""
    return shufflenet_v2(X2_0, num_classes=num_classes, in_channels=in_channels)


@backbone("ShuffleNetV2_swish", reported(2_278_604, 144_907_992, 70.0, 89.2, 4e-5))
def shufflenet_v2_swish(num_classes: int = 1000, in_channels: int = 3) -> ShuffleNetV2:
    """ShuffleNetV2 x1.0 with swish in place of every ReLU."""
    return shufflenet_v2(X1_0, activation="swish", num_classes=num_classes, in_channels=in_channels)
