"""Initial weights that several references share."""

from __future__ import annotations

from paddle import nn


def fill_convolutions(network: nn.Layer, fan: str) -> None:
    """Normal weights of deviation sqrt(2 / fan), zero bias; `fan` "out" or "in": kernel area times those channels.

    The fan-out of a grouped convolution counts all output channels, its fan-in those of one group.
    """
    for layer in network.sublayers():
        if isinstance(layer, nn.Conv2D):
            out_channels, in_channels, height, width = layer.weight.shape
            channels = {"out": out_channels, "in": in_channels}[fan]
            nn.initializer.Normal(0.0, (2.0 / (height * width * channels)) ** 0.5)(layer.weight)
            if layer.bias is not None:
                nn.initializer.Constant(0.0)(layer.bias)


def fill_like_pytorch(layer: nn.Linear) -> None:
    """Weights and bias uniform within 1 / sqrt(in_features): what PyTorch does when nothing is said."""
    bound = layer.weight.shape[0] ** -0.5
    nn.initializer.Uniform(-bound, bound)(layer.weight)
    nn.initializer.Uniform(-bound, bound)(layer.bias)
