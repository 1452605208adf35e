"""MicroNet (arXiv 2108.05894) in plain PyTorch, for comparison: names of layers are ours, so that our weights fit.

Shuffles are views and transpositions, and the larger of two fusions is `torch.maximum`, as a reader of the paper would
write them. Without dropout.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STATIC, FUSION, MAXIMUM = 0, 1, 2  # activations: ReLU6, one fusion of Dynamic Shift-Max, the larger of two


class Spec(NamedTuple):
    """A block of the paper's table; the activations are those after the first, the middle and the last convolution."""

    stride: int
    channels: int
    kernel: int
    first_groups: int  # 0: the depthwise pair expands; there is no 1x1 convolution before it
    shift: int
    last_groups: int  # 0: the block ends after its first activation
    last_shift: int
    activations: tuple[int, int, int]
    squeeze: int


def shuffle(x: Tensor, groups: int) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w) if groups > 1 else x


class Shuffle(nn.Module):
    def __init__(self, *groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        for groups in self.groups:
            x = shuffle(x, groups)
        return x


class ShiftMax(nn.Module):
    """`start` holds a coefficient of x and one of its neighbour for each fusion."""

    def __init__(self, channels: int, groups: int, squeeze: int, start: tuple[tuple[float, float], ...]) -> None:
        super().__init__()
        hidden = rounded(channels // squeeze)
        self.fc = nn.Sequential(
            nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, 2 * len(start) * channels), nn.Hardsigmoid()
        )
        order = torch.arange(channels).view(groups, -1).roll((-1, -1), (0, 1)).flatten()
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("start", torch.tensor(start).flatten().view(-1, 1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        n, c, _, _ = x.shape
        change = 4 * self.fc(x.mean((2, 3))) - 2
        coefficients = (change.view(n, -1, c, 1, 1) + self.start).unbind(1)
        neighbour = x.index_select(1, self.order)
        fusions = [x * a + neighbour * b for a, b in zip(coefficients[::2], coefficients[1::2])]
        return fusions[0] if len(fusions) == 1 else torch.maximum(*fusions)


def rounded(channels: int) -> int:
    """To a multiple of 4, at least 4, and at most a tenth less."""
    near = max(4, (channels + 2) // 4 * 4)
    return near if near >= 0.9 * channels else near + 4


class Convs(nn.Module):
    """Convolutions, each with batch norm."""

    def __init__(self, *convolutions: nn.Conv2d) -> None:
        super().__init__()
        layers = [layer for conv in convolutions for layer in (conv, nn.BatchNorm2d(conv.out_channels))]
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


def column(i: int, o: int, kernel: int, stride: int, groups: int) -> nn.Conv2d:
    return nn.Conv2d(i, o, (kernel, 1), (stride, 1), (kernel // 2, 0), groups=groups, bias=False)


def row(i: int, o: int, kernel: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(i, o, (1, kernel), (1, stride), (0, kernel // 2), groups=i, bias=False)


def point(i: int, o: int, groups: int) -> nn.Conv2d:
    return nn.Conv2d(i, o, 1, groups=groups, bias=False)


class Stem(nn.Module):
    def __init__(self, columns: int, rows: int) -> None:
        super().__init__()
        convs = Convs(column(3, columns, 3, 2, 1), row(columns, columns * rows, 3, 2))
        self.stem = nn.Sequential(convs, Shuffle(columns), nn.ReLU6())

    def forward(self, x: Tensor) -> Tensor:
        return self.stem(x)


class MicroBlock(nn.Module):
    def __init__(self, i: int, spec: Spec, expansion: int, start: tuple[tuple[float, float], ...]) -> None:
        super().__init__()
        o, hidden, squeeze = spec.channels, i * expansion, 8 * spec.squeeze
        first, middle, last = spec.activations
        plain = ((1.0, 0.0),)

        def activation(kind: int, groups: int) -> nn.Module:
            return nn.ReLU6() if kind == STATIC else ShiftMax(hidden, groups, squeeze, start[:kind])

        def fused(groups: int, squeeze: int) -> nn.Module:
            return ShiftMax(o, groups, squeeze, plain) if last else nn.Identity()

        if spec.first_groups == 0:
            layers = {
                "0": Convs(column(i, 2 * i, spec.kernel, spec.stride, i), row(2 * i, hidden, spec.kernel, spec.stride)),
                "1": activation(middle, spec.shift),
                "2": Shuffle(spec.shift, hidden // 2 if middle else 1),
                "4": Convs(point(hidden, o, spec.last_groups)),
                "5": fused(spec.last_shift, squeeze // 2),
                "6": Shuffle(spec.last_shift, o // 2 if last else 1),
            }
        elif spec.last_groups == 0:
            layers = {"0": Convs(point(i, hidden, spec.first_groups)), "1": fused(spec.shift, squeeze)}
        else:
            dynamic = (first > 0) + (middle > 0)
            layers = {
                "0": Convs(point(i, hidden, spec.first_groups)),
                "1": activation(first, spec.shift),
                "2": Shuffle(spec.shift),
                "3": Convs(
                    column(hidden, hidden, spec.kernel, spec.stride, hidden),
                    row(hidden, hidden, spec.kernel, spec.stride),
                ),
                "5": activation(middle, hidden // spec.shift),
                "6": Shuffle(hidden // (2 * dynamic) if dynamic else 1),
                "7": Convs(point(hidden, o, spec.last_groups)),
                "8": fused(spec.last_shift, squeeze // 2 if o < hidden else squeeze),
                "9": Shuffle(spec.last_shift, o // 2 if last else 1),
            }
        self.layers = nn.Sequential()
        for name, layer in layers.items():
            self.layers.add_module(name, layer)
        self.residual = spec.stride == 1 and i == o

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


class SwishLinear(nn.Module):
    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.linear = nn.Sequential(nn.Linear(i, o), nn.BatchNorm1d(o), nn.Hardswish())

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class MicroNet(nn.Module):
    def __init__(
        self,
        stem: tuple[int, int],
        specs: list[Spec],
        expansion: int,
        start: tuple[tuple[float, float], ...],
        width: int,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [Stem(*stem)]
        channels = stem[0] * stem[1]
        for spec in specs:
            layers.append(MicroBlock(channels, spec, expansion if spec.first_groups else 4, start))
            channels = spec.channels
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(SwishLinear(channels, width), nn.Identity(), SwishLinear(width, 1000))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.hardswish(F.relu6(self.features(x)).mean((2, 3))))


# of M0 to M2
BOTH = MAXIMUM, MAXIMUM, FUSION
START = (1.0, 0.0), (1.0, 0.0)


def micronet_m0() -> MicroNet:
    specs = [
        Spec(2, 8, 3, 0, 4, 2, 2, (MAXIMUM, STATIC, FUSION), 1),
        Spec(2, 12, 3, 0, 8, 4, 4, BOTH, 1),
        Spec(2, 16, 5, 0, 12, 4, 4, BOTH, 1),
        Spec(1, 32, 5, 4, 4, 4, 4, BOTH, 1),
        Spec(2, 64, 5, 8, 8, 8, 8, BOTH, 1),
        Spec(1, 96, 3, 8, 8, 8, 8, BOTH, 2),
        Spec(1, 384, 3, 12, 12, 0, 0, BOTH, 2),
    ]
    return MicroNet((2, 2), specs, 4, START, 640)


def micronet_m1() -> MicroNet:
    specs = [
        Spec(2, 8, 3, 0, 6, 2, 2, (MAXIMUM, STATIC, FUSION), 1),
        Spec(2, 16, 3, 0, 8, 4, 4, BOTH, 1),
        Spec(2, 16, 5, 0, 16, 4, 4, BOTH, 1),
        Spec(1, 32, 5, 4, 4, 4, 4, BOTH, 1),
        Spec(2, 64, 5, 8, 8, 8, 8, BOTH, 1),
        Spec(1, 96, 3, 8, 8, 8, 8, BOTH, 2),
        Spec(1, 576, 3, 12, 12, 0, 0, BOTH, 2),
    ]
    return MicroNet((3, 2), specs, 6, START, 960)


def micronet_m2() -> MicroNet:
    specs = [
        Spec(2, 12, 3, 0, 8, 4, 4, (MAXIMUM, STATIC, FUSION), 1),
        Spec(2, 16, 3, 0, 12, 4, 4, BOTH, 1),
        Spec(1, 24, 3, 0, 16, 4, 4, BOTH, 1),
        Spec(2, 32, 5, 6, 6, 4, 4, BOTH, 1),
        Spec(1, 32, 5, 8, 8, 4, 4, BOTH, 2),
        Spec(1, 64, 5, 8, 8, 8, 8, BOTH, 2),
        Spec(2, 96, 5, 8, 8, 8, 8, BOTH, 2),
        Spec(1, 128, 3, 12, 12, 8, 8, BOTH, 2),
        Spec(1, 768, 3, 16, 16, 0, 0, BOTH, 2),
    ]
    return MicroNet((4, 2), specs, 6, START, 1024)


def micronet_m3() -> MicroNet:
    middle = (STATIC, MAXIMUM, STATIC)
    specs = [
        Spec(2, 16, 3, 0, 12, 4, 4, middle, 1),
        Spec(2, 24, 3, 0, 16, 4, 4, middle, 1),
        Spec(1, 24, 3, 0, 24, 4, 4, middle, 1),
        Spec(2, 32, 5, 6, 6, 4, 4, middle, 1),
        Spec(1, 32, 5, 8, 8, 4, 4, middle, 2),
        Spec(1, 64, 5, 8, 8, 8, 8, middle, 2),
        Spec(1, 80, 5, 8, 8, 8, 8, middle, 2),
        Spec(1, 80, 5, 10, 10, 8, 8, middle, 2),
        Spec(2, 120, 5, 10, 10, 10, 10, middle, 2),
        Spec(1, 120, 5, 12, 12, 10, 10, middle, 2),
        Spec(1, 144, 3, 12, 12, 12, 12, middle, 2),
        Spec(1, 864, 3, 12, 12, 0, 0, middle, 2),
    ]
    return MicroNet((4, 3), specs, 6, ((1.0, 0.0), (0.5, 0.5)), 1024)
