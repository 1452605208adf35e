"""RepLKNet: Scaling Up Your Kernels to 31x31 (Ding et al., 2022, arXiv 2203.06717).

Layer names are those of the authors' release (github.com/DingXiaoH/RepLKNet-pytorch), before and after merging, so that
its weights load. Every large kernel has a small one beside it, each with a batch norm; `reparameterize` turns the pair
into one convolution with a bias, which computes the same in evaluation.

Deviations, neither of which changes a result beyond rounding:
- the depthwise convolutions of the blocks go through a Fourier transform where that is faster (`ppcls_ext.ops`);
- gradient checkpointing counts a batch once in the running statistics; the release counts it twice.

Initial weights as in the release: PyTorch's defaults, uniform within 1 / sqrt(fan-in).
"""

from __future__ import annotations

from paddle import Tensor, nn

from ppcls_ext.backbones.published import IMAGENET_MEAN, IMAGENET_STD, Facts, backbone
from ppcls_ext.errors import Refused
from ppcls_ext.layers import (
    DepthwiseConv2D,
    DirectConv2D,
    DropPath,
    PointwiseConv2D,
    Sequential,
    checkpointed,
    drop_path_rates,
    global_mean,
    normalised,
    require_positive,
)
from ppcls_ext.ops import LargeDepthwiseConv2D
from ppcls_ext.registry import BACKBONES

BLOCKS_PER_GROUP = 4  # of `layer_groups`: two large kernels and their two feed-forward blocks


def conv_bn(conv: nn.Layer, channels: int, relu: bool = False) -> Sequential:
    """A convolution and its batch norm, named as the release names them; ReLU has no parameters."""
    layers = [("conv", conv), ("bn", nn.BatchNorm2D(channels))]
    return Sequential(*layers, ("nonlinear", nn.ReLU())) if relu else Sequential(*layers)


def pointwise(in_channels: int, out_channels: int, relu: bool = False) -> Sequential:
    return conv_bn(PointwiseConv2D(in_channels, out_channels), out_channels, relu)


def depthwise(channels: int, stride: int) -> Sequential:
    return conv_bn(DepthwiseConv2D(channels, channels, (3, 3), (stride, stride)), channels, relu=True)


class LargeKernel(nn.Layer):
    """A large and a small depthwise kernel, each with batch norm, added; or the one kernel that they merge into."""

    def __init__(self, channels: int, kernel: int, small_kernel: int | None, merged: bool) -> None:
        super().__init__()
        self.merged = merged
        if merged:
            self.lkb_reparam = LargeDepthwiseConv2D(channels, kernel, bias=True)
            return
        self.lkb_origin = conv_bn(LargeDepthwiseConv2D(channels, kernel), channels)
        self.small_conv = None
        if small_kernel is not None:
            self.small_conv = conv_bn(LargeDepthwiseConv2D(channels, small_kernel), channels)

    def forward(self, x: Tensor, activation: nn.Layer) -> Tensor:
        if self.merged:
            return activation(self.lkb_reparam(x))
        if self.small_conv is None:
            return self.lkb_origin(x, activation)
        return self.small_conv(x, activation, added=self.lkb_origin(x))

    def merge(self) -> None:
        """Replace both convolutions by one."""
        if self.merged:
            return
        weight, bias = fused(self.lkb_origin)
        channels, _, kernel, _ = weight.shape
        if self.small_conv is not None:
            small_weight, small_bias = fused(self.small_conv)
            border = (kernel - small_weight.shape[2]) // 2
            weight = weight + nn.functional.pad(small_weight, [border] * 4)
            bias = bias + small_bias
        merged = LargeDepthwiseConv2D(channels, kernel, bias=True)
        merged.to(dtype=weight.dtype)
        merged.weight.set_value(weight)
        merged.bias.set_value(bias)
        merged.training = self.training
        self.lkb_reparam, self.merged = merged, True
        del self.lkb_origin
        del self.small_conv


def fused(pair: nn.Sequential) -> tuple[Tensor, Tensor]:
    """(weight, bias) of the convolution that does what a convolution and its batch norm do in evaluation."""
    weight, norm = pair["conv"].weight.detach(), pair["bn"]
    scale = norm.weight.detach() / (norm._variance + norm._epsilon).sqrt()
    return weight * scale.reshape([-1, 1, 1, 1]), norm.bias.detach() - norm._mean * scale


class RepLKBlock(nn.Layer):
    """Batch norm, 1x1, large kernel, 1x1, and the residual: (N, C, H, W) -> (N, C, H, W)."""

    def __init__(
        self, channels: int, hidden: int, kernel: int, small_kernel: int | None, drop_path: float, merged: bool
    ) -> None:
        super().__init__()
        self.pw1 = pointwise(channels, hidden, relu=True)
        self.pw2 = pointwise(hidden, channels)
        self.large_kernel = LargeKernel(hidden, kernel, small_kernel, merged)
        self.lk_nonlinear = nn.ReLU()
        self.prelkb_bn = nn.BatchNorm2D(channels)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.large_kernel(self.pw1(normalised(self.prelkb_bn, x)), self.lk_nonlinear)
        return x + self.drop_path(self.pw2(inner))


class ConvFFN(nn.Layer):
    """Batch norm, 1x1, GELU, 1x1, and the residual: (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, channels: int, hidden: int, drop_path: float) -> None:
        super().__init__()
        self.preffn_bn = nn.BatchNorm2D(channels)
        self.pw1 = pointwise(channels, hidden)
        self.nonlinear = nn.GELU()
        self.pw2 = pointwise(hidden, channels)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.pw2(self.pw1(normalised(self.preffn_bn, x), self.nonlinear)))


class Stage(nn.Layer):
    """Pairs of a RepLKBlock and a ConvFFN, one pair for every rate in `drop_paths`, which both share."""

    def __init__(
        self,
        channels: int,
        kernel: int,
        small_kernel: int | None,
        dw_ratio: float,
        ffn_ratio: float,
        drop_paths: list[float],
        merged: bool,
        checkpointing: bool,
    ) -> None:
        super().__init__()
        self.blocks = nn.LayerList()
        self.checkpointing = checkpointing
        for rate in drop_paths:
            self.blocks.append(RepLKBlock(channels, int(channels * dw_ratio), kernel, small_kernel, rate, merged))
            self.blocks.append(ConvFFN(channels, int(channels * ffn_ratio), rate))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = checkpointed(block, x, enable=self.checkpointing)
        return x


class RepLKNet(nn.Layer):
    """A RepLKNet of checked arguments; see `replknet`."""

    def __init__(
        self,
        kernels: list[int],
        depths: list[int],
        channels: list[int],
        small_kernel: int | None,
        dw_ratio: float,
        ffn_ratio: float,
        drop_path: float,
        merged: bool,
        checkpointing: bool,
        num_classes: int,
        in_channels: int,
    ) -> None:
        super().__init__()
        width = channels[0]
        self.stem = nn.LayerList(
            [
                conv_bn(DirectConv2D(in_channels, width, 3, 2), width, relu=True),
                depthwise(width, stride=1),
                pointwise(width, width, relu=True),
                depthwise(width, stride=2),
            ]
        )
        rates = drop_path_rates(drop_path, sum(depths))
        self.stages, self.transitions = nn.LayerList(), nn.LayerList()
        for i, depth in enumerate(depths):
            if i > 0:
                down = (pointwise(channels[i - 1], channels[i], relu=True), depthwise(channels[i], stride=2))
                self.transitions.append(nn.Sequential(*down))
            first = sum(depths[:i])
            own = rates[first : first + depth]
            self.stages.append(
                Stage(channels[i], kernels[i], small_kernel, dw_ratio, ffn_ratio, own, merged, checkpointing)
            )
        self.norm = nn.BatchNorm2D(channels[-1])
        self.head = nn.Linear(channels[-1], num_classes)
        self.num_classes, self.num_features = num_classes, channels[-1]
        self.stage_channels = list(channels)
        self.stage_strides = [4 * 2**i for i in range(len(depths))]
        initialise(self)

    def forward_stages(self, x: Tensor) -> list[Tensor]:
        """The map at the end of each stage; channels and strides are in `stage_channels`, `stage_strides`."""
        for layer in self.stem:
            x = layer(x)
        maps = []
        for i, stage in enumerate(self.stages):
            x = stage(self.transitions[i - 1](x) if i > 0 else x)
            maps.append(x)
        return maps

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, num_features, H/32, W/32) for the published members."""
        return self.forward_stages(x)[-1]

    def forward_head(self, x: Tensor) -> Tensor:
        """Feature map -> logits: (N, num_features, h, w) -> (N, num_classes)."""
        return self.head(global_mean(normalised(self.norm, x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def reparameterize(self) -> RepLKNet:
        """Merge each large kernel with its small one and their batch norms, in place, for inference; returns itself."""
        for layer in self.sublayers():
            if isinstance(layer, LargeKernel):
                layer.merge()
        return self

    def layer_groups(self) -> list[tuple[str, list[str]]]:
        """(group, prefixes of its parameter names) from input to output: the release's 12 groups between stem and head.

        A transition belongs to the group before it, the last norm to the last blocks: in the release it learns at the
        head's rate, but the head here is what depends on the class count, and a group of its own would slow all others.
        """
        groups: list[tuple[str, list[str]]] = [("stem", ["stem."])]
        for i, stage in enumerate(self.stages):
            for first in range(0, len(stage.blocks), BLOCKS_PER_GROUP):
                own = range(first, min(first + BLOCKS_PER_GROUP, len(stage.blocks)))
                groups.append((f"stage{i}.{first}", [f"stages.{i}.blocks.{block}." for block in own]))
            if i < len(self.transitions):
                groups[-1][1].append(f"transitions.{i}.")
        groups[-1][1].append("norm.")
        return [*groups, ("head", ["head."])]


def initialise(network: nn.Layer) -> None:
    """Convolutions and the classifier, its bias too, uniform within 1 / sqrt(fan-in)."""
    for layer in network.sublayers():
        if isinstance(layer, (nn.Conv2D, nn.Linear)):
            shape = layer.weight.shape
            bound = (shape[1] * shape[2] * shape[3] if len(shape) == 4 else shape[0]) ** -0.5
            nn.initializer.Uniform(-bound, bound)(layer.weight)
            if layer.bias is not None:
                nn.initializer.Uniform(-bound, bound)(layer.bias)


@BACKBONES.register("RepLKNet")
def replknet(
    kernels: list[int],
    depths: list[int],
    channels: list[int],
    num_classes: int = 1000,
    in_channels: int = 3,
    small_kernel: int | None = 5,
    dw_ratio: float = 1.0,
    ffn_ratio: float = 4.0,
    drop_path: float = 0.0,
    merged: bool = False,
    gradient_checkpointing: bool = False,
) -> RepLKNet:
    """A RepLKNet of one's own.

    One number per stage in `kernels` (odd), `depths` and `channels`. `dw_ratio` and `ffn_ratio` widen the inside of the
    blocks. `merged` builds what `reparameterize` leaves, for weights that are merged already.
    """
    require_positive(num_classes=num_classes, in_channels=in_channels)
    if not depths or not len(kernels) == len(depths) == len(channels):
        raise Refused(
            "RepLKNet: expected as many kernels as depths and channels, at least one of each, "
            f"got {list(kernels)}, {list(depths)} and {list(channels)}."
        )
    for name, values in (("kernels", kernels), ("depths", depths), ("channels", channels)):
        require_positive(**{f"{name}[{i}]": value for i, value in enumerate(values)})
    for i, kernel in enumerate(kernels):
        if kernel % 2 == 0 or (small_kernel is not None and not (small_kernel % 2 and 0 < small_kernel <= kernel)):
            raise Refused(
                f"RepLKNet: expected an odd kernel and a small_kernel that is odd and not larger, or null, "
                f"got kernels[{i}] {kernel} and small_kernel {small_kernel}."
            )
    if min(dw_ratio, ffn_ratio) <= 0 or int(min(channels) * min(dw_ratio, ffn_ratio)) < 1:
        raise Refused(f"RepLKNet: dw_ratio {dw_ratio} or ffn_ratio {ffn_ratio} leaves a block without channels.")
    return RepLKNet(
        kernels=kernels,
        depths=depths,
        channels=channels,
        small_kernel=small_kernel,
        dw_ratio=dw_ratio,
        ffn_ratio=ffn_ratio,
        drop_path=drop_path,
        merged=merged,
        checkpointing=gradient_checkpointing,
        num_classes=num_classes,
        in_channels=in_channels,
    )


def released(
    params: int,
    macs: int,
    top1: float,
    size: int,
    resize: int,
    recipe: str,
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
) -> Facts:
    """Facts of one member; from 384 pixels on the whole image is warped to the square."""
    return Facts(
        params=params,
        macs=macs,
        top1=top1,
        top5=None,
        input_size=size,
        resize=resize,
        crop=size,
        warped=resize == size,
        interpolation="bicubic",
        mean=mean,
        std=std,
        recipe=recipe,
        source="arXiv 2203.06717; github.com/DingXiaoH/RepLKNet-pytorch: README",
    )


RECIPE_31B = (
    "300 epochs, AdamW, batch 2048, lr 4e-3, cosine to 1e-6, 10 epochs of warm-up, weight decay 0.05 not on biases and "
    "norms, RandAugment m9, mixup 0.8, cutmix 1.0, label smoothing 0.1, random erasing 0.25, drop path 0.5, EMA 0.9999"
)
RECIPE_31L = (
    "ImageNet-22K: 90 epochs, AdamW, batch 4096, lr 4e-3, 5 epochs of warm-up, drop path 0.1; then 30 epochs at 384: "
    "batch 512, lr 4e-4, weight decay 1e-8, layer decay 0.7, drop path 0.3, EMA"
)


@backbone("RepLKNet_31B", released(79_864_168, 15_431_298_048, 83.5, 224, 256, RECIPE_31B))
def replknet_31b(
    num_classes: int = 1000,
    in_channels: int = 3,
    drop_path: float = 0.5,
    merged: bool = False,
    gradient_checkpointing: bool = False,
) -> RepLKNet:
    """RepLKNet-31B: kernels of 31, 29, 27 and 13."""
    return replknet(
        [31, 29, 27, 13],
        [2, 2, 18, 2],
        [128, 256, 512, 1024],
        num_classes,
        in_channels,
        drop_path=drop_path,
        merged=merged,
        gradient_checkpointing=gradient_checkpointing,
    )


@backbone("RepLKNet_31L", released(172_671_016, 96_332_255_232, 86.6, 384, 384, RECIPE_31L))
def replknet_31l(
    num_classes: int = 1000,
    in_channels: int = 3,
    drop_path: float = 0.3,
    merged: bool = False,
    gradient_checkpointing: bool = False,
) -> RepLKNet:
    """RepLKNet-31L: 31B with one and a half times the channels."""
    return replknet(
        [31, 29, 27, 13],
        [2, 2, 18, 2],
        [192, 384, 768, 1536],
        num_classes,
        in_channels,
        drop_path=drop_path,
        merged=merged,
        gradient_checkpointing=gradient_checkpointing,
    )


@backbone(
    "RepLKNet_XL",
    released(
        *(335_435_752, 128_730_316_800, 87.8, 320, 365),
        "MegData-73M (not public), then ImageNet-1k at 320; the commands were not published",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    ),
)
def replknet_xl(
    num_classes: int = 1000,
    in_channels: int = 3,
    drop_path: float = 0.3,
    merged: bool = False,
    gradient_checkpointing: bool = False,
) -> RepLKNet:
    """RepLKNet-XL: kernels of 27, 27, 27 and 13 without small ones, blocks one and a half times as wide inside."""
    return replknet(
        [27, 27, 27, 13],
        [2, 2, 18, 2],
        [256, 512, 1024, 2048],
        num_classes,
        in_channels,
        small_kernel=None,
        dw_ratio=1.5,
        drop_path=drop_path,
        merged=merged,
        gradient_checkpointing=gradient_checkpointing,
    )
