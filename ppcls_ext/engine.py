"""Training and evaluation, read from top to bottom.

`train` sets a run up (or takes up a saved one), then alternates `train_epoch`, `evaluate_and_keep_best` and saving
until the last epoch. How a run is built stands in `training/run.py`, how it is saved in `training/saving.py`.
"""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle.utils import unique_name

from ppcls_ext import distributed
from ppcls_ext.checkpoint import load_set
from ppcls_ext.config import Config
from ppcls_ext.data.loader import Batch, Loader
from ppcls_ext.device import choose_device, device_lines
from ppcls_ext.distributed import failures
from ppcls_ext.errors import RunFailed
from ppcls_ext.log import RunLog, joined
from ppcls_ext.optim import evaluation_weights
from ppcls_ext.training.criteria import eval_losses, eval_metrics, selection_metric
from ppcls_ext.training.meter import Answers, Meter
from ppcls_ext.training.run import Run, build_run, choose_seed, describe_run, finish, folder_of, rate_now
from ppcls_ext.training.saving import equalise, save, set_earlier_aside, take_up


class StoppedBySignal(Exception):
    """Ctrl-C or SIGTERM, after saving; `status` is the shell's 128 + signal."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


def train(config: Config) -> dict[str, float]:
    """Train as the configuration says; returns the best evaluation ({"top1": ..., "epoch": ...}).

    Raises `Refused` before work begins, `RunFailed` when it cannot go on, `StoppedBySignal` after a signal.
    """
    device = choose_device(config.Global.device)
    failures.join()
    folder = folder_of(config)
    saved = load_set(Path(config.Global.checkpoints)) if config.Global.checkpoints else None
    seed = choose_seed(config, saved)
    # Names of parameters and of the optimizer's slots must not depend on what else this process has built.
    with ExitStack() as opened, unique_name.guard():
        log = RunLog(folder)
        opened.callback(log.close)
        drawn = saved is None and config.Global.seed is None
        log.info(f"seed: {seed}" + (" (fresh: Global.seed is not set)" if drawn else ""))
        for line in device_lines(config, device):
            log.info(line)
        run = build_run(config, log, folder, seed, saved, opened)
        if saved is not None:
            take_up(run, saved)
            del saved  # weights, optimizer and average are in the run now
        else:
            set_earlier_aside(run)
        with signals_ask(run):
            describe_run(run)
            result = train_epochs(run)
        finish(run)
        return result


def train_epochs(run: Run) -> dict[str, float]:
    """All epochs from the run's position on."""
    options, position = run.config.Global, run.position
    if position.epoch > options.epochs:
        run.log.warning(f"nothing to do: {position.epoch - 1} epochs are done, Global.epochs is {options.epochs}")
    while position.epoch <= options.epochs:
        if options.early_stopping and position.evaluations_without_gain >= options.early_stopping:
            run.log.info(f"early stopping: no gain in {options.early_stopping} evaluations")
            break
        train_epoch(run)
        epoch = position.epoch
        if evaluates_after(run, epoch):
            evaluate_and_keep_best(run)
        # From here on the epoch is done; a run taken up from `latest` begins with the next one.
        position.epoch, position.step, position.sums = epoch + 1, 0, {}
        if epoch % options.save_interval == 0 or epoch == options.epochs:
            save(run, f"epoch_{epoch}")
        save(run, "latest")
    return position.best


def train_epoch(run: Run) -> None:
    """The rest of the epoch at which the run stands, one optimizer step after another."""
    options, position = run.config.Global, run.position
    epoch = position.epoch
    plan = run.train_loader.batches(epoch)
    every = options.update_freq
    groups = [plan[first : first + every] for first in range(0, len(plan), every)]
    batches = run.train_loader.epoch(epoch, start=min(position.step * every, len(plan)))
    meter = Meter(run)
    set_training(run)
    with run.log.progress(f"epoch {epoch}/{options.epochs}", run.steps_per_epoch, position.step):
        for group in groups[position.step :]:
            # Dropout and the like: a function of (seed, step, rank), so there is no generator state to save.
            paddle.seed(step_seed(run.seed, position.global_step))
            rate = rate_now(run)
            run.optimizer.set_lr(rate)
            planned = sum(len(part) for part in group)
            for number, part in enumerate(group, 1):
                batch = next(batches)
                # Gradients are exchanged once a step, with its last part.
                exchange = (
                    nullcontext() if number == len(group) or run.replica is run.network else run.replica.no_sync()
                )
                with exchange:
                    learned = learn_from(run, batch, len(part) / planned)
                meter.add(batch, *learned)
            run.precision.step(run.optimizer, run.clip)
            run.optimizer.clear_grad()
            if run.average is not None:
                run.average.update(position.global_step, run.freezing.frozen)
            position.step += 1
            position.global_step += 1
            meter.steps += 1
            run.log.advance()
            if position.step % options.print_batch_step == 0 or position.step == run.steps_per_epoch:
                meter.flush()
                meter.say(rate)
                stop_if_asked(run, meter)
            elif distributed.world_size() == 1:
                stop_if_asked(run, meter)  # one process can stop at any step; several agree at the lines above
            if options.save_steps and position.global_step % options.save_steps == 0:
                if position.step < run.steps_per_epoch:  # the epoch's end saves anyway
                    meter.flush()
                    save(run, "latest")
    meter.flush()
    averages = meter.averages()
    run.log.info(f"[Train][Epoch {epoch}/{options.epochs}][Avg]{joined(averages)}")
    run.log.record("train_epoch", position.global_step, epoch, averages)


def learn_from(
    run: Run, batch: Batch, share: float
) -> tuple[dict[str, paddle.Tensor], paddle.Tensor, paddle.Tensor, paddle.Tensor]:
    """Add `share` times the gradients of a batch's loss; (the loss's terms, the loss, logits, labels)."""
    images, labels = paddle.to_tensor(batch.images), paddle.to_tensor(batch.labels)
    # Of mixed images the loss sees soft labels, and the accuracy counts the class of the larger part.
    targets = labels if batch.targets is None else paddle.to_tensor(batch.targets)
    with run.precision.autocast():
        terms, logits = run.objective(run.replica, images, targets)
        loss = sum(terms.values())
    run.precision.backward(loss * share)
    return terms, loss, logits, labels


def set_training(run: Run) -> None:
    """Put the network in training mode, what `Freeze` names for this epoch excepted."""
    run.network.train()
    run.freezing.apply(run.position.epoch)
    if run.freezing.unsaid():
        run.log.info(f"epoch {run.position.epoch}: {run.freezing.summary()}")


def step_seed(seed: int, step: int) -> int:
    """One 31-bit seed for every (seed, step, rank)."""
    return int(np.random.SeedSequence([seed, step, distributed.rank()]).generate_state(1)[0] >> 1)


@paddle.no_grad()
def evaluate(
    network: paddle.nn.Layer,
    loader: Loader,
    losses: dict[str, Callable],
    metrics: list[Callable],
    log: RunLog,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    asked_to_stop: Callable[[], bool] = lambda: False,
    answers: Answers | None = None,
) -> dict[str, float] | None:
    """Exact counts over the whole split on all ranks: {"images": 72, "top1_correct": 60, "top1": 0.83, "loss": ...}.

    None when a rank was asked to stop. `answers` are filled with every image's logits.
    """
    was_training = network.training
    network.eval()
    summed = [metric for metric in metrics if not metric.whole]
    counted = [name for metric in summed for name in metric.names()]
    sums = dict.fromkeys(["images", *counted, *losses], 0.0)
    if answers is None and any(metric.whole for metric in metrics):
        answers = Answers(loader.dataset)
    stopped = False
    with log.progress("evaluation", len(loader.batches(0))):
        for batch in loader.epoch(0):
            if len(batch.labels):
                images, labels = paddle.to_tensor(batch.images), paddle.to_tensor(batch.labels)
                with autocast():
                    logits = network(images)
                for name, loss in losses.items():
                    sums[name] += float(loss(logits, labels)) * len(batch.labels)  # waits for the device
                for metric in summed:
                    for name, correct in zip(metric.names(), metric(logits, labels)):
                        sums[name] += float(correct)
                if answers is not None:
                    answers.add(batch.indices, logits)
                sums["images"] += len(batch.labels)
            log.advance()
            # One short collective a batch: no rank waits for another longer than a batch takes.
            stopped = distributed.any_rank(asked_to_stop())
            if stopped:
                break
    if was_training:
        network.train()
    if stopped:
        return None
    totals = dict(zip(sums, distributed.all_sum(np.array(list(sums.values()), dtype=np.float64)).tolist()))
    images = int(totals["images"])
    if images == 0:
        raise RunFailed("the evaluation split holds no readable image")
    result: dict[str, float] = {"images": images}
    for metric in metrics:
        if metric.whole:
            seen, logits = answers.of_all_ranks()
            result |= zip(metric.names(), metric.of(logits, loader.dataset.labels[seen]))
            continue
        for name in metric.names():
            if metric.counts_answers:
                result[f"{name}_correct"] = int(totals[name])
            result[name] = totals[name] / images
    for name in losses:
        result[name] = totals[name] / images
    result["loss"] = sum(result[name] for name in losses)
    return result


def averages_of(result: dict[str, float]) -> dict[str, float]:
    """The part of an evaluation that belongs in the log line."""
    return {name: value for name, value in result.items() if name != "images" and not name.endswith("_correct")}


def evaluates_after(run: Run, epoch: int) -> bool:
    """Whether this epoch ends with an evaluation: every `eval_interval`-th, and the last."""
    options = run.config.Global
    if run.eval_loader is None or not options.eval_during_train or epoch < options.start_eval_epoch:
        return False
    return epoch % options.eval_interval == 0 or epoch == options.epochs


def evaluate_and_keep_best(run: Run) -> None:
    """Evaluate the weights, and their average where there is one; keep what is best."""
    position, average, metric = run.position, run.average, selection_metric(run.config)
    equalise(run)
    kinds = [("eval", "Eval", "best_model", position.best, partial(evaluation_weights, run.optimizer))]
    if average is not None:
        kinds.append(("eval_ema", "Eval][EMA", "best_model_ema", position.best_ema, average.applied))
    results = {}
    for kind, _, _, _, weights in kinds:
        with weights():
            results[kind] = evaluate_split(run)
        if results[kind] is None:  # nothing of a half-done evaluation is remembered: it is made again
            save_and_stop(run)
    # An evaluation that is made again, of a run taken up from `best_model`, neither gains nor counts as one without.
    again = any(best.get("epoch") == position.epoch for *_, best, _ in kinds)
    gains = [results[kind][metric] > best.get(metric, -1.0) for kind, _, _, best, _ in kinds]
    position.evaluations_without_gain = 0 if any(gains) or again else position.evaluations_without_gain + 1
    for (kind, title, name, best, _), gained in zip(kinds, gains):
        result = results[kind]
        run.log.info(f"[{title}][Epoch {position.epoch}][Avg]{joined(averages_of(result))}")
        run.log.record(kind, position.global_step, position.epoch, averages_of(result))
        if not math.isfinite(result["loss"]):
            raise RunFailed(f"the evaluation loss is {result['loss']} after epoch {position.epoch}; it was not saved")
        if gained:
            best.clear()
            best.update({metric: result[metric], "epoch": position.epoch})
            save(run, name)
        run.log.info(f"[{title}][Epoch {position.epoch}][best metric: {best[metric]:.5f}]")
    # after saving: a run that is taken up from `best_model` evaluates, and observes, once more
    run.schedule.observe(averages_of(results["eval"]))


def evaluate_split(run: Run) -> dict[str, float] | None:
    """The evaluation split with the network as it is; None when the run was asked to stop."""
    losses, metrics = eval_losses(run.config), eval_metrics(run.config)
    return evaluate(
        run.network,
        run.eval_loader,
        losses,
        metrics,
        run.log,
        autocast=run.precision.evaluation,
        asked_to_stop=lambda: run.asked_to_stop != 0,
    )


@contextmanager
def signals_ask(run: Run) -> Iterator[None]:
    """SIGTERM, Ctrl-C and a closed terminal ask the run to save and stop; asked once more, it ends at once."""
    asked_at = 0.0

    def ask(number: int, _frame: Any) -> None:
        nonlocal asked_at
        # The launcher sends SIGTERM up to three times within a second and means it once.
        if run.asked_to_stop and time.monotonic() - asked_at > 2:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        if not run.asked_to_stop:
            run.asked_to_stop, asked_at = number, time.monotonic()

    asking = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # which nohup sets
        asking.append(signal.SIGHUP)
    kept = {number: signal.signal(number, ask) for number in asking}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def stop_if_asked(run: Run, meter: Meter) -> None:
    """Save and leave if any rank was asked to."""
    if distributed.any_rank(run.asked_to_stop != 0):
        meter.flush()
        save_and_stop(run)


def save_and_stop(run: Run) -> None:
    """Save `latest` at the present step and raise `StoppedBySignal`."""
    save(run, "latest")
    run.log.info(f"stopped on request; go on with -o Global.checkpoints={run.folder / 'latest'}")
    raise StoppedBySignal(run.asked_to_stop or signal.SIGTERM)
