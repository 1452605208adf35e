"""Whole parts of GroupMamba in one compiled call, for inference: the blocks of a stage, and the way into it.

Their steps share what they read, write each result where the next one wants it, and run on all threads, and what lies
between is Python's no more. What they compute in Paddle's operators is written in `ppcls_ext.backbones.groupmamba`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import paddle
from paddle import Tensor

from ppcls_ext.ops import native


def group_mamba_blocks(
    x: Tensor,
    weights: ctypes.Array,
    epsilons: Sequence[float],
    *,
    height: int,
    width: int,
    rank: int,
    reduced: int,
    hidden: int,
    blocks: int,
) -> Tensor:
    """z + mlp(norm2(z)) with z = x + after(layer(x)), of so many blocks in turn: (N, H W, C) -> (N, H W, C).

    The order of the weights and epsilons is that of group_mamba.cpp, block by block; `reduced` and `hidden` are the
    channels inside of the affinity and of the MLP.
    """
    x = native.ready(x)
    n, _, channels = x.shape
    library, sizes = native.library(), native.sizes(n, height, width, channels, rank, reduced, hidden, blocks)
    library.group_mamba_room.restype = ctypes.c_int64
    room = paddle.empty([library.group_mamba_room(sizes)], dtype="float32")
    y = paddle.empty(x.shape, dtype="float32")
    steps = (ctypes.c_float * len(epsilons))(*epsilons)
    library.group_mamba_forward(sizes, steps, weights, *(native.pointer(t) for t in (x, room, y)))
    return y


def embedding(
    x: Tensor,
    weights: ctypes.Array,
    convolutions: Sequence[tuple[int, int, int]],
    *,
    height: int,
    width: int,
    batch_epsilon: float,
    epsilon: float,
) -> Tensor:
    """Convolutions of (kernel, stride, channels), padded by half of the kernel -> normalised tokens (N, H' W', C').

    x: (N, C, H, W) or (N, H W, C). All but the last with batch norm and ReLU, the last with a bias; the order of the
    weights is that of embedding.cpp.
    """
    x = native.ready(x)
    maps = len(x.shape) == 4
    n, channels = x.shape[0], x.shape[1] if maps else x.shape[2]
    numbers = [number for convolution in convolutions for number in convolution]
    library, sizes = native.library(), native.sizes(n, channels, height, width, maps, len(convolutions), *numbers)
    library.embedding_room.restype = ctypes.c_int64
    room = paddle.empty([library.embedding_room(sizes)], dtype="float32")
    for _, stride, _ in convolutions:
        height, width = (height - 1) // stride + 1, (width - 1) // stride + 1
    y = paddle.empty([n, height * width, convolutions[-1][2]], dtype="float32")
    two = ctypes.c_float(batch_epsilon), ctypes.c_float(epsilon)
    library.embedding_forward(sizes, *two, weights, *(native.pointer(t) for t in (x, room, y)))
    return y
