"""The learning-rate range test (Smith, arXiv 1506.01186, section 3.3): from which rate on, and up to which, it learns.

The rate rises from step to step by the same factor; the loss falls while the rate is of use and rises where it is too
high. Nothing is saved but the picture and the numbers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import paddle
from paddle.utils import unique_name

from ppcls_ext.config import Config
from ppcls_ext.data.loader import Batch, Loader
from ppcls_ext.device import choose_device, device_lines
from ppcls_ext.engine import learn_from, set_training, step_seed
from ppcls_ext.errors import Refused, RunFailed
from ppcls_ext.files import write_file
from ppcls_ext.log import RunLog
from ppcls_ext.report.lr_range import LrRange, draw_lr_range, read_range, smooth
from ppcls_ext.training.run import Run, build_run, choose_seed, folder_of

DIVERGED = 4.0  # a smoothed loss of that many times the lowest ends the test
LEAST_STEPS = 20


def find_lr(config: Config, first: float, last: float, steps: int) -> LrRange:
    """Train at most `steps` steps with rates from `first` to `last`; draw the losses and say what is read from them."""
    if not 0 < first < last or not math.isfinite(last):
        raise Refused(f"--first and --last: expected rates with 0 < first < last, got {first:g} and {last:g}")
    if steps < LEAST_STEPS:
        raise Refused(f"--steps: expected at least {LEAST_STEPS}, got {steps}")
    device = choose_device(config.Global.device)
    log = RunLog()
    seed = choose_seed(config, None)
    for line in device_lines(config, device):
        log.info(line)
    folder = folder_of(config)
    with ExitStack() as opened, unique_name.guard():
        run = build_run(config, log, folder, seed, None, opened)
        result = read_range(*try_rates(run, [first * (last / first) ** (i / (steps - 1)) for i in range(steps)]))
    folder.mkdir(parents=True, exist_ok=True)
    picture = draw_lr_range(result, folder)
    rows = [dict(zip(("rate", "loss", "smoothed"), row)) for row in zip(result.rates, result.losses, result.smoothed)]
    write_file(folder / "find_lr.json", json.dumps(rows, indent=1) + "\n")
    log.info(f"steepest descent at {result.steepest:.3g}, lowest loss at {result.lowest:.3g}; drawn: {picture}")
    asked = result.suggestion / run.rate_factor
    log.info(
        f"suggestion: -o Optimizer.lr.learning_rate={asked:.2g}"
        + (f" (times {run.rate_factor:g} for the batch)" if run.rate_factor != 1 else "")
    )
    return result


def try_rates(run: Run, rates: list[float]) -> tuple[list[float], list[float]]:
    """(rates, losses) of the steps that were taken: all, or up to a loss that grew `DIVERGED`-fold."""
    set_training(run)
    batches, done, losses = endless(run.train_loader), [], []
    with run.log.progress("learning rates", len(rates)):
        for step, rate in enumerate(rates):
            paddle.seed(step_seed(run.seed, step))
            run.optimizer.set_lr(rate)
            parts = [next(batches) for _ in range(run.config.Global.update_freq)]
            learned = [float(learn_from(run, part, 1 / len(parts))[1]) for part in parts]  # waits for the device
            loss = float(np.mean(learned))
            if not math.isfinite(loss):
                break
            done.append(rate)
            losses.append(loss)
            run.precision.step(run.optimizer, run.clip)
            run.optimizer.clear_grad()
            run.log.advance()
            smoothed = smooth(losses)
            if step > LEAST_STEPS / 2 and smoothed[-1] > DIVERGED * min(smoothed):
                break
    if len(losses) < 4:
        raise RunFailed(f"the loss is not finite at a rate of {rates[len(losses)]:.3g}; begin lower: --first")
    return done, losses


def endless(loader: Loader) -> Iterator[Batch]:
    """Batches of one epoch after another."""
    epoch = 1
    while True:
        yield from loader.epoch(epoch)
        epoch += 1
