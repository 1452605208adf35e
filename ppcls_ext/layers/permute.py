"""Fixed permutations of channels: channel shuffles, and the shift of Dynamic Shift-Max."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
from paddle import Tensor, nn


def shuffled(order: np.ndarray, groups: int) -> np.ndarray:
    """Channel shuffle of an order: (groups, n) read as (n, groups)."""
    return order.reshape(groups, -1).T.reshape(-1)


class _Permute(paddle.autograd.PyLayer):
    """A gather whose gradient is the gather of the inverse permutation.

    PaddlePaddle 2.6.2 computes the gradient of `paddle.gather` along axis 1 wrongly on a CPU, without a word.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return paddle.gather(x, order, axis=1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (inverse,) = ctx.saved_tensor()
        return paddle.gather(gradient, inverse, axis=1)


class PermuteChannels(nn.Layer):
    """Output channel i is input channel `order[i]`; (N, C, ...) -> (N, C, ...).

    One gather, however many shuffles were composed. Forward and backward take 0.2 ms at (64, 32, 8, 8) on one core;
    reshape, transpose and reshape take 4.9 ms there, `index_select` 0.4 ms. The order is not a part of the state dict.
    """

    def __init__(self, order: np.ndarray) -> None:
        super().__init__()
        if sorted(order.tolist()) != list(range(len(order))):
            raise ValueError(f"expected every channel of 0 to {len(order) - 1} once, got {order.tolist()}")
        self.order = order.astype(np.int64)
        # Not buffers: `Layer.to(dtype=...)` would make them floating-point numbers, and averaged weights nonsense.
        self.indices = (paddle.to_tensor(self.order), paddle.to_tensor(np.argsort(self.order)))

    def forward(self, x: Tensor) -> Tensor:
        if paddle.in_dynamic_mode():
            return _Permute.apply(x, *self.indices)
        return paddle.gather(x, paddle.assign(self.order), axis=1)  # the order is a constant of the exported graph
