"""Matrix products of tokens: linear layers, and those of several groups of channels with weights of their own.

Compiled for inference: bias and products are applied before a result leaves the registers, groups are read and written
where they lie, and nothing is split, stacked or joined. Training and graphs take Paddle's operators.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from ppcls_ext.ops import native


# as they are, not converted for a static graph
@paddle.jit.not_to_static
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(..., in), (in, out), (out,) -> (..., out)."""
    if not native.usable_for_inference(x, weight, bias):
        return F.linear(x, weight, bias)
    inner, columns = weight.shape
    x, weight = native.ready(x), native.ready(weight)
    y = paddle.empty([*x.shape[:-1], columns], dtype="float32")
    steps = _Steps(math.prod(x.shape[:-1]), inner, columns, x=inner, w=(columns, 1), y=columns)
    _products(steps, native.pointers([x]), native.pointers([weight]), native.pointers([y]), native.pointers([bias]))
    return y


@paddle.jit.not_to_static
def split_linear(x: Tensor, weights: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Each group's channels by its own weights, in halves: (N, L, G C), G of (C, 2 O) -> (G, N, L, O) twice."""
    if not native.usable_for_inference(x, *weights):
        parts = [
            paddle.split(paddle.matmul(part, w), 2, 2) for part, w in zip(paddle.split(x, len(weights), 2), weights)
        ]
        return paddle.stack([part[0] for part in parts]), paddle.stack([part[1] for part in parts])
    groups, (inner, both) = len(weights), weights[0].shape
    columns, rows = both // 2, x.shape[0] * x.shape[1]
    x, weights = native.ready(x), [native.ready(w) for w in weights]
    halves = tuple(paddle.empty([groups, *x.shape[:2], columns], dtype="float32") for _ in range(2))
    steps = _Steps(rows, inner, columns, x=groups * inner, w=(both, 1), y=columns)
    for i, half in enumerate(halves):
        _products(
            *(steps, _spaced(x, groups, inner), native.pointers(weights, i * columns)),
            _spaced(half, groups, rows * columns),
        )
    return halves


@paddle.jit.not_to_static
def group_linear(x: Tensor, weights: list[Tensor], parts: list[int]) -> list[Tensor]:
    """Each group by its own weights, the result in parts: (G, N, L, C), G of (1, O, C) -> (G, N, L, part) each."""
    groups, n, length, inner = x.shape
    if not native.usable_for_inference(x, *weights):
        y = paddle.matmul(x.flatten(1, 2), paddle.concat(weights), transpose_y=True)
        ys = paddle.split(y, parts, axis=2) if len(parts) > 1 else [y]
        length = length if length > 0 else paddle.shape(x)[2]  # of a graph for every size
        return [y.reshape([groups, -1, length, own]) for y, own in zip(ys, parts)]
    x, weights = native.ready(x), [native.ready(w) for w in weights]
    rows, results = n * length, [paddle.empty([groups, n, length, own], dtype="float32") for own in parts]
    first = 0
    for y, columns in zip(results, parts):
        steps = _Steps(rows, inner, columns, x=inner, w=(1, inner), y=columns)
        w = native.pointers(weights, first * inner)
        _products(steps, _spaced(x, groups, rows * inner), w, _spaced(y, groups, rows * columns))
        first += columns
    return results


@paddle.jit.not_to_static
def merged_linear(x: Tensor, weights: list[Tensor], factor: Tensor, scale: Tensor) -> Tensor:
    """Each group by its own weights, its channels beside the others', times factor and scale.

    (G, N, L, C), G of (C, O), (N, L, G O), (N, G O) -> (N, L, G O).
    """
    if not native.usable_for_inference(x, factor, scale, *weights):
        joined = paddle.concat([paddle.matmul(part, w) for part, w in zip(paddle.unbind(x, 0), weights)], 2)
        return joined * factor * scale.unsqueeze(1)
    groups, n, length, inner = x.shape
    columns = weights[0].shape[1]
    x, factor, scale = (native.ready(t) for t in (x, factor, scale))
    weights = [native.ready(w) for w in weights]
    y = paddle.empty([n, length, groups * columns], dtype="float32")
    rows = n * length
    steps = _Steps(rows, inner, columns, x=inner, w=(columns, 1), y=groups * columns, image=length)
    _products(
        *(steps, _spaced(x, groups, rows * inner), native.pointers(weights), _spaced(y, groups, columns)),
        factor=_spaced(factor, groups, columns),
        scale=_spaced(scale, groups, columns),
    )
    return y


# ------------------------------------------------------------------------------------------------ compiled


@dataclass(frozen=True)
class _Steps:
    """Rows, inner dimension and columns of a product, the steps from value to value, and the rows of an image."""

    rows: int
    inner: int
    columns: int
    x: int
    w: tuple[int, int]
    y: int
    image: int = 1


def _spaced(x: Tensor, count: int, distance: int) -> ctypes.Array:
    """Addresses within one tensor, `distance` values apart."""
    start = x.data_ptr()
    return (ctypes.c_void_p * count)(*(start + 4 * i * distance for i in range(count)))


def _products(
    steps: _Steps,
    x: ctypes.Array,
    w: ctypes.Array,
    y: ctypes.Array,
    bias: ctypes.Array | None = None,
    factor: ctypes.Array | None = None,
    scale: ctypes.Array | None = None,
) -> None:
    nothing = (ctypes.c_void_p * len(x))()
    sizes = native.sizes(len(x), steps.rows, steps.inner, steps.columns, steps.x, *steps.w, steps.y, steps.image)
    native.library().products_forward(sizes, x, w, bias or nothing, factor or nothing, scale or nothing, y)
