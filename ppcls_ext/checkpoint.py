"""Files that survive: written aside, synced, renamed, each with a digest; and sets of them that change as one.

A tensor file (`.pdparams`, `.pdopt`) is a pickle of {name: array}, as Paddle writes it, followed by a trailer: JSON
metadata, their SHA-256, their length (8 bytes, little-endian) and `MAGIC`. A pickle reader stops where the pickle ends,
so `paddle.load` reads these files too. The metadata holds the SHA-256 of what stands before it.

A checkpoint is a set `PREFIX.{pdparams,pdopt,pdstates}` (and `PREFIX.ema.pdparams`). `.pdstates` is JSON and holds the
digests of the others. `save_set` writes every member aside as `<name>.new`, then renames `.pdstates` first: that one
rename is the moment at which the new set counts. A run killed between the renames leaves members under their `.new`
names, where `load_set` finds them by their digest; so the set is always wholly old or wholly new.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ppcls_ext.errors import Refused
from ppcls_ext.files import sync_folder, write_aside
from ppcls_ext.pickles.arrays import unpickle_arrays

MAGIC = b"PPCLSEXT"
_LENGTH = struct.Struct("<Q")
_DIGEST = hashlib.sha256().digest_size
STATES = ".pdstates"


# ------------------------------------------------------------------------------------------------ single files


class _HashingWriter:
    """Passes bytes on to a file and keeps their SHA-256."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        self._file.write(data)
        return len(data) if isinstance(data, bytes) else memoryview(data).nbytes


def _with_trailer(file: BinaryIO, write_body: Callable[[_HashingWriter], None], metadata: Mapping[str, Any]) -> str:
    writer = _HashingWriter(file)
    write_body(writer)
    digest = writer.sha256.hexdigest()
    encoded = json.dumps({**metadata, "sha256": digest}, ensure_ascii=False).encode("utf-8")
    file.write(encoded + hashlib.sha256(encoded).digest() + _LENGTH.pack(len(encoded)) + MAGIC)
    return digest


def _write_tensors(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> tuple[Path, str]:
    digest = ""

    def write(file: BinaryIO) -> None:
        nonlocal digest
        # Protocol 4 is what paddle.load of every version reads, above 4 GB too.
        digest = _with_trailer(file, lambda body: pickle.dump(dict(tensors), body, protocol=4), metadata)

    return write_aside(path, write), digest


def save_tensors(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> str:
    """Write one tensor file in one step; returns its digest."""
    aside, digest = _write_tensors(path, tensors, metadata)
    os.replace(aside, path)
    sync_folder(path.parent)
    return digest


def read_trailer(path: Path) -> tuple[int, dict[str, Any]] | None:
    """(length of the body, metadata) of a file with our trailer; None for a file without one.

    Raises `Refused` when there is a trailer that cannot be read.
    """
    size = path.stat().st_size
    tail = _DIGEST + _LENGTH.size + len(MAGIC)
    with open(path, "rb") as file:
        if size < tail:
            return None
        file.seek(size - tail)
        end = file.read(tail)
        if not end.endswith(MAGIC):
            return None
        (length,) = _LENGTH.unpack_from(end, _DIGEST)
        if length > size - tail:
            raise Refused(f"{path} is damaged: its trailer claims {length} bytes of a file of {size}")
        file.seek(size - tail - length)
        encoded = file.read(length)
        if hashlib.sha256(encoded).digest() != end[:_DIGEST]:
            raise Refused(f"{path} is damaged: the SHA-256 of its trailer differs from the one it was written with")
        try:
            metadata = json.loads(encoded.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise Refused(f"{path} is damaged: its trailer is not readable ({error})") from error
    if not isinstance(metadata, dict) or not isinstance(metadata.get("sha256"), str):
        raise Refused(f"{path} is damaged: its trailer holds no digest")
    return size - tail - length, metadata


def read_body(path: Path, require_trailer: bool = False) -> tuple[bytes, dict[str, Any]]:
    """(verified body, metadata) of a file; (the whole file, {}) for one without our trailer, unless it is required."""
    if not path.is_file():
        raise Refused(f"No such file: {path}")
    trailer = read_trailer(path)
    if trailer is None:
        if require_trailer:
            raise Refused(f"{path} is damaged: it is cut short (its trailer is missing)")
        return path.read_bytes(), {}
    length, metadata = trailer
    with open(path, "rb") as file:
        body = file.read(length)
    if hashlib.sha256(body).hexdigest() != metadata["sha256"]:
        raise Refused(f"{path} is damaged: its SHA-256 differs from the one it was written with")
    return body, metadata


def read_tensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(tensors, metadata) of a tensor file that `save_tensors` or `save_set` wrote."""
    body, metadata = read_body(path, require_trailer=True)
    tensors, _ = unpickle_arrays(body, path)
    if not isinstance(tensors, dict):
        raise Refused(f"{path} holds {type(tensors).__name__}, not tensors")
    return tensors, metadata


# ------------------------------------------------------------------------------------------------ sets


@dataclass(frozen=True)
class Checkpoint:
    """What `load_set` found: the tensors by member (".pdparams", ".pdopt", ".ema.pdparams") and the states."""

    prefix: Path
    tensors: dict[str, dict[str, np.ndarray]]
    states: dict[str, Any]
    metadata: dict[str, Any]


def member(prefix: Path, suffix: str) -> Path:
    """`output/latest`, ".pdopt" -> `output/latest.pdopt`."""
    return prefix.parent / (prefix.name + suffix)


def save_set(
    prefix: Path,
    tensors: Mapping[str, Mapping[str, np.ndarray]],
    states: Mapping[str, Any],
    metadata: Mapping[str, Any],
    keep_previous: Path | None = None,
) -> None:
    """Replace the set at `prefix` in one step. With `keep_previous`, the set that stood there stays under that name."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    _finish_renames(prefix)
    digests = {}
    asides = {}
    for suffix, arrays in tensors.items():
        path = member(prefix, suffix)
        asides[path], digests[suffix] = _write_tensors(path, arrays, metadata)
    body = json.dumps({"digests": digests, "states": states, "metadata": dict(metadata)}, indent=1).encode("utf-8")
    states_path = member(prefix, STATES)
    states_aside = write_aside(states_path, lambda file: _with_trailer(file, lambda to: to.write(body), {}))
    sync_folder(prefix.parent)
    if keep_previous is not None:
        _link_set(prefix, keep_previous)
    os.replace(states_aside, states_path)
    sync_folder(prefix.parent)  # from here on the new set counts
    for path, aside in asides.items():
        os.replace(aside, path)
    sync_folder(prefix.parent)


def _read_states(prefix: Path) -> dict[str, Any]:
    path = member(prefix, STATES)
    if not path.is_file():
        raise Refused(f"No checkpoint at {prefix}: {path.name} is missing")
    body, _ = read_body(path, require_trailer=True)
    return json.loads(body)


def _located(prefix: Path, suffix: str, digest: str) -> Path:
    """Where the member with this digest lies: under its name or, after a kill between two renames, its `.new` name."""
    path = member(prefix, suffix)
    candidates = [path, path.with_name(path.name + ".new")]
    for candidate in candidates:
        if candidate.is_file():
            try:
                trailer = read_trailer(candidate)
            except Refused:
                continue
            if trailer is not None and trailer[1]["sha256"] == digest:
                return candidate
    if not path.is_file():
        raise Refused(f"{path} is missing")
    if read_trailer(path) is None:
        raise Refused(f"{path} is damaged: it is cut short (its trailer is missing)")
    raise Refused(f"{path} does not belong to {member(prefix, STATES).name}: their digests differ")


def _finish_renames(prefix: Path) -> None:
    """End what a killed run left undone, before its `.new` files are written over."""
    try:
        digests = _read_states(prefix)["digests"]
        located = {suffix: _located(prefix, suffix, digest) for suffix, digest in digests.items()}
    except Refused:
        return  # no set, or no whole one: nothing to keep
    for suffix, path in located.items():
        os.replace(path, member(prefix, suffix))
    sync_folder(prefix.parent)


def _link_set(prefix: Path, name: Path) -> None:
    """Let the set at `prefix` be found under a second name as well. A set that is not whole is left alone."""
    try:
        digests = _read_states(prefix)["digests"]
        sources = {suffix: _located(prefix, suffix, digest) for suffix, digest in digests.items()}
    except Refused:
        return
    sources[STATES] = member(prefix, STATES)
    for suffix, source in sources.items():
        aside = member(name, suffix + ".new")
        aside.unlink(missing_ok=True)
        try:
            os.link(source, aside)
        except OSError:  # a file system without hard links
            aside.write_bytes(source.read_bytes())
        os.replace(aside, member(name, suffix))


def load_set(prefix: Path) -> Checkpoint:
    """Read and verify the set at `prefix` (`output/latest`, or the name of one of its files).

    A damaged one is refused by name, and the newest good one is offered.
    """
    for suffix in (".pdparams", ".pdopt", STATES):
        prefix = prefix.with_name(prefix.name.removesuffix(suffix)) if prefix.name else prefix
    if not prefix.name or prefix.is_dir():
        raise Refused(f"{prefix} is a folder; a checkpoint is named as {prefix / 'latest'}")
    try:
        return _load_set(prefix)
    except Refused as error:
        raise Refused(f"{error}. {_offer(prefix)}") from error


def _load_set(prefix: Path) -> Checkpoint:
    content = _read_states(prefix)
    tensors = {}
    for suffix, digest in content["digests"].items():
        tensors[suffix], _ = read_tensors(_located(prefix, suffix, digest))
    return Checkpoint(prefix, tensors, content["states"], content["metadata"])


def _offer(prefix: Path) -> str:
    """Name the newest other set in the folder that is whole."""
    found = newest_other(prefix)
    if found is None:
        return f"There is no other whole checkpoint in {prefix.parent}"
    other, states = found
    step = states.get("global_step", -1)
    return f"The newest whole checkpoint there is {other.name} (step {step}): -o Global.checkpoints={other}"


def newest_other(
    prefix: Path, suits: Callable[[Mapping[str, Any]], bool] = lambda states: True
) -> tuple[Path, dict[str, Any]] | None:
    """(prefix, states) of the other set beside this one that is whole, has been trained longest, and `suits`."""
    others = []
    for path in prefix.parent.glob("*" + STATES):
        other = path.with_name(path.name.removesuffix(STATES))
        try:
            content = _read_states(other)
        except Refused:
            continue
        # what can only be used, best_model_ema, is no checkpoint to go on from
        if other.name != prefix.name and ".pdopt" in content["digests"] and suits(content["states"]):
            states = content["states"]
            others.append((states.get("global_step", -1), other.name != "best_model", other, states))
    for _, _, other, states in sorted(others, key=lambda found: found[:3], reverse=True):
        try:
            _load_set(other)
        except Refused:
            continue
        return other, states
    return None


def _prefix_of(path: Path) -> Path:
    return path.parent / path.name.removesuffix(".pdparams")


def weights_exist(path: Path) -> bool:
    """Whether `path` names weights, with or without `.pdparams`, those of an interrupted save too. Opens nothing."""
    prefix = _prefix_of(path)
    return path.is_file() or member(prefix, ".pdparams").is_file() or member(prefix, STATES).is_file()


def resolve_weights(path: Path) -> Path:
    """The file that holds the weights of `path` (with or without `.pdparams`), after an interrupted save too."""
    if path.is_file() and path.suffix != ".pdparams":
        return path
    prefix = _prefix_of(path)
    path = member(prefix, ".pdparams")
    if not member(prefix, STATES).is_file():
        return path
    digest = _read_states(prefix)["digests"].get(".pdparams")
    return _located(prefix, ".pdparams", digest) if digest else path
