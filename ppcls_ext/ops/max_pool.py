"""Max pooling, compiled for the processor where that is possible: it remembers where the largest values were.

Paddle's CPU kernel computes on one thread and searches every window again for the gradient. Where values are equal, the
first one gets the gradient, here and there.
"""

from __future__ import annotations

from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from ppcls_ext.ops import native

_LARGEST_WINDOW = 254  # the place in a window is a byte


# as it is, not converted for a static graph
@paddle.jit.not_to_static
def max_pool(x: Tensor, kernel: int, stride: int, padding: int = 0) -> Tensor:
    """(N, C, H, W) -> (N, C, H', W'): square windows; what is padded is never the largest."""
    if not native.usable(x) or kernel * kernel > _LARGEST_WINDOW or padding >= kernel:
        return F.max_pool2d(x, kernel, stride, padding)
    height, width = x.shape[2:]
    out = [(size + 2 * padding - kernel) // stride + 1 for size in (height, width)]
    if min(out) < 1:
        raise ValueError(f"a window of {kernel} does not fit a map of {x.shape[2:]} with padding {padding}")
    numbers = (*x.shape[:2], height, width, kernel, stride, padding, *out)
    if paddle.is_grad_enabled() and not x.stop_gradient:
        return _MaxPool.apply(x, numbers)
    return _forward(x, numbers, None)


def _sizes(numbers: tuple[int, ...]) -> Any:
    n, channels, height, width, kernel, stride, padding, *out = numbers
    return native.sizes(n * channels, height, width, kernel, kernel, stride, stride, padding, padding, *out)


def _forward(x: Tensor, numbers: tuple[int, ...], places: Tensor | None) -> Tensor:
    y = paddle.empty([*numbers[:2], *numbers[-2:]], dtype="float32")
    native.library().pool_forward(_sizes(numbers), *(native.pointer(t) for t in (native.ready(x), y, places)))
    return y


class _MaxPool(paddle.autograd.PyLayer):
    @staticmethod
    def forward(ctx: Any, x: Tensor, numbers: tuple[int, ...]) -> Tensor:
        places = paddle.empty([*numbers[:2], *numbers[-2:]], dtype="uint8")
        ctx.save_for_backward(places)
        ctx.numbers = numbers
        return _forward(x, numbers, places)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (places,) = ctx.saved_tensor()
        result = paddle.empty(ctx.numbers[:4], dtype="float32")
        pointers = [native.pointer(t) for t in (places, native.ready(gradient), result)]
        native.library().pool_backward(_sizes(ctx.numbers), *pointers)
        return result
