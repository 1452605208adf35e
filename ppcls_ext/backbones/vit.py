"""Vision Transformer: An Image is Worth 16x16 Words (Dosovitskiy et al., 2021, arXiv 2010.11929).

Tiny and small are those of Touvron et al. (arXiv 2012.12877) and Steiner et al. (arXiv 2106.10270), without
distillation. Layer names are timm's (`vit_tiny_patch16_224` ...), so that its weights load.

Deviations: images of any size are taken, as timm does with dynamic_img_size and dynamic_img_pad: the last patches are
filled up with zeros; the position embeddings, learned on one grid, are resampled to the image's, bicubically (a = -1/2)
and with antialiasing. Neither does anything at the size that the network is built for.

Initial weights as in timm: linear layers and position embeddings normal with deviation 0.02, biases 0; the
class token normal with deviation 1e-6; the patch convolution uniform within 1 / sqrt(values of a patch).
"""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from ppcls_ext.backbones.published import Facts, backbone
from ppcls_ext.errors import Refused
from ppcls_ext.layers import DropPath, LayerNorm, drop_path_rates, require_positive, require_rate
from ppcls_ext.registry import BACKBONES

EPSILON = 1e-6


def bicubic_weights(given: int, wanted: int | Tensor) -> Tensor:
    """The matrix (wanted, given) that resamples `given` points to `wanted`: Keys's cubic filter with a = -1/2 (IEEE
    TASSP 29, 1981), stretched where points become fewer, as Pillow and PyTorch's antialiasing do it.
    """
    step = given / wanted if isinstance(wanted, int) else given / wanted.astype("float32")
    centres = (paddle.arange(wanted, dtype="float32") + 0.5) * step
    points = paddle.arange(given, dtype="float32") + 0.5
    stretch = max(step, 1.0) if isinstance(wanted, int) else paddle.clip(step, min=1.0)
    distance = paddle.clip(paddle.abs(points.unsqueeze(0) - centres.unsqueeze(1)) / stretch, max=2.0)
    near = (1.5 * distance - 2.5) * distance * distance + 1.0
    far = ((-0.5 * distance + 2.5) * distance - 4.0) * distance + 2.0
    weights = paddle.where(distance < 1.0, near, far)
    return weights / weights.sum(axis=1, keepdim=True)


class PatchEmbed(nn.Layer):
    """A linear map of each patch: (N, in_channels, H, W) -> (N, width, ceil(H / patch), ceil(W / patch))."""

    def __init__(self, in_channels: int, width: int, patch: int) -> None:
        super().__init__()
        # filled up below and to the right: a patch that begins in the image is a patch
        self.proj = nn.Conv2D(in_channels, width, patch, patch, padding=[0, patch - 1, 0, patch - 1])
        bound = (in_channels * patch**2) ** -0.5
        nn.initializer.Uniform(-bound, bound)(self.proj.weight)
        nn.initializer.Uniform(-bound, bound)(self.proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class Attention(nn.Layer):
    """Multi-head self-attention: (N, L, width) -> (N, L, width)."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (width // num_heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        # (N, L, 3 width) -> (3, N, heads, L, width / heads)
        q, k, v = (
            self.qkv(x).reshape([0, -1, 3, self.num_heads, x.shape[2] // self.num_heads]).transpose([2, 0, 3, 1, 4])
        )
        share = F.softmax(paddle.matmul(q * self.scale, k, transpose_y=True), axis=-1)
        mixed = paddle.matmul(share, v).transpose([0, 2, 1, 3])  # (N, heads, L, c) -> (N, L, heads, c)
        return self.proj(mixed.flatten(2))


class MLP(nn.Layer):
    """Two linear layers with a GELU between them: (N, L, width) -> (N, L, width)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Layer):
    """Attention and MLP, each after a layer norm and beside a shortcut: (N, L, width) -> (N, L, width)."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = LayerNorm(width, epsilon=EPSILON)
        self.attn = Attention(width, num_heads)
        self.norm2 = LayerNorm(width, epsilon=EPSILON)
        self.mlp = MLP(width, mlp_ratio * width)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class VisionTransformer(nn.Layer):
    """A ViT of checked sizes; see `vit` for the arguments."""

    def __init__(
        self,
        depth: int,
        width: int,
        num_heads: int,
        patch: int,
        image_size: int,
        mlp_ratio: int,
        dropout: float,
        drop_path: float,
        num_classes: int,
        in_channels: int,
    ) -> None:
        super().__init__()
        self.num_classes, self.num_features = num_classes, width
        self.stage_channels, self.stage_strides = [width], [patch]
        self.graph = {"num_heads": num_heads}  # what no tensor shows: weights of another would load as well
        self.grid = image_size // patch
        self.cls_token = self.create_parameter([1, 1, width], default_initializer=nn.initializer.Normal(0.0, 1e-6))
        short = nn.initializer.Normal(0.0, 0.02)  # Paddle's truncated one gives single values of exactly -2 and 2
        self.pos_embed = self.create_parameter([1, 1 + self.grid**2, width], default_initializer=short)
        self.patch_embed = PatchEmbed(in_channels, width, patch)
        self.pos_drop = nn.Dropout(dropout)
        self.blocks = nn.LayerList(
            [Block(width, num_heads, mlp_ratio, rate) for rate in drop_path_rates(drop_path, depth)]
        )
        self.norm = LayerNorm(width, epsilon=EPSILON)
        self.head = nn.Linear(width, num_classes)
        for layer in self.sublayers():
            if isinstance(layer, nn.Linear):
                short(layer.weight)
                nn.initializer.Constant(0.0)(layer.bias)

    def positions(self, patches: Tensor) -> Tensor:
        """The position embeddings of a map: (N, width, h, w) -> (1, width, h, w)."""
        grid = self.pos_embed[:, 1:].transpose([0, 2, 1]).reshape([1, self.num_features, self.grid, self.grid])
        if paddle.in_dynamic_mode():
            height, width = patches.shape[2:]
            if height == width == self.grid:
                return grid
        else:
            height, width = paddle.shape(patches)[2], paddle.shape(patches)[3]
        rows, columns = bicubic_weights(self.grid, height), bicubic_weights(self.grid, width)
        return paddle.matmul(paddle.matmul(rows, grid), columns, transpose_y=True)

    def tokens(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, in_channels, H, W) -> (the patches' map before the blocks, (N, 1 + patches, width) after all layers)."""
        patches = self.patch_embed(x)
        patches = patches + self.positions(patches)
        first = (self.cls_token + self.pos_embed[:, :1]).expand([patches.shape[0], -1, -1])
        x = self.pos_drop(paddle.concat([first, patches.flatten(2).transpose([0, 2, 1])], axis=1))
        for block in self.blocks:
            x = block(x)
        return patches, self.norm(x)

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, num_features, 1 + patches): the class token, then the patches row by row."""
        return self.tokens(x)[1].transpose([0, 2, 1])

    def forward_head(self, x: Tensor) -> Tensor:
        """Features -> logits, of the class token alone: (N, num_features, 1 + patches) -> (N, num_classes)."""
        return self.head(x[:, :, 0])

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_stages(self, x: Tensor) -> list[Tensor]:
        """The patches after all layers as a map, (N, num_features, H / patch, W / patch): a ViT has one resolution."""
        patches, x = self.tokens(x)
        return [x[:, 1:].transpose([0, 2, 1]).reshape(patches.shape)]

    def layer_groups(self) -> list[tuple[str, list[str]]]:
        """(group, prefixes of its parameter names) from input to output; "head" is what depends on the class count."""
        blocks = [(f"blocks.{i}", [f"blocks.{i}."]) for i in range(len(self.blocks))]
        blocks[-1][1].append("norm.")  # no layer by itself
        return [("stem", ["cls_token", "pos_embed", "patch_embed."]), *blocks, ("head", ["head."])]


@BACKBONES.register("VisionTransformer")
def vit(
    depth: int,
    width: int,
    num_heads: int,
    num_classes: int = 1000,
    in_channels: int = 3,
    patch: int = 16,
    image_size: int = 224,
    mlp_ratio: int = 4,
    dropout: float = 0.0,
    drop_path: float = 0.0,
) -> VisionTransformer:
    """A ViT of one's own.

    `image_size` is the side of the images whose patches have position embeddings of their own; others' are resampled.
    `dropout` applies to the tokens before the first block, `drop_path` to the last block and evenly less before it.
    """
    require_positive(
        num_classes=num_classes,
        in_channels=in_channels,
        depth=depth,
        width=width,
        num_heads=num_heads,
        patch=patch,
        image_size=image_size,
        mlp_ratio=mlp_ratio,
    )
    require_rate(dropout=dropout, drop_path=drop_path)
    if width % num_heads:
        raise Refused(f"VisionTransformer.num_heads: expected a divisor of the width {width}, got {num_heads}.")
    if image_size % patch:
        raise Refused(f"VisionTransformer.image_size: expected a multiple of the patch {patch}, got {image_size}.")
    return VisionTransformer(
        depth, width, num_heads, patch, image_size, mlp_ratio, dropout, drop_path, num_classes, in_channels
    )


def augmented(params: int, macs: int, top1: float, top5: float) -> Facts:
    """Facts of one member, with weights that saw ImageNet-21k first."""
    return Facts(
        params=params,
        macs=macs,
        top1=top1,
        top5=top5,
        input_size=224,
        resize=248,
        crop=224,
        interpolation="bicubic",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        recipe="AugReg: 300 epochs on ImageNet-21k, then ImageNet-1k (arXiv 2106.10270)",
        source="arXiv 2010.11929, 2106.10270; timm augreg_in21k_ft_in1k",
    )


@backbone("ViT_tiny_patch16_224", augmented(5_717_416, 1_074_851_328, 75.454, 92.844))
def vit_tiny(num_classes: int = 1000, in_channels: int = 3, drop_path: float = 0.0) -> VisionTransformer:
    """ViT-Ti/16."""
    return vit(12, 192, 3, num_classes, in_channels, drop_path=drop_path)


@backbone("ViT_small_patch16_224", augmented(22_050_664, 4_241_218_560, 81.384, 96.136))
def vit_small(num_classes: int = 1000, in_channels: int = 3, drop_path: float = 0.0) -> VisionTransformer:
    """ViT-S/16."""
    return vit(12, 384, 6, num_classes, in_channels, drop_path=drop_path)


@backbone("ViT_base_patch16_224", augmented(86_567_656, 16_848_500_736, 84.532, 97.292))
def vit_base(num_classes: int = 1000, in_channels: int = 3, drop_path: float = 0.0) -> VisionTransformer:
    """ViT-B/16."""
    return vit(12, 768, 12, num_classes, in_channels, drop_path=drop_path)
