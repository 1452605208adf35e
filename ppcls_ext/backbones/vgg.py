"""VGG: Very Deep Convolutional Networks for Large-Scale Image Recognition (Simonyan, Zisserman 2014, arXiv 1409.1556).

Layer names are torchvision's (`vgg16`, `vgg16_bn`), so that its weights load.

Deviation from the paper, the reference's: before the classifier the map is averaged to 7x7, so that images of any size
fit; at 224 it is 7x7 already.

Initial weights as in torchvision: convolutions normal with deviation sqrt(2 / (9 * output channels)), linear layers
normal with deviation 0.01, biases 0, batch norms 1 and 0.
"""

from __future__ import annotations

from paddle import Tensor, nn

from ppcls_ext.backbones.published import IMAGENET_MEAN, IMAGENET_STD, Facts, backbone
from ppcls_ext.errors import Refused
from ppcls_ext.layers import DirectConv2D, MaxPool2D, Sequential, fill_convolutions, require_positive
from ppcls_ext.registry import BACKBONES


class VGG(nn.Layer):
    """A VGG of checked sizes; see `vgg` for the arguments."""

    def __init__(
        self,
        depths: list[int],
        widths: list[int],
        batch_norm: bool,
        hidden: int,
        pooled: int,
        dropout: float,
        num_classes: int,
        in_channels: int,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_features = widths[-1]
        self.stage_channels = list(widths)
        self.stage_strides = [2 ** (i + 1) for i in range(len(widths))]
        self.stage_ends: list[int] = []  # positions of the poolings in `features`
        layers: list[nn.Layer] = []
        channels = in_channels
        for depth, width in zip(depths, widths):
            for _ in range(depth):
                layers.append(DirectConv2D(channels, width, 3, bias=True))
                layers += [nn.BatchNorm2D(width), nn.ReLU()] if batch_norm else [nn.ReLU()]
                channels = width
            self.stage_ends.append(len(layers))
            layers.append(MaxPool2D(2, 2))
        self.features = Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2D(pooled)
        self.classifier = nn.Sequential(
            nn.Linear(channels * pooled**2, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, num_classes),
        )
        fill_convolutions(self, fan="out")
        for layer in self.classifier:
            if isinstance(layer, nn.Linear):
                nn.initializer.Normal(0.0, 0.01)(layer.weight)

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, num_features, H/32, W/32) for the published members."""
        return self.features(x)

    def forward_head(self, x: Tensor) -> Tensor:
        """Feature map -> logits: (N, num_features, h, w) -> (N, num_classes)."""
        return self.classifier(self.avgpool(x).flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_stages(self, x: Tensor) -> list[Tensor]:
        """The pooled map of each stage; channels and strides are in `stage_channels`, `stage_strides`."""
        maps = []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in self.stage_ends:
                maps.append(x)
        return maps

    def layer_groups(self) -> list[tuple[str, list[str]]]:
        """(group, prefixes of its parameter names) from input to output; "head" is what depends on the class count.

        A batch norm belongs to its convolution's group.
        """
        convolutions: list[tuple[str, list[str]]] = []
        for i, layer in enumerate(self.features):
            if isinstance(layer, nn.Conv2D):
                convolutions.append((f"features.{i}", [f"features.{i}."]))
            elif list(layer.parameters()):
                convolutions[-1][1].append(f"features.{i}.")
        linear = [(name, [f"{name}."]) for name in ("classifier.0", "classifier.3")]
        return [*convolutions, *linear, ("head", ["classifier.6."])]


@BACKBONES.register("VGG")
def vgg(
    depths: list[int],
    widths: list[int],
    num_classes: int = 1000,
    in_channels: int = 3,
    batch_norm: bool = False,
    hidden: int = 4096,
    pooled: int = 7,
    dropout: float = 0.5,
) -> VGG:
    """A VGG of one's own.

    `depths` are the convolutions of each stage and `widths` their channels; `hidden` is the width of the classifier's
    two hidden layers, which see a map of `pooled` x `pooled`.
    """
    require_positive(num_classes=num_classes, in_channels=in_channels, hidden=hidden, pooled=pooled)
    if not depths or len(depths) != len(widths):
        raise Refused(
            f"VGG.depths, VGG.widths: expected one number per stage in both, got {len(depths)} and {len(widths)}."
        )
    require_positive(**{f"VGG.depths[{i}]": depth for i, depth in enumerate(depths)})
    require_positive(**{f"VGG.widths[{i}]": width for i, width in enumerate(widths)})
    if not 0 <= dropout < 1:
        raise Refused(f"VGG.dropout: expected 0 <= dropout < 1, got {dropout}.")
    return VGG(list(depths), list(widths), batch_norm, hidden, pooled, dropout, num_classes, in_channels)


def torchvision(params: int, macs: int, top1: float, top5: float) -> Facts:
    """Facts of weights that torchvision calls IMAGENET1K_V1."""
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
        recipe="90 epochs, SGD momentum 0.9, batch 256, lr 0.01, /10 every 30 epochs, weight decay 1e-4, "
        "random resized crop and flip",
        source="arXiv 1409.1556; torchvision IMAGENET1K_V1",
    )


DEPTHS_16 = [2, 2, 3, 3, 3]
WIDTHS = [64, 128, 256, 512, 512]


@backbone("VGG16", torchvision(138_357_544, 15_470_264_320, 71.592, 90.382))
def vgg16(num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.5) -> VGG:
    """VGG-16 (configuration D of the paper)."""
    return vgg(DEPTHS_16, WIDTHS, num_classes, in_channels, dropout=dropout)


@backbone("VGG16_bn", torchvision(138_365_992, 15_470_264_320, 73.36, 91.516))
def vgg16_bn(num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.5) -> VGG:
    """VGG-16 with batch norm after every convolution."""
    return vgg(DEPTHS_16, WIDTHS, num_classes, in_channels, batch_norm=True, dropout=dropout)
