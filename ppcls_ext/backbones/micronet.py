"""MicroNet: Improving Image Recognition with Extremely Low FLOPs (Li et al., 2021, arXiv 2108.05894).

Layer names are those of the authors' release (github.com/liyunsheng13/micronet), so that its weights load. What a
reader of the paper would not expect is what the release does: the logits pass a batch norm and h-swish, and the
reductions of Dynamic Shift-Max differ from block to block.

Deviations, neither of which changes a result beyond rounding:
- channel shuffles that follow one another are one permutation;
- max(u, v) is computed as u + relu(v - u): Paddle's gradient of `maximum` is slow on a CPU.

Initial weights as in the release: convolutions normal with deviation sqrt(2 / (kernel area * output channels)) whatever
the groups, linear layers normal with deviation 0.01 and zero bias, batch norms 1 and 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, fields

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from ppcls_ext.backbones.published import IMAGENET_MEAN, IMAGENET_STD, Facts, backbone
from ppcls_ext.errors import Refused, RunFailed, refuse_all
from ppcls_ext.layers import (
    DepthwiseConv2D,
    GlobalMean,
    PermuteChannels,
    PointwiseConv2D,
    Sequential,
    global_mean,
    make_divisible,
    require_positive,
    shuffled,
)
from ppcls_ext.registry import BACKBONES

COEFFICIENT_RANGE = 2.0  # a coefficient moves by at most this much from its initial value
REDUCTION = 8


@dataclass(frozen=True)
class Row:
    """One line of the paper's table: a block and its repetitions.

    An activation `act1`, `act2` is 0: ReLU6, 1: one fusion of Dynamic Shift-Max, 2: the maximum of two. `act3` is
    0: none, otherwise one fusion.
    """

    stride: int
    repeats: int
    channels: int
    kernel: int
    expand1: int
    expand2: int
    groups1: int  # of the first 1x1 convolution; 0: none, the depthwise pair expands
    shift1: int  # groups between which activations 1 and 2 shift
    unused: int  # the release's tables repeat the channels here
    groups2: int  # of the second 1x1 convolution
    shift2: int  # groups between which activation 3 shifts; 0: the block ends after activation 1
    act1: int
    act2: int
    act3: int
    reduce: int

    @property
    def depthwise_expands(self) -> bool:
        return self.groups1 == 0

    @property
    def ends_expanded(self) -> bool:
        return self.groups1 > 0 and self.shift2 == 0


class DynamicShiftMax(nn.Layer):
    """Fuses each channel with its neighbour in the next group, by coefficients that depend on the image.

    u = a1 x + b1 shift(x); with `maximum` the larger of u and a second such fusion. (N, C, H, W) -> (N, C, H, W).
    `initial_a` and `initial_b` are the coefficients of each fusion at the start.
    """

    def __init__(
        self,
        channels: int,
        groups: int,
        reduction: int,
        maximum: bool,
        initial_a: tuple[float, float] = (1.0, 0.0),
        initial_b: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        super().__init__()
        hidden = make_divisible(channels // reduction, 4)
        coefficients = 4 if maximum else 2
        self.fc = nn.Sequential(
            ("0", nn.Linear(channels, hidden)), ("1", nn.ReLU()), ("2", nn.Linear(hidden, coefficients * channels))
        )
        self.maximum = maximum
        self.initial_a = initial_a
        self.initial_b = initial_b
        self.shift = PermuteChannels(shifted(channels, groups))

    def forward(self, x: Tensor) -> Tensor:
        share = F.hardsigmoid(self.fc(global_mean(x)), slope=1 / 6, offset=0.5)
        change = paddle.scale(share, 2 * COEFFICIENT_RANGE, -COEFFICIENT_RANGE)  # 0..1 -> -range..range
        change = change.unsqueeze([2, 3])  # (N, k C) -> (N, k C, 1, 1)
        neighbour = self.shift(x)
        if not self.maximum:
            a, b = paddle.split(change, 2, axis=1)
            return x * plus(a, self.initial_a[0]) + neighbour * plus(b, self.initial_b[0])
        a1, b1, a2, b2 = paddle.split(change, 4, axis=1)
        first = x * plus(a1, self.initial_a[0]) + neighbour * plus(b1, self.initial_b[0])
        second = x * plus(a2, self.initial_a[1]) + neighbour * plus(b2, self.initial_b[1])
        return first + F.relu(second - first)


def plus(x: Tensor, constant: float) -> Tensor:
    """x + constant, without an operator for nothing."""
    return x if constant == 0 else x + constant


def shifted(channels: int, groups: int) -> np.ndarray:
    """The order that rotates the groups by one and the channels within each group by one."""
    order = np.arange(channels).reshape(groups, -1)
    return np.roll(order, (-1, -1), axis=(0, 1)).reshape(-1)


class ConvPair(nn.Layer):
    """A depthwise k x k convolution in two factors, (k, 1) and (1, k), each with batch norm."""

    def __init__(self, in_channels: int, middle: int, out_channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = Sequential(
            DepthwiseConv2D(in_channels, middle, (kernel, 1), (stride, 1)),
            nn.BatchNorm2D(middle),
            DepthwiseConv2D(middle, out_channels, (1, kernel), (1, stride)),
            nn.BatchNorm2D(out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class PointConv(nn.Layer):
    """Grouped 1x1 convolution and batch norm."""

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.conv = Sequential(PointwiseConv2D(in_channels, out_channels, groups), nn.BatchNorm2D(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class StemPair(nn.Layer):
    """A dense (3, 1) convolution to `middle` channels, then a depthwise (1, 3) one, both of stride 2, and a shuffle."""

    def __init__(self, in_channels: int, middle: int, out_channels: int) -> None:
        super().__init__()
        self.conv = Sequential(
            nn.Conv2D(in_channels, middle, (3, 1), (2, 1), (1, 0), bias_attr=False),
            nn.BatchNorm2D(middle),
            DepthwiseConv2D(middle, out_channels, (1, 3), (1, 2)),
            nn.BatchNorm2D(out_channels),
            PermuteChannels(shuffled(np.arange(out_channels), middle)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Stem(nn.Layer):
    """(N, in_channels, H, W) -> (N, groups[0] * groups[1], H/2, W/2)."""

    def __init__(self, in_channels: int, groups: tuple[int, int]) -> None:
        super().__init__()
        self.stem = nn.Sequential(StemPair(in_channels, groups[0], groups[0] * groups[1]), nn.ReLU6())

    def forward(self, x: Tensor) -> Tensor:
        return self.stem(x)


class MicroBlock(nn.Layer):
    """Micro-factorised convolutions with Dynamic Shift-Max between them; a residual where the shape allows one.

    The numbers in `layers` are the release's positions; those that are missing do nothing or belong to a permutation.
    """

    def __init__(
        self, in_channels: int, row: Row, stride: int, initial_a: tuple[float, float], initial_b: tuple[float, float]
    ) -> None:
        super().__init__()
        out = row.channels
        hidden = in_channels * row.expand1 * row.expand2
        reduction = REDUCTION * row.reduce

        def activation(kind: int, groups: int) -> nn.Layer:
            if kind == 0:
                return nn.ReLU6()
            return DynamicShiftMax(hidden, groups, reduction, kind == 2, initial_a, initial_b)

        def last_activation(reduction: int) -> nn.Layer:
            return DynamicShiftMax(out, row.shift2, reduction, maximum=False)

        if row.depthwise_expands:
            middle = in_channels * row.expand1
            layers = {
                0: ConvPair(in_channels, middle, hidden, row.kernel, stride),
                1: activation(row.act2, row.shift1),
                2: shuffles(hidden, row.shift1, hidden // 2 if row.act2 else 0),
                4: PointConv(hidden, out, row.groups2),
                5: last_activation(reduction // 2) if row.act3 else None,
                6: shuffles(out, row.shift2, out // 2 if row.act3 and out % 2 == 0 else 0),
            }
        elif row.ends_expanded:
            layers = {
                0: PointConv(in_channels, hidden, row.groups1),
                1: DynamicShiftMax(hidden, row.shift1, reduction, maximum=False) if row.act3 else None,
            }
        else:
            # a shuffle in four or in two, as many as there are dynamic activations around the depthwise pair
            middle_shuffle = {2: hidden // 4, 1: hidden // 2, 0: 0}[(row.act1 != 0) + (row.act2 != 0)]
            layers = {
                0: PointConv(in_channels, hidden, row.groups1),
                1: activation(row.act1, row.shift1),
                2: shuffles(hidden, row.shift1),
                3: ConvPair(hidden, hidden, hidden, row.kernel, stride),
                5: activation(row.act2, hidden // row.shift1),
                6: shuffles(hidden, middle_shuffle),
                7: PointConv(hidden, out, row.groups2),
                8: last_activation(reduction // 2 if out < hidden else reduction) if row.act3 else None,
                9: shuffles(out, row.shift2, out // 2 if row.act3 else 0),
            }
        self.layers = nn.Sequential(*((str(i), layer) for i, layer in layers.items() if layer is not None))
        self.residual = stride == 1 and in_channels == out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


def shuffles(channels: int, *groups: int) -> PermuteChannels | None:
    """Channel shuffles one after the other, as one permutation; None when nothing moves. A group count of 0 is none."""
    order = np.arange(channels)
    for count in groups:
        if count:
            order = shuffled(order, count)
    return None if np.array_equal(order, np.arange(channels)) else PermuteChannels(order)


class SwishLinear(nn.Layer):
    """Linear, batch norm over the batch, h-swish: (N, in_features) -> (N, out_features)."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.linear = nn.Sequential(nn.Linear(in_features, out_features), nn.BatchNorm1D(out_features), nn.Hardswish())

    def forward(self, x: Tensor) -> Tensor:
        norm = self.linear[1]
        if norm.training and isinstance(norm, nn.BatchNorm1D) and x.shape[0] == 1:
            raise RunFailed(
                "MicroNet's classifier normalises over the batch: a training step needs at least 2 images, got 1. "
                "Choose a batch size that leaves no rest of 1, or set drop_last: True."
            )
        return self.linear(x)


class MicroNet(nn.Layer):
    """A MicroNet of checked `rows`; see `micronet` for the arguments."""

    def __init__(
        self,
        rows: list[Row],
        stem_groups: tuple[int, int],
        width: int,
        dropout: float,
        initial_a: tuple[float, float],
        initial_b: tuple[float, float],
        num_classes: int,
        in_channels: int,
    ) -> None:
        super().__init__()
        channels = stem_groups[0] * stem_groups[1]
        blocks: list[nn.Layer] = [Stem(in_channels, stem_groups)]
        strides, widths = [2], [channels]
        for row in rows:
            for repeat in range(row.repeats):
                stride = row.stride if repeat == 0 else 1
                blocks.append(MicroBlock(channels, row, stride, initial_a, initial_b))
                channels = row.channels
                strides.append(strides[-1] * stride)
                widths.append(channels)
        self.features = nn.Sequential(*blocks)
        self.avgpool = nn.Sequential(nn.ReLU6(), GlobalMean(), nn.Hardswish())
        self.classifier = nn.Sequential(
            SwishLinear(channels, width), nn.Dropout(dropout), SwishLinear(width, num_classes)
        )
        self.num_classes = num_classes
        self.num_features = channels
        # what no tensor shows: weights of another would load as well
        shift_max = {"initial_a": list(initial_a), "initial_b": list(initial_b)}
        self.graph = {**shift_max, "rows": [list(astuple(row)) for row in rows]}
        # the last block of each resolution: what `forward_stages` returns
        self.stage_blocks = [i for i in range(len(strides)) if i + 1 == len(strides) or strides[i + 1] != strides[i]]
        self.stage_strides = [strides[i] for i in self.stage_blocks]
        self.stage_channels = [widths[i] for i in self.stage_blocks]
        initialise(self)

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, num_features, H/32, W/32) for the published members."""
        return self.features(x)

    def forward_head(self, x: Tensor) -> Tensor:
        """Feature map -> logits: (N, num_features, h, w) -> (N, num_classes)."""
        return self.classifier(self.avgpool(x).flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_stages(self, x: Tensor) -> list[Tensor]:
        """The last feature map of each resolution; channels and strides are in `stage_channels`, `stage_strides`."""
        maps = []
        for i, block in enumerate(self.features):
            x = block(x)
            if i in self.stage_blocks:
                maps.append(x)
        return maps

    def layer_groups(self) -> list[tuple[str, list[str]]]:
        """(group, prefixes of its parameter names) from input to output; "head" is what depends on the class count."""
        blocks = [(f"block{i}", [f"features.{i}."]) for i in range(1, len(self.features))]
        return [("stem", ["features.0."]), *blocks, ("neck", ["classifier.0."]), ("head", ["classifier.2."])]


def initialise(network: nn.Layer) -> None:
    """Fill convolutions and linear layers as the release does; batch norms are at 1 and 0 already."""
    for layer in network.sublayers():
        if isinstance(layer, nn.Conv2D):
            out_channels, _, height, width = layer.weight.shape
            nn.initializer.Normal(0.0, (2.0 / (height * width * out_channels)) ** 0.5)(layer.weight)
        elif isinstance(layer, nn.Linear):
            nn.initializer.Normal(0.0, 0.01)(layer.weight)


@BACKBONES.register("MicroNet")
def micronet(
    rows: list[list[int]],
    stem_groups: tuple[int, int],
    width: int,
    num_classes: int = 1000,
    in_channels: int = 3,
    dropout: float = 0.0,
    initial_a: tuple[float, float] = (1.0, 1.0),
    initial_b: tuple[float, float] = (0.0, 0.0),
) -> MicroNet:
    """A MicroNet of one's own.

    `rows` are lines of the paper's table, 15 numbers each (see `Row`); the stem has stem_groups[0] * stem_groups[1]
    channels; `width` is that of the classifier's hidden layer. Rows that do not fit together are refused.
    """
    require_positive(num_classes=num_classes, in_channels=in_channels, width=width)
    if len(stem_groups) != 2:
        raise Refused(f"MicroNet.stem_groups: expected two numbers, got {list(stem_groups)}.")
    require_positive(**{f"stem_groups[{i}]": count for i, count in enumerate(stem_groups)})
    if not 0 <= dropout < 1:
        raise Refused(f"MicroNet.dropout: expected 0 <= dropout < 1, got {dropout}.")
    if not rows:
        raise Refused(f"MicroNet.rows: expected at least one row of {len(fields(Row))} numbers, got none.")
    refuse_all("MicroNet.rows do not fit together", row_problems(rows, stem_groups[0] * stem_groups[1]))
    return MicroNet(
        rows=[Row(*row) for row in rows],
        stem_groups=tuple(stem_groups),
        width=width,
        dropout=dropout,
        initial_a=tuple(initial_a),
        initial_b=tuple(initial_b),
        num_classes=num_classes,
        in_channels=in_channels,
    )


def row_problems(rows: Sequence[Sequence[int]], channels: int) -> list[str]:
    """What keeps `rows` from following a stem of `channels` channels, one sentence per problem."""
    problems: list[str] = []
    for i, numbers in enumerate(rows):
        if len(numbers) != len(fields(Row)):
            problems.append(f"rows[{i}]: expected {len(fields(Row))} numbers, got {len(numbers)}")
            return problems
        row = Row(*numbers)
        for repeat in range(max(row.repeats, 1)):
            problems += [f"rows[{i}]: {problem}" for problem in block_problems(row, channels, first=repeat == 0)]
            channels = row.channels
        if problems:
            return problems  # what follows depends on this row
    return problems


def block_problems(row: Row, in_channels: int, first: bool) -> list[str]:
    """What keeps one block from being built on `in_channels` channels."""
    problems = []
    for name, value in asdict(row).items():
        lowest = 0 if name in ("groups1", "unused", "groups2", "shift2", "act1", "act2", "act3") else 1
        if value < lowest:
            problems.append(f"{name} is {value}, expected at least {lowest}")
        if name in ("act1", "act2", "act3") and value > 2:
            problems.append(f"{name} is {value}, expected 0, 1 or 2")
    if problems:
        return problems
    hidden = in_channels * row.expand1 * row.expand2

    def must_divide(divisor: int, total: int, what: str) -> None:
        if divisor < 1 or total % divisor:
            problems.append(f"{what}: {total} channels cannot be divided by {divisor}")

    if row.kernel % 2 == 0:
        problems.append(f"kernel is {row.kernel}, expected an odd number")
    must_divide(row.shift1, hidden, "shift1")
    if not row.depthwise_expands:
        must_divide(row.groups1, in_channels, "groups1 of the input")
        must_divide(row.groups1, hidden, "groups1")
    if row.ends_expanded:
        if row.channels != hidden:
            problems.append(f"channels is {row.channels}; a block that ends expanded has {hidden}")
        if first and row.stride != 1:
            problems.append(f"stride is {row.stride}; a block that ends expanded has 1")
        return problems
    must_divide(row.groups2, hidden, "groups2 of the hidden channels")
    must_divide(row.groups2, row.channels, "groups2")
    must_divide(row.shift2, row.channels, "shift2")
    if not row.depthwise_expands:
        must_divide({2: 4, 1: 2, 0: 1}[(row.act1 != 0) + (row.act2 != 0)], hidden, "the shuffle before the second 1x1")
        if row.act3:
            must_divide(2, row.channels, "the last shuffle")
    elif row.act2:
        must_divide(2, hidden, "the shuffle before the 1x1")
    return problems


def released(params: int, macs: int, top1: float, decay: float, script: str, warm_up: str = "no warm-up") -> Facts:
    """Facts of one member: what all four share is written here once."""
    return Facts(
        params=params,
        macs=macs,
        top1=top1,
        top5=None,
        input_size=224,
        resize=256,
        crop=224,
        interpolation="bilinear",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        recipe="600 epochs, SGD momentum 0.9, batch 512, lr 0.2, cosine per iteration to 0, "
        f"{warm_up}, weight decay {decay:g} on all parameters, random resized crop and flip",
        source=f"arXiv 2108.05894; github.com/liyunsheng13/micronet: README, scripts/{script}",
    )


# fmt: off
M0_ROWS = [
    [2, 1,   8, 3, 2, 2,  0,  4,  8, 2, 2, 2, 0, 1, 1],
    [2, 1,  12, 3, 2, 2,  0,  8, 12, 4, 4, 2, 2, 1, 1],
    [2, 1,  16, 5, 2, 2,  0, 12, 16, 4, 4, 2, 2, 1, 1],
    [1, 1,  32, 5, 1, 4,  4,  4, 32, 4, 4, 2, 2, 1, 1],
    [2, 1,  64, 5, 1, 4,  8,  8, 64, 8, 8, 2, 2, 1, 1],
    [1, 1,  96, 3, 1, 4,  8,  8, 96, 8, 8, 2, 2, 1, 2],
    [1, 1, 384, 3, 1, 4, 12, 12,  0, 0, 0, 2, 2, 1, 2],
]
M1_ROWS = [
    [2, 1,   8, 3, 2, 2,  0,  6,  8, 2, 2, 2, 0, 1, 1],
    [2, 1,  16, 3, 2, 2,  0,  8, 16, 4, 4, 2, 2, 1, 1],
    [2, 1,  16, 5, 2, 2,  0, 16, 16, 4, 4, 2, 2, 1, 1],
    [1, 1,  32, 5, 1, 6,  4,  4, 32, 4, 4, 2, 2, 1, 1],
    [2, 1,  64, 5, 1, 6,  8,  8, 64, 8, 8, 2, 2, 1, 1],
    [1, 1,  96, 3, 1, 6,  8,  8, 96, 8, 8, 2, 2, 1, 2],
    [1, 1, 576, 3, 1, 6, 12, 12,  0, 0, 0, 2, 2, 1, 2],
]
M2_ROWS = [
    [2, 1,  12, 3, 2, 2,  0,  8,  12,  4,  4, 2, 0, 1, 1],
    [2, 1,  16, 3, 2, 2,  0, 12,  16,  4,  4, 2, 2, 1, 1],
    [1, 1,  24, 3, 2, 2,  0, 16,  24,  4,  4, 2, 2, 1, 1],
    [2, 1,  32, 5, 1, 6,  6,  6,  32,  4,  4, 2, 2, 1, 1],
    [1, 1,  32, 5, 1, 6,  8,  8,  32,  4,  4, 2, 2, 1, 2],
    [1, 1,  64, 5, 1, 6,  8,  8,  64,  8,  8, 2, 2, 1, 2],
    [2, 1,  96, 5, 1, 6,  8,  8,  96,  8,  8, 2, 2, 1, 2],
    [1, 1, 128, 3, 1, 6, 12, 12, 128,  8,  8, 2, 2, 1, 2],
    [1, 1, 768, 3, 1, 6, 16, 16,   0,  0,  0, 2, 2, 1, 2],
]
M3_ROWS = [
    [2, 1,  16, 3, 2, 2,  0, 12,  16,  4,  4, 0, 2, 0, 1],
    [2, 1,  24, 3, 2, 2,  0, 16,  24,  4,  4, 0, 2, 0, 1],
    [1, 1,  24, 3, 2, 2,  0, 24,  24,  4,  4, 0, 2, 0, 1],
    [2, 1,  32, 5, 1, 6,  6,  6,  32,  4,  4, 0, 2, 0, 1],
    [1, 1,  32, 5, 1, 6,  8,  8,  32,  4,  4, 0, 2, 0, 2],
    [1, 1,  64, 5, 1, 6,  8,  8,  48,  8,  8, 0, 2, 0, 2],
    [1, 1,  80, 5, 1, 6,  8,  8,  80,  8,  8, 0, 2, 0, 2],
    [1, 1,  80, 5, 1, 6, 10, 10,  80,  8,  8, 0, 2, 0, 2],
    [2, 1, 120, 5, 1, 6, 10, 10, 120, 10, 10, 0, 2, 0, 2],
    [1, 1, 120, 5, 1, 6, 12, 12, 120, 10, 10, 0, 2, 0, 2],
    [1, 1, 144, 3, 1, 6, 12, 12, 144, 12, 12, 0, 2, 0, 2],
    [1, 1, 864, 3, 1, 6, 12, 12,   0,  0,  0, 0, 2, 0, 2],
]
# fmt: on


@backbone("MicroNet_M0", released(1_019_590, 3_448_880, 46.6, 3e-5, "train_micronet_m0_4gpu.sh"))
def micronet_m0(num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.05) -> MicroNet:
    """MicroNet-M0."""
    return micronet(M0_ROWS, (2, 2), 640, num_classes, in_channels, dropout)


@backbone("MicroNet_M1", released(1_777_587, 5_314_080, 51.4, 3e-5, "train_micronet_m1_4gpu.sh"))
def micronet_m1(num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.05) -> MicroNet:
    """MicroNet-M1."""
    return micronet(M1_ROWS, (3, 2), 960, num_classes, in_channels, dropout)


@backbone("MicroNet_M2", released(2_393_876, 10_338_128, 59.4, 3e-5, "train_micronet_m2_4gpu.sh"))
def micronet_m2(num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.1) -> MicroNet:
    """MicroNet-M2."""
    return micronet(M2_ROWS, (4, 2), 1024, num_classes, in_channels, dropout)


@backbone(
    "MicroNet_M3",
    released(2_622_960, 18_236_000, 62.5, 4e-5, "train_micronet_m3_4gpu.sh", "5 epochs of linear warm-up"),
)
def micronet_m3(num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.1) -> MicroNet:
    """MicroNet-M3."""
    return micronet(M3_ROWS, (4, 3), 1024, num_classes, in_channels, dropout, (1.0, 0.5), (0.0, 0.5))
