"""The datasets: which images there are, which class each has, and how one of them is read.

What the configuration gives and what the program adds (channels, num_classes, class_names, seed) meet in the
constructors. Everything that can be wrong with the files is refused there, before training.
"""

from __future__ import annotations

import hashlib
import os
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from ppcls_ext.data.class_map import agreed_class_names, check_class_names, read_class_map
from ppcls_ext.data.folders import ClassFolders, refuse_empty_classes, refuse_one_class, scan_class_folders
from ppcls_ext.data.label_list import CheckFiles, read_label_list
from ppcls_ext.data.mixing import BatchOps, Mixing, batch_rng, build_batch_operator
from ppcls_ext.data.paths import Paths, pack_paths
from ppcls_ext.errors import Problems, Refused, RunFailed, did_you_mean
from ppcls_ext.registry import DATASETS, InputFile, InputFolder
from ppcls_ext.transforms import DecodeError, build_transforms

# first epoch -> size of RandCropImage
Sizes = Annotated[
    dict[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)] | list[Annotated[int, Field(ge=1)]]],
    "epochs from 1 on with sizes: {1: 128, 30: 160}",
]
TransformOps = list[dict[str, dict[str, Any] | None]]
Unreadable = Literal["error", "skip"]


class SampleError(RunFailed):
    """An image that could not be read: its path, where it is listed (`origin`), and why."""

    def __init__(self, path: str, origin: str, reason: str) -> None:
        super().__init__(path, origin, reason)
        self.path, self.origin, self.reason = path, origin, reason

    def __str__(self) -> str:
        cure = (
            "replace or remove the file, or leave such images out: "
            "-o DataLoader.Eval.dataset.unreadable=skip (of training: DataLoader.Train)"
        )
        return f"{place_of(self.path, self.origin)}: {self.reason}; {cure}"


def place_of(path: str, origin: str) -> str:
    """'lists/train.txt:12: images/a.jpg', or the path alone where no list names it."""
    return path if path == origin else f"{origin}: {path}"


class ImageDataset:
    """What every dataset of single images has: paths, labels, names, and a `load` that depends on its arguments alone.

    An index of len(self) * k + i is sample i for the k-th time in an epoch, and drawn anew: samplers that repeat images
    count so. `image_sizes` is RandCropImage's size from an epoch on, where it changes. `unreadable` and
    `max_unreadable` tell the loader what to do with a `SampleError`; `notes` are for the log.
    """

    several_labels: ClassVar[bool] = False

    def __init__(
        self,
        image_root: str,
        paths: Paths,
        labels: np.ndarray,
        *,
        num_classes: int,
        class_names: list[str] | None,
        transform_ops: TransformOps,
        channels: int,
        seed: int,
        unreadable: Unreadable,
        max_unreadable: int,
        batch_transform_ops: BatchOps | None = None,
        image_sizes: Sizes | None = None,
    ) -> None:
        self.image_root = image_root
        self.labels = labels  # int32 (n,), or uint8 (n, classes) where an image has several
        self.num_classes = num_classes
        self.class_names = class_names
        self.seed = seed
        self.unreadable = unreadable
        self.max_unreadable = max_unreadable
        if max_unreadable < 0:
            raise Refused(f"max_unreadable: expected a whole number from 0, got {max_unreadable}")
        self.notes: list[str] = []
        # first epoch -> how images are prepared from it on
        self._pipelines = {0: build_transforms(transform_ops, channels)}
        for first, size in sorted((image_sizes or {}).items()):
            if first < 1:
                raise Refused(f"image_sizes: epochs are counted from 1, got {first}")
            self._pipelines[first] = build_transforms(_with_crop_size(transform_ops, size), channels)
        self._batch_operator = build_batch_operator(batch_transform_ops)
        told = getattr(self._batch_operator, "num_classes", None)
        if told not in (None, num_classes):
            place = f"batch_transform_ops.0.{type(self._batch_operator).__name__}.num_classes"
            raise Refused(f"{place}: {told}, but the data has {num_classes} classes; leave it out")
        self._paths = paths

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> str:
        """The image file, as it can be opened."""
        return os.path.join(self.image_root, self._paths[index % len(self)])

    @cached_property
    def identity(self) -> bytes:
        """SHA-256 of all paths, as they stand below `image_root`, and labels."""
        digest = hashlib.sha256(self.labels.tobytes())
        for part in (self._paths.blob, self._paths.starts.tobytes(), self._paths.ends.tobytes()):
            digest.update(part)
        return digest.digest()

    def origin(self, index: int) -> str:
        """Where the image is listed: 'lists/train.txt:12', or its path when it was found in a folder."""
        return self.path(index)

    @property
    def first_epochs(self) -> list[int]:
        """From which epochs on images have another size, 0 first."""
        return list(self._pipelines)

    def label(self, index: int) -> int | np.ndarray:
        """The class, or float32 (classes,) where an image has several."""
        label = self.labels[index % len(self)]
        return label.astype(np.float32) if self.several_labels else int(label)

    def load(self, index: int, epoch: int) -> tuple[np.ndarray, int | np.ndarray]:
        """Image (C, H, W) float32 and label; random operations draw from a generator of (seed, epoch, index).

        Raises `SampleError` when the file cannot be read or decoded.
        """
        path = self.path(index)
        try:
            with open(path, "rb") as file:
                encoded = file.read()
        except OSError as error:
            raise SampleError(path, self.origin(index), f"cannot be read: {error.strerror}") from error
        try:
            pipeline = self._pipelines[max(first for first in self._pipelines if first <= epoch)]
            image = pipeline(encoded, np.random.default_rng([self.seed, epoch, index]))
        except DecodeError as error:
            raise SampleError(path, self.origin(index), f"cannot be decoded: {error}") from error
        return image, self.label(index)

    def mix(self, images: np.ndarray, indices: list[int], epoch: int) -> Mixing | None:
        """Mix a batch of images in place as `batch_transform_ops` says; what was mixed, None without the operator."""
        if self._batch_operator is None:
            return None
        return self._batch_operator(images, batch_rng(self.seed, epoch, indices))


@DATASETS.register("ImageNetDataset")
class ImageNetDataset(ImageDataset):
    """Images named in a label list, `relative/path.jpg 12` per line.

    `check_files` says which of the files are looked for at the start: all, sample (10,000, evenly spread) or none;
    by default all of a list of up to 100,000, a sample of a longer one.
    """

    def __init__(
        self,
        image_root: InputFolder,
        cls_label_path: InputFile,
        transform_ops: TransformOps,
        delimiter: str = " ",
        class_map: InputFile | None = None,
        check_files: CheckFiles | None = None,
        unreadable: Unreadable = "error",
        max_unreadable: int = 100,
        batch_transform_ops: BatchOps | None = None,
        image_sizes: Sizes | None = None,
        channels: int = 3,
        num_classes: int | None = None,
        class_names: list[str] | None = None,
        seed: int = 0,
    ) -> None:
        own = None if class_map is None else read_class_map(class_map)
        names = agreed_class_names(class_names, "the stored class map", own, f"class_map {class_map}", num_classes)
        if num_classes is None and names is not None:
            num_classes = len(names)
        self._list = read_label_list(
            cls_label_path, image_root, delimiter=delimiter, num_classes=num_classes, check_files=check_files
        )
        labels = self._list.labels
        super().__init__(
            image_root,
            self._list.paths,
            labels,
            num_classes=int(labels.max()) + 1 if num_classes is None else num_classes,
            class_names=names,
            transform_ops=transform_ops,
            channels=channels,
            seed=seed,
            unreadable=unreadable,
            max_unreadable=max_unreadable,
            batch_transform_ops=batch_transform_ops,
            image_sizes=image_sizes,
        )
        if self._list.repeated:
            self.notes.append(f"{cls_label_path}: {self._list.repeated} lines repeat an earlier line")

    def origin(self, index: int) -> str:
        return self._list.origin(index % len(self))


@DATASETS.register("ClassFolderDataset")
class ClassFolderDataset(ImageDataset):
    """Images in one folder per class, `image_root/<class>/.../image.jpg`.

    A class's index comes from the stored class map: `class_names` from the program, or the file `class_map`. Only where
    there is neither, for a training split, the sorted folder names become the map.
    """

    def __init__(
        self,
        image_root: InputFolder,
        transform_ops: TransformOps,
        class_map: InputFile | None = None,
        unreadable: Unreadable = "error",
        max_unreadable: int = 100,
        batch_transform_ops: BatchOps | None = None,
        image_sizes: Sizes | None = None,
        channels: int = 3,
        num_classes: int | None = None,
        class_names: list[str] | None = None,
        seed: int = 0,
    ) -> None:
        own = None if class_map is None else read_class_map(class_map)
        names = agreed_class_names(class_names, "the stored class map", own, f"class_map {class_map}", num_classes)
        folders = scan_class_folders(image_root)
        if names is None:
            refuse_one_class(folders)
            refuse_empty_classes(folders)
            check_class_names(list(folders.images), image_root)
            names = agreed_class_names(None, "", list(folders.images), f"image_root {image_root}", num_classes)
            assert names is not None
        index_of = _index_of(names, folders)
        paths = [path for name in names for path in folders.images.get(name, [])]
        labels = np.repeat(np.arange(len(names)), [len(folders.images.get(name, [])) for name in names])
        if not paths:
            raise Refused(f"image_root {image_root}: no images in its {len(folders.images)} class folders")
        super().__init__(
            image_root,
            pack_paths(paths),
            labels.astype(np.int32),
            num_classes=len(names),
            class_names=names,
            transform_ops=transform_ops,
            channels=channels,
            seed=seed,
            unreadable=unreadable,
            max_unreadable=max_unreadable,
            batch_transform_ops=batch_transform_ops,
            image_sizes=image_sizes,
        )
        self.notes += folders.notes()
        absent = [name for name in index_of if not folders.images.get(name)]
        if absent:
            shown = ", ".join(absent[:10]) + (", ..." if len(absent) > 10 else "")
            self.notes.append(f"{image_root}: no images of {len(absent)} of {len(names)} classes: {shown}")


def _with_crop_size(ops: TransformOps, size: int | list[int]) -> TransformOps:
    """The operators with another size of RandCropImage."""
    if not any("RandCropImage" in op for op in ops):
        raise Refused("image_sizes: says how large RandCropImage cuts, but transform_ops has none")
    return [{"RandCropImage": {**op["RandCropImage"], "size": size}} if "RandCropImage" in op else op for op in ops]


def _index_of(names: list[str], folders: ClassFolders) -> dict[str, int]:
    """Class name -> index; refused if a name stands twice or a folder is not in the map."""
    index_of = {name: index for index, name in enumerate(names)}
    twice = sorted({name for index, name in enumerate(names) if index_of[name] != index})
    problems = Problems(f"image_root {folders.root}: does not fit the class map")
    problems.add(
        (f"class name {name!r} stands twice in the map, a folder cannot be assigned" for name in twice), len(twice)
    )
    strange = [name for name in folders.images if name not in index_of]
    problems.add(
        (f"{folders.root}/{name}: no such class in the class map. {did_you_mean(name, names)}" for name in strange),
        len(strange),
    )
    problems.refuse()
    return index_of
