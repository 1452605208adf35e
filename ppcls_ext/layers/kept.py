"""Where the weights of a whole block lie, for compiled operators that compute all of it in one call."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import paddle
from paddle import nn


class KeptWeights:
    """The tensors of a layer and its parts by name, looked up once: a block has fifty, and a look-up takes 2 us.

    Parts that were replaced since are found again; what is kept is where tensors are held, never their addresses.
    """

    def __init__(self, names: Sequence[str | None]) -> None:
        self.names = tuple(names)  # "attn.norm.weight"; None where the operator is to get no tensor
        self._parts: list[tuple[dict, str, nn.Layer]] = []
        self._tensors: list[tuple[dict, str] | None] = []

    def addresses(self, layer: nn.Layer) -> ctypes.Array | None:
        """Of all the tensors' values; None where the parts have to compute by themselves.

        That is where a gradient is wanted of a weight, where one is not float32, and where a part has a hook or a
        forward of its own, which one call for all would pass by.
        """
        for held, name, part in self._parts:
            if held.get(name) is not part:
                self._parts = []
                break
        if not self._parts:
            self._find(layer)
        for _, _, part in self._parts:
            if part._forward_pre_hooks or part._forward_post_hooks or "forward" in part.__dict__:
                return None
        gradients = paddle.is_grad_enabled()
        result = (ctypes.c_void_p * len(self._tensors))()
        for i, at in enumerate(self._tensors):
            if at is None:
                continue
            tensor = at[0][at[1]]
            # of weights four bytes are float32; to compare a dtype takes 2 us
            if tensor.element_size() != 4 or not tensor.is_contiguous() or (gradients and not tensor.stop_gradient):
                return None
            result[i] = tensor.data_ptr()
        return result

    def _find(self, layer: nn.Layer) -> None:
        parts: dict[str, tuple[dict, str, nn.Layer]] = {}
        self._tensors = []
        for name in self.names:
            if name is None:
                self._tensors.append(None)
                continue
            *path, last = name.split(".")
            holder = layer
            for i, piece in enumerate(path):
                held = holder._sub_layers
                holder = held[piece]
                parts[".".join(path[: i + 1])] = (held, piece, holder)
            self._tensors.append((holder._parameters if last in holder._parameters else holder._buffers, last))
        self._parts = list(parts.values())
