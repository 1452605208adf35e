"""A million paths in one block of bytes: a tenth of the memory of as many strings, and nothing to copy after a fork."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Paths:
    """Path i is `blob[starts[i]:ends[i]]`, encoded as the file system's names are."""

    blob: bytes
    starts: np.ndarray  # uint32 or int64 (n,)
    ends: np.ndarray  # the same

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> str:
        return os.fsdecode(self.blob[int(self.starts[index]) : int(self.ends[index])])


def pack_paths(paths: Sequence[str]) -> Paths:
    """The given paths, packed."""
    encoded = [os.fsencode(path) for path in paths]
    ends = np.cumsum([len(path) for path in encoded], dtype=np.int64)
    starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]]) if encoded else ends
    return Paths(b"".join(encoded), starts, ends)


def spans(starts: np.ndarray, ends: np.ndarray) -> Iterator[tuple[int, int]]:
    """(start, end) of each path as plain integers, made a piece at a time."""
    for at in range(0, len(starts), 65536):
        yield from zip(starts[at : at + 65536].tolist(), ends[at : at + 65536].tolist())
