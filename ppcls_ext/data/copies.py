"""Which files are copies of each other, and which images of an evaluation are trained on."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.progress import track

if TYPE_CHECKING:
    from ppcls_ext.data.datasets import ImageDataset

_SHOW_PROGRESS_FROM = 2000  # files
_HEAD = 4096  # bytes; most files of one size differ there
_COMPARED = 100_000  # images; of larger splits the paths are compared, not the files


def identical_files(files: Sequence[str]) -> np.ndarray:
    """The unit of every file, int64 (n,), numbered as they appear: files with the same bytes are one unit.

    Only files of one size are read, and beyond their head only those with the same head. Raises `OSError`.
    """
    keys: list[tuple[Any, ...]] = [(os.path.getsize(file),) for file in files]
    for length in (_HEAD, -1):
        alike = Counter(keys)
        rows = [row for row, key in enumerate(keys) if alike[key] > 1]
        for row in _with_progress(rows):
            keys[row] = (*keys[row], _digest(files[row], length))
    unit_of_key: dict[tuple[Any, ...], int] = {}
    return np.array([unit_of_key.setdefault(key, len(unit_of_key)) for key in keys], np.int64)


def trained_on(training: ImageDataset, evaluation: ImageDataset) -> list[tuple[str, str]]:
    """(evaluation's file, training's file) for every image of the evaluation that is in the training split too.

    Exact copies count, whatever their names; in splits of more than 100,000 images together, the same path alone.
    """
    ours, theirs = (map(dataset.path, range(len(dataset))) for dataset in (evaluation, training))
    if len(evaluation) + len(training) > _COMPARED:
        there = set(ours).intersection(theirs)  # one of the million at a time
        return [(path, path) for path in map(evaluation.path, range(len(evaluation))) if path in there]
    sizes = [{path: _size(path) for path in paths} for paths in (ours, theirs)]
    shared = set(sizes[0].values()).intersection(sizes[1].values()) - {None}
    mine, known = ([path for path, size in side.items() if size in shared] for side in sizes)
    units = identical_files([*mine, *known]).tolist()
    first = dict(zip(reversed(units[len(mine) :]), reversed(known)))
    return [(path, first[unit]) for path, unit in zip(mine, units) if unit in first]


def _size(path: str) -> int | None:
    """None for a file that cannot be read: the loader says so when it comes to it."""
    return os.path.getsize(path) if os.access(path, os.R_OK) else None


def _digest(file: str, length: int) -> bytes:
    with open(file, "rb") as opened:
        return hashlib.sha256(opened.read(length)).digest()


def _with_progress(rows: Sequence[int]) -> Iterable[int]:
    console = Console(stderr=True)
    silent = len(rows) < _SHOW_PROGRESS_FROM or not console.is_terminal
    return track(rows, "Comparing files", console=console, disable=silent)
