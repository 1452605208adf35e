"""ResNet v2: Identity Mappings in Deep Residual Networks (He et al., 2016, arXiv 1603.05027), with batch norm.

Layer names are timm's (`resnetv2_50`), so that its weights load.

Deviations from the paper, all of them the reference's: the stride lies on the 3x3 convolution; the shortcut of a
stage's first block starts after the first batch norm and ReLU; neither batch norm nor ReLU stand between the stem's
convolution and its pooling; the classifier is a 1x1 convolution on the pooled map.

Initial weights as in timm: convolutions normal with deviation sqrt(2 / (kernel area * output channels)), batch norms
1 and 0, the classifier normal with deviation 0.01 and zero bias.
"""

from __future__ import annotations

from paddle import Tensor, nn

from ppcls_ext.backbones.published import Facts, backbone
from ppcls_ext.errors import Refused
from ppcls_ext.layers import DirectConv2D, GlobalMean, MaxPool2D, fill_convolutions, normalised, require_positive
from ppcls_ext.registry import BACKBONES

EXPANSION = 4  # output channels of a block, in multiples of its 3x3 convolution's


class PreActBottleneck(nn.Layer):
    """Batch norm and ReLU before each of 1x1, 3x3, 1x1, and a shortcut: (N, C, H, W) -> (N, out, H/s, W/s)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, first: bool) -> None:
        super().__init__()
        hidden = out_channels // EXPANSION
        self.first = first
        if first:
            conv = nn.Conv2D(in_channels, out_channels, 1, stride, bias_attr=False)
            self.downsample = nn.Sequential(("conv", conv))
        self.norm1 = nn.BatchNorm2D(in_channels)
        self.conv1 = nn.Conv2D(in_channels, hidden, 1, bias_attr=False)
        self.norm2 = nn.BatchNorm2D(hidden)
        self.conv2 = DirectConv2D(hidden, hidden, 3, stride)
        self.norm3 = nn.BatchNorm2D(hidden)
        self.relu = nn.ReLU()
        self.conv3 = nn.Conv2D(hidden, out_channels, 1, bias_attr=False)

    def forward(self, x: Tensor) -> Tensor:
        active = normalised(self.norm1, x, self.relu)
        shortcut = self.downsample(active) if self.first else x
        y = self.conv2(normalised(self.norm2, self.conv1(active), self.relu))
        return self.conv3(normalised(self.norm3, y, self.relu)) + shortcut


class ResNetV2(nn.Layer):
    """A ResNet v2 of checked sizes; see `resnet_v2` for the arguments."""

    def __init__(self, depths: list[int], width: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.stem = nn.Sequential(
            ("conv", DirectConv2D(in_channels, width, 7, 2)),
            ("pool", MaxPool2D(3, 2, 1)),
        )
        self.stage_channels = [width * 2**i * EXPANSION for i in range(len(depths))]
        self.stage_strides = [4 * 2**i for i in range(len(depths))]
        self.stages = nn.LayerList()
        channels = width
        for i, depth in enumerate(depths):
            blocks = []
            for j in range(depth):
                stride = 2 if i > 0 and j == 0 else 1
                blocks.append(PreActBottleneck(channels, self.stage_channels[i], stride, first=j == 0))
                channels = self.stage_channels[i]
            self.stages.append(nn.Sequential(("blocks", nn.Sequential(*blocks))))
        self.norm = nn.BatchNorm2D(channels)
        self.act = nn.ReLU()
        self.head = nn.Sequential(("pool", GlobalMean()), ("fc", nn.Conv2D(channels, num_classes, 1)))
        self.num_features = channels
        fill_convolutions(self, fan="out")
        nn.initializer.Normal(0.0, 0.01)(self.head[1].weight)

    def forward_stages(self, x: Tensor) -> list[Tensor]:
        """The feature map of each stage, the last one after the final batch norm and ReLU.

        Channels and strides are in `stage_channels` and `stage_strides`.
        """
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return [*maps[:-1], normalised(self.norm, x, self.act)]

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, num_features, H/32, W/32) for the published member."""
        return self.forward_stages(x)[-1]

    def forward_head(self, x: Tensor) -> Tensor:
        """Feature map -> logits: (N, num_features, h, w) -> (N, num_classes)."""
        return self.head(x).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def layer_groups(self) -> list[tuple[str, list[str]]]:
        """(group, prefixes of its parameter names) from input to output; "head" is what depends on the class count."""
        depths = [len(stage[0]) for stage in self.stages]
        blocks = [f"stages.{i}.blocks.{j}" for i, depth in enumerate(depths) for j in range(depth)]
        named = [(name, [f"{name}."]) for name in blocks]
        named[-1][1].append("norm.")  # no layer by itself
        return [("stem", ["stem."]), *named, ("head", ["head."])]


@BACKBONES.register("ResNetV2")
def resnet_v2(depths: list[int], num_classes: int = 1000, in_channels: int = 3, width: int = 64) -> ResNetV2:
    """A ResNet v2 of one's own: `depths` are the blocks of each stage, `width` the channels of the stem."""
    require_positive(num_classes=num_classes, in_channels=in_channels, width=width)
    if not depths:
        raise Refused("ResNetV2.depths: expected the number of blocks of each stage, got none.")
    require_positive(**{f"ResNetV2.depths[{i}]": depth for i, depth in enumerate(depths)})
    return ResNetV2(list(depths), width, num_classes, in_channels)


@backbone(
    "ResNetV2_50",
    Facts(
        params=25_549_352,
        macs=4_089_184_256,
        top1=81.398,
        top5=95.726,
        input_size=224,
        resize=288,
        crop=288,
        interpolation="bicubic",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        recipe="timm a1h: trained at 224, evaluated at 288",
        source="arXiv 1603.05027; timm resnetv2_50.a1h_in1k",
    ),
)
def resnet_v2_50(num_classes: int = 1000, in_channels: int = 3) -> ResNetV2:
    """ResNet-50 v2."""
    return resnet_v2([3, 4, 6, 3], num_classes, in_channels)
