"""Gradient checkpointing (Chen et al., arXiv 1604.06174): memory for time.

A block keeps its input alone and is computed once more when gradients are asked for: with the same random numbers, and
without counting the batch a second time in the running statistics of its batch norms.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import paddle
from paddle import Tensor, nn

from ppcls_ext.layers.batch_norm import BATCH_NORMS, momenta_restored
from ppcls_ext.ops import native


def checkpointed(block: nn.Layer, x: Tensor, *others: Any, enable: bool = True) -> Tensor:
    """block(x, *others); in training, with `enable`, nothing but x is kept for the gradients."""
    if not (enable and block.training and paddle.in_dynamic_mode() and paddle.is_grad_enabled()):
        return block(x, *others)
    from paddle.distributed.fleet.utils import recompute

    def run(x: Tensor) -> Tensor:
        if not paddle.is_grad_enabled():  # the first time, by the operators of the second
            with native.training():
                return block(x, *others)
        with _statistics_kept(block):
            return block(x, *others)

    return recompute(run, x)


@contextmanager
def _statistics_kept(block: nn.Layer) -> Iterator[None]:
    """Batch norms normalise by the batch and leave their running statistics as they are."""
    norms = [layer for layer in block.sublayers(include_self=True) if isinstance(layer, BATCH_NORMS)]
    with momenta_restored(norms):
        for norm in norms:
            norm._momentum = 1.0
        yield
