"""Exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import paddle


class WeightAverage:
    """A shadow of every floating tensor of a network (batch-norm statistics included) that follows it slowly.

    After update t (from 0): shadow = d * shadow + (1 - d) * weight, with d = decay or, with `warmup`,
    min(decay, (1 + t) / (10 + t)), so that the first weights are soon forgotten.
    """

    def __init__(self, network: paddle.nn.Layer, decay: float, warmup: bool) -> None:
        self.decay = decay
        self.warmup = warmup
        self._tensors = {name: tensor for name, tensor in network.state_dict().items() if tensor.is_floating_point()}
        # float32 whatever the network's type: in half precision (1 - d) * weight would be lost in the rounding
        self.shadow = {name: tensor.detach().astype("float32").clone() for name, tensor in self._tensors.items()}

    @paddle.no_grad()
    def update(self, step: int, frozen: frozenset[str] = frozenset()) -> None:
        """Follow the weights after optimizer step `step` (from 0); `frozen` ones keep their bits."""
        decay = min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay
        for name, tensor in self._tensors.items():
            if name in frozen:
                continue
            self.shadow[name].set_value(self.shadow[name] * decay + tensor.astype("float32") * (1 - decay))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the network has the averaged weights; afterwards its own again."""
        kept = {name: tensor.detach().clone() for name, tensor in self._tensors.items()}
        self._give(self.shadow)
        try:
            yield
        finally:
            self._give(kept)

    @paddle.no_grad()
    def _give(self, values: dict[str, paddle.Tensor]) -> None:
        for name, tensor in self._tensors.items():
            tensor.set_value(values[name].astype(tensor.dtype))

    def state(self) -> dict[str, np.ndarray]:
        """The shadow as arrays, under the network's names."""
        return {name: tensor.numpy() for name, tensor in self.shadow.items()}

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        """Take back what `state` returned. Raises KeyError when a name is missing."""
        for name, tensor in self.shadow.items():
            tensor.set_value(arrays[name])
