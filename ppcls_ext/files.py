"""Files are written aside, synced and renamed; where one cannot be written is found before the work for it begins."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(folder: Path, shared: bool = False) -> Iterator[None]:
    """Wait for other processes that are in here with the same folder: for all, or with `shared` for one that is alone.

    Without an effect where the folder is not there, or its file system has no locks.
    """
    with ExitStack() as opened:
        with suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY)
            opened.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield


def abandoned(folder: Path) -> bool:
    """Whether no process is in `locked` with this folder; False where the file system has no locks."""
    with ExitStack() as opened, suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        opened.callback(os.close, descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def write_aside(path: Path, write: Callable[[BinaryIO], None]) -> Path:
    """Write and sync `<path>.new`; the caller renames it."""
    aside = path.with_name(path.name + ".new")
    with open(aside, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    return aside


def write_file(path: Path, content: str | bytes, errors: str = "strict") -> None:
    """Replace `path` by `content` in one step: a reader sees the old file or the new one, never a part.

    Names of files in a text may have bytes that are not UTF-8: `errors="backslashreplace"` writes them as JSON does.
    """
    data = content.encode("utf-8", errors) if isinstance(content, str) else content
    os.replace(write_aside(path, lambda file: file.write(data)), path)
    sync_folder(path.parent)


def file_digest(path: Path) -> str:
    """SHA-256 of a whole file."""
    sha256 = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            sha256.update(chunk)
    return sha256.hexdigest()


def folder_problem(folder: Path) -> str | None:
    """Why no file can be written in `folder`, which need not be there yet; None if it seems possible."""
    if folder.exists() and not folder.is_dir():
        return f"{folder} is a file; name a folder"
    nearest = next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))
    if not nearest.is_dir():
        return f"{nearest} is a file, so there can be no folder {folder}"
    if not os.access(nearest, os.W_OK | os.X_OK):
        return f"{nearest} cannot be written to; name another folder, or change its permissions"
    return None


def file_problem(path: Path) -> str | None:
    """Why `path` cannot be written; None if it seems possible. Its folder need not be there yet."""
    return f"{path} is a folder; name a file" if path.is_dir() else folder_problem(path.parent)
