"""One batch of samples, read in whatever process: errors name the sample, and what is skipped is said."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

import numpy as np

from ppcls_ext.data.datasets import SampleError, place_of
from ppcls_ext.data.mixing import Mixing
from ppcls_ext.errors import Refused, RunFailed


class Dataset(Protocol):
    """What the loader asks of a dataset; `ppcls_ext.data.datasets.ImageDataset` has it."""

    unreadable: str
    max_unreadable: int
    num_classes: int
    first_epochs: list[int]
    identity: bytes

    def __len__(self) -> int: ...
    def load(self, index: int, epoch: int) -> tuple[np.ndarray, int | np.ndarray]: ...
    def mix(self, images: np.ndarray, indices: list[int], epoch: int) -> Mixing | None: ...
    def path(self, index: int) -> str: ...
    def origin(self, index: int) -> str: ...


@dataclass
class Loaded:
    """What became of the samples of a batch."""

    images: np.ndarray | None  # None: none was readable, or they stand in the slot
    shape: tuple[int, ...]  # (n, C, H, W), () when none was readable
    labels: list[int] | list[np.ndarray]
    indices: list[int]
    skipped: dict[str, str]
    mixing: Mixing | None = None


class Naming:
    """Adds the sample to an error that does not name it, a defect of a transform say; the text keeps the traceback."""

    def __init__(self, dataset: Dataset, index: int) -> None:
        self.dataset, self.index = dataset, index

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception) and not isinstance(error, (Refused, RunFailed)):
            text = "".join(traceback.format_exception(kind, error, trace)).rstrip()
            raise RunFailed(f"{place_in(self.dataset, self.index)}: {type(error).__name__}: {error}\n{text}") from error


def place_in(dataset: Dataset, index: int) -> str:
    """Where sample `index` comes from: 'list:line: path'."""
    return place_of(dataset.path(index), dataset.origin(index))


def read_batch(
    dataset: Dataset,
    indices: np.ndarray,
    epoch: int,
    make_room: Callable[[tuple[int, ...]], np.ndarray],
    begin: Callable[[int], bool],
) -> Loaded | None:
    """Load the samples into the array from `make_room(shape)`; `begin(index)` may give the batch up: None.

    Raises what the dataset raises; a `SampleError` is collected instead when the dataset says skip.
    """
    images: np.ndarray | None = None
    loaded = Loaded(None, (), [], [], {})
    for index in indices.tolist():
        if not begin(index):
            return None
        try:
            with Naming(dataset, index):
                image, label = dataset.load(index, epoch)
        except SampleError as error:
            if dataset.unreadable != "skip":
                raise
            loaded.skipped[place_of(error.path, error.origin)] = error.reason
            continue
        if images is None:
            images = make_room((len(indices), *image.shape))
        if image.shape != images.shape[1:]:
            first = loaded.indices[0]
            raise RunFailed(
                f"{place_in(dataset, index)} becomes {image.shape}, but {place_in(dataset, first)} of the same batch "
                f"{images.shape[1:]}: transform_ops must bring all images to one size"
            )
        images[len(loaded.indices)] = image
        loaded.indices.append(index)
        loaded.labels.append(label)
    if images is not None:
        loaded.images = images[: len(loaded.indices)]
        loaded.shape = loaded.images.shape
        loaded.mixing = dataset.mix(loaded.images, loaded.indices, epoch)
    return loaded


def listing(skipped: dict[str, str], limit: int = 10) -> str:
    """The first `limit` places with their reasons, a line each."""
    lines = [f"\n  - {place}: {reason}" for place, reason in list(skipped.items())[:limit]]
    return "".join(lines) + (f"\n  - ... and {len(skipped) - limit} more" if len(skipped) > limit else "")
