"""Damaged and malicious files of weights are read or refused: no crash, no execution, bounded memory."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import run_tool


def fuzz(count: int, folder: Path, timeout: float) -> str:
    finished = run_tool("tests/fuzz_weights.py", "--count", count, cwd=folder, timeout=timeout)
    assert finished.returncode == 0, finished.stdout[-2000:] + finished.stderr[-2000:]
    assert re.match(
        rf"{count} files: \d+ refused, \d+ loaded; memory grew by \d+ MB at most\n0 failures\n", finished.stdout
    )
    return finished.stdout


def test_four_hundred_mutated_files_are_read_or_refused(tmp_path: Path) -> None:
    fuzz(400, tmp_path, 240)


@pytest.mark.slow
def test_ten_thousand_mutated_files_are_read_or_refused(tmp_path: Path) -> None:
    print(fuzz(10_000, tmp_path, 3600))
