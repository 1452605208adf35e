"""Images with several labels: PaddleClas's list files, `path<TAB>0,1,0,1` per line, one number for each class."""

from __future__ import annotations

import os
from typing import ClassVar

import numpy as np

from ppcls_ext.data.class_map import agreed_class_names, read_class_map
from ppcls_ext.data.datasets import ImageDataset, Sizes, TransformOps, Unreadable
from ppcls_ext.data.mixing import BatchOps
from ppcls_ext.data.paths import pack_paths
from ppcls_ext.errors import Problems, Refused
from ppcls_ext.registry import DATASETS, InputFile, InputFolder


def read_multi_label_list(
    file: str, image_root: str, *, delimiter: str = "\t", num_classes: int | None = None
) -> tuple[list[str], np.ndarray]:
    """(paths, uint8 (n, classes)); everything wrong with the list, missing images included, is one `Refused`."""
    try:
        with open(file, encoding="utf-8-sig") as opened:
            lines = opened.read().splitlines()
    except OSError as error:
        raise Refused(f"{file}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise Refused(f"{file}: not UTF-8; save the list as UTF-8") from error
    if not lines:
        raise Refused(f"{file}: is empty; expected one 'path{delimiter}0,1,...' per line")
    problems = Problems(f"{file}: not a usable list of several labels per image")
    paths, rows = [], []
    expected = num_classes
    for number, line in enumerate(lines, 1):
        path, _, text = line.rpartition(delimiter)
        values = [value.strip() for value in text.split(",")]
        wrong = ""
        if not path.strip():
            wrong = f"expected 'path{delimiter}0,1,...', got {line!r}"
        elif not set(values) <= {"0", "1"}:
            wrong = f"expected a 0 or 1 for each class, got {text!r}"
        elif expected is not None and len(values) != expected:
            wrong = f"{len(values)} labels, but {'the network' if num_classes else 'an earlier line'} has {expected}"
        elif not os.path.isfile(os.path.join(image_root, path.strip())):
            wrong = f"no file {os.path.join(image_root, path.strip())!r}"
        if wrong:
            problems.add([f"{file}:{number}: {wrong}"], 1)
            continue
        expected = len(values)
        paths.append(path.strip())
        rows.append([int(value) for value in values])
    problems.refuse()
    return paths, np.array(rows, np.uint8)


@DATASETS.register("MultiLabelDataset")
class MultiLabelDataset(ImageDataset):
    """Images of a list file `path<TAB>0,1,0,1`, one 0 or 1 for each class."""

    several_labels: ClassVar[bool] = True

    def __init__(
        self,
        image_root: InputFolder,
        cls_label_path: InputFile,
        transform_ops: TransformOps,
        delimiter: str = "\t",
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
        if num_classes is None and names is not None:
            num_classes = len(names)
        paths, labels = read_multi_label_list(cls_label_path, image_root, delimiter=delimiter, num_classes=num_classes)
        self._file = cls_label_path
        super().__init__(
            image_root,
            pack_paths(paths),
            labels,
            num_classes=labels.shape[1],
            class_names=names,
            transform_ops=transform_ops,
            channels=channels,
            seed=seed,
            unreadable=unreadable,
            max_unreadable=max_unreadable,
            batch_transform_ops=batch_transform_ops,
            image_sizes=image_sizes,
        )

    def origin(self, index: int) -> str:
        return f"{self._file}:{index % len(self) + 1}"
