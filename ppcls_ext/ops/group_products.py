"""Products of groups of channels with weights of their own, for training: nothing is taken apart or put together.

For tensors that `native.usable` takes.
"""

from __future__ import annotations

from typing import Any

import paddle
from paddle import Tensor

from ppcls_ext.ops import native
from ppcls_ext.ops.products import multiply, sum_products


def parted_products(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Each group by itself, in two halves: (N, L, G C), (G, C, 2 K) -> (G, N, L, K) twice."""
    return _Parted.apply(x, weight)


def joined_products(x: Tensor, weight: Tensor) -> Tensor:
    """The results side by side: (G, N, L, C), (G, C, K) -> (N, L, G K)."""
    return _Joined.apply(x, weight)


def weighed(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """x y weight: (N, L, C), (N, L, C), (N, C) -> (N, L, C)."""
    return _Weighed.apply(x, y, weight)


class _Parted(paddle.autograd.PyLayer):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        ctx.wanted = [not t.stop_gradient for t in (x, weight)]
        x, weight = native.ready(x), native.ready(weight)
        ctx.save_for_backward(x, weight)
        n, length, _ = x.shape
        rows, (groups, inner, both) = n * length, weight.shape
        columns = both // 2
        halves = [paddle.empty([groups, n, length, columns], dtype="float32") for _ in range(2)]
        products = [
            ((x, group * inner), (weight, group * inner * both + i * columns), (y, group * rows * columns))
            for group in range(groups)
            for i, y in enumerate(halves)
        ]
        multiply((rows, inner, columns), (groups * inner, both, 1, columns), products)
        return tuple(halves)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensor()
        gradients = [native.ready(g) for g in gradients]
        rows, (groups, inner, both) = x.shape[0] * x.shape[1], weight.shape
        columns = both // 2
        x_gradient, weight_gradient = (paddle.empty(t.shape, dtype="float32") for t in (x, weight))
        sums = []
        for i, g in enumerate(gradients):
            products = []
            for group in range(groups):
                own, w = (g, group * rows * columns), group * inner * both + i * columns
                to = x_gradient, group * inner
                products.append((own, (weight, w), to, None, to if i else None))
                sums.append(((x, group * inner), own, (weight_gradient, w)))
            multiply((rows, columns, inner), (columns, 1, both, groups * inner), products)
        sum_products((rows, inner, columns), (groups * inner, columns, both), sums)
        return native.where(ctx.wanted, (x_gradient, weight_gradient))


class _Joined(paddle.autograd.PyLayer):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.wanted = [not t.stop_gradient for t in (x, weight)]
        x, weight = native.ready(x), native.ready(weight)
        ctx.save_for_backward(x, weight)
        groups, n, length, inner = x.shape
        columns = weight.shape[2]
        y = paddle.empty([n, length, groups * columns], dtype="float32")
        products = [
            ((x, group * n * length * inner), (weight, group * inner * columns), (y, group * columns))
            for group in range(groups)
        ]
        multiply((n * length, inner, columns), (inner, columns, 1, groups * columns), products)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensor()
        gradient = native.ready(gradient)
        groups, n, length, inner = x.shape
        rows, columns = n * length, weight.shape[2]
        x_gradient, weight_gradient = (paddle.empty(t.shape, dtype="float32") for t in (x, weight))
        products, sums = [], []
        for group in range(groups):
            own, at, w = (gradient, group * columns), group * rows * inner, group * inner * columns
            products.append((own, (weight, w), (x_gradient, at)))
            sums.append(((x, at), own, (weight_gradient, w)))
        multiply((rows, columns, inner), (groups * columns, 1, columns, inner), products)
        sum_products((rows, inner, columns), (inner, groups * columns, columns), sums)
        return native.where(ctx.wanted, (x_gradient, weight_gradient))


class _Weighed(paddle.autograd.PyLayer):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        tensors = [native.ready(t) for t in (x, y, weight)]
        ctx.save_for_backward(*tensors)
        ctx.wanted = [not t.stop_gradient for t in (x, y, weight)]
        result = paddle.empty(x.shape, dtype="float32")
        native.library().weighed_forward(native.sizes(*x.shape), *(native.pointer(t) for t in (*tensors, result)))
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensor()
        results = [paddle.empty(t.shape, dtype="float32") for t in tensors]
        pointers = [native.pointer(t) for t in (*tensors, native.ready(gradient), *results)]
        native.library().weighed_backward(native.sizes(*tensors[0].shape), *pointers)
        return native.where(ctx.wanted, results)
