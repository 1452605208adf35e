"""Where the weights of many layers lie, for compiled operators that compute all of them in one call."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import paddle
from paddle import Tensor, nn

from ppcls_ext.layers.plain import is_plain


class KeptWeights:
    """The tensors of a layer and its parts by name, looked up once: a network has a thousand, and a look-up takes 2 us.

    What is kept is where tensors are held, never their addresses. Parts and tensors that were replaced since are found
    again, and compute by themselves if they are of another class or shape than those at the start.
    """

    def __init__(self, layer: nn.Layer, names: Sequence[str | None], others: Sequence[str] = ()) -> None:
        """names: "attn.norm.weight", None where the operator is to get no tensor; others: parts that have none."""
        self._names, self._others = tuple(names), tuple(others)
        self._find(layer)
        self._kinds = [type(part) for _, _, part in self._parts]
        self._shapes = [None if at is None else at[0][at[1]].shape for at in self._tensors]

    def addresses(self, layer: nn.Layer) -> ctypes.Array | None:
        """Of all the tensors' values; None where the parts have to compute by themselves.

        That is in training, where a gradient is wanted of a weight, where one is not float32, and where a part has a
        hook, or a forward, class or shape of its own, which one call for all would pass by.
        """
        if any(held.get(name) is not part for held, name, part in self._parts) or not self._whole:
            self._find(layer)
        if not self._whole:
            return None
        for (_, _, part), kind in zip(self._parts, self._kinds):
            if part.training or not is_plain(part, kind):
                return None
        gradients = paddle.is_grad_enabled()
        result = (ctypes.c_void_p * len(self._tensors))()
        known = self._known
        for i, at in enumerate(self._tensors):
            if at is None:
                continue
            tensor = at[0].get(at[1])
            if tensor is not known[i]:
                if tensor is None or tensor.shape != self._shapes[i]:
                    return None
                known[i] = tensor
            # of weights four bytes are float32; to compare a dtype takes 2 us
            if tensor.element_size() != 4 or not tensor.is_contiguous() or (gradients and not tensor.stop_gradient):
                return None
            result[i] = tensor.data_ptr()
        return result

    def _find(self, layer: nn.Layer) -> None:
        """Where each part and tensor is held; `_whole`: all are there."""
        self._whole = False
        parts: dict[str, tuple[dict, str, nn.Layer]] = {}
        self._parts: list[tuple[dict, str, nn.Layer]] = []
        self._tensors: list[tuple[dict, str] | None] = []
        self._known: list[Tensor | None] = [None] * len(self._names)
        for name in (*self._names, *self._others):
            if name is None:
                self._tensors.append(None)
                continue
            path = name.split(".")
            last = path.pop() if len(self._tensors) < len(self._names) else None
            holder = layer
            for i, piece in enumerate(path):
                held = holder._sub_layers
                if held.get(piece) is None:
                    return
                holder = held[piece]
                parts[".".join(path[: i + 1])] = (held, piece, holder)
            if last is not None:
                held = holder._parameters if last in holder._parameters else holder._buffers
                if last not in held:
                    return
                self._tensors.append((held, last))
        self._parts = list(parts.values())
        self._whole = True
