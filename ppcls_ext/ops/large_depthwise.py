"""Depthwise convolution with kernels as large as the map, stride 1, half the kernel as padding.

y[i, j] = sum of x[i + d, j + e] w[d + p, e + p] over d, e = -p ... p. It is computed directly (compiled, or by Paddle's
kernel) or through a Fourier transform, whichever is expected to be faster for the size. The transform is written as
matrix products: one of all rows, one of all columns. Its period is just what keeps neighbours apart, H + p, whatever
its factors; at the sizes of classification networks Paddle's rfft2 and irfft2 take two to three times as long. Plain
operators also mean that it differentiates, exports and runs in float64.

The transform of the kernel does not depend on the images: in evaluation a layer keeps it, and compares the weights
with those that it was made of, so that new weights never meet an old transform.

Forward / forward and backward, ms, batch 2, one core of a busy machine, PaddlePaddle 3.3.1, Paddle's kernel and ours:
128 channels, kernel 31, map 56: 1181 / 2993 and 26 / 88; 256, 29, 28: 347 / 1522 and 5.2 / 25;
512, 27, 14: 266 / 835 and 5.2 / 22; 1024, 13, 7: 38 / 115 and 1.4 / 10; 512, 5, 14: 11 / 34 and 2.2 / 9.4.
Processor time of one core, compiled direct kernel and transform: 256, 29, 28: 34 / 131 and 4.0 / 15; 1024, 13, 7:
7.8 / 27 and 2.6 / 7.1; 512, 5, 14: 1.2 / 4.9 and 1.9 / 6.0; 128, 5, 56, batch 1: 1.3 / 4.3 and 5.4 / 16.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from functools import lru_cache
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from ppcls_ext.ops import native
from ppcls_ext.ops.depthwise import depthwise_conv

# Nanoseconds of one core, measured: a multiply-add of Paddle's depthwise kernel, one of the compiled kernel, one of the
# transform's matrix products, and what the transform's operators cost whatever the size.
_DIRECT_NS = 1.0
_COMPILED_NS = 0.2
_TRANSFORM_NS = 0.06
_TRANSFORM_OVERHEAD_NS = 4e5


# as it is: converted, a shape that is known in part would become a tensor
@paddle.jit.not_to_static
def large_depthwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(N, C, H, W), (C, 1, K, K) with K odd, (C,) -> (N, C, H, W); float16 is computed in float32."""
    if not transform_pays(x.shape, weight.shape[2]):
        return _direct(x, weight, bias)
    with paddle.amp.auto_cast(enable=False) if paddle.in_dynamic_mode() else nullcontext():
        result = _through_transform(x.astype(_wide(x)), weight.astype(_wide(x)))
    return _plus_bias(result.astype(x.dtype), bias)


@paddle.jit.not_to_static
def transform_pays(shape: list[int], kernel: int) -> bool:
    """Whether the transform is expected to be faster for (N, C, H, W) and a kernel of this width.

    Never where the size of the map is not known, in a graph that is exported for every size.
    """
    n, channels, height, width = (int(size) for size in shape)
    if height < 1 or width < 1:
        return False
    planes = max(n, 1) * channels
    taps = min(kernel, 2 * height - 1) * min(kernel, 2 * width - 1)
    compiled = native.library() is not None and paddle.in_dynamic_mode()
    direct = planes * height * width * taps * (_COMPILED_NS if compiled else _DIRECT_NS)
    rows, columns = _periods(height, width, kernel)
    half = rows // 2 + 1
    one_way = 2 * half * height * width + half * 2 * width * 2 * columns
    return direct > 2 * planes * one_way * _TRANSFORM_NS + _TRANSFORM_OVERHEAD_NS


def _wide(x: Tensor) -> Any:
    return paddle.float64 if x.dtype == paddle.float64 else paddle.float32


def _plus_bias(x: Tensor, bias: Tensor | None) -> Tensor:
    return x if bias is None else x + bias.astype(x.dtype).reshape([1, -1, 1, 1])


def _direct(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if min(x.shape[2:]) > 0:  # not where the size is not known
        weight = _cropped(weight, *_reach(*x.shape[2:], weight.shape[2]))
    rows, columns = weight.shape[2] // 2, weight.shape[3] // 2
    return depthwise_conv(x, weight, bias, (1, 1), (rows, rows, columns, columns))


def _reach(height: int, width: int, kernel: int) -> tuple[int, int]:
    """How far up and down, left and right a kernel reaches within a map: offsets beyond it meet nothing but padding."""
    return min(kernel // 2, height - 1), min(kernel // 2, width - 1)


def _cropped(weight: Tensor, rows: int, columns: int) -> Tensor:
    """(C, 1, K, K) -> (C, 1, 2 rows + 1, 2 columns + 1) about the centre."""
    top, left = weight.shape[2] // 2 - rows, weight.shape[3] // 2 - columns
    if top == left == 0:
        return weight
    return weight[:, :, top : weight.shape[2] - top, left : weight.shape[3] - left]


# ------------------------------------------------------------------------------------------------ the transform


def _periods(height: int, width: int, kernel: int) -> tuple[int, int]:
    """The smallest periods at which what wraps around falls beside the map."""
    rows, columns = _reach(height, width, kernel)
    return height + rows, width + columns


@lru_cache(maxsize=512)
def _waves(start: int, count: int, sign: int, period: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines, (frequency, position) of `count` positions from `start`, times `sign`, in float64."""
    positions = sign * np.arange(start, start + count)
    angles = np.outer(np.arange(period), positions) % period * (2 * math.pi / period)
    return np.cos(angles), np.sin(angles)


def _row_matrix(start: int, count: int, sign: int, period: int) -> np.ndarray:
    """(2 Q, count): the frequencies 0 ... Q - 1, real and imaginary parts in turn; Q = period // 2 + 1."""
    cosines, sines = _waves(start, count, sign, period)
    half = period // 2 + 1
    return np.stack([cosines[:half], -sines[:half]], 1).reshape(2 * half, count)


def _column_matrix(start: int, count: int, sign: int, period: int) -> np.ndarray:
    """(2 count, 2 period): a row of real and one of imaginary parts -> all frequencies, both parts in turn."""
    cosines, sines = (wave.T for wave in _waves(start, count, sign, period))
    real = np.stack([cosines, -sines], 2).reshape(count, 2 * period)
    imaginary = np.stack([sines, cosines], 2).reshape(count, 2 * period)
    return np.concatenate([real, imaginary])


def _inverse_row_matrix(start: int, count: int, sign: int, period: int, total: int) -> np.ndarray:
    """(count, 2 Q): the transpose; what stands for itself and its mirror image counts twice."""
    half = period // 2 + 1
    times = np.full(half, 2.0)
    times[0] = 1.0
    if period % 2 == 0:
        times[-1] = 1.0
    return _row_matrix(start, count, sign, period).T * np.repeat(times, 2) / total


@lru_cache(maxsize=256)
def _eager(make: Any, dtype: str, place: str, *arguments: int) -> Tensor:
    return paddle.to_tensor(make(*arguments).astype(dtype))


def _constant(make: Any, like: Tensor, *arguments: int) -> Tensor:
    """The matrix `make(*arguments)`: kept from call to call, or a constant of the graph that is traced."""
    dtype = "float64" if like.dtype == paddle.float64 else "float32"
    if paddle.in_dynamic_mode():
        return _eager(make, dtype, paddle.get_device(), *arguments)
    return paddle.assign(make(*arguments).astype(dtype))


def _transform(x: Tensor, periods: tuple[int, int], start: tuple[int, int] = (0, 0), sign: int = 1) -> Tensor:
    """(..., C, H, W) at positions from `start` -> complex (..., C, Q, P), (P', P) the periods and Q = P' // 2 + 1."""
    *leading, height, width = x.shape
    rows = _constant(_row_matrix, x, start[0], height, sign, periods[0])
    columns = _constant(_column_matrix, x, start[1], width, sign, periods[1])
    x = paddle.matmul(rows, x.reshape([-1, height, width]))  # (N C, H, W) -> (N C, 2 Q, W)
    x = paddle.matmul(x.reshape([-1, 2 * width]), columns)  # both parts of a row in one -> (N C Q, 2 P)
    return paddle.as_complex(x.reshape([*leading[:-1], leading[-1], periods[0] // 2 + 1, periods[1], 2]))


def _inverse(
    spectrum: Tensor,
    periods: tuple[int, int],
    size: tuple[int, int],
    like: Tensor,
    start: tuple[int, int] = (0, 0),
    sign: int = 1,
) -> Tensor:
    """Complex (..., C, Q, P) -> real (..., C, *size) at positions from `start`."""
    leading = spectrum.shape[:-2]
    rows = _constant(_inverse_row_matrix, like, start[0], size[0], sign, periods[0], periods[0] * periods[1])
    columns = _constant(_transposed_columns, like, start[1], size[1], sign, periods[1])
    x = paddle.as_real(spectrum).reshape([-1, 2 * periods[1]])
    x = paddle.matmul(x, columns).reshape([-1, 2 * (periods[0] // 2 + 1), size[1]])  # -> (N C, 2 Q, W)
    return paddle.matmul(rows, x).reshape([*leading, *size])


def _transposed_columns(start: int, count: int, sign: int, period: int) -> np.ndarray:
    return np.ascontiguousarray(_column_matrix(start, count, sign, period).T)


def kernel_factors(weight: Tensor, height: int, width: int) -> Tensor:
    """(C, 1, K, K) -> the complex factors (C, Q, P) of the transform of a map of this size."""
    rows, columns = _reach(height, width, weight.shape[2])
    inner = _cropped(weight, rows, columns).squeeze(1)
    return _transform(inner, (height + rows, width + columns), start=(-rows, -columns), sign=-1)


def _multiplied(x: Tensor, factors: Tensor, kernel: int) -> Tensor:
    periods = _periods(*x.shape[2:], kernel)
    return _inverse(_transform(x, periods) * factors, periods, tuple(x.shape[2:]), like=x)


class _Transformed(paddle.autograd.PyLayer):
    """The convolution and its gradients, through the transform; keeps its inputs, and of their transforms nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.wanted = (not x.stop_gradient, not weight.stop_gradient)
        return _multiplied(x, kernel_factors(weight, *x.shape[2:]), weight.shape[2])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensor()
        size, kernel = tuple(x.shape[2:]), weight.shape[2]
        periods = _periods(*size, kernel)
        x_gradient, weight_gradient = None, None
        mirrored = _transform(gradient, periods, sign=-1)
        if ctx.wanted[0]:
            x_gradient = _inverse(mirrored * kernel_factors(weight, *size), periods, size, like=x, sign=-1)
        if ctx.wanted[1]:
            rows, columns = _reach(*size, kernel)
            product = (mirrored * _transform(x, periods)).sum(0)
            span = (2 * rows + 1, 2 * columns + 1)
            inner = _inverse(product, periods, span, like=x, start=(-rows, -columns)).unsqueeze(1)
            top, left = kernel // 2 - rows, kernel // 2 - columns
            weight_gradient = F.pad(inner, [left, left, top, top]) if top or left else inner
        return x_gradient, weight_gradient


def _through_transform(x: Tensor, weight: Tensor) -> Tensor:
    if paddle.in_dynamic_mode() and paddle.is_grad_enabled() and not (x.stop_gradient and weight.stop_gradient):
        return _Transformed.apply(x, weight)
    return _multiplied(x, kernel_factors(weight, *x.shape[2:]), weight.shape[2])


# ------------------------------------------------------------------------------------------------ the layer


class LargeDepthwiseConv2D(nn.Conv2D):
    """`large_depthwise_conv` with its weights: (N, C, H, W) -> (N, C, H, W); names and layouts are a convolution's."""

    def __init__(self, channels: int, kernel: int, bias: bool = False) -> None:
        super().__init__(
            channels, channels, kernel, padding=kernel // 2, groups=channels, bias_attr=None if bias else False
        )
        self.kernel = kernel
        # of the last evaluation: (the weights, height and width, factors)
        self.kept: tuple[Tensor, tuple[int, int], Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.training or not paddle.in_dynamic_mode() or paddle.is_grad_enabled():
            self.kept = None
            return large_depthwise_conv(x, self.weight, self.bias)
        if x.dtype != self.weight.dtype or not transform_pays(x.shape, self.kernel):
            return large_depthwise_conv(x, self.weight, self.bias)
        return _plus_bias(_multiplied(x, self.factors(*x.shape[2:]), self.kernel), self.bias)

    def factors(self, height: int, width: int) -> Tensor:
        """Those of the weights for a map of this size: the kept ones if nothing has changed."""
        size = (height, width)
        if self.kept is None or self.kept[1] != size or not _same(self.kept[0], self.weight):
            self.kept = (self.weight.clone(), size, kernel_factors(self.weight, height, width))
        return self.kept[2]


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and bool(paddle.equal_all(a, b))  # waits for the device
