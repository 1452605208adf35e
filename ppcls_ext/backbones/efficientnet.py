"""EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks (Tan and Le, 2019, arXiv 1905.11946).

Also EfficientNet-Lite (github.com/tensorflow/tpu, models/official/efficientnet/lite): no squeeze-and-excitation, ReLU6
instead of swish, stem, head, and the depths of the first and last stage unscaled.

Layer names are timm's. `ppcls_ext.weights` knows those of torchvision, of PaddleClas and of EfficientNet-PyTorch too.

Two graphs are published under these names. `padding="same"` is the authors', PaddleClas's and that of timm's tf_
networks: a convolution of stride 2 pads as the size of its input demands, more at the bottom and right; batch norms
have epsilon 1e-3 and keep 0.99 of their statistics. `padding="symmetric"` is torchvision's and that of timm's networks
without tf_: half of the kernel on every side; batch norms have epsilon 1e-5 and keep 0.9, but from B5 on the authors'
constants. Weights belong to the graph that they were trained in.

Deviations: none that changes a result. PaddleClas fixes the padding for one input size per network; here it is right at
every size.

Initial weights as the authors': convolutions normal with deviation sqrt(2 / (kernel area * outputs of a group)), the
linear layer uniform within 1 / sqrt(classes), zero biases, batch norms 1 and 0. Below 1000 classes the linear layer has
the bound of 1000: with 12 the authors' rule begins at a loss of 4.3 instead of 2.5, and a fresh classifier behind
published weights first spends its gradients on unlearning that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import paddle.nn.functional as F
from paddle import Tensor, nn

from ppcls_ext.backbones.published import IMAGENET_MEAN, IMAGENET_STD, Facts, backbone
from ppcls_ext.errors import refuse_all
from ppcls_ext.layers import (
    DepthwiseConv2D,
    DirectConv2D,
    DropPath,
    GlobalMean,
    PointwiseConv2D,
    global_mean,
    make_divisible,
    normalised,
    require_positive,
)
from ppcls_ext.registry import BACKBONES

ACTIVATIONS: dict[str, type[nn.Layer]] = {"swish": nn.Silu, "relu6": nn.ReLU6}
Activation = Literal["swish", "relu6"]
Padding = Literal["same", "symmetric"]


@dataclass(frozen=True)
class Style:
    """What all blocks of a network share. `momentum` is the share of the old statistics that a batch norm keeps."""

    padding: Padding
    activation: Activation
    squeeze: bool
    epsilon: float
    momentum: float

    def norm(self, channels: int) -> nn.BatchNorm2D:
        return nn.BatchNorm2D(channels, momentum=self.momentum, epsilon=self.epsilon)

    def act(self) -> nn.Layer:
        return ACTIVATIONS[self.activation]()

    def conv(self, in_channels: int, out_channels: int, kernel: int, stride: int) -> nn.Conv2D:
        return DirectConv2D(in_channels, out_channels, kernel, stride, self._pad(stride))

    def depthwise(self, channels: int, kernel: int, stride: int) -> nn.Conv2D:
        return DepthwiseConv2D(channels, channels, (kernel, kernel), (stride, stride), self._pad(stride))

    def _pad(self, stride: int) -> Literal["same", "half"]:
        # at stride 1 both conventions are the same
        return "same" if self.padding == "same" and stride > 1 else "half"


class SqueezeExcite(nn.Layer):
    """Weighs each channel by what all channels are on average: (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, channels: int, hidden: int, style: Style) -> None:
        super().__init__()
        self.mean = GlobalMean()
        self.conv_reduce = nn.Conv2D(channels, hidden, 1)
        self.act = style.act()
        self.conv_expand = nn.Conv2D(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * F.sigmoid(self.conv_expand(self.act(self.conv_reduce(self.mean(x)))))


def squeeze_excite(channels: int, in_channels: int, style: Style) -> nn.Layer:
    """Its width is a quarter of the block's input, not of the channels that it weighs."""
    return SqueezeExcite(channels, max(1, in_channels // 4), style) if style.squeeze else nn.Identity()


class PlainBlock(nn.Layer):
    """A block that does not expand: depthwise, squeeze-and-excitation, 1x1 without activation."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int, drop: float, style: Style
    ) -> None:
        super().__init__()
        self.conv_dw = style.depthwise(in_channels, kernel, stride)
        self.bn1 = style.norm(in_channels)
        self.act1 = style.act()
        self.se = squeeze_excite(in_channels, in_channels, style)
        self.conv_pw = PointwiseConv2D(in_channels, out_channels)
        self.bn2 = style.norm(out_channels)
        self.residual = stride == 1 and in_channels == out_channels
        self.drop_path = DropPath(drop) if self.residual else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.se(normalised(self.bn1, self.conv_dw(x), self.act1))
        y = normalised(self.bn2, self.conv_pw(y))
        return x + self.drop_path(y) if self.residual else y


class ExpandingBlock(nn.Layer):
    """1x1 to `expansion` times the channels, depthwise, squeeze-and-excitation, 1x1 without activation."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int,
        expansion: int,
        drop: float,
        style: Style,
    ) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.conv_pw = PointwiseConv2D(in_channels, hidden)
        self.bn1 = style.norm(hidden)
        self.act1 = style.act()
        self.conv_dw = style.depthwise(hidden, kernel, stride)
        self.bn2 = style.norm(hidden)
        self.act2 = style.act()
        self.se = squeeze_excite(hidden, in_channels, style)
        self.conv_pwl = PointwiseConv2D(hidden, out_channels)
        self.bn3 = style.norm(out_channels)
        self.residual = stride == 1 and in_channels == out_channels
        self.drop_path = DropPath(drop) if self.residual else None

    def forward(self, x: Tensor) -> Tensor:
        y = normalised(self.bn1, self.conv_pw(x), self.act1)
        y = self.se(normalised(self.bn2, self.conv_dw(y), self.act2))
        y = normalised(self.bn3, self.conv_pwl(y))
        return x + self.drop_path(y) if self.residual else y


class EfficientNet(nn.Layer):
    """An EfficientNet of checked sizes; see `efficientnet` for the arguments."""

    def __init__(
        self,
        widths: Sequence[int],
        depths: Sequence[int],
        kernels: Sequence[int],
        strides: Sequence[int],
        expansions: Sequence[int],
        style: Style,
        dropout: float,
        drop_path: float,
        num_classes: int,
        in_channels: int,
    ) -> None:
        super().__init__()
        stem, *stage_widths, head = widths
        self.conv_stem = style.conv(in_channels, stem, 3, 2)
        self.bn1 = style.norm(stem)
        self.act1 = style.act()
        channels, done, stages = stem, 0, []
        for width, depth, kernel, stride, expansion in zip(stage_widths, depths, kernels, strides, expansions):
            blocks = []
            for i in range(depth):
                first_stride = stride if i == 0 else 1
                drop = drop_path * done / sum(depths)
                if expansion == 1:
                    blocks.append(PlainBlock(channels, width, kernel, first_stride, drop, style))
                else:
                    blocks.append(ExpandingBlock(channels, width, kernel, first_stride, expansion, drop, style))
                channels, done = width, done + 1
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)
        self.conv_head = PointwiseConv2D(channels, head)
        self.bn2 = style.norm(head)
        self.act2 = style.act()
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(head, num_classes)
        self.num_classes = num_classes
        self.num_features = head
        # what no tensor shows: weights of another would load as well
        self.graph = {"padding": style.padding, "strides": list(strides), "activation": style.activation}
        # the last stage of each resolution, before the last of all: what `forward_stages` returns
        self.stage_ends = [i for i in range(len(depths) - 1) if strides[i + 1] > 1]
        self.stage_strides = [2 * math.prod(strides[: i + 1]) for i in self.stage_ends] + [2 * math.prod(strides)]
        self.stage_channels = [stage_widths[i] for i in self.stage_ends] + [head]
        initialise(self)

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, num_features, H/32, W/32) for the published members."""
        return self.forward_stages(x)[-1]

    def forward_head(self, x: Tensor) -> Tensor:
        """Feature map -> logits: (N, num_features, h, w) -> (N, num_classes)."""
        return self.classifier(self.dropout(global_mean(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_stages(self, x: Tensor) -> list[Tensor]:
        """The last feature map of each resolution; channels and strides are in `stage_channels`, `stage_strides`."""
        x = normalised(self.bn1, self.conv_stem(x), self.act1)
        maps = []
        for i, stage in enumerate(self.blocks):
            x = stage(x)
            if i in self.stage_ends:
                maps.append(x)
        maps.append(normalised(self.bn2, self.conv_head(x), self.act2))
        return maps

    def layer_groups(self) -> list[tuple[str, list[str]]]:
        """(group, prefixes of its parameter names) from input to output; "head" is what depends on the class count."""
        blocks = [
            (f"blocks.{i}.{j}", [f"blocks.{i}.{j}."]) for i, stage in enumerate(self.blocks) for j in range(len(stage))
        ]
        return [
            ("stem", ["conv_stem.", "bn1."]),
            *blocks,
            ("neck", ["conv_head.", "bn2."]),
            ("head", ["classifier."]),
        ]


def initialise(network: nn.Layer) -> None:
    """Fill convolutions and linear layers; biases are at 0, batch norms at 1 and 0 already."""
    for layer in network.sublayers():
        if isinstance(layer, nn.Conv2D):
            out_channels, _, height, width = layer.weight.shape
            fan_out = height * width * out_channels // layer._groups
            nn.initializer.Normal(0.0, math.sqrt(2.0 / fan_out))(layer.weight)
        elif isinstance(layer, nn.Linear):
            bound = max(layer.weight.shape[1], 1000) ** -0.5
            nn.initializer.Uniform(-bound, bound)(layer.weight)


@BACKBONES.register("EfficientNet")
def efficientnet(
    widths: list[int],
    depths: list[int],
    kernels: list[int],
    strides: list[int],
    expansions: list[int],
    squeeze: bool = True,
    activation: Activation = "swish",
    padding: Padding = "same",
    norm_epsilon: float = 1e-3,
    norm_momentum: float = 0.99,
    dropout: float = 0.2,
    drop_path: float = 0.2,
    num_classes: int = 1000,
    in_channels: int = 3,
) -> EfficientNet:
    """An EfficientNet of one's own.

    `depths`, `kernels`, `strides` and `expansions` have one number for each stage; `widths` are the channels of the
    stem, of each stage and of the last convolution. `squeeze` puts squeeze-and-excitation into the blocks.
    `norm_momentum` is the share of the old statistics that a batch norm keeps: 0.99 needs hundreds of steps before
    evaluation means anything. Block i of n drops its branch with probability `drop_path` * i / n. What does not fit is
    refused.
    """
    require_positive(num_classes=num_classes, in_channels=in_channels)
    problems = []
    stages = len(depths)
    if stages == 0:
        problems.append("depths: expected at least one stage")
    if len(widths) != stages + 2:
        problems.append(f"widths: expected {stages + 2} (stem, {stages} stages, last convolution), got {len(widths)}")
    for name, values in (("kernels", kernels), ("strides", strides), ("expansions", expansions)):
        if len(values) != stages:
            problems.append(f"{name}: expected {stages}, as many as depths, got {len(values)}")
    for name, values in (
        ("widths", widths),
        ("depths", depths),
        ("kernels", kernels),
        ("strides", strides),
        ("expansions", expansions),
    ):
        problems += [f"{name}[{i}] is {value}, expected above 0" for i, value in enumerate(values) if value < 1]
    problems += [f"kernels[{i}] is {k}, expected an odd number" for i, k in enumerate(kernels) if k > 0 and k % 2 == 0]
    for name, rate in (("dropout", dropout), ("drop_path", drop_path)):
        if not 0 <= rate < 1:
            problems.append(f"{name}: expected 0 <= {name} < 1, got {rate}")
    if not 0 <= norm_momentum < 1 or norm_epsilon <= 0:
        problems.append(
            f"expected 0 <= norm_momentum < 1 and norm_epsilon > 0, got {norm_momentum:g} and {norm_epsilon:g}"
        )
    for name, value, known in (("activation", activation, ACTIVATIONS), ("padding", padding, ("same", "symmetric"))):
        if value not in known:
            problems.append(f"{name}: expected one of {', '.join(known)}, got {value!r}")
    refuse_all("EfficientNet cannot be built", problems)
    style = Style(padding, activation, squeeze, norm_epsilon, norm_momentum)
    return EfficientNet(
        widths, depths, kernels, strides, expansions, style, dropout, drop_path, num_classes, in_channels
    )


@dataclass(frozen=True)
class Member:
    """One of the published sizes: multiples of B0's channels and depths, and what was measured with it."""

    width: float
    depth: float
    size: int
    dropout: float
    params: int
    macs: int
    top1: float
    top5: float | None
    others: str  # top-1 of PaddleClas's and torchvision's weights; of a Lite, timm's measurement
    lite: bool = False


B0_WIDTHS = [32, 16, 24, 40, 80, 112, 192, 320, 1280]
B0_DEPTHS = [1, 2, 2, 3, 3, 4, 1]
KERNELS = [3, 3, 5, 3, 5, 5, 3]
STRIDES = [1, 2, 2, 2, 1, 2, 1]
EXPANSIONS = [1, 6, 6, 6, 6, 6, 6]

# fmt: off
MEMBERS = {
    "EfficientNetB0": Member(1.0, 1.0, 224, 0.2, 5_288_548, 385_814_752, 76.834, 93.22, "77.38, 77.692"),
    "EfficientNetB1": Member(1.0, 1.1, 240, 0.2, 7_794_184, 686_802_832, 78.83, 94.198, "79.15, 78.642"),
    "EfficientNetB2": Member(1.1, 1.2, 260, 0.3, 9_109_994, 993_561_872, 80.084, 94.906, "79.85, 80.608"),
    "EfficientNetB3": Member(1.2, 1.4, 300, 0.3, 12_233_232, 1_827_141_392, 81.644, 95.722, "81.15, 82.008"),
    "EfficientNetB4": Member(1.4, 1.8, 380, 0.4, 19_341_616, 4_393_771_024, 83.018, 96.3, "82.85, 83.384"),
    "EfficientNetB5": Member(1.6, 2.2, 456, 0.4, 30_389_784, 10_266_384_752, 83.688, 96.712, "83.62, 83.444"),
    "EfficientNetB6": Member(1.8, 2.6, 528, 0.5, 43_040_704, 19_067_593_536, 84.116, 96.88, "84.0, 84.008"),
    "EfficientNetB7": Member(2.0, 3.1, 600, 0.5, 66_347_960, 37_745_884_192, 84.414, 96.906, "84.3, 84.122"),
    "EfficientNetLite0": Member(1.0, 1.0, 224, 0.2, 4_652_008, 385_187_552, 75.1, None, "74.83", lite=True),
    "EfficientNetLite1": Member(1.0, 1.1, 240, 0.2, 5_416_680, 600_185_232, 76.7, None, "76.644", lite=True),
    "EfficientNetLite2": Member(1.1, 1.2, 260, 0.3, 6_092_072, 859_736_272, 77.6, None, "77.464", lite=True),
    "EfficientNetLite3": Member(1.2, 1.4, 280, 0.3, 8_197_096, 1_383_321_872, 79.8, None, "79.808 at 300", lite=True),
    "EfficientNetLite4": Member(1.4, 1.8, 300, 0.3, 13_006_568, 2_553_034_336, 81.5, None, "81.532 at 380", lite=True),
}
# fmt: on


def published(member: Member) -> Facts:
    """Facts of one member: what all share is written here once."""
    if member.lite:
        source = (
            f"github.com/tensorflow/tpu, models/official/efficientnet/lite/README.md; timm measures {member.others}"
        )
    else:
        source = (
            "the authors' AutoAugment weights as timm measured them (results-imagenet.csv, 2023); "
            f"PaddleClas's and torchvision's own weights: {member.others}"
        )
    return Facts(
        params=member.params,
        macs=member.macs,
        top1=member.top1,
        top5=member.top5,
        input_size=member.size,
        # timm's share for B3, 0.904, gives one pixel less than the authors' 32
        resize=member.size + (31 if member.size == 300 and not member.lite else 32),
        crop=member.size,
        interpolation="bicubic",
        mean=(127 / 255,) * 3 if member.lite else IMAGENET_MEAN,
        std=(128 / 255,) * 3 if member.lite else IMAGENET_STD,
        recipe="350 epochs, RMSProp (decay 0.9, momentum 0.9, epsilon 1e-3), lr 0.256 for batch 4096, times 0.97 every "
        "2.4 epochs, 5 epochs of warm-up, weight decay 1e-5, label smoothing 0.1, AutoAugment, drop path 0.2, average "
        "of the weights 0.9999",
        source=f"arXiv 1905.11946; {source}",
    )


def builder(member: Member) -> Callable[..., EfficientNet]:
    """The function that builds a published member."""
    widths = [make_divisible(channels * member.width, 8) for channels in B0_WIDTHS]
    depths = [math.ceil(member.depth * depth) for depth in B0_DEPTHS]
    if member.lite:
        widths[0], widths[-1], depths[0], depths[-1] = B0_WIDTHS[0], B0_WIDTHS[-1], B0_DEPTHS[0], B0_DEPTHS[-1]

    def build(
        num_classes: int = 1000,
        in_channels: int = 3,
        padding: Padding = "same",
        dropout: float = member.dropout,
        drop_path: float = 0.2,
        norm_momentum: float | None = None,
    ) -> EfficientNet:
        """A published EfficientNet; without `norm_momentum` that of the graph that `padding` names."""
        # torchvision keeps the authors' constants from B5 on
        epsilon, momentum = (1e-5, 0.9) if padding == "symmetric" and member.width < 1.6 else (1e-3, 0.99)
        return efficientnet(
            widths,
            depths,
            KERNELS,
            STRIDES,
            EXPANSIONS,
            squeeze=not member.lite,
            activation="relu6" if member.lite else "swish",
            padding=padding,
            norm_epsilon=epsilon,
            norm_momentum=momentum if norm_momentum is None else norm_momentum,
            dropout=dropout,
            drop_path=drop_path,
            num_classes=num_classes,
            in_channels=in_channels,
        )

    return build


for _name, _member in MEMBERS.items():
    backbone(_name, published(_member))(builder(_member))
