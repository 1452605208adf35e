"""GroupMamba: Efficient Group-Based Visual State Space Model (Shaker et al., 2024, arXiv 2407.13772).

Layer names are those of the authors' release (github.com/Amshaker/GroupMamba), so that its weights load. A quarter of
the channels is scanned row by row, one column by column, and one each in the reverse of these. In training the network
gives the logits of `head` and those of `dist_head`, which learns from a teacher, in evaluation their mean; with
distillation=False there is one head. The scan's state is one number per channel, as in every published member.

Deviation: the four directions are one scan (`ppcls_ext.ops`), and the release's gradient of the scans along
columns is wrong where height and width differ; ours is not.

Initial weights as in the release: linear layers normal with deviation 0.02, convolutions normal with deviation
sqrt(2 / fan-out of a group), no bias; the scans' steps are spread between 0.001 and 0.1.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from ppcls_ext.backbones.groupmamba_inference import OneCall
from ppcls_ext.backbones.published import IMAGENET_MEAN, IMAGENET_STD, Facts, backbone
from ppcls_ext.errors import Refused
from ppcls_ext.layers import (
    DepthwiseConv2D,
    DirectConv2D,
    DropPath,
    LayerNorm,
    Linear,
    Sequential,
    checkpointed,
    drop_path_rates,
    is_plain,
    require_positive,
)
from ppcls_ext.ops import (
    cross_scan,
    gated_norm,
    joined_products,
    native,
    parted_products,
    scan_of_products,
    token_conv,
    weighed,
)
from ppcls_ext.registry import BACKBONES

GROUPS = 4  # one for each direction
REDUCTION = 16  # of the channel affinity
STEP_RANGE = (1e-3, 1e-1)


def to_map(x: Tensor, height: int | Tensor, width: int | Tensor) -> Tensor:
    """(N, H W, C) -> (N, C, H, W)."""
    return x.transpose([0, 2, 1]).reshape([-1, x.shape[2], height, width])


def to_tokens(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, H W, C)."""
    return x.flatten(2).transpose([0, 2, 1])


class SS2D(nn.Layer):
    """Weights of the scan in one direction; `GroupMambaLayer` runs the four of them together."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        rank = math.ceil(channels / 16)

        def parameter(shape: list[int], initial: nn.initializer.Initializer) -> Tensor:
            return self.create_parameter(shape, default_initializer=initial)

        def within(bound: float) -> nn.initializer.Initializer:
            return nn.initializer.Uniform(-bound, bound)

        low, high = map(math.log, STEP_RANGE)
        steps = np.exp(paddle.uniform([1, channels], min=low, max=high).numpy())
        self.x_proj_weight = parameter([1, rank + 2, channels], within(channels**-0.5))
        self.dt_projs_weight = parameter([1, channels, rank], within(rank**-0.5))
        # softplus of the bias is the step
        self.dt_projs_bias = parameter(
            [1, channels], nn.initializer.Assign((steps + np.log(-np.expm1(-steps))).astype(np.float32))
        )
        self.A_logs = parameter([channels, 1], nn.initializer.Constant(0.0))
        self.Ds = parameter([channels], nn.initializer.Constant(1.0))
        self.out_norm = LayerNorm(channels)
        self.in_proj = Linear(channels, 2 * channels, bias_attr=False)
        self.conv2d = DepthwiseConv2D(channels, channels, (3, 3), bias=True)
        self.out_proj = Linear(channels, channels, bias_attr=False)


class GroupMambaLayer(nn.Layer):
    """Scans in four directions, a quarter of the channels each, weighed by the channels' affinity: (N, H W, C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = Linear(channels, channels // REDUCTION)
        self.fc2 = Linear(channels // REDUCTION, channels)
        self.norm = LayerNorm(channels)
        self.mamba_g1 = SS2D(channels // GROUPS)
        self.mamba_g2 = SS2D(channels // GROUPS)
        self.mamba_g3 = SS2D(channels // GROUPS)
        self.mamba_g4 = SS2D(channels // GROUPS)
        self.proj = Linear(channels, channels)
        self.skip_scale = self.create_parameter([1], default_initializer=nn.initializer.Constant(1.0))

    def forward(self, x: Tensor, height: int | Tensor, width: int | Tensor) -> Tensor:
        x = self.norm(x)
        affinity = F.sigmoid(self.fc2(F.relu(self.fc1(x.mean(1)))))
        groups = [self.mamba_g1, self.mamba_g2, self.mamba_g3, self.mamba_g4]
        if self.training and native.usable(x) and are_plain(groups):
            return self.proj(self.norm(weighed(mixed(groups, x, height, width), x, affinity * self.skip_scale)))
        parts = [group.in_proj(part) for group, part in zip(groups, paddle.split(x, GROUPS, 2))]
        inner, gate = paddle.split(paddle.stack(parts), 2, 3)  # (4, N, H W, C / 4)
        maps = convolved([group.conv2d for group in groups], inner, height, width, "silu")
        scanned = scan(groups, maps, height, width)
        pairs = zip(groups, paddle.unbind(scanned, 0), paddle.unbind(F.silu(gate), 0))
        merged = paddle.concat([group.out_proj(group.out_norm(y) * z) for group, y, z in pairs], 2)
        return self.proj(self.norm(merged * x * (affinity * self.skip_scale).unsqueeze(1)))


def are_plain(groups: list[SS2D]) -> bool:
    """Whether operators for all groups at once may do the work of their parts."""
    return all(
        is_plain(group.in_proj, Linear)
        and is_plain(group.conv2d, DepthwiseConv2D)
        and is_plain(group.out_norm, LayerNorm)
        and is_plain(group.out_proj, Linear)
        for group in groups
    )


def convolved(
    convolutions: list[nn.Layer],
    x: Tensor,
    height: int | Tensor,
    width: int | Tensor,
    activation: Literal["silu", "gelu"],
) -> Tensor:
    """One convolution for each set of tokens, and the activation: (S, N, H W, C) -> (S, N, H W, C)."""
    if all(is_plain(convolution, DepthwiseConv2D) for convolution in convolutions):
        weight = paddle.stack([convolution.weight.squeeze(1) for convolution in convolutions])  # (S, C, 3, 3)
        bias = paddle.stack([convolution.bias for convolution in convolutions])
        return token_conv(x, weight, bias, height, width, activation)
    maps = [convolution(to_map(own, height, width)) for convolution, own in zip(convolutions, paddle.unbind(x, 0))]
    return getattr(F, activation)(paddle.stack([to_tokens(own) for own in maps]))


def mixed(groups: list[SS2D], x: Tensor, height: int, width: int) -> Tensor:
    """What `GroupMambaLayer` does with its groups, for all of them at once, in training: (N, H W, C) -> (N, H W, C)."""
    inner, gate = parted_products(x, paddle.stack([group.in_proj.weight for group in groups]))  # (4, N, H W, C / 4)
    maps = convolved([group.conv2d for group in groups], inner, height, width, "silu")
    bias, decay, skip, weight, step_weight = scan_weights(groups)
    scanned = scan_of_products(maps, weight, step_weight, bias, decay, skip, height, width)
    weight = paddle.stack([group.out_norm.weight for group in groups])
    bias = paddle.stack([group.out_norm.bias for group in groups])
    y = gated_norm(scanned, gate, weight, bias, groups[0].out_norm.epsilon)
    return joined_products(y, paddle.stack([group.out_proj.weight for group in groups]))


def scan(groups: list[SS2D], u: Tensor, height: int | Tensor, width: int | Tensor) -> Tensor:
    """The scans of all groups at once: (4, N, L, C), row by row -> (4, N, L, C)."""
    bias, decay, skip, weight, step_weight = scan_weights(groups)
    channels, rank = step_weight.shape[1:]

    def projected(u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        length = u.shape[2] if u.shape[2] > 0 else paddle.shape(u)[2]  # of a graph for every size
        low, b, c = paddle.split(paddle.matmul(u.flatten(1, 2), weight, transpose_y=True), [rank, 1, 1], axis=2)
        step = paddle.matmul(low, step_weight, transpose_y=True)
        return tuple(y.reshape([GROUPS, -1, length, own]) for y, own in ((step, channels), (b, 1), (c, 1)))

    return cross_scan(u, projected, bias, decay, skip, height, width)


def scan_weights(groups: list[SS2D]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Bias, decay and skip (4, C), what steps, b and c are made with (4, R + 2, C), and the steps then (4, C, R)."""
    bias = paddle.concat([group.dt_projs_bias for group in groups])
    decay = -paddle.exp(paddle.stack([group.A_logs for group in groups]).squeeze(2))
    skip = paddle.stack([group.Ds for group in groups])
    weight = paddle.concat([group.x_proj_weight for group in groups])
    step_weight = paddle.concat([group.dt_projs_weight for group in groups])
    return bias, decay, skip, weight, step_weight


class ConvMLP(nn.Layer):
    """Linear, depthwise 3x3, GELU, linear; without the convolution for single tokens: (N, H W, C) -> (N, H W, C)."""

    def __init__(self, channels: int, hidden: int, convolution: bool) -> None:
        super().__init__()
        self.fc1 = Linear(channels, hidden)
        self.dwconv = None
        if convolution:
            self.dwconv = nn.Sequential(("dwconv", DepthwiseConv2D(hidden, hidden, (3, 3), bias=True)))
        self.fc2 = Linear(hidden, channels)

    def forward(self, x: Tensor, height: int | Tensor, width: int | Tensor) -> Tensor:
        x = self.fc1(x)
        if self.dwconv is None:
            return self.fc2(F.gelu(x))
        return self.fc2(convolved([self.dwconv["dwconv"]], x.unsqueeze(0), height, width, "gelu").squeeze(0))


class Block(nn.Layer):
    """The group layer, which normalises by itself, and the MLP, with residuals: (N, H W, C) -> (N, H W, C)."""

    def __init__(self, channels: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.norm2 = LayerNorm(channels, epsilon=1e-6)
        self.attn = GroupMambaLayer(channels)
        self.mlp = ConvMLP(channels, int(channels * mlp_ratio), convolution=True)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, height: int | Tensor, width: int | Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(x, height, width))
        return x + self.drop_path(self.mlp(self.norm2(x), height, width))


class ClassBlock(nn.Layer):
    """A block that changes the first token alone, the class token: (N, 1 + L, C) -> (N, 1 + L, C)."""

    def __init__(self, channels: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = LayerNorm(channels, epsilon=1e-6)
        self.norm2 = LayerNorm(channels, epsilon=1e-6)
        self.attn = GroupMambaLayer(channels)
        self.mlp = ConvMLP(channels, int(channels * mlp_ratio), convolution=False)

    def forward(self, x: Tensor) -> Tensor:
        token = x[:, :1]
        token = token + self.norm1(self.attn(token, 1, 1))
        token = token + self.mlp(self.norm2(token), 1, 1)
        return paddle.concat([token, x[:, 1:]], 1)


class Embedding(nn.Layer):
    """Half the height and width: (N, H W, in) -> (N, H/2 W/2, out); the first from (N, in, H, W), halved once more."""

    def __init__(self, in_channels: int, out_channels: int, stem_width: int | None = None) -> None:
        super().__init__()
        self.conv = None
        if stem_width is not None:
            layers: list[nn.Layer] = []
            for kernel, stride, before in ((7, 2, in_channels), (3, 1, stem_width), (3, 1, stem_width)):
                conv = DirectConv2D(before, stem_width, kernel, stride)
                layers += [conv, nn.BatchNorm2D(stem_width), nn.ReLU()]
            self.conv = Sequential(*layers)
            in_channels = stem_width
        self.proj = DirectConv2D(in_channels, out_channels, 3, 2, bias=True)
        self.norm = LayerNorm(out_channels)

    def forward(self, x: Tensor, height: int | Tensor, width: int | Tensor) -> Tensor:
        maps = to_map(x, height, width) if self.conv is None else self.conv(x)
        return self.norm(to_tokens(self.proj(maps)))


class GroupMamba(nn.Layer):
    """A GroupMamba of checked arguments; see `groupmamba`."""

    def __init__(
        self,
        stem_width: int,
        channels: list[int],
        depths: list[int],
        mlp_ratios: list[float],
        drop_path: float,
        distillation: bool,
        checkpointing: bool,
        num_classes: int,
        in_channels: int,
    ) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        rates = drop_path_rates(drop_path, sum(depths))
        before = in_channels
        for i, (width, depth, ratio) in enumerate(zip(channels, depths, mlp_ratios)):
            own = rates[sum(depths[:i]) : sum(depths[:i]) + depth]
            self.add_sublayer(f"patch_embed{i + 1}", Embedding(before, width, stem_width if i == 0 else None))
            self.add_sublayer(f"block{i + 1}", nn.LayerList([Block(width, ratio, rate) for rate in own]))
            self.add_sublayer(f"norm{i + 1}", LayerNorm(width, epsilon=1e-6))
            before = width
        self.post_network = nn.LayerList([ClassBlock(before, mlp_ratios[-1])])
        self.head = Linear(before, num_classes)
        self.dist_head = Linear(before, num_classes) if distillation else None
        self.num_classes, self.num_features = num_classes, before
        self.stage_channels = list(channels)
        self.stage_strides = [4 * 2**i for i in range(len(depths))]
        self.num_stages = len(depths)
        self.one_call = OneCall(self)
        initialise(self)

    def forward_stages(self, x: Tensor) -> list[Tensor]:
        """The map at the end of each stage; channels and strides are in `stage_channels`, `stage_strides`.

        All but the last are normalised, as they go on to the next stage.
        """
        return [to_map(tokens, height, width) for tokens, height, width in self._stages(x)]

    def _stages(self, x: Tensor) -> list[tuple[Tensor, int | Tensor, int | Tensor]]:
        """Tokens (N, H W, C), height and width at the end of each stage."""
        results = self.one_call.stages(self, x)
        if results is not None:
            return results
        children = dict(self.named_children())
        results = []
        height, width = x.shape[2], x.shape[3]
        for i in range(1, self.num_stages + 1):
            x = children[f"patch_embed{i}"](x, height, width)
            if i == 1:  # the stem
                height, width = (height + 1) // 2, (width + 1) // 2
            height, width = (height + 1) // 2, (width + 1) // 2
            for block in children[f"block{i}"]:
                x = checkpointed(block, x, height, width, enable=self.checkpointing)
            x = children[f"norm{i}"](x) if i < self.num_stages else x
            results.append((x, height, width))
        return results

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, num_features, H/32, W/32) for the published members."""
        return to_map(*self._stages(x)[-1])

    def forward_head(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Feature map -> logits (N, num_classes); in training, with distillation, those of both heads."""
        return self._head(to_tokens(x))

    def _head(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """The same of tokens (N, H W, C)."""
        x = paddle.concat([x.mean(1, keepdim=True), x], 1)
        for block in self.post_network:
            x = block(x)
        token = dict(self.named_children())[f"norm{self.num_stages}"](x[:, 0])
        if self.dist_head is None:
            return self.head(token)
        both = self.head(token), self.dist_head(token)
        return both if self.training else (both[0] + both[1]) / 2

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        logits = self.one_call.logits(self, x)
        return self._head(self._stages(x)[-1][0]) if logits is None else logits

    def layer_groups(self) -> list[tuple[str, list[str]]]:
        """(group, prefixes of its parameter names) from input to output; "head" is what depends on the class count."""
        groups = []
        for i, (name, blocks) in enumerate(
            (name, layer) for name, layer in self.named_children() if name.startswith("block")
        ):
            groups.append((f"embedding{i + 1}", [f"patch_embed{i + 1}."]))
            groups += [(f"{name}.{j}", [f"{name}.{j}."]) for j in range(len(blocks))]
            groups[-1][1].append(f"norm{i + 1}.")
        return [*groups, ("post_network", ["post_network."]), ("head", ["head.", "dist_head."])]


def initialise(network: nn.Layer) -> None:
    """Fill linear layers and convolutions; norms are at 1 and 0 already, and a scan's own weights stay."""
    for layer in network.sublayers():
        if isinstance(layer, nn.Linear):
            nn.initializer.Normal(0.0, 0.02)(layer.weight)
        elif isinstance(layer, nn.Conv2D):
            out_channels, _, height, width = layer.weight.shape
            nn.initializer.Normal(0.0, (2.0 * layer._groups / (height * width * out_channels)) ** 0.5)(layer.weight)
        else:
            continue
        if layer.bias is not None:
            nn.initializer.Constant(0.0)(layer.bias)


@BACKBONES.register("GroupMamba")
def groupmamba(
    stem_width: int,
    channels: list[int],
    depths: list[int],
    mlp_ratios: list[float],
    num_classes: int = 1000,
    in_channels: int = 3,
    drop_path: float = 0.0,
    distillation: bool = True,
    gradient_checkpointing: bool = False,
) -> GroupMamba:
    """A GroupMamba of one's own.

    One number per stage in `channels` (multiples of 4 from 16 on), `depths` and `mlp_ratios`. With distillation=False
    there is one head, and training gives one tensor of logits.
    """
    require_positive(num_classes=num_classes, in_channels=in_channels, stem_width=stem_width)
    if not depths or not len(channels) == len(depths) == len(mlp_ratios):
        raise Refused(
            "GroupMamba: expected as many channels as depths and mlp_ratios, at least one of each, "
            f"got {list(channels)}, {list(depths)} and {list(mlp_ratios)}."
        )
    for i, (width, depth, ratio) in enumerate(zip(channels, depths, mlp_ratios)):
        require_positive(**{f"depths[{i}]": depth})
        if width < REDUCTION or width % GROUPS:
            raise Refused(f"GroupMamba: expected channels[{i}] to be a multiple of 4, at least 16, got {width}.")
        if int(width * ratio) < 1:
            raise Refused(f"GroupMamba: mlp_ratios[{i}] {ratio} leaves the MLP without channels.")
    return GroupMamba(
        stem_width=stem_width,
        channels=channels,
        depths=depths,
        mlp_ratios=mlp_ratios,
        drop_path=drop_path,
        distillation=distillation,
        checkpointing=gradient_checkpointing,
        num_classes=num_classes,
        in_channels=in_channels,
    )


def released(params: int, macs: int, top1: float) -> Facts:
    """Facts of one member: what all three share is written here once."""
    return Facts(
        params=params,
        macs=macs,
        top1=top1,
        top5=None,
        input_size=224,
        resize=256,
        crop=224,
        interpolation="bicubic",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        recipe="300 epochs, AdamW, batch 1024, lr 1e-3, cosine to 1e-5, 20 epochs of warm-up from 1e-6, weight decay "
        "0.05 not on biases and norms, gradient norm 5, hard distillation from RegNetY-160, RandAugment m9, mixup 0.8, "
        "cutmix 1.0, label smoothing 0.1, random erasing 0.25, drop path 0.05, EMA 0.9999",
        source="arXiv 2407.13772; github.com/Amshaker/GroupMamba: README, classification/config.py",
    )


@backbone("GroupMamba_tiny", released(23_361_917, 4_634_649_080, 83.3))
def groupmamba_tiny(
    num_classes: int = 1000,
    in_channels: int = 3,
    drop_path: float = 0.05,
    distillation: bool = True,
    gradient_checkpointing: bool = False,
) -> GroupMamba:
    """GroupMamba-Tiny."""
    return groupmamba(
        *(32, [64, 128, 348, 448], [3, 4, 9, 3], [8, 8, 4, 4], num_classes, in_channels),
        *(drop_path, distillation, gradient_checkpointing),
    )


@backbone("GroupMamba_small", released(34_781_555, 7_185_750_400, 83.9))
def groupmamba_small(
    num_classes: int = 1000,
    in_channels: int = 3,
    drop_path: float = 0.05,
    distillation: bool = True,
    gradient_checkpointing: bool = False,
) -> GroupMamba:
    """GroupMamba-Small."""
    return groupmamba(
        *(64, [64, 128, 348, 512], [3, 4, 16, 3], [8, 8, 4, 4], num_classes, in_channels),
        *(drop_path, distillation, gradient_checkpointing),
    )


@backbone("GroupMamba_base", released(57_150_838, 14_025_408_384, 84.5))
def groupmamba_base(
    num_classes: int = 1000,
    in_channels: int = 3,
    drop_path: float = 0.05,
    distillation: bool = True,
    gradient_checkpointing: bool = False,
) -> GroupMamba:
    """GroupMamba-Base."""
    return groupmamba(
        *(64, [96, 192, 424, 512], [3, 6, 21, 3], [8, 8, 4, 4], num_classes, in_channels),
        *(drop_path, distillation, gradient_checkpointing),
    )
