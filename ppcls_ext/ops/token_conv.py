"""Depthwise 3x3 convolution of tokens, with its bias and activation: the local mixing inside of Mamba and MLP blocks.

Tokens lie as (sets, N, L, C), channels side by side; every set has weights of its own. Compiled, nothing is moved;
otherwise the tokens become maps for Paddle's convolution, and tokens again.
"""

from __future__ import annotations

from typing import Any, Literal

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from ppcls_ext.ops import native
from ppcls_ext.ops.depthwise import depthwise_conv

Activation = Literal["none", "silu", "gelu"]
_CODES: dict[str, int] = {"none": 0, "silu": 1, "gelu": 2}  # as in tokens.cpp
_FUNCTIONS = {"none": lambda x: x, "silu": F.silu, "gelu": F.gelu}


# as it is, not converted for a static graph
@paddle.jit.not_to_static
def token_conv(
    x: Tensor, weight: Tensor, bias: Tensor, height: int | Tensor, width: int | Tensor, activation: Activation
) -> Tensor:
    """(S, N, H W, C), (S, C, 3, 3), (S, C) -> (S, N, H W, C): padded by 1, then `activation`."""
    if not native.usable(x, weight, bias):
        return _as_maps(x, weight, bias, height, width, activation)
    if paddle.is_grad_enabled() and not (x.stop_gradient and weight.stop_gradient and bias.stop_gradient):
        return _TokenConv.apply(x, weight, bias, height, width, activation)
    return _forward(x, weight, bias, height, width, activation, keep=False)[0]


def _as_maps(
    x: Tensor, weight: Tensor, bias: Tensor, height: int | Tensor, width: int | Tensor, activation: Activation
) -> Tensor:
    sets, _, length, channels = x.shape
    both = sets * channels
    maps = x.transpose([1, 0, 3, 2]).reshape([-1, both, height, width])  # (S, N, L, C) -> (N, S C, H, W)
    y = depthwise_conv(maps, weight.reshape([both, 1, 3, 3]), bias.reshape([both]), (1, 1), (1, 1, 1, 1))
    y = _FUNCTIONS[activation](y)
    return y.flatten(2).reshape([0, sets, channels, length]).transpose([1, 0, 3, 2])


def _sizes(x: Tensor, height: int, width: int) -> Any:
    return native.sizes(x.shape[0], x.shape[1], int(height), int(width), x.shape[3])


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor, height: int, width: int, activation: Activation, keep: bool
) -> tuple[Tensor, Tensor | None]:
    """The result, and with `keep` what goes into the activation."""
    x, weight, bias = (native.ready(t) for t in (x, weight, bias))
    y = paddle.empty(x.shape, dtype="float32")
    inner = paddle.empty(x.shape, dtype="float32") if keep and activation != "none" else None
    pointers = [native.pointer(t) for t in (x, weight, bias, inner, y)]
    native.library().tokens_forward(_sizes(x, height, width), _CODES[activation], *pointers)
    return y, inner


class _TokenConv(paddle.autograd.PyLayer):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, height: int, width: int, activation: Activation
    ) -> Tensor:
        y, inner = _forward(x, weight, bias, height, width, activation, keep=True)
        ctx.save_for_backward(x, weight, *([] if inner is None else [inner]))
        ctx.options = height, width, activation
        ctx.wanted = [not t.stop_gradient for t in (x, weight, bias)]
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *inner = (native.ready(t) for t in ctx.saved_tensor())
        gradient = native.ready(gradient)
        height, width, activation = ctx.options
        before = inner[0] if inner else None
        shapes = (x.shape, weight.shape, weight.shape[:2])
        results = native.empty_where(ctx.wanted, shapes)
        pointers = [native.pointer(t) for t in (x, weight, before, gradient, *results)]
        native.library().tokens_backward(_sizes(x, height, width), _CODES[activation], *pointers)
        return tuple(results)
