"""How the processes of a node tell each other what went wrong: see `witness.py`. Nothing in one process."""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

from ppcls_ext import distributed
from ppcls_ext.distributed import witness


def join() -> None:
    """Join the other processes; from then on they tell each other what went wrong. Called once, with the device chosen.

    The first is watched from before: while it waits, SIGTERM ends it without a word. The others enter when it has.
    """
    if _is_first():
        watch()
    distributed.start()
    if not _is_first():
        watch()


def watch() -> None:
    """Enter this process, and if it is the first of its node start the witness."""
    if distributed.world_size() == 1:
        return
    try:
        folder = _folder()
        folder.mkdir(mode=0o700, exist_ok=True)
        entry = witness.rank_file(folder, distributed.rank(), witness.PID)
        _write(entry, str(os.getpid()))
    except OSError as error:
        if _is_first():
            print(f"Warning: what ends another process will not be shown: {error}", file=sys.stderr)
        return
    atexit.register(_leave, entry)
    if _is_first():
        command = [sys.executable, "-I", witness.__file__, str(folder), str(distributed.rank()), str(os.getpid())]
        # in a session of its own: Ctrl-C is for those that train
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)


def report(text: str | None) -> None:
    """Leave this process's error where the witness finds it; None if another process tells it.

    Then all wait: the launcher ends the others as soon as one is gone, and an error that another left is to be shown.
    """
    if distributed.world_size() == 1:
        return
    with contextlib.suppress(OSError):  # the witness has ended and taken the folder away, or the disk is full
        if text is not None:
            _write(witness.rank_file(_folder(), distributed.rank(), witness.ERROR), text)
    time.sleep(1.0)


def stopped() -> None:
    """From now on nothing is told: who stops the processes from outside knows why they end, in whatever order."""
    if distributed.world_size() > 1:
        with contextlib.suppress(OSError):
            _write(_folder() / witness.STOPPED, "")


def remember(checkpoint: Path) -> None:
    """From now on the run can be taken up from `checkpoint`."""
    if distributed.world_size() > 1 and distributed.rank() == 0:
        with contextlib.suppress(OSError):  # the run does not depend on it
            _write(_folder() / witness.GO_ON, f"-o Global.checkpoints={checkpoint}")


def lost_another(error: Exception) -> str | None:
    """What to say of an error of gloo, or of Paddle's store as all join, about a process that has ended or does not
    answer; None for any other."""
    theirs = isinstance(error, (RuntimeError, ValueError)) and any(name in str(error) for name in ("gloo", "TCP "))
    if distributed.world_size() == 1 or not theirs:
        return None
    return (
        "Stopped: another process has ended, or has not answered for 30 s; if it said why, that is shown beside this."
        + witness.how_to_go_on(_folder())
    )


def _is_first() -> bool:
    return os.environ.get("PADDLE_LOCAL_RANK", "0") == "0"


@cache
def _folder() -> Path:
    """One for each launcher, by its process number and the moment of its start."""
    launcher = os.getppid()
    return Path(tempfile.gettempdir()) / f"ppcls_ext-{os.getuid()}-{launcher}-{witness.started(launcher)}"


def _leave(entry: Path) -> None:
    entry.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # in use; where the first process never came there is no witness to end it
        entry.parent.rmdir()


def _write(path: Path, text: str) -> None:
    if path.parent.stat().st_uid != os.getuid():
        raise PermissionError(errno.EPERM, "it is somebody else's", str(path.parent))
    aside = path.with_name(f".{path.name}")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)
