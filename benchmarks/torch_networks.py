"""The same networks in plain PyTorch, for comparison: names of layers are ours, so that one set of weights fits both.

Convolutions are PyTorch's own, as a reader of the papers would write them; the scan of GroupMamba is written in two
ways, since PyTorch has none on a CPU: step by step, and log-step (Hillis and Steele).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def load(network: nn.Module, arrays: Mapping[str, np.ndarray]) -> None:
    """Our weights (`arrays_of` in networks.py) into one of these networks; every tensor has to find its place."""
    renamed = {"_mean": "running_mean", "_variance": "running_var"}
    state = {}
    for name, array in arrays.items():
        head, _, last = name.rpartition(".")
        state[f"{head}.{renamed.get(last, last)}" if head else name] = torch.from_numpy(array.copy())
    counters = {name: value for name, value in network.state_dict().items() if name.endswith("num_batches_tracked")}
    network.load_state_dict({**state, **counters})


def conv(i: int, o: int, kernel: int, stride: int = 1, groups: int = 1, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(i, o, kernel, stride, kernel // 2, groups=groups, bias=bias)


# ------------------------------------------------------------------------------------------------ ShuffleNetV2


def shuffle_branch(i: int, o: int, stride: int) -> nn.Sequential:
    first = [conv(i, o, 1), nn.BatchNorm2d(o), nn.ReLU()]
    middle = [conv(o, o, 3, stride, o), nn.BatchNorm2d(o)]
    return nn.Sequential(*first, *middle, conv(o, o, 1), nn.BatchNorm2d(o), nn.ReLU())


class ShuffleUnit(nn.Module):
    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        half, self.stride = o // 2, stride
        if stride == 2:
            first = [conv(i, i, 3, 2, i), nn.BatchNorm2d(i)]
            self.branch1 = nn.Sequential(*first, conv(i, half, 1), nn.BatchNorm2d(half), nn.ReLU())
        self.branch2 = shuffle_branch(i if stride == 2 else half, half, stride)

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 2:
            x = torch.cat([self.branch1(x), self.branch2(x)], 1)
        else:
            passed, convolved = x.chunk(2, 1)
            x = torch.cat([passed, self.branch2(convolved)], 1)
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class ShuffleNetV2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(conv(3, 24, 3, 2), nn.BatchNorm2d(24), nn.ReLU())
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels = 24
        for name, width, depth in (("stage2", 116, 4), ("stage3", 232, 8), ("stage4", 464, 4)):
            units = [ShuffleUnit(channels, width, 2), *(ShuffleUnit(width, width, 1) for _ in range(depth - 1))]
            self.add_module(name, nn.Sequential(*units))
            channels = width
        self.conv5 = nn.Sequential(conv(464, 1024, 1), nn.BatchNorm2d(1024), nn.ReLU())
        self.fc = nn.Linear(1024, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage4(self.stage3(self.stage2(self.maxpool(self.conv1(x)))))
        return self.fc(self.conv5(x).mean((2, 3)))


# ------------------------------------------------------------------------------------------------ ResNeXt50


class Bottleneck(nn.Module):
    def __init__(self, i: int, width: int, stride: int) -> None:
        super().__init__()
        hidden, o = width * 2, width * 4
        self.conv1, self.bn1 = conv(i, hidden, 1), nn.BatchNorm2d(hidden)
        self.conv2, self.bn2 = conv(hidden, hidden, 3, stride, 32), nn.BatchNorm2d(hidden)
        self.conv3, self.bn3 = conv(hidden, o, 1), nn.BatchNorm2d(o)
        self.downsample = nn.Identity()
        if stride != 1 or i != o:
            self.downsample = nn.Sequential(conv(i, o, 1, stride), nn.BatchNorm2d(o))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x), inplace=True)


class ResNeXt50(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.maxpool = conv(3, 64, 7, 2), nn.BatchNorm2d(64), nn.MaxPool2d(3, 2, 1)
        channels = 64
        for i, depth in enumerate((3, 4, 6, 3)):
            blocks = []
            for j in range(depth):
                blocks.append(Bottleneck(channels, 64 * 2**i, 2 if i > 0 and j == 0 else 1))
                channels = 256 * 2**i
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(2048, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x)), inplace=True))
        return self.fc(self.layer4(self.layer3(self.layer2(self.layer1(x)))).mean((2, 3)))


# ------------------------------------------------------------------------------------------------ EfficientNet-B0


class Squeeze(nn.Module):
    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.conv_reduce, self.conv_expand = conv(channels, hidden, 1, bias=True), conv(hidden, channels, 1, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.conv_expand(F.silu(self.conv_reduce(x.mean((2, 3), keepdim=True)))))


class MBConv(nn.Module):
    def __init__(self, i: int, o: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden, self.expands = i * expansion, expansion > 1
        self.residual = stride == 1 and i == o
        if self.expands:
            self.conv_pw, self.bn1 = conv(i, hidden, 1), nn.BatchNorm2d(hidden)
            self.conv_dw, self.bn2 = conv(hidden, hidden, kernel, stride, hidden), nn.BatchNorm2d(hidden)
            self.conv_pwl, self.bn3 = conv(hidden, o, 1), nn.BatchNorm2d(o)
        else:
            self.conv_dw, self.bn1 = conv(i, i, kernel, stride, i), nn.BatchNorm2d(i)
            self.conv_pw, self.bn2 = conv(i, o, 1), nn.BatchNorm2d(o)
        self.se = Squeeze(hidden, i // 4)

    def forward(self, x: Tensor) -> Tensor:
        if self.expands:
            y = F.silu(self.bn1(self.conv_pw(x)), inplace=True)
            y = self.se(F.silu(self.bn2(self.conv_dw(y)), inplace=True))
            y = self.bn3(self.conv_pwl(y))
        else:
            y = self.se(F.silu(self.bn1(self.conv_dw(x)), inplace=True))
            y = self.bn2(self.conv_pw(y))
        return x + y if self.residual else y


class EfficientNetB0(nn.Module):
    """In the symmetric graph, without dropout and drop path."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem, self.bn1 = conv(3, 32, 3, 2), nn.BatchNorm2d(32)
        rows = ((1, 16, 1, 3, 1), (6, 24, 2, 3, 2), (6, 40, 2, 5, 2), (6, 80, 3, 3, 2))
        rows += ((6, 112, 3, 5, 1), (6, 192, 4, 5, 2), (6, 320, 1, 3, 1))
        channels, stages = 32, []
        for expansion, width, depth, kernel, stride in rows:
            blocks = []
            for j in range(depth):
                blocks.append(MBConv(channels, width, kernel, stride if j == 0 else 1, expansion))
                channels = width
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)
        self.conv_head, self.bn2 = conv(320, 1280, 1), nn.BatchNorm2d(1280)
        self.classifier = nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.silu(self.bn1(self.conv_stem(x)), inplace=True))
        return self.classifier(F.silu(self.bn2(self.conv_head(x)), inplace=True).mean((2, 3)))


# ------------------------------------------------------------------------------------------------ RepLKNet


def conv_bn(layer: nn.Conv2d, relu: bool = False) -> nn.Sequential:
    result = nn.Sequential()
    result.add_module("conv", layer)
    result.add_module("bn", nn.BatchNorm2d(layer.out_channels))
    if relu:
        result.add_module("nonlinear", nn.ReLU())
    return result


def folded(branch: nn.Sequential) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution that does its batch norm's work as well."""
    scale = branch.bn.weight / torch.sqrt(branch.bn.running_var + branch.bn.eps)
    return branch.conv.weight * scale.view(-1, 1, 1, 1), branch.bn.bias - branch.bn.running_mean * scale


class LargeKernel(nn.Module):
    def __init__(self, channels: int, kernel: int, small: int | None) -> None:
        super().__init__()
        self.lkb_origin = conv_bn(conv(channels, channels, kernel, groups=channels))
        self.small_conv = conv_bn(conv(channels, channels, small, groups=channels)) if small else None
        self.lkb_reparam = None

    def forward(self, x: Tensor) -> Tensor:
        if self.lkb_reparam is not None:
            return self.lkb_reparam(x)
        y = self.lkb_origin(x)
        return y if self.small_conv is None else y + self.small_conv(x)

    def merge(self) -> None:
        """One convolution in place of both and of their batch norms."""
        weight, bias = folded(self.lkb_origin)
        channels, _, kernel, _ = weight.shape
        if self.small_conv is not None:
            small_weight, small_bias = folded(self.small_conv)
            around = (kernel - small_weight.shape[-1]) // 2
            weight, bias = weight + F.pad(small_weight, [around] * 4), bias + small_bias
        self.lkb_reparam = conv(channels, channels, kernel, groups=channels, bias=True)
        self.lkb_reparam.load_state_dict({"weight": weight, "bias": bias})
        self.lkb_origin = self.small_conv = None


class RepLKBlock(nn.Module):
    def __init__(self, channels: int, kernel: int, small: int | None, ratio: float) -> None:
        super().__init__()
        inner = int(channels * ratio)
        self.pw1, self.pw2 = conv_bn(conv(channels, inner, 1), True), conv_bn(conv(inner, channels, 1))
        self.large_kernel, self.prelkb_bn = LargeKernel(inner, kernel, small), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pw2(F.relu(self.large_kernel(self.pw1(self.prelkb_bn(x)))))


class ConvFFN(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.preffn_bn = nn.BatchNorm2d(channels)
        self.pw1, self.pw2 = conv_bn(conv(channels, 4 * channels, 1)), conv_bn(conv(4 * channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pw2(F.gelu(self.pw1(self.preffn_bn(x))))


class RepLKStage(nn.Module):
    def __init__(self, channels: int, kernel: int, depth: int, small: int | None, ratio: float) -> None:
        super().__init__()
        pairs = [(RepLKBlock(channels, kernel, small, ratio), ConvFFN(channels)) for _ in range(depth)]
        self.blocks = nn.ModuleList([block for pair in pairs for block in pair])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class RepLKNet(nn.Module):
    """Without drop path."""

    def __init__(self, width: int, kernels: tuple[int, ...], small: int | None = 5, ratio: float = 1.0) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(4)]

        def depthwise(c: int, stride: int) -> nn.Sequential:
            return conv_bn(conv(c, c, 3, stride, c), True)

        first = conv_bn(conv(3, width, 3, 2), True)
        rest = [depthwise(width, 1), conv_bn(conv(width, width, 1), True), depthwise(width, 2)]
        self.stem = nn.ModuleList([first, *rest])
        settings = zip(widths, kernels, (2, 2, 18, 2))
        self.stages = nn.ModuleList([RepLKStage(c, k, d, small, ratio) for c, k, d in settings])
        down = [nn.Sequential(conv_bn(conv(i, o, 1), True), depthwise(o, 2)) for i, o in zip(widths, widths[1:])]
        self.transitions = nn.ModuleList(down)
        self.norm, self.head = nn.BatchNorm2d(widths[-1]), nn.Linear(widths[-1], 1000)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.stem:
            x = layer(x)
        for i, stage in enumerate(self.stages):
            x = stage(x if i == 0 else self.transitions[i - 1](x))
        return self.head(self.norm(x).mean((2, 3)))

    def merge(self) -> None:
        """The paper's structural re-parameterisation."""
        for layer in self.modules():
            if isinstance(layer, LargeKernel):
                layer.merge()


def replknet_31b() -> RepLKNet:
    return RepLKNet(128, (31, 29, 27, 13))


def replknet_31l() -> RepLKNet:
    return RepLKNet(192, (31, 29, 27, 13))


def replknet_xl() -> RepLKNet:
    return RepLKNet(256, (27, 27, 27, 13), small=None, ratio=1.5)


# ------------------------------------------------------------------------------------------------ GroupMamba


Scan = Callable[[Tensor, Tensor], Tensor]


def log_step_scan(a: Tensor, b: Tensor) -> Tensor:
    """h[t] = a[t] h[t-1] + b[t] over axis 1; each round joins every step with that 1, 2, 4 ... before it."""
    distance = 1
    while distance < a.shape[1]:
        b = torch.cat([b[:, :distance], b[:, distance:] + a[:, distance:] * b[:, :-distance]], 1)
        a = torch.cat([a[:, :distance], a[:, distance:] * a[:, :-distance]], 1)
        distance *= 2
    return b


def step_by_step_scan(a: Tensor, b: Tensor) -> Tensor:
    h, states = torch.zeros_like(b[:, 0]), []
    for t in range(a.shape[1]):
        h = a[:, t] * h + b[:, t]
        states.append(h)
    return torch.stack(states, 1)


class SS2D(nn.Module):
    def __init__(self, channels: int, scan: Scan) -> None:
        super().__init__()
        rank, self.scan = math.ceil(channels / 16), scan
        self.x_proj_weight = nn.Parameter(torch.randn(1, rank + 2, channels) * 0.1)
        self.dt_projs_weight = nn.Parameter(torch.randn(1, channels, rank) * 0.1)
        self.dt_projs_bias = nn.Parameter(torch.randn(1, channels) - 4)
        self.A_logs, self.Ds = nn.Parameter(torch.zeros(channels, 1)), nn.Parameter(torch.ones(channels))
        self.out_norm = nn.LayerNorm(channels)
        self.in_proj = nn.Linear(channels, 2 * channels, bias=False)
        self.conv2d = conv(channels, channels, 3, groups=channels, bias=True)
        self.out_proj = nn.Linear(channels, channels, bias=False)

    def forward(self, x: Tensor, height: int, width: int, direction: int) -> Tensor:
        n, length, channels = x.shape
        inner, gate = self.in_proj(x).chunk(2, 2)
        u = F.silu(self.conv2d(inner.transpose(1, 2).reshape(n, channels, height, width)))
        u = (u.transpose(2, 3) if direction % 2 else u).flatten(2).transpose(1, 2)
        if direction >= 2:
            u = u.flip(1)
        low, b, c = (u @ self.x_proj_weight[0].T).split([self.x_proj_weight.shape[1] - 2, 1, 1], 2)
        step = F.softplus(low @ self.dt_projs_weight[0].T + self.dt_projs_bias[0])
        h = self.scan(torch.exp(step * -torch.exp(self.A_logs[:, 0])), step * b * u)
        y = h * c + u * self.Ds
        if direction >= 2:
            y = y.flip(1)
        if direction % 2:
            y = y.reshape(n, width, height, channels).transpose(1, 2).reshape(n, length, channels)
        return self.out_proj(self.out_norm(y) * F.silu(gate))


class MambaLayer(nn.Module):
    def __init__(self, channels: int, scan: Scan) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(channels, channels // 16), nn.Linear(channels // 16, channels)
        self.norm, self.proj = nn.LayerNorm(channels), nn.Linear(channels, channels)
        for i in range(4):
            self.add_module(f"mamba_g{i + 1}", SS2D(channels // 4, scan))
        self.skip_scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        x = self.norm(x)
        affinity = torch.sigmoid(self.fc2(F.relu(self.fc1(x.mean(1)))))
        groups = (self.mamba_g1, self.mamba_g2, self.mamba_g3, self.mamba_g4)
        parts = [group(part, height, width, i) for i, (group, part) in enumerate(zip(groups, x.chunk(4, 2)))]
        return self.proj(self.norm(torch.cat(parts, 2) * self.skip_scale * x * affinity.unsqueeze(1)))


class ConvMLP(nn.Module):
    def __init__(self, channels: int, hidden: int, convolution: bool) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(channels, hidden), nn.Linear(hidden, channels)
        self.dwconv = nn.Module() if convolution else None
        if convolution:
            self.dwconv.dwconv = conv(hidden, hidden, 3, groups=hidden, bias=True)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        x = self.fc1(x)
        if self.dwconv is not None:
            n, length, channels = x.shape
            maps = self.dwconv.dwconv(x.transpose(1, 2).reshape(n, channels, height, width))
            x = maps.flatten(2).transpose(1, 2)
        return self.fc2(F.gelu(x))


class Block(nn.Module):
    def __init__(self, channels: int, ratio: int, scan: Scan) -> None:
        super().__init__()
        self.norm2, self.attn = nn.LayerNorm(channels, eps=1e-6), MambaLayer(channels, scan)
        self.mlp = ConvMLP(channels, channels * ratio, True)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        x = x + self.attn(x, height, width)
        return x + self.mlp(self.norm2(x), height, width)


class ClassBlock(nn.Module):
    def __init__(self, channels: int, ratio: int, scan: Scan) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels, eps=1e-6), nn.LayerNorm(channels, eps=1e-6)
        self.attn, self.mlp = MambaLayer(channels, scan), ConvMLP(channels, channels * ratio, False)

    def forward(self, token: Tensor) -> Tensor:
        token = token + self.norm1(self.attn(token, 1, 1))
        return token + self.mlp(self.norm2(token), 1, 1)


class Embedding(nn.Module):
    def __init__(self, i: int, o: int, stem: int | None) -> None:
        super().__init__()
        self.conv = None
        if stem is not None:
            layers: list[nn.Module] = []
            for kernel, stride, before in ((7, 2, i), (3, 1, stem), (3, 1, stem)):
                layers += [conv(before, stem, kernel, stride), nn.BatchNorm2d(stem), nn.ReLU()]
            self.conv, i = nn.Sequential(*layers), stem
        self.proj, self.norm = conv(i, o, 3, 2, bias=True), nn.LayerNorm(o)

    def forward(self, x: Tensor) -> tuple[Tensor, int, int]:
        x = self.proj(x if self.conv is None else self.conv(x))
        return self.norm(x.flatten(2).transpose(1, 2)), x.shape[2], x.shape[3]


class GroupMamba(nn.Module):
    """Without drop path; in training both heads, in evaluation their mean."""

    def __init__(self, stem: int, widths: tuple[int, ...], depths: tuple[int, ...], scan: Scan) -> None:
        super().__init__()
        before, ratios = 3, (8, 8, 4, 4)
        for i, (width, depth, ratio) in enumerate(zip(widths, depths, ratios), 1):
            self.add_module(f"patch_embed{i}", Embedding(before, width, stem if i == 1 else None))
            self.add_module(f"block{i}", nn.ModuleList([Block(width, ratio, scan) for _ in range(depth)]))
            self.add_module(f"norm{i}", nn.LayerNorm(width, eps=1e-6))
            before = width
        self.post_network = nn.ModuleList([ClassBlock(before, 4, scan)])
        self.head, self.dist_head = nn.Linear(before, 1000), nn.Linear(before, 1000)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        for i in range(1, 5):
            x, height, width = getattr(self, f"patch_embed{i}")(x)
            for block in getattr(self, f"block{i}"):
                x = block(x, height, width)
            if i < 4:
                x = getattr(self, f"norm{i}")(x)
                x = x.reshape(len(x), height, width, -1).permute(0, 3, 1, 2).contiguous()
        token = self.norm4(self.post_network[0](x.mean(1, keepdim=True))[:, 0])
        both = self.head(token), self.dist_head(token)
        return both if self.training else (both[0] + both[1]) / 2


def groupmamba_tiny(scan: Scan = log_step_scan) -> GroupMamba:
    return GroupMamba(32, (64, 128, 348, 448), (3, 4, 9, 3), scan)


def groupmamba_small(scan: Scan = log_step_scan) -> GroupMamba:
    return GroupMamba(64, (64, 128, 348, 512), (3, 4, 16, 3), scan)


def groupmamba_base(scan: Scan = log_step_scan) -> GroupMamba:
    return GroupMamba(64, (96, 192, 424, 512), (3, 6, 21, 3), scan)
