"""A small process beside the first one of a node, which tells what ended the others, and what ended the first itself.

The launcher shows the output of the first process only, and one that aborts within gloo, or is killed, has no words of
its own. All processes of a node share a folder: `rank_N.pid` while rank N runs, `rank_N.error` with what it said as it
failed, `go_on` with the checkpoint to go on from, `stopped` after a signal from outside. Runs as
a script (`failures.py` starts it) and imports nothing.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from pathlib import Path

GO_ON, STOPPED, ERROR, PID = "go_on", "stopped", ".error", ".pid"
INTERVAL = 0.02  # seconds; a process that is killed is gone well before those that it leaves alone


def rank_file(folder: Path, rank: int, suffix: str) -> Path:
    """What rank `rank` leaves in the folder."""
    return folder / f"rank_{rank}{suffix}"


def rank_of(path: Path) -> int:
    """The other way round."""
    return int(path.stem.removeprefix("rank_"))


def how_to_go_on(folder: Path) -> str:
    """A sentence that names the last checkpoint; empty where there is none."""
    path = folder / GO_ON
    return f" Go on from the last checkpoint: {path.read_text(encoding='utf-8')}" if path.is_file() else ""


def runs(pid: int) -> bool:
    """Whether a process is there, and not only waits to be asked for its status."""
    try:
        return _stat(pid)[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def started(pid: int) -> int:
    """When a process began, in ticks since the machine did."""
    return int(_stat(pid)[19])


def _stat(pid: int) -> list[str]:
    """Linux's `/proc/PID/stat` behind the name, from the state on (man proc: fields 3 to 52)."""
    text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    return text.rpartition(")")[2].split()


class Witness:
    """Looks into the folder, and says each thing once."""

    def __init__(self, folder: Path, first: int) -> None:
        self._folder, self._first = folder, first
        self._told = self._stopped = False

    def look(self) -> None:
        """Tell which rank is gone without a word, and the errors that were left since the last look.

        In that order: a rank that fails is there for a second longer, but others fail as soon as one is gone.
        """
        if self._stopped:
            return
        if not self._told:
            self._tell_who_is_gone()
        self._stopped = (self._folder / STOPPED).exists()  # who was gone before the signal is told
        of_first = rank_file(self._folder, self._first, ERROR)
        for path in sorted(self._folder.glob("rank_*" + ERROR)):
            if path != of_first and not self._stopped:
                self._say(f"\n[rank {rank_of(path)}] failed:\n{path.read_text(encoding='utf-8')}")
                path.unlink()
        # What the first said is on the terminal. After a first message the launcher ends the others, which say nothing.
        self._told = self._told or of_first.exists()

    def _tell_who_is_gone(self) -> None:
        gone = {}
        for path in sorted(self._folder.glob("rank_*" + PID)):
            with contextlib.suppress(FileNotFoundError):  # one that ends in order takes its file away before
                pid = int(path.read_text(encoding="utf-8"))
                if not runs(pid) and path.exists():
                    gone[rank_of(path)] = pid
        if gone:  # of several in one look nobody knows which was the first
            who = " and ".join(f"rank {rank} (process {pid})" for rank, pid in gone.items())
            self._say(
                f"Stopped: {who} ended without a message: a signal (kill -9), out of memory, a crash, or gloo, which "
                f"gives up when another process is gone or has not answered for 30 s.{how_to_go_on(self._folder)}"
            )

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)
        self._told = True


def main(folder: Path, first: int, pid: int) -> None:
    """Watch until the first rank of the node, process `pid`, is gone."""
    witness = Witness(folder, first)
    while runs(pid):
        witness.look()
        time.sleep(INTERVAL)
    witness.look()
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
