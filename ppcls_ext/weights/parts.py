"""Which dictionary of a PyTorch checkpoint holds the network: training programs put it beside much else."""

from __future__ import annotations

import numbers
from pathlib import Path
from typing import Any

from ppcls_ext.errors import Refused, did_you_mean
from ppcls_ext.pickles.arrays import Array
from ppcls_ext.pickles.machine import shown
from ppcls_ext.weights.torch_files import StoredTensor

Tensors = dict[str, StoredTensor | Array]

# Names of a checkpoint's network, the first found is taken: an average of the weights is what its author evaluated.
PARTS = (
    "state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema", "params_ema",
    "state_dict", "model_state_dict", "model_state", "model", "net", "network", "params", "weights",
)  # fmt: skip
_DEEPEST = 4


def tensors_of(content: Any, path: Path, part: str | None = None) -> tuple[Tensors, tuple[str, ...]]:
    """({name: tensor}, what was left aside) of a checkpoint. Raises `Refused`."""
    if not isinstance(content, dict):
        kind = "tensor" if isinstance(content, (StoredTensor, Array)) else type(content).__name__
        raise Refused(f"{path} holds one {kind}, not tensors by name.")
    notes: list[str] = []
    place: list[str] = []
    for name in part.split(".") if part is not None else []:
        place.append(name)
        content = _entry(content, name, place, path)
    for _ in range(_DEEPEST):
        inner = [name for name in PARTS if isinstance(content.get(name), dict) and _holds_tensors(content[name])]
        if not inner:
            return _checked(content, path), tuple(notes)
        content = content[inner[0]]
        place.append(inner[0])
        if len(inner) > 1:
            others = " or ".join(repr(".".join([*place[:-1], name])) for name in inner[1:])
            notes.append(f"it holds several networks: {'.'.join(place)!r} was taken; part={others} takes another")
    raise Refused(f"{path}: {'.'.join(place)!r} is no dictionary of tensors.")


def _entry(content: dict[Any, Any], name: str, place: list[str], path: Path) -> dict[Any, Any]:
    found = content.get(name)
    if not isinstance(found, dict):
        known = [shown(key) for key, value in content.items() if isinstance(key, str) and isinstance(value, dict)]
        raise Refused(f"{path} has no part {'.'.join(place)!r}. {did_you_mean(name, known)}")
    return found


def _holds_tensors(content: dict[Any, Any]) -> bool:
    return any(isinstance(value, (StoredTensor, Array)) for value in content.values()) or any(
        isinstance(content.get(name), dict) for name in PARTS
    )


def _checked(content: dict[Any, Any], path: Path) -> Tensors:
    tensors: Tensors = {}
    for name, value in content.items():
        if isinstance(name, str) and isinstance(value, (StoredTensor, Array)):
            tensors[name] = value
        # an epoch, an accuracy, the name of a network
        elif not (value is None or isinstance(value, (str, numbers.Number))):
            inner = [shown(key) for key, entry in content.items() if isinstance(key, str) and isinstance(entry, dict)]
            raise Refused(
                f"{path}: expected a tensor under {shown(str(name))}, got {type(value).__name__}. "
                + (f"Choose a part: {', '.join(inner[:20])}." if inner else "A state dict is needed.")
            )
    if not tensors:
        raise Refused(f"{path} holds no tensors by name.")
    return tensors
