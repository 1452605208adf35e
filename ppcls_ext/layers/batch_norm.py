"""Batch norm over the batches of all processes, on a CPU too.

Paddle's own SyncBatchNorm has no CPU kernel, not even for eval().
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from ppcls_ext.distributed import world_size
from ppcls_ext.errors import RunFailed


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    """(C,) -> (1, C, 1, ...), as many axes as `like`."""
    return values.reshape([1, -1] + [1] * (like.ndim - 2))


def _channel_sum(x: Tensor) -> Tensor:
    """(N, C, ...) -> (C,). Over the map first, then over the images: one axis at a time is what Paddle does fast."""
    return (x.flatten(2).sum(2) if x.ndim > 2 else x).sum(0)


class _Normalise(paddle.autograd.PyLayer):
    """(x - mean) / deviation * weight + bias over the batches of all processes; also gives mean and biased variance."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
        values = x.astype("float32")
        count = values.size // values.shape[1]
        own_mean = _channel_sum(values) / count
        own_squares = _channel_sum(
            (values - _per_channel(own_mean, values)) ** 2
        )  # about the own mean: no cancellation
        # Sums about zero in float64: the own means shift them, and in float32 their difference would lose digits.
        own_mean, own_squares = own_mean.astype("float64"), own_squares.astype("float64")
        sums = paddle.concat(
            [own_mean * count, own_squares + own_mean**2 * count, paddle.full([1], count, dtype="float64")]
        )
        paddle.distributed.all_reduce(sums)
        channels = values.shape[1]
        total = sums[-1]
        if float(total) < 2:  # waits for the device
            raise RunFailed(
                "Batch norm needs two or more values per channel in a step; all processes together have one."
            )
        mean = sums[:channels] / total
        variance = (sums[channels:-1] / total - mean**2).clip(min=0.0)
        scale = (variance + epsilon).rsqrt().astype("float32")
        mean, variance = mean.astype("float32"), variance.astype("float32")
        normal = (values - _per_channel(mean, values)) * _per_channel(scale, values)
        ctx.save_for_backward(normal, weight, scale, total.astype("float32"))
        ctx.wanted = [not tensor.stop_gradient for tensor in (x, weight, bias)]  # what is frozen wants no gradient
        result = normal * _per_channel(weight, normal) + _per_channel(bias, normal)
        ctx.mark_non_differentiable(mean, variance)
        return result.astype(x.dtype), mean, variance

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        normal, weight, scale, total = ctx.saved_tensor()
        dtype, gradient = gradient.dtype, gradient.astype("float32")
        bias_gradient = _channel_sum(gradient)
        weight_gradient = _channel_sum(gradient * normal)
        sums = paddle.stack([bias_gradient, weight_gradient])
        paddle.distributed.all_reduce(sums)
        mean_gradient, mean_product = sums[0] / total, sums[1] / total
        x_gradient = gradient - _per_channel(mean_gradient, normal) - normal * _per_channel(mean_product, normal)
        x_gradient = x_gradient * _per_channel(weight * scale, normal)
        # those of weight and bias are this process's own: data parallelism averages them like every other
        gradients = x_gradient.astype(dtype), weight_gradient, bias_gradient
        return tuple(given if wanted else None for given, wanted in zip(gradients, ctx.wanted))


class SyncBatchNorm(nn.Layer):
    """Batch norm whose statistics are those of all processes' batches together: (N, C) or (N, C, H, W).

    Made from a `BatchNorm1D` or `BatchNorm2D`, whose parameters, statistics and names it keeps. In one process, and in
    evaluation, it is that layer. The running variance is the biased one, as in Paddle's CPU kernel.
    """

    def __init__(self, norm: nn.BatchNorm1D | nn.BatchNorm2D) -> None:
        super().__init__()
        self.weight = norm.weight
        self.bias = norm.bias
        self._mean = norm._mean  # in Paddle the statistics are parameters that are not trained
        self._variance = norm._variance
        self._momentum: float = norm._momentum
        self.epsilon: float = norm._epsilon
        self.training = norm.training

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or world_size() == 1:
            return F.batch_norm(
                x,
                self._mean,
                self._variance,
                self.weight,
                self.bias,
                training=self.training,
                momentum=self._momentum,
                epsilon=self.epsilon,
            )
        result, mean, variance = _Normalise.apply(x, self.weight, self.bias, self.epsilon)
        with paddle.no_grad():
            self._mean.set_value(self._mean * self._momentum + mean * (1 - self._momentum))
            self._variance.set_value(self._variance * self._momentum + variance * (1 - self._momentum))
        return result


BATCH_NORMS = (nn.BatchNorm1D, nn.BatchNorm2D, nn.SyncBatchNorm, SyncBatchNorm)


@contextmanager
def momenta_restored(norms: Iterable[nn.Layer]) -> Iterator[None]:
    """Inside, what the batch norms `norms` keep of their statistics at each step (`_momentum`) may be changed."""
    kept = [(norm, norm._momentum) for norm in norms]
    try:
        yield
    finally:
        for norm, momentum in kept:
            norm._momentum = momentum


def convert_sync_batchnorm(model: nn.Layer) -> nn.Layer:
    """Replace every BatchNorm1D and BatchNorm2D of `model`, in place, by one that counts all processes' batches.

    On a GPU this is Paddle's `SyncBatchNorm`, elsewhere ours. Parameters and names stay. Returns `model`.
    """
    if paddle.get_device().startswith("gpu"):
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if isinstance(model, (nn.BatchNorm1D, nn.BatchNorm2D)):
        # one that uses its stored statistics in training too has nothing to share
        return model if model._use_global_stats else SyncBatchNorm(model)
    for name, layer in model.named_children():
        model.add_sublayer(name, convert_sync_batchnorm(layer))
    return model
