"""Gradient clipping.

Paddle's own `grad_clip` computes the norm of each parameter group by itself, so a "global" norm is not global as
soon as there are groups; hence this one, over all parameters at once.
"""

from __future__ import annotations

from collections.abc import Iterable

import paddle


def clip_by_global_norm(parameters: Iterable[paddle.Tensor], max_norm: float) -> paddle.Tensor:
    """Scale all gradients by min(1, max_norm / norm), in place; returns the norm before clipping (a scalar tensor)."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = paddle.add_n([(gradient.astype("float32") ** 2).sum() for gradient in gradients]).sqrt()
    scale = paddle.clip(max_norm / (norm + 1e-6), max=1.0)
    with paddle.no_grad():
        for gradient in gradients:
            gradient.multiply_(scale.astype(gradient.dtype))
    return norm
