"""What the compiled convolutions share: room for results, and gradients of images, weights and biases."""

from __future__ import annotations

from typing import Any, Literal

import paddle
from paddle import Tensor

from ppcls_ext.ops import native

Kind = Literal["conv", "depthwise", "pointwise"]  # what the names of the compiled functions begin with


def out_size(x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int, int, int]) -> tuple[int, int]:
    """Height and width of the result; the padding is (top, bottom, left, right). ValueError where there is none."""
    (height, width), (rows, columns) = x.shape[2:], weight.shape[2:]
    top, bottom, left, right = padding
    out = (height + top + bottom - rows) // stride[0] + 1, (width + left + right - columns) // stride[1] + 1
    if min(out) < 1:
        raise ValueError(f"a kernel of {weight.shape[2:]} does not fit a map of {x.shape[2:]} with padding {padding}")
    return out


# as it is, not converted for a static graph
@paddle.jit.not_to_static
def convolve(
    kind: Kind, x: Tensor, weight: Tensor, bias: Tensor | None, sizes: tuple[int, ...], out: tuple[int, int]
) -> Tensor:
    """(N, C, H, W), (O, ...), (O,) -> (N, O, *out), of tensors that `native.usable` takes.

    `sizes` are the numbers that the compiled functions of this kind want.
    """
    if paddle.is_grad_enabled() and any(t is not None and not t.stop_gradient for t in (x, weight, bias)):
        return _Convolution.apply(x, weight, bias, kind, sizes, out)
    return _forward(x, weight, bias, kind, sizes, out)


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, kind: Kind, sizes: tuple[int, ...], out: tuple[int, int]
) -> Tensor:
    x, weight = native.ready(x), native.ready(weight)
    y = paddle.empty([x.shape[0], weight.shape[0], *out], dtype="float32")
    compute = getattr(native.library(), f"{kind}_forward")
    compute(native.sizes(*sizes), *(native.pointer(t) for t in (x, weight, bias, y)))
    return y


class _Convolution(paddle.autograd.PyLayer):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        kind: Kind,
        sizes: tuple[int, ...],
        out: tuple[int, int],
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.kind, ctx.sizes = kind, sizes
        ctx.wanted = [t is not None and not t.stop_gradient for t in (x, weight, bias)]
        ctx.has_bias = bias is not None
        return _forward(x, weight, bias, kind, sizes, out)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = (native.ready(t) for t in ctx.saved_tensor())
        gradient = native.ready(gradient)
        results = native.empty_where(ctx.wanted, (x.shape, weight.shape, weight.shape[:1]))
        compute = getattr(native.library(), f"{ctx.kind}_backward")
        compute(native.sizes(*ctx.sizes), *(native.pointer(t) for t in (x, weight, gradient, *results)))
        return tuple(results if ctx.has_bias else results[:2])
