"""Split a folder of class folders into label lists: stratified, repeatable, identical files on one side.

Writes `train_list.txt`, `val_list.txt`, `test_list.txt` and `class_map.txt`; the images stay where they are.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.model_selection import train_test_split

from ppcls_ext.data.class_map import CLASS_MAP, check_class_names, write_class_map
from ppcls_ext.data.copies import identical_files
from ppcls_ext.data.folders import refuse_empty_classes, refuse_one_class, scan_class_folders
from ppcls_ext.errors import Problems, Refused
from ppcls_ext.files import write_file


@dataclass(frozen=True)
class Split:
    """What was written: number of images by list file, classes, and what the user should know."""

    out: str
    images: dict[str, int]
    num_classes: int
    notes: list[str]

    def __str__(self) -> str:
        counts = ", ".join(f"{name} {count}" for name, count in self.images.items())
        return "\n".join([f"{self.out}: {self.num_classes} classes, images: {counts}", *self.notes])


def split_folder(
    folder: str, out: str, *, val: float = 0.15, test: float = 0.0, seed: int = 0, force: bool = False
) -> Split:
    """Split the images of `folder` into train, val and (with `test` > 0) test; the shares are fractions of the whole.

    Every class is in every part, and files with the same bytes are in one part. Raises `Refused` when a class is too
    small for that, when a name cannot stand in a label list, and when `out` holds a split already and `force` is False.
    """
    shares = {"train": 1.0 - val - test, "val": val, "test": test}
    if not (0 < val < 1 and 0 <= test < 1 and val + test < 1):
        raise Refused(f"Expected val > 0, test >= 0 and val + test < 1, got val={val}, test={test}")
    shares = {part: share for part, share in shares.items() if share}
    if Path(folder).resolve() in [Path(out).resolve(), *Path(out).resolve().parents]:
        raise Refused(f"--out {out} lies in {folder}, whose sub-folders are its classes; choose a folder outside")
    if not 0 <= seed < 2**32:
        raise Refused(f"--seed: expected 0 to 2**32 - 1, got {seed}")
    _refuse_to_overwrite(out, force)
    folders = scan_class_folders(folder)
    refuse_one_class(folders)
    refuse_empty_classes(folders)
    names = list(folders.images)
    check_class_names(names, folder)
    paths = [path for name in names for path in folders.images[name]]
    labels = np.repeat(np.arange(len(names)), [len(folders.images[name]) for name in names])
    _refuse_unlistable(folder, paths)

    unit_of = identical_files([os.path.join(folder, path) for path in paths])
    first_of_unit = np.unique(unit_of, return_index=True)[1]
    part_of_unit = _assign(labels[first_of_unit], names, shares, seed)
    part_of = part_of_unit[unit_of]

    os.makedirs(out, exist_ok=True)
    written: dict[str, int] = {}
    for part in ("train", "val", "test"):
        file = os.path.join(out, f"{part}_list.txt")
        rows = np.flatnonzero(part_of == part).tolist()
        if rows:
            write_file(Path(file), "".join(f"{paths[row]} {labels[row]}\n" for row in rows))
            written[f"{part}_list.txt"] = len(rows)
        elif os.path.exists(file):
            os.remove(file)  # of an earlier split: its images are in other parts now
    write_class_map(os.path.join(out, CLASS_MAP), names)
    return Split(out, written, len(names), folders.notes() + _notes(paths, labels, unit_of))


def _refuse_to_overwrite(out: str, force: bool) -> None:
    names = [CLASS_MAP, "train_list.txt", "val_list.txt", "test_list.txt"]
    there = [name for name in names if os.path.exists(os.path.join(out, name))]
    if there and not force:
        raise Refused(f"{out} holds {', '.join(there)} already; --force replaces the split")


def _refuse_unlistable(folder: str, paths: list[str]) -> None:
    """A label list is UTF-8 text, one path per line, blanks at its ends of no account."""
    bad = [path for path in paths if path != path.strip() or "\n" in path or _not_utf8(path)]
    problems = Problems(f"{folder}: names that a label list cannot hold")
    problems.add((f"{path!r}: rename it; no line breaks, no blanks at the ends, UTF-8" for path in bad), len(bad))
    problems.refuse()


def _not_utf8(path: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in path)


def _assign(labels: np.ndarray, names: list[str], shares: dict[str, float], seed: int) -> np.ndarray:
    """The part of every unit, stratified by `labels`; refused if a class is missing from a part."""
    counts = np.bincount(labels, minlength=len(names))
    _refuse_small(names, counts, shares, counts < len(shares))
    parts = np.full(len(labels), "train", dtype="<U5")
    rest = np.arange(len(labels))
    for part, share in list(shares.items())[1:]:
        size = round(share * len(labels))
        if size < len(names) or len(rest) - size < len(names):
            raise Refused(
                f"{part}: {size} of {len(labels)} images cannot hold all {len(names)} classes; choose another share"
            )
        rest, chosen = train_test_split(rest, test_size=size, random_state=seed, stratify=labels[rest])
        parts[chosen] = part
    absent = np.zeros(len(names), bool)
    for part in shares:
        absent |= np.bincount(labels[parts == part], minlength=len(names)) == 0
    _refuse_small(names, counts, shares, absent)
    return parts


def _refuse_small(names: list[str], counts: np.ndarray, shares: dict[str, float], small: np.ndarray) -> None:
    enough = max(len(shares), int(np.ceil(1 / min(shares.values()))))
    problems = Problems("Classes too small to be in every part (copies of a file count once, for their first class)")
    rows = np.flatnonzero(small).tolist()
    problems.add((f"{names[row]}: {counts[row]} images of its own, {enough} are enough" for row in rows), len(rows))
    problems.refuse()


def _notes(paths: list[str], labels: np.ndarray, unit_of: np.ndarray) -> list[str]:
    """What identical files there are; those in two classes are label errors."""
    notes = []
    copies = len(paths) - len(np.unique(unit_of))
    if copies:
        notes.append(f"{copies} files are exact copies of another; copies were kept in one part")
    first: dict[int, int] = {}
    for row, unit in enumerate(unit_of.tolist()):
        earlier = first.setdefault(unit, row)
        if labels[earlier] != labels[row]:
            notes.append(f"The same image stands in two classes: {paths[earlier]} and {paths[row]}")
    return notes
