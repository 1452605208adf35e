"""Files that hold tensors -> {name: array}, names and layouts as the file has them. Nothing in a file is executed."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, deserialize, safe_open

from ppcls_ext.checkpoint import read_body, read_trailer, resolve_weights, weights_exist
from ppcls_ext.errors import Refused, did_you_mean
from ppcls_ext.pickles.arrays import unpickle_arrays
from ppcls_ext.pickles.machine import shown
from ppcls_ext.weights.parts import tensors_of
from ppcls_ext.weights.torch_files import TorchFile

PADDLE = ".pdparams"
SAFETENSORS = ".safetensors"
OURS = "ppcls_ext"  # safetensors' metadata are texts: ours is JSON under this name
PYTORCH = (".pth", ".pt", ".bin", ".ckpt", ".tar")
# Paddle stores beside a state dict which automatic name each parameter had in the process that saved it.
_AUTOMATIC_NAMES = "StructuredToParameterName@@"
_BFLOAT16 = "BF16"
_SAFETENSORS_TYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", _BFLOAT16: "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "|u1", "BOOL": "|b1",
}  # fmt: skip


def find_weights(path: str | Path) -> Path:
    """The file that `path` names; without a suffix it means `<path>.pdparams`. A missing or foreign file is refused."""
    given = Path(path)
    if given.is_dir() and not weights_exist(given):
        raise Refused(f"{given} is a folder; name the weights in it, for example {given / 'best_model'}")
    if given.suffix in (SAFETENSORS, *PYTORCH):
        found = given
    # `.new`: where a save that was cut short left the weights; `resolve_weights` may have led here
    elif given.is_file() and given.suffix != PADDLE and not given.name.endswith(PADDLE + ".new"):
        raise Refused(
            f"{given} cannot be read as weights: its suffix is {given.suffix or 'missing'}. "
            f"Readable: {', '.join((PADDLE, SAFETENSORS, *PYTORCH))}."
        )
    else:
        found = resolve_weights(given)
    if not found.is_file():
        present = [other.name for other in found.parent.glob("*") if other.suffix in (PADDLE, SAFETENSORS, *PYTORCH)]
        cure = did_you_mean(found.name, present) if present else f"There are none in {found.parent}."
        raise Refused(f"No weights at {found}. {cure}")
    return found


@dataclass(frozen=True)
class Weights:
    """What a file holds: arrays by name, what it says about itself, and what was left aside."""

    path: Path
    tensors: dict[str, np.ndarray]
    metadata: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_weights(path: str | Path, part: str | None = None) -> Weights:
    """The tensors of a file, names and layouts as it has them; bfloat16 becomes float32. Raises `Refused`.

    `part`: which of several networks in a PyTorch checkpoint ("model", "model_ema", also "a.b"); without it an average
    of the weights goes before the weights. The digest of a file that this program wrote is verified.
    """
    found = find_weights(path)
    if found.stat().st_size == 0:
        raise Refused(f"{found} is empty.")
    if found.suffix in PYTORCH:
        file = TorchFile(found)
        stored, notes = tensors_of(file.content, found, part)
        return Weights(found, {name: file.array(tensor) for name, tensor in stored.items()}, {"format": "pt"}, notes)
    if part is not None:
        raise Refused(f"{found} holds one network: there is no part {part!r} to choose.")
    tensors = _read_safetensors(found) if found.suffix == SAFETENSORS else _read_pdparams(found)
    return Weights(found, tensors, read_metadata(found))


def read_metadata(path: str | Path) -> dict[str, Any]:
    """What a file says about itself (architecture, class names ...); {} when it says nothing."""
    found = find_weights(path)
    if found.suffix in PYTORCH:
        return {}
    if found.suffix != SAFETENSORS:
        trailer = read_trailer(found)
        return {} if trailer is None else trailer[1]
    try:
        with safe_open(found, framework="np") as file:
            metadata: dict[str, Any] = dict(file.metadata() or {})
        ours = json.loads(metadata.pop(OURS, "{}"))
    except (SafetensorError, ValueError, RecursionError) as error:
        raise Refused(f"{found} cannot be read as safetensors: {error}.") from error
    if not isinstance(ours, dict):
        raise Refused(f"{found} cannot be read as safetensors: its metadata under {OURS} is no dictionary.")
    return metadata | ours


def _read_pdparams(path: Path) -> dict[str, np.ndarray]:
    body, _ = read_body(path)
    content, length = unpickle_arrays(body, path)
    if length != len(body):
        raise Refused(f"{path} is damaged: {len(body) - length} bytes follow its tensors and are no whole trailer.")
    if not isinstance(content, dict):
        raise Refused(f"{path} holds one {type(content).__name__}, not tensors by name.")
    tensors = {}
    for name, value in content.items():
        if name == _AUTOMATIC_NAMES:
            continue
        if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str):
            value = value[1]  # paddle.save of a tensor inside another object: (automatic name, array)
        if not isinstance(name, str) or not isinstance(value, np.ndarray):
            raise Refused(
                f"{path}: expected an array under {name!r}, got {type(value).__name__}. "
                "A state dict is needed: paddle.save(model.state_dict(), path)."
            )
        # Paddle stores bfloat16 as the 16-bit numbers that hold its bits; no layer has parameters of that type
        tensors[name] = _from_bfloat16(value) if value.dtype == np.uint16 else value
    return tensors


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        entries = deserialize(path.read_bytes())
    except SafetensorError as error:
        raise Refused(f"{path} cannot be read as safetensors: {error}.") from error
    tensors = {}
    for name, entry in entries:
        if entry["dtype"] not in _SAFETENSORS_TYPES:
            raise Refused(f"{path}: {shown(name)} is of type {entry['dtype']}, which cannot be read.")
        array = np.frombuffer(entry["data"], _SAFETENSORS_TYPES[entry["dtype"]])
        try:
            array = array.reshape(entry["shape"])
        except (ValueError, OverflowError) as error:  # more dimensions than NumPy has; an empty one of 2**63
            raise Refused(f"{path}: {shown(name)} has no shape: {error}.") from error
        tensors[name] = _from_bfloat16(array) if entry["dtype"] == _BFLOAT16 else array
    return tensors


def _from_bfloat16(bits: np.ndarray) -> np.ndarray:
    """The upper halves of float32 numbers -> float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
