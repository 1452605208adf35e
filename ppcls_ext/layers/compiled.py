"""Paddle's layers with the compiled operators of inference behind them; names and layouts of weights are Paddle's."""

from __future__ import annotations

from paddle import Tensor, nn

from ppcls_ext.ops import dense_conv, layer_norm, linear


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


class StemConv2D(nn.Conv2D):
    """A convolution of all channels, padded by half of its odd kernel: (N, in, H, W) -> (N, out, H / s, W / s)."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, bias: bool = False) -> None:
        super().__init__(in_channels, out_channels, kernel, stride, kernel // 2, bias_attr=None if bias else False)
        self.stride, self.padding = (stride, stride), (kernel // 2, kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        return dense_conv(x, self.weight, self.bias, self.stride, self.padding)
