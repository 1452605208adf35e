"""PyTorch's conventions: names of batch-norm statistics, and linear weights stored (out, in)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

_RENAMED = {"running_mean": "_mean", "running_var": "_variance"}
COUNTER = "num_batches_tracked"  # Paddle has none


def is_pytorch(
    tensors: Mapping[str, np.ndarray], metadata: Mapping[str, Any], linear_shapes: Mapping[str, tuple[int, ...]]
) -> bool:
    """Whether a file follows PyTorch's conventions.

    Batch-norm names tell, then what safetensors says of its origin. Without either, the linear weights of the network
    (`linear_shapes`, Paddle's (in, out)) do: they fit transposed.
    """
    leaves = {name.rsplit(".", 1)[-1] for name in tensors}
    if leaves & {*_RENAMED, COUNTER}:
        return True
    if leaves & set(_RENAMED.values()):
        return False
    if "format" in metadata:
        return metadata["format"] == "pt"
    known = [(tensors[name].shape, shape) for name, shape in linear_shapes.items() if name in tensors]
    return any(given != shape for given, shape in known) and all(given == shape[::-1] for given, shape in known)


def to_paddle(tensors: Mapping[str, np.ndarray], linear_weights: set[str]) -> dict[str, np.ndarray]:
    """The same tensors under Paddle's names and layouts. `linear_weights`: names of those in linear layers."""
    converted = {}
    for name, array in tensors.items():
        stem, dot, leaf = name.rpartition(".")
        if leaf == COUNTER:
            continue
        name = stem + dot + _RENAMED.get(leaf, leaf)
        if name in linear_weights and array.ndim in (2, 4):
            # a convolution over a whole map is the same linear layer
            array = array.reshape(len(array), -1).T
        converted[name] = array
    return converted
