"""What a run tells: lines (terminal and `train.log`), `metrics.jsonl`, VisualDL, a progress bar; rank 0 only."""

from __future__ import annotations

import errno
import json
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ppcls_ext import distributed
from ppcls_ext.files import write_file

METRICS_FILE, SCALARS_FOLDER = "metrics.jsonl", "vdl"


class RunLog:
    """The voice of a run. On ranks other than 0 every method is silent."""

    def __init__(self, folder: Path | None = None) -> None:
        """Lines go to the terminal and, with a `folder`, to `<folder>/train.log`, appended."""
        self._speaks = distributed.rank() == 0
        self._console = Console(soft_wrap=True, highlight=False, markup=False)
        self._progress: Progress | None = None
        self._folder = folder if self._speaks else None
        self._file = self._scalars = None
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = open(self._folder / "train.log", "a", encoding="utf-8")

    def info(self, text: str) -> None:
        """One dated line (or several), in the form that PaddleClas's users know."""
        self._say("INFO", text)

    def warning(self, text: str) -> None:
        """As `info`, for what a user should look at."""
        self._say("WARNING", text)

    def _say(self, level: str, text: str) -> None:
        if not self._speaks:
            return
        line = f"[{time.strftime('%Y/%m/%d %H:%M:%S')}] ppcls {level}: {text}"
        try:
            self._console.print(line)
        except OSError as error:
            if error.errno != errno.EIO or self._file is None:
                raise
            # the terminal has been closed: the file goes on, so that the run can save and stop
        if self._file is not None:
            self._file.write(line + "\n")
            self._file.flush()

    def record(self, kind: str, step: int, epoch: int, values: dict[str, float]) -> None:
        """Append one line to `metrics.jsonl` and the values to VisualDL, under `kind` ("train", "eval", "eval_ema")."""
        if self._folder is None:
            return
        with open(self._folder / METRICS_FILE, "a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, "step": step, "epoch": epoch, **values}) + "\n")
        if self._scalars is not None:
            for name, value in values.items():
                self._scalars.add_scalar(tag=f"{kind}/{name}", step=step, value=value)

    def begin(self, step: int, epoch: int, visualdl: bool) -> None:
        """Open the records of a run that stands at `step`, in `epoch`; those of what it will do (again) are dropped."""
        if self._folder is None:
            return
        if (self._folder / METRICS_FILE).exists():
            kept = [record for record in read_metrics(self._folder) if _done(record, step, epoch)]
            write_file(self._folder / METRICS_FILE, "".join(json.dumps(record) + "\n" for record in kept))
        if step == 0:
            shutil.rmtree(self._folder / SCALARS_FOLDER, ignore_errors=True)
        if visualdl:
            from visualdl import LogWriter

            self._scalars = LogWriter(logdir=str(self._folder / SCALARS_FOLDER))

    @contextmanager
    def progress(self, description: str, total: int, completed: int = 0) -> Iterator[Progress | None]:
        """A bar on a terminal, nothing elsewhere; `advance` moves it."""
        if not self._speaks or not self._console.is_terminal:
            yield None
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self._console, transient=True) as self._progress:
            self._progress.add_task(description, total=total, completed=completed)
            yield self._progress
        self._progress = None

    def advance(self) -> None:
        """Move the bar of the innermost `progress` by one."""
        if self._progress is not None:
            self._progress.advance(self._progress.task_ids[-1])

    def close(self) -> None:
        """Close the files."""
        for handle in (self._file, self._scalars):
            if handle is not None:
                handle.close()


def _done(record: dict[str, Any], step: int, epoch: int) -> bool:
    """Whether a run that stands at `step`, in `epoch`, has this record behind it."""
    if record["epoch"] != epoch:  # steps are counted anew where a run goes on with other batches
        return record["epoch"] < epoch
    return record["kind"] == "train" and record["step"] <= step  # what ends an epoch is still to come


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The records of `metrics.jsonl`; a last line that a killed run left unfinished is left out."""
    records = []
    lines = (folder / METRICS_FILE).read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            if number != len(lines):
                raise
    return records


def duration(seconds: float) -> str:
    """12345.6 -> '3:25:45'; whole days are named."""
    return str(timedelta(seconds=int(seconds)))


def joined(values: dict[str, float] | Iterable[tuple[str, float]]) -> str:
    """{'top1': 0.5} -> 'top1: 0.50000'."""
    return ", ".join(f"{name}: {value:.5f}" for name, value in dict(values).items())
