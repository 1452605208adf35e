"""What runs in a process of its own, because it may crash: there a crash is an answer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import ppcls_ext


class Failed(Exception):
    """How it ended, in words: "ended by SIGSEGV", "ended with status 1: its last line"; `output` is all it said."""

    def __init__(self, ending: str, output: str = "") -> None:
        super().__init__(ending)
        self.output = output


def run_apart(module: str, *arguments: object, patience: float) -> str:
    """What `python -m module arguments` prints. Raises `Failed`, after `patience` seconds too."""
    code = Path(ppcls_ext.__file__).resolve().parents[1]  # it need not be installed
    path = os.pathsep.join(filter(None, [str(code), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", module, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": path}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=patience, env=environment
        )
    except subprocess.TimeoutExpired as error:
        raise Failed(f"did not end within {patience:g} s") from error
    if done.returncode < 0:
        raise Failed(f"ended by {signal.Signals(-done.returncode).name}", done.stdout + done.stderr)
    if done.returncode:
        said = done.stderr.strip().rpartition("\n")[2]
        raise Failed(f"ended with status {done.returncode}" + (f": {said}" if said else ""), done.stdout + done.stderr)
    return done.stdout
