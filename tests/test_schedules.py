"""Learning rates: each schedule against its formula; warm-up, scaling with the batch, and the plateau's memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import paddle
import pytest
from test_engine import assert_same_bits, train

from ppcls_ext import engine
from ppcls_ext.checkpoint import load_set
from ppcls_ext.log import read_metrics
from ppcls_ext.registry import SCHEDULES

Write = Callable[..., Path]


def rates(name: str, steps: int, steps_per_epoch: int = 1, epochs: int | None = None, **arguments: object) -> list:
    schedule = SCHEDULES[name](**arguments)
    return [schedule(step, steps_per_epoch, epochs or steps // steps_per_epoch) for step in range(steps)]


def test_cosine_with_cycles_begins_anew_from_lower_peaks() -> None:
    found = rates("Cosine", 60, learning_rate=1.0, eta_min=0.1, cycles=2, cycle_mult=2.0, cycle_decay=0.5)
    first = [0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * t / 20)) for t in range(20)]
    second = [0.1 + 0.4 * 0.5 * (1 + math.cos(math.pi * t / 40)) for t in range(40)]
    np.testing.assert_allclose(found, first + second, rtol=1e-12)
    warm = rates("Cosine", 60, learning_rate=1.0, cycles=3, warmup_epoch=30)
    np.testing.assert_allclose(warm[:30], np.arange(30) / 30)
    np.testing.assert_allclose(warm[30::10], 1.0)


def test_step_and_exponential_and_polynomial() -> None:
    assert rates("Step", 6, learning_rate=1.0, step_size=2, gamma=0.5) == [1, 1, 0.5, 0.5, 0.25, 0.25]
    assert rates("Step", 4, 2, learning_rate=1.0, step_size=0.5, gamma=0.5) == [1, 0.5, 0.25, 0.125]
    np.testing.assert_allclose(rates("Exponential", 6, 2, learning_rate=2.0, gamma=0.9), 2 * 0.9 ** (np.arange(6) / 2))
    by_epoch = rates("Exponential", 6, 2, learning_rate=2.0, gamma=0.9, by_epoch=True)
    np.testing.assert_allclose(by_epoch, 2 * 0.9 ** (np.arange(6) // 2))
    found = rates("Polynomial", 5, learning_rate=1.0, end_lr=0.2, power=2.0)
    np.testing.assert_allclose(found, 0.2 + 0.8 * (1 - np.arange(5) / 5) ** 2)


def test_one_cycle_goes_up_and_further_down() -> None:
    def cosine(first: float, last: float, part: np.ndarray) -> np.ndarray:
        return last + (first - last) * (1 + np.cos(np.pi * part)) / 2

    found = rates("OneCycle", 100, learning_rate=0.5, divide_factor=10.0, end_learning_rate=0.001, phase_pct=0.3)
    np.testing.assert_allclose(found[:30], cosine(0.05, 0.5, np.arange(30) / 30))
    np.testing.assert_allclose(found[30:], cosine(0.5, 0.001, np.arange(70) / 70))
    linear = rates("OneCycle", 10, learning_rate=1.0, divide_factor=5.0, phase_pct=0.5, anneal_strategy="linear")
    np.testing.assert_allclose(linear, [0.2, 0.36, 0.52, 0.68, 0.84, 1.0, 0.8, 0.6, 0.4, 0.2])


@pytest.mark.parametrize("mode", ["rel", "abs"])
def test_plateau_reduces_as_paddles_does(mode: str) -> None:
    values = np.random.default_rng(3).uniform(0.9, 1.1, 60) * np.linspace(1, 0.5, 60).round(1)
    arguments = dict(factor=0.5, patience=2, threshold=0.02, threshold_mode=mode, cooldown=1, min_lr=0.01)
    theirs = paddle.optimizer.lr.ReduceOnPlateau(1.0, **arguments)
    ours = SCHEDULES["Plateau"](1.0, **arguments)
    for value in values:
        theirs.step(paddle.to_tensor(float(value)))
        ours.observe({"loss": float(value)})
        assert ours(5, 1, 60) == pytest.approx(theirs())
        again = SCHEDULES["Plateau"](1.0, **arguments)
        again.load(ours.state())
        ours = again
    assert ours.reductions > 2


def test_plateau_follows_an_accuracy_upwards() -> None:
    schedule = SCHEDULES["Plateau"](1.0, metric="top1", patience=0, factor=0.1)
    for value in (0.5, 0.6, 0.6):
        schedule.observe({"top1": value, "loss": 9.0})
    assert schedule(0, 1, 9) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("Polynomial", {"learning_rate": 0.1, "end_lr": -1.0}, "end_lr: expected 0 to learning_rate"),
        ("Linear", {"learning_rate": 0.1, "end_lr": 0.5}, "end_lr: expected 0 to learning_rate"),
        ("Piecewise", {"decay_epochs": [3.0], "values": [0.1, -0.1]}, "expected numbers from 0, got"),
        ("Piecewise", {"decay_epochs": [-3.0], "values": [0.1, 0.1]}, "expected numbers from 0, got"),
        ("Cosine", {"learning_rate": 0.1, "cycles": 1000, "cycle_mult": 10.0}, "makes some of 1000 cycles a million"),
        ("Plateau", {"learning_rate": 0.1, "min_lr": 0.5}, "min_lr: expected 0 to learning_rate"),
    ],
)
def test_rates_that_cannot_be_meant_are_refused(name: str, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SCHEDULES[name](**arguments)


def test_the_warm_up_is_linear_for_every_schedule() -> None:
    needed = {
        "Step": {"step_size": 100},
        "Exponential": {"gamma": 0.9},
        "MultiStep": {"milestones": [90]},
        "Piecewise": {"decay_epochs": [90], "values": [1.0, 0.1]},
        "OneCycle": {"divide_factor": 1.0},
    }
    needed |= {"MultiStepDecay": needed["MultiStep"]}
    for name in SCHEDULES:
        arguments = {"learning_rate": 1.0, "warmup_epoch": 2, "warmup_start_lr": 0.5, **needed.get(name, {})}
        np.testing.assert_allclose(rates(name, 8, 4, 100, **arguments), 0.5 + 0.5 * np.arange(8) / 8, err_msg=name)


def test_rates_grow_with_the_total_batch_when_asked_and_it_is_said_once(write_config: Write) -> None:
    folder = train(
        write_config(),
        "Global.epochs=1",
        "Global.print_batch_step=1",
        "Global.update_freq=2",
        "Optimizer.scale_lr_with_batch=64",
        "Optimizer.lr={name: Constant, learning_rate: 0.2}",
    )
    log = (folder / "train.log").read_text()
    assert log.count("learning rates times 0.25: total batch 16, given for 64") == 1
    assert {record["lr"] for record in read_metrics(folder) if record["kind"] == "train"} == {0.05}


def test_a_plateau_remembers_what_it_saw_when_it_is_taken_up(
    write_config: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_config()
    lr = "{name: Plateau, learning_rate: 0.05, metric: top1, patience: 0, threshold: 0.5, threshold_mode: abs}"
    options = [f"Optimizer.lr={lr}", "Global.epochs=4"]
    whole = train(path, *options, f"Global.output_dir={tmp_path}/whole")
    states = load_set(whole / "latest").states
    assert states["schedule"]["reductions"] >= 2

    class Cut(Exception):
        pass

    real = engine.save

    def save_then_die(run: engine.Run, name: str) -> None:
        real(run, name)
        if name == "latest" and run.position.epoch == 3:
            raise Cut

    monkeypatch.setattr(engine, "save", save_then_die)
    with pytest.raises(Cut):
        train(path, *options, f"Global.output_dir={tmp_path}/cut")
    monkeypatch.setattr(engine, "save", real)
    for name in ("latest", "best_model"):  # the second evaluates its epoch once more
        cut = tmp_path / "cut/MicroNet_M0"
        train(path, *options, f"Global.output_dir={tmp_path}/{name}", f"Global.checkpoints={cut}/{name}")
        found = load_set(tmp_path / name / "MicroNet_M0/latest")
        assert found.states["schedule"] == states["schedule"]
        assert_same_bits(found.tensors[".pdparams"], load_set(whole / "latest").tensors[".pdparams"])
