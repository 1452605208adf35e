"""Batch norm together with what follows it: in training one compiled operator, else Paddle's own, one by one."""

from __future__ import annotations

import paddle
from paddle import Tensor, nn

from ppcls_ext.layers.plain import is_hooked
from ppcls_ext.ops import batch_norm, native
from ppcls_ext.ops.batch_norm import AFTER_AN_ADDITION

_NAMES = {nn.ReLU: "relu", nn.ReLU6: "relu6", nn.Silu: "silu", nn.GELU: "gelu"}


def normalised(norm: nn.Layer, x: Tensor, activation: nn.Layer | None = None, added: Tensor | None = None) -> Tensor:
    """activation(norm(x) + added), without what is None: (N, C, H, W) -> (N, C, H, W).

    In training, in eager mode on a CPU, one compiled operator where `norm` is a plain `BatchNorm2D` and it knows the
    activation.
    """
    name = _compiled(norm, x, activation, added)
    if name is not None:
        running = norm._mean, norm._variance
        return batch_norm(x, norm.weight, norm.bias, running, norm._momentum, norm._epsilon, name, added)
    y = norm(x)
    if added is not None:
        y = y + added
    return y if activation is None else activation(y)


class Sequential(nn.Sequential):
    """Paddle's, with each batch norm and the activation after it by `normalised`.

    What follows a last batch norm can be given: an addition and an activation.
    """

    def forward(self, x: Tensor, activation: nn.Layer | None = None, added: Tensor | None = None) -> Tensor:
        for layer, follower, last in self._steps(activation):
            x = normalised(layer, x, follower, added if last else None)
        return x

    # as it is, not converted for a static graph
    @paddle.jit.not_to_static
    def _steps(self, activation: nn.Layer | None) -> list[tuple[nn.Layer, nn.Layer | None, bool]]:
        """(layer, the activation after it that it is computed with, whether it is the last)."""
        layers = [*self._sub_layers.values()]
        steps: list[tuple[nn.Layer, nn.Layer | None, bool]] = []
        for layer in layers:
            if steps and steps[-1][1] is None and isinstance(layer, tuple(_NAMES)) and _is_of_maps(steps[-1][0]):
                steps[-1] = steps[-1][0], layer, False
            else:
                steps.append((layer, None, False))
        last, own, _ = steps.pop()
        if own is not None and activation is not None:
            raise ValueError(f"{type(last).__name__} has an activation of its own, {type(own).__name__}")
        return [*steps, (last, own or activation, True)]


# as it is, not converted for a static graph
@paddle.jit.not_to_static
def _compiled(norm: nn.Layer, x: Tensor, activation: nn.Layer | None, added: Tensor | None) -> str | None:
    """The compiled operator's name of the activation, where it can do all of it; else None."""
    if not _is_of_maps(norm) or is_hooked(norm) or not norm.training or norm._use_global_stats:
        return None
    if norm.weight is None or norm.bias is None or not native.usable(x, norm.weight, norm.bias, added):
        return None
    name, shape = _name(activation), x.shape
    if len(shape) != 4 or shape[1] != norm.weight.shape[0]:
        return None
    return name if added is None or (name in AFTER_AN_ADDITION and added.shape == shape) else None


def _is_of_maps(layer: nn.Layer) -> bool:
    """Whether it is Paddle's own batch norm of maps, and not one of all processes."""
    return type(layer) is nn.BatchNorm2D and layer._data_format == "NCHW"


def _name(activation: nn.Layer | None) -> str | None:
    """The compiled operator's name of what it computes as this layer does; else None."""
    if activation is None:
        return "none"
    if is_hooked(activation) or (type(activation) is nn.GELU and activation._approximate):
        return None
    return _NAMES.get(type(activation))
