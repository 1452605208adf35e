"""The selective scan of Mamba (Gu and Dao, arXiv 2312.00752) for a state of one number per channel.

h[t] = a[t] h[t-1] + b[t] looks sequential, but several steps in a row are one step of the same form. The scan joins
runs of 4 to 8 neighbours, scans the runs, which are fewer, and fills in what lies between, in whole-tensor operators;
the last 16 runs or fewer are taken one by one. Directions or groups of one length are scanned together.

Forward, ms, one core of a busy machine, PaddlePaddle 3.3.1: ours; runs of two, of which 64 are taken one by one.
(4, 1, 3136, 16): 2.5, 3.9; (4, 8, 3136, 16): 27, 32; (4, 1, 784, 32): 1.5, 2.5; (4, 1, 196, 87): 1.2, 1.8. Few
operators matter most in an exported graph: Paddle Inference needs time to load that grows with their square.

That is plain Paddle, in float32 at least; the graph that is exported for a known size holds the same operators, the
one for every size a loop of log2(L) rounds. The compiled scan walks the places one by one, 16 channels at a time, in
the order of each group, so that maps need not be put in order: see docs/speed.md.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor

from ppcls_ext.ops import native
from ppcls_ext.ops.products import address, multiply, sum_products

_BY_ROW, _BY_COLUMN = 0, 1  # orders, as in scan.cpp: 2 and 3 are the reverse of these
_LOOPED = 16  # so few steps are taken one by one


# as they are: converted for a graph, a shape that is known in part would become a tensor
@paddle.jit.not_to_static
def selective_scan(u: Tensor, step: Tensor, bias: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """y = c h + d u with h[t] = exp(s a) h[t-1] + s b u and s = softplus(step + bias), over L.

    u, step: (G, N, L, C); bias, a, d: (G, C); b, c: (G, N, L, 1) -> (G, N, L, C) of u's type, computed in float32.
    """
    if native.usable(u, step, bias, a, b, c, d):
        return _compiled(u, step, bias, a, b, c, d, u.shape[2], 1, [_BY_ROW] * u.shape[0])
    dtype = u.dtype
    wide = paddle.float64 if dtype == paddle.float64 else paddle.float32
    with paddle.amp.auto_cast(enable=False) if paddle.in_dynamic_mode() else nullcontext():
        u, step, b, c = (x.astype(wide) for x in (u, step, b, c))
        bias, a, d = (x.astype(wide).unsqueeze([1, 2]) for x in (bias, a, d))  # (G, C) -> (G, 1, 1, C)
        step = F.softplus(step + bias)
        h = linear_scan(paddle.exp(step * a), step * u * b)
        return (h * c + u * d).astype(dtype)


@paddle.jit.not_to_static
def cross_scan(
    u: Tensor,
    projected: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]],
    bias: Tensor,
    a: Tensor,
    d: Tensor,
    height: int | Tensor,
    width: int | Tensor,
) -> Tensor:
    """`selective_scan` of four groups of maps: by row, by column, and the reverse of both: (4, N, H W, C), row by row.

    `projected` gives the step, b and c of its argument, place by place.
    """
    if native.usable(u, bias, a, d):
        step, b, c = projected(u)
        return _compiled(u, step, bias, a, b, c, d, int(height), int(width), [0, 1, 2, 3])
    if not paddle.in_dynamic_mode() and isinstance(height, int) and isinstance(width, int):
        order = _places(height, width)
        u = _gathered(u, order)
        step, b, c = projected(u)
        return _gathered(selective_scan(u, step, bias, a, b, c, d), np.argsort(order))
    u = _ordered(u, height, width)
    step, b, c = projected(u)
    return _unordered(selective_scan(u, step, bias, a, b, c, d), height, width)


def _places(height: int, width: int) -> np.ndarray:
    """Which place of four maps, row by row and one after the other, each step of the four scans takes: (4 H W,)."""
    by_row = np.arange(height * width)
    by_column = by_row.reshape(height, width).T.flatten()
    orders = by_row, by_column, by_row[::-1], by_column[::-1]
    return np.concatenate([group * len(by_row) + order for group, order in enumerate(orders)])


def _gathered(x: Tensor, order: np.ndarray) -> Tensor:
    """(4, N, L, C) with its places in another order, in a graph: one operator and a constant for `_ordered`'s dozen."""
    length, channels = len(order) // 4, x.shape[3]  # the tensor may not know its length, in a graph for every size
    places = x.transpose([1, 0, 2, 3]).flatten(1, 2)  # (N, 4 L, C)
    places = paddle.gather(places, paddle.assign(order), axis=1)
    return places.reshape([-1, 4, length, channels]).transpose([1, 0, 2, 3])


def _ordered(x: Tensor, height: int | Tensor, width: int | Tensor) -> Tensor:
    """(4, N, H W, C), row by row, in the order of each scan."""
    first, second, third, fourth = paddle.unbind(x, 0)
    forwards = paddle.stack([first, _turned(second, height, width)])
    backwards = paddle.stack([third, _turned(fourth, height, width)])
    return paddle.concat([forwards, paddle.flip(backwards, [2])])


def _unordered(x: Tensor, height: int | Tensor, width: int | Tensor) -> Tensor:
    """The reverse."""
    forwards, backwards = paddle.split(x, 2, axis=0)
    pairs = (forwards, paddle.flip(backwards, [2]))
    return paddle.stack([part for pair in pairs for part in (pair[0], _turned(pair[1], width, height))])


def _turned(x: Tensor, height: int | Tensor, width: int | Tensor) -> Tensor:
    """(N, H W, C), row by row -> column by column."""
    return x.reshape([-1, height, width, x.shape[2]]).transpose([0, 2, 1, 3]).flatten(1, 2)


# ------------------------------------------------------------------------------------------------ compiled


def _compiled(*arguments: Any) -> Tensor:
    tensors = arguments[:7]
    if paddle.is_grad_enabled() and not all(x.stop_gradient for x in tensors):
        return _Compiled.apply(*arguments)
    return _compiled_forward(*arguments)


def _compiled_forward(*arguments: Any) -> Tensor:
    u, *others = (native.ready(x) for x in arguments[:7])
    y = paddle.empty(u.shape, dtype="float32")
    pointers = [native.pointer(x) for x in (u, *others, y)]
    native.library().scan_forward(*_shape(u, *arguments[7:]), *pointers)
    return y


def _shape(u: Tensor, height: int, width: int, orders: list[int], apart: int = 1) -> tuple[Any, Any]:
    return native.sizes(u.shape[0], u.shape[1], height, width, u.shape[3], apart), native.sizes(*orders)


class _Compiled(paddle.autograd.PyLayer):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        ctx.save_for_backward(*arguments[:7])
        ctx.options = arguments[7:]
        ctx.wanted = [not x.stop_gradient for x in arguments[:7]]
        return _compiled_forward(*arguments)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        tensors, gradient = [native.ready(x) for x in ctx.saved_tensor()], native.ready(gradient)
        u, _, _, _, b, _, _ = tensors
        groups, n, _, channels = u.shape
        by_image = [groups, n, channels]  # of bias, a and d: to be summed over the images
        shapes = (u.shape, u.shape, by_image, by_image, b.shape, b.shape, by_image)
        results = [paddle.empty(shape, dtype="float32") for shape in shapes]
        pointers = [native.pointer(x) for x in (*tensors, gradient, *results)]
        native.library().scan_backward(*_shape(u, *ctx.options), *pointers)
        for i in (2, 3, 6):
            results[i] = results[i].sum(1)
        return native.where(ctx.wanted, results)


def scan_of_products(
    u: Tensor, weight: Tensor, step_weight: Tensor, bias: Tensor, a: Tensor, d: Tensor, height: int, width: int
) -> Tensor:
    """`cross_scan` whose steps, b and c are products of u, of low rank the steps: (4, N, H W, C).

    weight: (4, R + 2, C), the last two rows for b and c; step_weight: (4, C, R); bias, a, d: (4, C). For tensors that
    `native.usable` takes.
    """
    return _ScanOfProducts.apply(u, weight, step_weight, bias, a, d, height, width)


_ORDERS = [0, 1, 2, 3]


class _ScanOfProducts(paddle.autograd.PyLayer):
    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        weight: Tensor,
        step_weight: Tensor,
        bias: Tensor,
        a: Tensor,
        d: Tensor,
        height: int,
        width: int,
    ) -> Tensor:
        tensors = (u, weight, step_weight, bias, a, d)
        ctx.wanted = [not x.stop_gradient for x in tensors]
        u, weight, step_weight, bias, a, d = (native.ready(x) for x in tensors)
        groups, n, length, channels = u.shape
        rows, low_row, rank = n * length, weight.shape[1], step_weight.shape[2]
        low = paddle.empty([groups, n, length, low_row], dtype="float32")
        step, y = paddle.empty(u.shape, dtype="float32"), paddle.empty(u.shape, dtype="float32")
        whole, small = rows * channels, rows * low_row
        products = [((u, i * whole), (weight, i * low_row * channels), (low, i * small)) for i in range(groups)]
        multiply((rows, channels, low_row), (channels, 1, channels, low_row), products)
        products = [((low, i * small), (step_weight, i * channels * rank), (step, i * whole)) for i in range(groups)]
        multiply((rows, rank, channels), (low_row, 1, rank, channels), products)
        places = [address(x) for x in (u, step, bias, a, (low, rank), (low, rank + 1), d, y)]
        native.library().scan_forward(*_shape(u, height, width, _ORDERS, low_row), *places)
        ctx.save_for_backward(u, weight, step_weight, bias, a, d, low, step)
        ctx.size = height, width
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        u, weight, step_weight, bias, a, d, low, step = ctx.saved_tensor()
        groups, n, length, channels = u.shape
        rows, low_row, rank = n * length, weight.shape[1], step_weight.shape[2]
        shapes = [t.shape for t in (u, weight, step_weight, low, step)] + [[groups, n, channels]] * 3
        results = [paddle.empty(shape, dtype="float32") for shape in shapes]
        gu, gweight, gstep_weight, glow, gstep, gbias, ga, gd = results
        scanned = (u, step, bias, a, (low, rank), (low, rank + 1), d, native.ready(gradient))
        own = (gu, gstep, gbias, ga, (glow, rank), (glow, rank + 1), gd)
        places = [address(x) for x in (*scanned, *own)]
        native.library().scan_backward(*_shape(u, *ctx.size, _ORDERS, low_row), *places)
        whole, small = rows * channels, rows * low_row
        of_steps, of_low, step_sums, low_sums = [], [], [], []
        for i in range(groups):
            w, step_w = i * low_row * channels, i * channels * rank
            of_steps.append(((gstep, i * whole), (step_weight, step_w), (glow, i * small)))
            of_low.append(((glow, i * small), (weight, w), (gu, i * whole), None, (gu, i * whole)))
            step_sums.append(((gstep, i * whole), (low, i * small), (gstep_weight, step_w)))
            low_sums.append(((glow, i * small), (u, i * whole), (gweight, w)))
        multiply((rows, channels, rank), (channels, rank, 1, low_row), of_steps)
        sum_products((rows, channels, rank), (channels, low_row, rank), step_sums)
        multiply((rows, low_row, channels), (low_row, channels, 1, channels), of_low)
        sum_products((rows, low_row, channels), (low_row, channels, channels), low_sums)
        return native.where(ctx.wanted, (gu, gweight, gstep_weight, gbias.sum(1), ga.sum(1), gd.sum(1)))


# ------------------------------------------------------------------------------------------------ plain Paddle


@paddle.jit.not_to_static
def linear_scan(a: Tensor, b: Tensor) -> Tensor:
    """h[t] = a[t] h[t-1] + b[t] from h[-1] = 0: (G, N, L, C) twice -> (G, N, L, C)."""
    if paddle.in_dynamic_mode():
        if paddle.is_grad_enabled() and not (a.stop_gradient and b.stop_gradient):
            return _Scan.apply(a, b)
        return _scan(a, b)
    return _scan(a, b) if a.shape[2] > 0 else _scan_of_any_length(a, b)


class _Scan(paddle.autograd.PyLayer):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        h = _scan(a, b)
        ctx.save_for_backward(a, h)
        ctx.wanted = (not a.stop_gradient, not b.stop_gradient)
        return h

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, h = ctx.saved_tensor()
        # what reaches h[t]: its own gradient and, through a[t+1], that of h[t+1]
        nothing = paddle.zeros_like(a[:, :, :1])
        reaching = _scan(paddle.concat([a[:, :, 1:], nothing], 2), gradient, backwards=True)
        before = paddle.concat([nothing, h[:, :, :-1]], 2)
        return reaching * before if ctx.wanted[0] else None, reaching if ctx.wanted[1] else None


def _scan(a: Tensor, b: Tensor, backwards: bool = False) -> Tensor:
    """The scan over axis 2, whose length is known; `backwards`: h[t] = a[t] h[t+1] + b[t]."""
    return paddle.assign(b) if a.shape[2] == 1 else a * _starts(a, b, backwards) + b


def _starts(a: Tensor, b: Tensor, backwards: bool) -> Tensor:
    """The state that each of at least two steps of the scan starts from: h[t-1], or backwards h[t+1]."""
    length = a.shape[2]
    if length <= _LOOPED:
        return _loop(a, b, backwards)
    run = _run_length(length)
    rest = -length % run
    if rest:  # more steps that nothing depends on; backwards they pass nothing on
        nothing = paddle.zeros_like(a[:, :, :rest])
        a, b = paddle.concat([a, nothing], 2), paddle.concat([b, nothing], 2)
    steps = list(zip(_in_runs(a, run), _in_runs(b, run)))
    if backwards:
        steps.reverse()
    # what the first steps of each run do, as one step
    factors, states = map(list, zip(steps[0]))
    for factor, term in steps[1:]:
        states.append(factor * states[-1] + term)
        factors.append(factor * factors[-1])
    start = _starts(factors.pop(), states.pop(), backwards)  # of each run
    starts = [start, *(factor * start + state for factor, state in zip(factors, states))]
    groups, n, runs, channels = start.shape
    whole = paddle.stack(starts[::-1] if backwards else starts, 3).reshape([groups, n, runs * run, channels])
    return whole[:, :, :length] if rest else whole


def _loop(a: Tensor, b: Tensor, backwards: bool) -> Tensor:
    """The same, one step after the other."""
    steps = list(zip(paddle.unbind(a, 2), paddle.unbind(b, 2)))
    if backwards:
        steps.reverse()
    states = [paddle.zeros_like(steps[0][1]), steps[0][1]]
    for factor, term in steps[1:-1]:
        states.append(factor * states[-1] + term)
    return paddle.stack(states[::-1] if backwards else states, 2)


def _run_length(length: int) -> int:
    """4 to 8 steps: so many that the fewest have to be added, and the fewest of those."""
    return min(range(4, 9), key=lambda run: -length % run)


def _in_runs(x: Tensor, run: int) -> list[Tensor]:
    """(G, N, L, C) -> the first steps of all runs, the second ones ...: (G, N, L / run, C) each."""
    groups, n, length, channels = x.shape
    return paddle.unbind(x.reshape([groups, n, length // run, run, channels]), 3)


def _scan_of_any_length(a: Tensor, b: Tensor) -> Tensor:
    """In a graph whose length is not known: each round joins every step with that 1, 2, 4 ... before it."""
    length = paddle.shape(a)[2].astype("int64")
    positions = paddle.arange(0, length, 1, dtype="int64")

    def unfinished(distance: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return distance < length

    def join(distance: Tensor, a: Tensor, b: Tensor) -> list[Tensor]:
        before = paddle.clip(positions - distance, min=0)
        there = (positions >= distance).astype(a.dtype).reshape([1, 1, -1, 1])
        earlier_b = paddle.gather(b, before, axis=2) * there
        earlier_a = paddle.gather(a, before, axis=2) * there
        return [distance * 2, a * earlier_a, a * earlier_b + b]

    start = paddle.full([1], 1, dtype="int64")
    return paddle.static.nn.while_loop(unfinished, join, [start, a, b])[2]
