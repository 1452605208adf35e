"""All of GroupMamba in one compiled call, for inference.

Its steps share what they read, write each result where the next one wants it, and run on all threads; what lies between
them is Python's no more. What they compute in Paddle's operators is written in `ppcls_ext.backbones.groupmamba`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import paddle
from paddle import Tensor

from ppcls_ext.ops import native


@dataclass(frozen=True)
class GroupMambaStage:
    """Sizes of a stage: of its convolutions (kernel, stride, channels), padded by half of the kernel; of its blocks the
    rank of the steps, the channels inside of the affinity and of the MLP, and how many there are."""

    convolutions: Sequence[tuple[int, int, int]]
    rank: int
    reduced: int
    hidden: int
    blocks: int

    def sizes(self) -> list[int]:
        """In the order of group_mamba.cpp."""
        convolutions = [number for convolution in self.convolutions for number in convolution]
        own = [self.rank, self.reduced, self.hidden, self.blocks]
        return [*own, len(self.convolutions), *convolutions]


def group_mamba_network(
    x: Tensor,
    weights: ctypes.Array,
    epsilons: Sequence[float],
    stages: Sequence[GroupMambaStage],
    of_head: ctypes.Array | None = None,
    classes: int = 0,
) -> tuple[list[tuple[Tensor, int, int]], Tensor | None]:
    """(N, C, H, W) -> tokens (N, H' W', C'), H' and W' of each stage, and with the head's weights logits (N, classes).

    All tokens but the last are normalised. The order of the weights and epsilons is that of group_mamba.cpp.
    """
    x = native.ready(x)
    n, channels, height, width = x.shape
    own = [number for stage in stages for number in stage.sizes()]
    library, sizes = native.library(), native.sizes(n, channels, height, width, classes, len(stages), *own)
    results = []
    for stage in stages:
        for _, stride, _ in stage.convolutions:
            height, width = (height - 1) // stride + 1, (width - 1) // stride + 1
        tokens = paddle.empty([n, height * width, stage.convolutions[-1][2]], dtype="float32")
        results.append((tokens, height, width))
    logits = None if of_head is None else paddle.empty([n, classes], dtype="float32")
    library.group_mamba_room.restype = ctypes.c_int64
    room = paddle.empty([library.group_mamba_room(sizes)], dtype="float32")
    places = (ctypes.c_void_p * len(results))(*(native.pointer(tokens) for tokens, _, _ in results))
    steps = (ctypes.c_float * len(epsilons))(*epsilons)
    given = native.pointer(x), native.pointer(room), places, native.pointer(logits)
    library.group_mamba_forward(sizes, steps, weights, of_head, *given)
    return results, logits
