"""GroupMamba in evaluation: all of a network by one compiled operator, where nothing wants its parts one by one."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import paddle
from paddle import Tensor, nn

from ppcls_ext.layers import KeptWeights
from ppcls_ext.ops import GroupMambaStage, group_mamba_network, native

if TYPE_CHECKING:
    from ppcls_ext.backbones.groupmamba import Embedding, GroupMamba

# in the order of ops/native/embedding.cpp
_OF_A_NORM = ("weight", "bias", "_mean", "_variance")
_OF_AN_EMBEDDING = ("proj.weight", "proj.bias", "norm.weight", "norm.bias")
# and of ops/native/group_mamba.cpp
_OF_THE_LAYER = ("norm.weight", "norm.bias", "fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias", "skip_scale")
_OF_A_GROUP = (
    *("in_proj.weight", "conv2d.weight", "conv2d.bias", "x_proj_weight", "dt_projs_weight", "dt_projs_bias"),
    *("A_logs", "Ds", "out_norm.weight", "out_norm.bias", "out_proj.weight"),
)
_OF_A_BLOCK = (
    *(f"attn.{name}" for name in _OF_THE_LAYER),
    *(f"attn.mamba_g{i + 1}.{name}" for i in range(4) for name in _OF_A_GROUP),
    *("attn.proj.weight", "attn.proj.bias", "norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"),
    *("mlp.fc1.weight", "mlp.fc1.bias", "mlp.dwconv.dwconv.weight", "mlp.dwconv.dwconv.bias"),
    *("mlp.fc2.weight", "mlp.fc2.bias"),
)


class OneCall:
    """What a network computes in evaluation; None where its parts have to compute by themselves."""

    def __init__(self, network: GroupMamba) -> None:
        names: list[str | None] = []
        others: list[str] = []
        self._stages = []
        for i in range(1, network.num_stages + 1):
            embedding, blocks = getattr(network, f"patch_embed{i}"), getattr(network, f"block{i}")
            stem = [] if embedding.conv is None else list(range(0, len(embedding.conv), 3))
            own = [[f"conv.{j}.weight", *(f"conv.{j + 1}.{name}" for name in _OF_A_NORM)] for j in stem]
            names += [f"patch_embed{i}.{name}" for part in (*own, _OF_AN_EMBEDDING) for name in part]
            others += [f"patch_embed{i}.conv.{j + 2}" for j in stem]  # the ReLU
            for j in range(len(blocks)):
                names += [None if name.startswith("norm1") else f"block{i}.{j}.{name}" for name in _OF_A_BLOCK]
                others.append(f"block{i}.{j}.drop_path")
            names += [f"norm{i}.weight", f"norm{i}.bias"]
            attn = blocks[0].attn
            self._stages.append(
                GroupMambaStage(
                    convolutions=_convolutions(embedding),
                    rank=attn.mamba_g1.dt_projs_weight.shape[2],
                    reduced=attn.fc1.weight.shape[1],
                    hidden=blocks[0].mlp.fc1.weight.shape[1],
                    blocks=len(blocks),
                )
            )
        self._weights = KeptWeights(network, names, others)
        ending = [None if "dwconv" in name else f"post_network.0.{name}" for name in _OF_A_BLOCK]
        ending += ["head.weight", "head.bias"]
        ending += [None, None] if network.dist_head is None else ["dist_head.weight", "dist_head.bias"]
        self._of_head = KeptWeights(network, ending)
        first, block = network.patch_embed1, network.block1[0]
        self._classes = network.num_classes
        self._channels = (first.proj if first.conv is None else first.conv[0]).weight.shape[1]
        self._epsilons = (
            *(0.0 if first.conv is None else first.conv[1]._epsilon, first.norm.epsilon, block.attn.norm.epsilon),
            # the class block has two of the fourth
            *(block.attn.mamba_g1.out_norm.epsilon, block.norm2.epsilon, block.norm2.epsilon, network.norm1.epsilon),
        )

    # as they are, not converted for a static graph
    @paddle.jit.not_to_static
    def stages(self, network: GroupMamba, x: Tensor) -> list[tuple[Tensor, int, int]] | None:
        """Tokens (N, H W, C), height and width at the end of each stage."""
        weights = self._usable(network, x)
        return None if weights is None else group_mamba_network(x, weights, self._epsilons, self._stages)[0]

    @paddle.jit.not_to_static
    def logits(self, network: GroupMamba, x: Tensor) -> Tensor | None:
        """(N, num_classes), of both heads their mean."""
        weights = self._usable(network, x)
        of_head = None if weights is None or len(network.post_network) != 1 else self._of_head.addresses(network)
        if of_head is None:
            return None
        return group_mamba_network(x, weights, self._epsilons, self._stages, of_head, self._classes)[1]

    def _usable(self, network: GroupMamba, x: Tensor) -> ctypes.Array | None:
        if network.training or not native.usable_for_inference(x):
            return None
        if len(x.shape) != 4 or x.shape[1] != self._channels:  # for Paddle's refusal
            return None
        if any(len(getattr(network, f"block{i + 1}")) != stage.blocks for i, stage in enumerate(self._stages)):
            return None
        return self._weights.addresses(network)


def _convolutions(embedding: Embedding) -> list[tuple[int, int, int]]:
    """Kernel, stride and channels of each."""
    layers = [*(embedding.conv or []), embedding.proj]
    return [
        (layer.weight.shape[2], layer._stride[0], layer.weight.shape[0])
        for layer in layers
        if isinstance(layer, nn.Conv2D)
    ]
