"""DenseNet: Densely Connected Convolutional Networks (Huang et al., 2017, arXiv 1608.06993), the members called BC.

Layer names are torchvision's (`densenet121`), so that its weights load. No deviation from the paper is known.

Initial weights as in torchvision: convolutions normal with deviation sqrt(2 / (kernel area * input channels)), batch
norms 1 and 0, the classifier uniform within 1 / sqrt(features) with zero bias.
"""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from ppcls_ext.backbones.published import IMAGENET_MEAN, IMAGENET_STD, Facts, backbone
from ppcls_ext.errors import Refused
from ppcls_ext.layers import (
    DirectConv2D,
    MaxPool2D,
    Sequential,
    fill_convolutions,
    global_mean,
    normalised,
    require_positive,
)
from ppcls_ext.registry import BACKBONES


class DenseLayer(nn.Layer):
    """Batch norm, ReLU, 1x1, batch norm, ReLU, 3x3, beside what came in: (N, C, H, W) -> (N, C + growth, H, W)."""

    def __init__(self, in_channels: int, growth: int, bottleneck: int, dropout: float) -> None:
        super().__init__()
        hidden = bottleneck * growth
        self.norm1 = nn.BatchNorm2D(in_channels)
        self.conv1 = nn.Conv2D(in_channels, hidden, 1, bias_attr=False)
        self.norm2 = nn.BatchNorm2D(hidden)
        self.relu = nn.ReLU()
        self.conv2 = DirectConv2D(hidden, growth, 3)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(normalised(self.norm1, x, self.relu))
        y = self.conv2(normalised(self.norm2, y, self.relu))
        return paddle.concat([x, self.dropout(y)], axis=1)


def transition(in_channels: int, out_channels: int) -> Sequential:
    """What stands between two dense blocks: (N, C, H, W) -> (N, out_channels, H/2, W/2)."""
    return Sequential(
        ("norm", nn.BatchNorm2D(in_channels)),
        ("relu", nn.ReLU()),
        ("conv", nn.Conv2D(in_channels, out_channels, 1, bias_attr=False)),
        ("pool", nn.AvgPool2D(2, 2)),
    )


class DenseNet(nn.Layer):
    """A DenseNet of checked sizes; see `densenet` for the arguments."""

    def __init__(
        self,
        depths: list[int],
        growth: int,
        width: int,
        bottleneck: int,
        dropout: float,
        num_classes: int,
        in_channels: int,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        layers: list[tuple[str, nn.Layer]] = [
            ("conv0", DirectConv2D(in_channels, width, 7, 2)),
            ("norm0", nn.BatchNorm2D(width)),
            ("relu0", nn.ReLU()),
            ("pool0", MaxPool2D(3, 2, 1)),
        ]
        channels = width
        self.depths = list(depths)
        self.stage_channels: list[int] = []
        self.stage_strides = [4 * 2**i for i in range(len(depths))]
        for i, depth in enumerate(depths, 1):
            block = []
            for j in range(1, depth + 1):
                block.append((f"denselayer{j}", DenseLayer(channels, growth, bottleneck, dropout)))
                channels += growth
            layers.append((f"denseblock{i}", nn.Sequential(*block)))
            self.stage_channels.append(channels)
            if i < len(depths):
                layers.append((f"transition{i}", transition(channels, channels // 2)))
                channels //= 2
        # torchvision's name of the last batch norm, of a network of four blocks
        layers.append(("norm5", nn.BatchNorm2D(channels)))
        self.features = Sequential(*layers)
        self.classifier = nn.Linear(channels, num_classes)
        self.num_features = channels
        fill_convolutions(self, fan="in")
        bound = channels**-0.5
        nn.initializer.Uniform(-bound, bound)(self.classifier.weight)

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, num_features, H/32, W/32) for the published member."""
        return F.relu(self.features(x))

    def forward_head(self, x: Tensor) -> Tensor:
        """Feature map -> logits: (N, num_features, h, w) -> (N, num_classes)."""
        return self.classifier(global_mean(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_stages(self, x: Tensor) -> list[Tensor]:
        """The map of each dense block, the last one after the final batch norm and ReLU.

        Channels and strides are in `stage_channels` and `stage_strides`.
        """
        maps = []
        for name, layer in self.features.named_children():
            x = layer(x)
            if name.startswith("denseblock"):
                maps.append(x)
        return [*maps[:-1], F.relu(x)]

    def layer_groups(self) -> list[tuple[str, list[str]]]:
        """(group, prefixes of its parameter names) from input to output; "head" is what depends on the class count.

        A transition, and the last norm, belong to the layer before them.
        """
        groups = [("stem", ["features.conv0.", "features.norm0."])]
        for i, depth in enumerate(self.depths, 1):
            for j in range(1, depth + 1):
                groups.append((f"denseblock{i}.{j}", [f"features.denseblock{i}.denselayer{j}."]))
            groups[-1][1].append(f"features.transition{i}.")
        groups[-1][1].append("features.norm5.")
        return [*groups, ("head", ["classifier."])]


@BACKBONES.register("DenseNet")
def densenet(
    depths: list[int],
    num_classes: int = 1000,
    in_channels: int = 3,
    growth: int = 32,
    width: int = 64,
    bottleneck: int = 4,
    dropout: float = 0.0,
) -> DenseNet:
    """A DenseNet-BC of one's own.

    `depths` are the layers of each dense block, each of which adds `growth` channels through `bottleneck` times as
    many; `width` is that of the stem; `dropout` applies to what a layer adds.
    """
    require_positive(
        num_classes=num_classes, in_channels=in_channels, growth=growth, width=width, bottleneck=bottleneck
    )
    if not depths:
        raise Refused("DenseNet.depths: expected the number of layers of each dense block, got none.")
    require_positive(**{f"DenseNet.depths[{i}]": depth for i, depth in enumerate(depths)})
    if not 0 <= dropout < 1:
        raise Refused(f"DenseNet.dropout: expected 0 <= dropout < 1, got {dropout}.")
    return DenseNet(list(depths), growth, width, bottleneck, dropout, num_classes, in_channels)


@backbone(
    "DenseNet121",
    Facts(
        params=7_978_856,
        macs=2_834_161_664,
        top1=74.434,
        top5=91.972,
        input_size=224,
        resize=256,
        crop=224,
        interpolation="bilinear",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        recipe="90 epochs, SGD with Nesterov momentum 0.9, batch 256, lr 0.1, /10 at 30 and 60, weight decay 1e-4, "
        "random resized crop and flip",
        source="arXiv 1608.06993; torchvision IMAGENET1K_V1",
    ),
)
def densenet121(num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.0) -> DenseNet:
    """DenseNet-121."""
    return densenet([6, 12, 24, 16], num_classes, in_channels, dropout=dropout)
