"""ResNeXt: Aggregated Residual Transformations for Deep Neural Networks (Xie et al., 2017, arXiv 1611.05431).

Also ResNet50 (He et al., 2015, arXiv 1512.03385), which is a ResNeXt of one group of width 64, and the "vd" members
(He et al., 2018, Bag of Tricks, arXiv 1812.01187): three 3x3 convolutions in place of the 7x7 one, and shortcuts that
average 2x2 before a 1x1 convolution of stride 1.

Layer names are torchvision's, those of vd members timm's (`resnet50d`), so that their weights load.

Deviations from the papers, all of them the references': the stride lies on the 3x3 convolution, not on the first 1x1;
shortcuts of another shape are 1x1 convolutions with batch norm. Averages of vd shortcuts at the border of a map of odd
size count only what is inside (PaddleClas and timm do the same).

Initial weights as in torchvision: convolutions normal with deviation sqrt(2 / (kernel area * output channels)), batch
norms 1 and 0, the classifier uniform within 1 / sqrt(features).
"""

from __future__ import annotations

from paddle import Tensor, nn

from ppcls_ext.backbones.published import IMAGENET_MEAN, IMAGENET_STD, Facts, Project, backbone
from ppcls_ext.errors import Refused
from ppcls_ext.layers import (
    DirectConv2D,
    MaxPool2D,
    PointwiseConv2D,
    Sequential,
    fill_convolutions,
    fill_like_pytorch,
    global_mean,
    normalised,
    require_positive,
)
from ppcls_ext.registry import BACKBONES

EXPANSION = 4  # output channels of a block, in multiples of its stage's width


class Bottleneck(nn.Layer):
    """1x1, grouped 3x3, 1x1, each with batch norm, and a shortcut: (N, C, H, W) -> (N, 4 width, H/s, W/s)."""

    def __init__(self, in_channels: int, width: int, stride: int, groups: int, base_width: int, vd: bool) -> None:
        super().__init__()
        hidden, out_channels = hidden_channels(width, groups, base_width), width * EXPANSION
        self.conv1 = PointwiseConv2D(in_channels, hidden)
        self.bn1 = nn.BatchNorm2D(hidden)
        self.conv2 = DirectConv2D(hidden, hidden, 3, stride, groups=groups)
        self.bn2 = nn.BatchNorm2D(hidden)
        self.conv3 = PointwiseConv2D(hidden, out_channels)
        self.bn3 = nn.BatchNorm2D(out_channels)
        self.relu = nn.ReLU()
        self.downsample = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.downsample = projection(in_channels, out_channels, stride, vd)

    def forward(self, x: Tensor) -> Tensor:
        y = normalised(self.bn1, self.conv1(x), self.relu)
        y = normalised(self.bn2, self.conv2(y), self.relu)
        return normalised(self.bn3, self.conv3(y), self.relu, added=self.downsample(x))


def hidden_channels(width: int, groups: int, base_width: int) -> int:
    """Channels of the 3x3 convolution. `base_width` is that of one group in a stage of width 64."""
    return width * base_width // 64 * groups


def projection(in_channels: int, out_channels: int, stride: int, vd: bool) -> Sequential:
    """The shortcut of a block that changes the shape."""
    if not vd:
        return Sequential(
            nn.Conv2D(in_channels, out_channels, 1, stride, bias_attr=False), nn.BatchNorm2D(out_channels)
        )
    return Sequential(
        nn.Identity() if stride == 1 else nn.AvgPool2D(2, stride, ceil_mode=True),
        PointwiseConv2D(in_channels, out_channels),
        nn.BatchNorm2D(out_channels),
    )


def deep_stem(in_channels: int, width: int) -> Sequential:
    """Three 3x3 convolutions; the last one's batch norm is the network's `bn1`."""
    return Sequential(
        DirectConv2D(in_channels, width // 2, 3, 2),
        nn.BatchNorm2D(width // 2),
        nn.ReLU(),
        DirectConv2D(width // 2, width // 2, 3),
        nn.BatchNorm2D(width // 2),
        nn.ReLU(),
        DirectConv2D(width // 2, width, 3),
    )


class ResNeXt(nn.Layer):
    """A ResNeXt of checked sizes; see `resnext` for the arguments."""

    def __init__(
        self,
        depths: list[int],
        width: int,
        groups: int,
        base_width: int,
        vd: bool,
        num_classes: int,
        in_channels: int,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.conv1 = deep_stem(in_channels, width) if vd else DirectConv2D(in_channels, width, 7, 2)
        self.bn1 = nn.BatchNorm2D(width)
        self.relu = nn.ReLU()
        self.maxpool = MaxPool2D(3, 2, 1)
        channels = width
        for i, depth in enumerate(depths):
            blocks = []
            for j in range(depth):
                stride = 2 if i > 0 and j == 0 else 1
                blocks.append(Bottleneck(channels, width * 2**i, stride, groups, base_width, vd))
                channels = width * 2**i * EXPANSION
            self.add_sublayer(f"layer{i + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, num_classes)
        self.num_features = channels
        self.stage_channels = [width * 2**i * EXPANSION for i in range(len(depths))]
        self.stage_strides = [4 * 2**i for i in range(len(depths))]
        fill_convolutions(self, fan="out")
        fill_like_pytorch(self.fc)

    def stages(self) -> list[tuple[str, nn.Sequential]]:
        """("layer1", its blocks) and so on."""
        return [(name, layer) for name, layer in self.named_children() if name.startswith("layer")]

    def forward_stages(self, x: Tensor) -> list[Tensor]:
        """The feature map of each stage; channels and strides are in `stage_channels`, `stage_strides`."""
        x = self.maxpool(normalised(self.bn1, self.conv1(x), self.relu))
        maps = []
        for _, blocks in self.stages():
            x = blocks(x)
            maps.append(x)
        return maps

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, num_features, H/32, W/32) for the published members."""
        return self.forward_stages(x)[-1]

    def forward_head(self, x: Tensor) -> Tensor:
        """Feature map -> logits: (N, num_features, h, w) -> (N, num_classes)."""
        return self.fc(global_mean(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def layer_groups(self) -> list[tuple[str, list[str]]]:
        """(group, prefixes of its parameter names) from input to output; "head" is what depends on the class count."""
        blocks = [f"{name}.{i}" for name, layers in self.stages() for i in range(len(layers))]
        return [("stem", ["conv1.", "bn1."]), *((name, [f"{name}."]) for name in blocks), ("head", ["fc."])]


@BACKBONES.register("ResNeXt")
def resnext(
    depths: list[int],
    groups: int = 32,
    base_width: int = 4,
    num_classes: int = 1000,
    in_channels: int = 3,
    vd: bool = False,
    width: int = 64,
) -> ResNeXt:
    """A ResNeXt of one's own.

    `depths` are the blocks of each stage; `groups` and `base_width` the cardinality and the width of one group in the
    first stage, as in "32x4d"; `width` the channels of the stem, from which a base width is counted in 64ths. `vd`:
    deep stem and averaging shortcuts. groups=1, base_width=64 is a ResNet.
    """
    require_positive(
        num_classes=num_classes, in_channels=in_channels, groups=groups, base_width=base_width, width=width
    )
    if not depths:
        raise Refused("ResNeXt.depths: expected the number of blocks of each stage, got none.")
    require_positive(**{f"ResNeXt.depths[{i}]": depth for i, depth in enumerate(depths)})
    if hidden_channels(width, groups, base_width) == 0:
        raise Refused(
            f"ResNeXt.base_width: {base_width} of a width of {width} is less than one channel per group; "
            f"expected at least {-(-64 // width)}."
        )
    if vd and width % 2:
        raise Refused(f"ResNeXt.width: the stem of vd has half as many channels at first; expected even, got {width}.")
    return ResNeXt(list(depths), width, groups, base_width, vd, num_classes, in_channels)


def evaluated(
    params: int, macs: int, top1: float, top5: float, recipe: str, source: str, measured_with: Project = "paddleclas"
) -> Facts:
    """Facts of one member: what all share is written here once."""
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
        recipe=recipe,
        source=source,
        measured_with=measured_with,
    )


def plain(params: int, macs: int, top1: float, top5: float, decay: float = 1e-4, paper: float | None = None) -> Facts:
    """Facts of one of PaddleClas's members; `paper` is the top-1 of the paper's own release where there is one."""
    recipe = (
        f"120 epochs, SGD momentum 0.9, batch 256, lr 0.1, /10 at 30, 60, 90, weight decay {decay:g}, "
        "random resized crop and flip"
    )
    release = f"; facebookresearch/ResNeXt: top-1 {paper}" if paper else ""
    return evaluated(params, macs, top1, top5, recipe, f"arXiv 1611.05431; PaddleClas model list{release}")


def vd_member(params: int, macs: int, top1: float, top5: float) -> Facts:
    """Facts of one of PaddleClas's vd members."""
    recipe = (
        "200 epochs, SGD momentum 0.9, batch 256, lr 0.1, cosine to 0, weight decay 1e-4, label smoothing 0.1, "
        "mixup 0.2, random resized crop and flip"
    )
    return evaluated(params, macs, top1, top5, recipe, "arXiv 1611.05431 and 1812.01187; PaddleClas model list")


def torchvision(params: int, macs: int, top1: float, top5: float, paper: str, epochs: int) -> Facts:
    """Facts of weights that torchvision calls IMAGENET1K_V1."""
    recipe = (
        f"{epochs} epochs, SGD momentum 0.9, batch 256, lr 0.1, /10 every 30 epochs, weight decay 1e-4, "
        "random resized crop and flip"
    )
    return evaluated(params, macs, top1, top5, recipe, f"{paper}; torchvision IMAGENET1K_V1", "torchvision")


@backbone("ResNet50", torchvision(25_557_032, 4_089_184_256, 76.13, 92.862, "arXiv 1512.03385", epochs=90))
def resnet50(num_classes: int = 1000, in_channels: int = 3) -> ResNeXt:
    """ResNet-50, with the stride on the 3x3 convolutions."""
    return resnext([3, 4, 6, 3], 1, 64, num_classes, in_channels)


@backbone("ResNeXt50_32x4d", plain(25_028_904, 4_230_479_872, 77.75, 93.82, paper=77.8))
def resnext50_32x4d(num_classes: int = 1000, in_channels: int = 3) -> ResNeXt:
    """ResNeXt-50 of 32 groups of width 4."""
    return resnext([3, 4, 6, 3], 32, 4, num_classes, in_channels)


@backbone("ResNeXt50_64x4d", plain(45_192_488, 7_981_236_224, 78.43, 94.13))
def resnext50_64x4d(num_classes: int = 1000, in_channels: int = 3) -> ResNeXt:
    """ResNeXt-50 of 64 groups of width 4."""
    return resnext([3, 4, 6, 3], 64, 4, num_classes, in_channels)


@backbone("ResNeXt101_32x4d", plain(44_177_704, 7_969_996_800, 78.65, 94.19, paper=78.8))
def resnext101_32x4d(num_classes: int = 1000, in_channels: int = 3) -> ResNeXt:
    """ResNeXt-101 of 32 groups of width 4."""
    return resnext([3, 4, 23, 3], 32, 4, num_classes, in_channels)


@backbone("ResNeXt101_64x4d", plain(83_455_272, 15_460_270_080, 78.35, 94.52, decay=1.5e-4, paper=79.6))
def resnext101_64x4d(num_classes: int = 1000, in_channels: int = 3) -> ResNeXt:
    """ResNeXt-101 of 64 groups of width 4."""
    return resnext([3, 4, 23, 3], 64, 4, num_classes, in_channels)


@backbone("ResNeXt101_32x8d", torchvision(88_791_336, 16_414_015_488, 79.312, 94.526, "arXiv 1611.05431", epochs=100))
def resnext101_32x8d(num_classes: int = 1000, in_channels: int = 3) -> ResNeXt:
    """ResNeXt-101 of 32 groups of width 8."""
    return resnext([3, 4, 23, 3], 32, 8, num_classes, in_channels)


@backbone("ResNeXt152_32x4d", plain(59_951_400, 11_709_513_728, 78.98, 94.33))
def resnext152_32x4d(num_classes: int = 1000, in_channels: int = 3) -> ResNeXt:
    """ResNeXt-152 of 32 groups of width 4."""
    return resnext([3, 8, 36, 3], 32, 4, num_classes, in_channels)


@backbone("ResNeXt152_64x4d", plain(114_971_944, 22_939_303_936, 79.51, 94.71, decay=1.8e-4))
def resnext152_64x4d(num_classes: int = 1000, in_channels: int = 3) -> ResNeXt:
    """ResNeXt-152 of 64 groups of width 4."""
    return resnext([3, 8, 36, 3], 64, 4, num_classes, in_channels)


@backbone("ResNeXt50_vd_32x4d", vd_member(25_048_136, 4_470_120_448, 79.56, 94.62))
def resnext50_vd_32x4d(num_classes: int = 1000, in_channels: int = 3) -> ResNeXt:
    """ResNeXt-50-vd of 32 groups of width 4."""
    return resnext([3, 4, 6, 3], 32, 4, num_classes, in_channels, vd=True)


@backbone("ResNeXt50_vd_64x4d", vd_member(45_211_720, 8_220_876_800, 80.12, 94.86))
def resnext50_vd_64x4d(num_classes: int = 1000, in_channels: int = 3) -> ResNeXt:
    """ResNeXt-50-vd of 64 groups of width 4."""
    return resnext([3, 4, 6, 3], 64, 4, num_classes, in_channels, vd=True)


@backbone("ResNeXt101_vd_32x4d", vd_member(44_196_936, 8_209_637_376, 80.33, 95.12))
def resnext101_vd_32x4d(num_classes: int = 1000, in_channels: int = 3) -> ResNeXt:
    """ResNeXt-101-vd of 32 groups of width 4."""
    return resnext([3, 4, 23, 3], 32, 4, num_classes, in_channels, vd=True)


@backbone("ResNeXt101_vd_64x4d", vd_member(83_474_504, 15_699_910_656, 80.78, 95.2))
def resnext101_vd_64x4d(num_classes: int = 1000, in_channels: int = 3) -> ResNeXt:
    """ResNeXt-101-vd of 64 groups of width 4."""
    return resnext([3, 4, 23, 3], 64, 4, num_classes, in_channels, vd=True)


@backbone("ResNeXt152_vd_32x4d", vd_member(59_970_632, 11_949_154_304, 80.72, 95.2))
def resnext152_vd_32x4d(num_classes: int = 1000, in_channels: int = 3) -> ResNeXt:
    """ResNeXt-152-vd of 32 groups of width 4."""
    return resnext([3, 8, 36, 3], 32, 4, num_classes, in_channels, vd=True)


@backbone("ResNeXt152_vd_64x4d", vd_member(114_991_176, 23_178_944_512, 81.08, 95.34))
def resnext152_vd_64x4d(num_classes: int = 1000, in_channels: int = 3) -> ResNeXt:
    """ResNeXt-152-vd of 64 groups of width 4."""
    return resnext([3, 8, 36, 3], 64, 4, num_classes, in_channels, vd=True)
