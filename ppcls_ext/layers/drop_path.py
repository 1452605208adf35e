"""Stochastic depth (Huang et al., arXiv 1603.09382): a training step leaves a branch out for some of its images."""

from __future__ import annotations

import paddle
from paddle import Tensor, nn

from ppcls_ext.errors import Refused


class DropPath(nn.Layer):
    """In training each image's branch is 0 with probability `rate`, else divided by 1 - rate: (N, ...) -> (N, ...)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        require_rate(drop_path=rate)
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if self.rate == 0 or not self.training:
            return x
        kept = paddle.rand([x.shape[0]] + [1] * (x.ndim - 1)) >= self.rate
        return x * (kept.astype(x.dtype) / (1 - self.rate))

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"


def require_rate(**rates: float) -> None:
    """Refuse a rate (dropout, drop path ...) outside of 0 <= rate < 1."""
    for name, rate in rates.items():
        if not 0 <= rate < 1:
            raise Refused(f"{name}: expected 0 <= {name} < 1, got {rate}.")


def drop_path_rates(last: float, blocks: int) -> list[float]:
    """The rate of each block, growing evenly from 0 to `last`."""
    require_rate(drop_path=last)
    return [last * i / max(blocks - 1, 1) for i in range(blocks)]
