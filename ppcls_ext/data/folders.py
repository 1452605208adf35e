"""Images in class folders, `root/<class>/.../image.jpg`: what lies there, in an order that every machine finds."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from ppcls_ext.errors import Problems, Refused
from ppcls_ext.serving.prediction import IMAGE_SUFFIXES

_OTHER_PHOTOGRAPHS = (".heic", ".heif", ".avif", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf")
_SPLITS = {"train", "training", "val", "valid", "validation", "eval", "test", "testing"}


@dataclass
class ClassFolders:
    """Images by class, as paths relative to the root with '/', sorted; and what was left aside."""

    root: str
    images: dict[str, list[str]] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)  # files that are no images
    loops: list[str] = field(default_factory=list)  # links to a folder that they lie in
    broken: list[str] = field(default_factory=list)  # images that are links to nothing

    def notes(self) -> list[str]:
        """What was left aside, for the log."""
        notes = []
        if self.others:
            shown = ", ".join(self.others[:3]) + (", ..." if len(self.others) > 3 else "")
            notes.append(f"{self.root}: {len(self.others)} files are not images of a class and are not used: {shown}")
        if convertible := self.to_convert():
            notes.append(f"{self.root}: {convertible}")
        if self.loops:
            notes.append(
                f"{self.root}: {len(self.loops)} links back to a folder above are not followed: {self.loops[0]}"
            )
        return notes

    def to_convert(self, folder: str = "") -> str:
        """What is told of photographs, below a class folder or anywhere, whose format cannot be read; or nothing."""
        names = [name.lower() for name in self.others if name.startswith(folder)]
        kinds = [suffix for suffix in _OTHER_PHOTOGRAPHS if any(name.endswith(suffix) for name in names)]
        count = sum(name.endswith(_OTHER_PHOTOGRAPHS) for name in names)
        return f"{count} photographs ({', '.join(kinds)}) cannot be read: convert them to JPEG" if count else ""


def scan_class_folders(root: str) -> ClassFolders:
    """Find the class folders and their images, nested ones included; hidden files and folders do not count.

    Raises `Refused` for folders that cannot be read, links to nothing, no class folders, and folders named like splits.
    """
    found = ClassFolders(root)
    try:
        above = {_identity(root)}
        for entry in _sorted_entries(root):
            if entry.is_dir():
                found.images[entry.name] = []
                _walk(found, entry.name, entry.name, above)
            else:
                found.others.append(entry.name)
    except OSError as error:
        raise Refused(f"image_root {root}: {error.filename}: cannot be read: {error.strerror}") from error
    problems = Problems(f"image_root {root}: links to files that are not there")
    problems.add(found.broken, len(found.broken))
    problems.refuse()
    if not found.images:
        raise Refused(f"image_root {root}: holds no class folders; expected image_root/<class>/<image>")
    if set(map(str.lower, found.images)) <= _SPLITS:
        splits = ", ".join(found.images)
        raise Refused(
            f"image_root {root}: its folders are splits, not classes ({splits}); name one of them as image_root"
        )
    return found


def refuse_empty_classes(found: ClassFolders) -> None:
    """A class without images cannot be learnt."""
    empty = [name for name, images in found.images.items() if not images]
    problems = Problems(f"image_root {found.root}: class folders without images")
    problems.add(
        (
            f"{found.root}/{name}: holds no image; {found.to_convert(f'{name}/') or 'fill it or remove it'}"
            for name in empty
        ),
        len(empty),
    )
    problems.refuse()


def refuse_one_class(found: ClassFolders) -> None:
    """One folder is no choice of classes; often it is a folder too many, `photos/photos/<class>`."""
    if len(found.images) > 1:
        return
    [(name, images)] = found.images.items()
    inner = sorted({image.split("/")[1] for image in images if image.count("/") > 1})
    cure = f"name {os.path.join(found.root, name)} instead" if len(inner) > 1 else "add a folder for each other class"
    shown = f", which holds folders ({', '.join(inner[:3])}{', ...' if len(inner) > 3 else ''})" if inner else ""
    raise Refused(f"image_root {found.root}: one class folder alone, {name}{shown}; {cure}")


def _walk(found: ClassFolders, class_name: str, folder: str, above: set[tuple[int, int]]) -> None:
    """Enter the images below `folder`; `above` identifies the folders that it lies in."""
    path = os.path.join(found.root, folder)
    identity = _identity(path)
    if identity in above:
        found.loops.append(folder)
        return
    for entry in _sorted_entries(path):
        name = f"{folder}/{entry.name}"
        if entry.is_dir():
            _walk(found, class_name, name, above | {identity})
        elif not entry.name.lower().endswith(IMAGE_SUFFIXES):
            found.others.append(name)
        elif entry.is_file():
            found.images[class_name].append(name)
        else:
            found.broken.append(os.path.join(found.root, name))


def _sorted_entries(path: str) -> list[os.DirEntry[str]]:
    with os.scandir(path) as entries:
        return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)


def _identity(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino
