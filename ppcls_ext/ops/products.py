"""Linear layers of tokens, compiled: the bias is added before a result leaves the registers.

Graphs take Paddle's operator, whose gradient of the bias is slow on the CPU: a sum over the axes of a broadcast.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from ppcls_ext.ops import native

_FLOAT_BYTES = 4


# as it is, not converted for a static graph
@paddle.jit.not_to_static
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(..., in), (in, out), (out,) -> (..., out)."""
    if not native.usable(x, weight, bias):
        return F.linear(x, weight, bias)
    wanted = [t is not None and not t.stop_gradient for t in (x, weight, bias)]
    if paddle.is_grad_enabled() and any(wanted):
        return _Linear.apply(x, weight, bias)
    return _linear(x, weight, bias)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    inner, columns = weight.shape
    x, weight = native.ready(x), native.ready(weight)
    y = paddle.empty([*x.shape[:-1], columns], dtype="float32")
    sizes = native.sizes(math.prod(x.shape[:-1]), inner, columns)
    native.library().linear_forward(sizes, *(native.pointer(t) for t in (x, weight, bias, y)))
    return y


class _Linear(paddle.autograd.PyLayer):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.wanted = [t is not None and not t.stop_gradient for t in (x, weight, bias)]
        ctx.has_bias = bias is not None
        return _linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = (native.ready(t) for t in ctx.saved_tensor())
        gradient = native.ready(gradient)
        inner, columns = weight.shape
        shapes = (x.shape, weight.shape, [columns])
        x_gradient, weight_gradient, bias_gradient = results = native.empty_where(ctx.wanted, shapes)
        rows = math.prod(x.shape[:-1])
        if x_gradient is not None:
            multiply((rows, columns, inner), (columns, 1, columns, inner), [(gradient, weight, x_gradient)])
        if weight_gradient is not None or bias_gradient is not None:
            steps = inner, columns, columns
            sum_products((rows, inner, columns), steps, [(x, gradient, weight_gradient, bias_gradient)])
        return tuple(results if ctx.has_bias else results[:2])


# a tensor, or one and how many of its values are left out before the first that is used
Place = Tensor | tuple[Tensor, int] | None


def multiply(
    shape: tuple[int, int, int], steps: tuple[int, int, int, int], products: Sequence[Sequence[Place]]
) -> None:
    """y = x w + bias + added for several (x, w, y, bias, added), of which the last two may be left out.

    The shape is (rows, inner, columns); the steps are those from row to row of x and y, here the first and the last,
    and of w from inner to inner and column to column.
    """
    x_row, w_inner, w_column, y_row = steps
    sizes = native.sizes(len(products), *shape, x_row, w_inner, w_column, y_row)
    native.library().products(sizes, _addresses(products, 5))


def sum_products(shape: tuple[int, int, int], steps: tuple[int, int, int], products: Sequence[Sequence[Place]]) -> None:
    """The gradients of weight and bias of several (x, g, weight's, bias's), of which the last two may be None.

    The shape is (rows, inner, columns); the steps are those from row to row of x, of g and of the weight.
    """
    native.library().products_gradients(native.sizes(len(products), *shape, *steps), _addresses(products, 4))


def _addresses(products: Sequence[Sequence[Place]], width: int) -> ctypes.Array:
    places = [place for product in products for place in (*product, *[None] * (width - len(product)))]
    return (ctypes.c_void_p * len(places))(*(address(place) for place in places))


def address(place: Place) -> ctypes.c_void_p | None:
    """Where the values of a place begin, which must lie in order."""
    if isinstance(place, tuple):
        return ctypes.c_void_p(place[0].data_ptr() + _FLOAT_BYTES * place[1])
    return native.pointer(place)
