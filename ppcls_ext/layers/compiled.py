"""Paddle's layers with the compiled operators behind them; names and layouts of weights are Paddle's."""

from __future__ import annotations

from paddle import Tensor, nn

from ppcls_ext.ops import layer_norm, linear


class Linear(nn.Linear):
    """(..., in) -> (..., out)."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class LayerNorm(nn.LayerNorm):
    """Over the last axis, with weight and bias: (..., C) -> (..., C)."""

    def __init__(self, channels: int, epsilon: float = 1e-5) -> None:
        super().__init__(channels, epsilon=epsilon)
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.weight, self.bias, self.epsilon)
