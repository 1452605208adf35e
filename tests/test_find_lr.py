"""The learning-rate range test: what is read from a curve, and the tool as it is run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Run

from ppcls_ext.errors import RunFailed
from ppcls_ext.report.lr_range import read_range

Write = Callable[..., Path]


def test_the_steepest_descent_and_the_lowest_loss_are_found_in_noise() -> None:
    rates = np.geomspace(1e-6, 1.0, 120)
    place = np.log10(rates)
    clean = 2.5 - 1.5 / (1 + np.exp(-4 * (place + 3))) + 3.0 * np.clip(place + 1.2, 0, None) ** 2
    losses = clean + np.random.default_rng(0).normal(0, 0.05, 120)
    result = read_range(rates.tolist(), losses.tolist())
    assert 10**-3.4 < result.steepest < 10**-2.6
    assert 10**-2 < result.lowest < 10**-0.7
    assert result.suggestion == result.lowest / 10


def test_a_loss_that_only_rises_asks_for_lower_rates() -> None:
    with pytest.raises(RunFailed, match="the loss rose from the first rate on .* begin lower: --first 1e-05"):
        read_range([0.001 * 2**i for i in range(30)], [1.0 + i for i in range(30)])


def test_the_tool_draws_and_suggests_and_saves_no_weights(write_config: Write, run_here: Run, tmp_path: Path) -> None:
    lr = {"name": "Plateau", "learning_rate": 1.0, "patience": 1}  # which needs evaluations where it is followed
    path = write_config(Optimizer={"name": "Momentum", "lr": lr})
    status, output, errors = run_here("tools/find_lr.py", "-c", path, "--steps", 30, "--first", 1e-5, "--last", 0.5)
    assert status == 0, errors
    folder = tmp_path / "output/MicroNet_M0"
    assert {path.name for path in folder.iterdir()} == {"find_lr.png", "find_lr.json"}
    assert (folder / "find_lr.png").read_bytes()[:4] == b"\x89PNG"
    rows = json.loads((folder / "find_lr.json").read_text())
    assert rows[0]["rate"] == pytest.approx(1e-5) and len(rows) <= 30
    np.testing.assert_allclose(np.diff(np.log([row["rate"] for row in rows])), np.log(5e4) / 29, rtol=1e-6)
    assert "suggestion: -o Optimizer.lr.learning_rate=" in output
    status, _, errors = run_here("tools/find_lr.py", "-c", path, "--first", 1, "--last", 0.1)
    assert status == 2 and "--first and --last: expected rates with 0 < first < last, got 1 and 0.1" in errors
