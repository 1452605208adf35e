"""Gradient clipping.

Paddle's own `grad_clip` computes the norm of each parameter group by itself, so a "global" norm is not global as
soon as there are groups; hence this one, over all parameters at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import paddle
from paddle import Tensor

from ppcls_ext.config import OptimizerOptions


def clip_by_global_norm(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale all gradients by min(1, max_norm / norm), in place; returns the norm before clipping (a scalar tensor)."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = paddle.add_n([(gradient.astype("float32") ** 2).sum() for gradient in gradients]).sqrt()
    scale = paddle.clip(max_norm / (norm + 1e-6), max=1.0)
    with paddle.no_grad():
        for gradient in gradients:
            gradient.multiply_(scale.astype(gradient.dtype))
    return norm


@paddle.no_grad()
def clip_by_value(parameters: Iterable[Tensor], limit: float) -> None:
    """Every number of every gradient to [-limit, limit], in place."""
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.clip_(-limit, limit)


def unit_norm(tensor: Tensor) -> Tensor:
    """Norms of the weights that make one output, in a shape that broadcasts against `tensor`.

    Linear (in, out) -> (1, out); convolution (out, ...) -> (out, 1, ...); a vector -> (1,), its own norm.
    """
    squares = tensor.astype("float32") ** 2
    if tensor.ndim <= 1:
        return squares.sum(keepdim=True).sqrt()
    axes = [0] if tensor.ndim == 2 else list(range(1, tensor.ndim))
    return squares.sum(axes, keepdim=True).sqrt()


@paddle.no_grad()
def clip_adaptively(parameters: Iterable[Tensor], limit: float, epsilon: float = 1e-3) -> None:
    """Each unit's gradient at most `limit` times as long as its weights (at least `epsilon`), in place.

    Adaptive gradient clipping (Brock et al., arXiv 2102.06171, equation 3).
    """
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is not None:
            longest = unit_norm(parameter).clip(min=epsilon) * limit
            gradient.multiply_((longest / unit_norm(gradient).clip(min=1e-6)).clip(max=1.0).astype(gradient.dtype))


def make_clip(options: OptimizerOptions, network: paddle.nn.Layer) -> Callable[[], object] | None:
    """What `Optimizer.clip_*` asks for, to be called between the gradients and the step; None where it asks nothing."""
    named = [(name, parameter) for name, parameter in network.named_parameters() if parameter.trainable]
    parameters = [parameter for _, parameter in named]
    if options.clip_norm is not None:
        return partial(clip_by_global_norm, parameters, options.clip_norm)
    if options.clip_value is not None:
        return partial(clip_by_value, parameters, options.clip_value)
    if options.clip_adaptive is not None:
        # the paper leaves the classifier out
        head = tuple(dict(network.layer_groups())["head"]) if hasattr(network, "layer_groups") else ()
        body = [parameter for name, parameter in named if not name.startswith(head)]
        return partial(clip_adaptively, body, options.clip_adaptive)
    return None
