"""Training and evaluation, read from top to bottom.

`train` sets a run up (or takes up a saved one), then alternates `train_epoch`, `evaluate` and saving until the last
epoch. A run's state is its weights, the optimizer's, and a position; everything random is a function of
(seed, epoch, sample index) or (seed, step, rank), so a run taken up again ends with the same bits.
"""

from __future__ import annotations

import json
import math
import os
import platform
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle.utils import unique_name

from ppcls_ext import config as configuration
from ppcls_ext import distributed
from ppcls_ext.checkpoint import Checkpoint, load_set, member, save_set, write_file
from ppcls_ext.config import Component, Config, Split
from ppcls_ext.data.class_map import write_class_map
from ppcls_ext.data.loader import Loader
from ppcls_ext.errors import Refused, RunFailed
from ppcls_ext.log import RunLog, duration, joined
from ppcls_ext.optim import (
    WeightAverage,
    build_optimizer,
    clip_by_global_norm,
    load_optimizer_state,
    optimizer_state,
)
from ppcls_ext.registry import BACKBONES, DATASETS, LOSSES, METRICS, SAMPLERS, SCHEDULES
from ppcls_ext.report.curves import draw_curves
from ppcls_ext.weights import load_weights

CLASS_MAP_FILE = "class_map.txt"


@dataclass
class Position:
    """Where a run stands: `step` optimizer steps of epoch `epoch` (from 1) are done, `global_step` in all."""

    epoch: int = 1
    step: int = 0
    global_step: int = 0
    best: dict[str, float] = field(default_factory=dict)  # of the raw weights: {"top1": 0.71, "epoch": 3}
    best_ema: dict[str, float] = field(default_factory=dict)
    evaluations_without_gain: int = 0
    sums: dict[str, float] = field(default_factory=dict)  # of the running epoch, for its averages


@dataclass
class Run:
    """What `train` hands to its parts."""

    config: Config
    log: RunLog
    folder: Path
    seed: int
    network: paddle.nn.Layer
    replica: paddle.nn.Layer  # the network, or its DataParallel wrapper
    optimizer: paddle.optimizer.Optimizer
    schedule: Callable[[int, int, int], float]
    losses: dict[str, Callable]
    metrics: list[Callable]
    average: WeightAverage | None
    precision: Precision
    train_loader: Loader
    eval_loader: Loader | None
    steps_per_epoch: int
    class_names: list[str] | None
    position: Position
    asked_to_stop: int = 0  # the signal's number


class StoppedBySignal(Exception):
    """Ctrl-C or SIGTERM, after saving; `status` is the shell's 128 + signal."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


# ------------------------------------------------------------------------------------------------ training


def train(config: Config) -> dict[str, float]:
    """Train as the configuration says; returns the best evaluation ({"top1": ..., "epoch": ...}).

    Raises `Refused` before work begins, `RunFailed` when it cannot go on, `StoppedBySignal` after a signal.
    """
    device = choose_device(config.Global.device)
    distributed.watch_failures()
    distributed.start()
    folder = config.output_folder()
    log = RunLog(folder, config.Global.use_visualdl)
    saved = load_set(Path(config.Global.checkpoints)) if config.Global.checkpoints else None
    seed = choose_seed(config, saved)
    log.info(f"seed: {seed}" + ("" if config.Global.seed is not None or saved else " (fresh: Global.seed is not set)"))
    for line in device_lines(config, device):
        log.info(line)
    # Automatic parameter names must not depend on what else this process has built.
    with unique_name.guard():
        run = build_run(config, log, folder, seed, saved)
    try:
        with signals_ask(run):
            describe_run(run)
            result = train_epochs(run)
        finish(run)
        return result
    finally:
        run.train_loader.close()
        if run.eval_loader is not None:
            run.eval_loader.close()
        log.close()


def train_epochs(run: Run) -> dict[str, float]:
    """All epochs from the run's position on."""
    options, position = run.config.Global, run.position
    while position.epoch <= options.epochs:
        train_epoch(run)
        epoch = position.epoch
        improved = True
        if evaluates_after(run, epoch):
            improved = evaluate_and_keep_best(run)
        # From here on the epoch is done; a run taken up from `latest` begins with the next one.
        position.epoch, position.step, position.sums = epoch + 1, 0, {}
        if epoch % options.save_interval == 0 or epoch == options.epochs:
            save(run, f"epoch_{epoch}")
        save(run, "latest")
        if not improved and position.evaluations_without_gain == options.early_stopping:
            run.log.info(f"early stopping: no gain in {options.early_stopping} evaluations")
            break
    return position.best


def train_epoch(run: Run) -> None:
    """The rest of the epoch at which the run stands, one optimizer step after another."""
    options, position = run.config.Global, run.position
    epoch = position.epoch
    plan = run.train_loader.batches(epoch)
    every = options.update_freq
    groups = [plan[first : first + every] for first in range(0, len(plan), every)]
    parameters = [parameter for parameter in run.network.parameters() if parameter.trainable]
    batches = run.train_loader.epoch(epoch, start=position.step * every)
    meter = Meter(run)
    run.network.train()
    with run.log.progress(f"epoch {epoch}/{options.epochs}", run.steps_per_epoch, position.step):
        for group in groups[position.step :]:
            # Dropout and the like: a function of (seed, step, rank), so there is no generator state to save.
            paddle.seed(step_seed(run.seed, position.global_step))
            rate = run.schedule(position.global_step, run.steps_per_epoch, options.epochs)
            run.optimizer.set_lr(rate)
            planned = sum(len(part) for part in group)
            for number, part in enumerate(group, 1):
                batch = next(batches)
                images, labels = paddle.to_tensor(batch.images), paddle.to_tensor(batch.labels)
                # Gradients are exchanged once a step, with its last part.
                exchange = nullcontext() if number == len(group) or run.replica is run.network else run.replica.no_sync()
                with exchange:
                    with run.precision.autocast():
                        logits = run.replica(images)
                        terms = {name: loss(logits, labels) for name, loss in run.losses.items()}
                        loss = sum(terms.values())
                    run.precision.backward(loss * (len(part) / planned))
                meter.add(batch, terms, loss, logits, labels)
            run.precision.step(run.optimizer, parameters, run.config.Optimizer.clip_norm)
            run.optimizer.clear_grad()
            if run.average is not None:
                run.average.update(position.global_step)
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
    run.log.info(f"[Train][Epoch {epoch}/{options.epochs}][Avg]{joined(meter.averages())}")
    run.log.record("train_epoch", position.global_step, epoch, meter.averages())


class Meter:
    """Sums of losses and correct answers of the running epoch, and the times of its steps.

    Values stay on the device until `flush`, which waits for it. `flush` also is where a NaN is found: every save is
    preceded by one, so a broken network is never saved.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.sums = run.position.sums
        self.pending: list[tuple[np.ndarray, dict[str, paddle.Tensor]]] = []
        self.steps = self.images = 0
        self.waited = 0.0
        self.began = time.perf_counter()

    def add(self, batch: Any, terms: dict, loss: paddle.Tensor, logits: paddle.Tensor, labels: paddle.Tensor) -> None:
        """Remember what one batch gave."""
        values = {name: term.detach() for name, term in terms.items()} | {"loss": loss.detach()}
        with paddle.no_grad():
            for metric in self.run.metrics:
                values |= dict(zip(metric.names(), metric(logits.detach(), labels)))
        self.pending.append((batch.indices, values))
        self.waited += batch.wait
        self.images += len(batch.indices)

    def flush(self) -> None:
        """Add what is pending to the sums. Raises `RunFailed` at the first loss that is not finite."""
        counted = {name for metric in self.run.metrics for name in metric.names()}
        for done, (indices, values) in enumerate(self.pending):
            numbers = {name: float(value) for name, value in values.items()}  # waits for the device
            if not math.isfinite(numbers["loss"]):
                raise RunFailed(self._not_finite(numbers["loss"], done))
            for name, number in numbers.items():
                self.sums[name] = self.sums.get(name, 0.0) + number * (1 if name in counted else len(indices))
            self.sums["images"] = self.sums.get("images", 0) + len(indices)
        self.pending.clear()

    def _not_finite(self, value: float, done: int) -> str:
        run, dataset = self.run, self.run.train_loader.dataset
        lines = [f"the loss is {value} in epoch {run.position.epoch}, near step {run.position.step}."]
        for number in range(max(0, done - 2), done + 1):
            indices, values = self.pending[number]
            names = [dataset.path(int(index)) for index in indices[:4]]
            more = f" and {len(indices) - len(names)} more" if len(indices) > len(names) else ""
            lines.append(f"  batch with loss {float(values['loss']):.5g}: {', '.join(names)}{more}")
        good = member(run.folder / "latest", ".pdstates")
        if good.exists():
            lines.append(f"The last good checkpoint is untouched: -o Global.checkpoints={run.folder / 'latest'}")
        else:
            lines.append("There is no checkpoint yet.")
        lines.append("Lower Optimizer.lr.learning_rate, add a warm-up (lr.warmup_epoch) or set Optimizer.clip_norm.")
        return "\n".join(lines)

    def averages(self) -> dict[str, float]:
        """Means over the images of the epoch so far, on this rank."""
        images = self.sums.get("images", 0)
        order = [name for name in self.sums if name.startswith("top")] + [*self.run.losses, "loss"]
        return {name: self.sums[name] / images for name in order if name in self.sums} if images else {}

    def say(self, rate: float) -> None:
        """The line that PaddleClas's users know; times are means since the last line."""
        position, options = self.run.position, self.run.config.Global
        elapsed = time.perf_counter() - self.began
        batch_cost = elapsed / self.steps
        remaining = (options.epochs - position.epoch + 1) * self.run.steps_per_epoch - position.step
        averages = self.averages()
        name = self.run.config.Optimizer.lr.name
        self.run.log.info(
            f"[Train][Epoch {position.epoch}/{options.epochs}][Iter: {position.step}/{self.run.steps_per_epoch}]"
            f"lr({name}): {rate:.8f}, {joined(averages)}, "
            f"batch_cost: {batch_cost:.5f}s, reader_cost: {self.waited / self.steps:.5f}, "
            f"ips: {self.images / elapsed:.5f} samples/s, eta: {duration(remaining * batch_cost)}"
        )
        self.run.log.record("train", position.global_step, position.epoch, {"lr": rate, **averages})
        self.steps, self.images, self.waited, self.began = 0, 0, 0.0, time.perf_counter()


def step_seed(seed: int, step: int) -> int:
    """One 31-bit seed for every (seed, step, rank)."""
    return int(np.random.SeedSequence([seed, step, distributed.rank()]).generate_state(1)[0] >> 1)


# ------------------------------------------------------------------------------------------------ evaluation


@paddle.no_grad()
def evaluate(
    network: paddle.nn.Layer,
    loader: Loader,
    losses: dict[str, Callable],
    metrics: list[Callable],
    log: RunLog,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    asked_to_stop: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """Exact counts over the whole split on all ranks: {"images": 72, "top1_correct": 60, "top1": 0.83, "loss": ...}.

    None when a rank was asked to stop.
    """
    was_training = network.training
    network.eval()
    counted = [name for metric in metrics for name in metric.names()]
    sums = dict.fromkeys(["images", *counted, *losses], 0.0)
    stopped = False
    with log.progress("evaluation", len(loader.batches(0))):
        for batch in loader.epoch(0):
            if len(batch.labels):
                images, labels = paddle.to_tensor(batch.images), paddle.to_tensor(batch.labels)
                with autocast():
                    logits = network(images)
                for name, loss in losses.items():
                    sums[name] += float(loss(logits, labels)) * len(batch.labels)  # waits for the device
                for metric in metrics:
                    for name, correct in zip(metric.names(), metric(logits, labels)):
                        sums[name] += int(correct)
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
    for name in counted:
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


def evaluate_and_keep_best(run: Run) -> bool:
    """Evaluate the weights, and their average where there is one; keep what is best. True if either has improved."""
    position, average = run.position, run.average
    equalise(run)
    kinds = [("eval", "Eval", "best_model", position.best, nullcontext)]
    if average is not None:
        kinds.append(("eval_ema", "Eval][EMA", "best_model_ema", position.best_ema, average.applied))
    results = {}
    for kind, _, _, _, weights in kinds:
        with weights():
            results[kind] = evaluate_split(run)
        if results[kind] is None:  # nothing of a half-done evaluation is remembered: it is made again
            save_and_stop(run)
    improved = False
    for kind, title, name, best, _ in kinds:
        result, metric = results[kind], selection_metric(results[kind])
        run.log.info(f"[{title}][Epoch {position.epoch}][Avg]{joined(averages_of(result))}")
        run.log.record(kind, position.global_step, position.epoch, averages_of(result))
        if not math.isfinite(result["loss"]):
            raise RunFailed(f"the evaluation loss is {result['loss']} after epoch {position.epoch}; it was not saved")
        if result[metric] > best.get(metric, -1.0):
            improved = True
            best.clear()
            best.update({metric: result[metric], "epoch": position.epoch})
            save(run, name)
        run.log.info(f"[{title}][Epoch {position.epoch}][best metric: {best[metric]:.5f}]")
    position.evaluations_without_gain = 0 if improved else position.evaluations_without_gain + 1
    return improved


def evaluate_split(run: Run) -> dict[str, float] | None:
    """The evaluation split with the network as it is; None when the run was asked to stop."""
    autocast = run.precision.autocast if run.config.AMP.use_fp16_test else nullcontext
    losses, metrics = eval_losses(run.config), eval_metrics(run.config)
    return evaluate(run.network, run.eval_loader, losses, metrics, run.log, autocast, lambda: run.asked_to_stop != 0)


def selection_metric(result: dict[str, float]) -> str:
    """The metric that decides which model is best: the first accuracy."""
    return next(name for name in result if name.startswith("top") and not name.endswith("_correct"))


# ------------------------------------------------------------------------------------------------ building


def choose_device(wanted: str) -> str:
    """Set Paddle's device from `Global.device` (auto, cpu, gpu, gpu:N); gpu means this process's own one."""
    gpu_here = paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count() > 0
    kind, _, number = wanted.partition(":")
    if kind not in ("auto", "cpu", "gpu") or (number and not number.isdigit()):
        raise Refused(f"Global.device: expected auto, cpu, gpu or gpu:N, got '{wanted}'")
    if kind == "cpu" or not gpu_here:
        return paddle.set_device("cpu") and "cpu"
    local = os.environ.get("FLAGS_selected_gpus", number or "0").split(",")[0]
    paddle.set_device(f"gpu:{local}")
    return f"gpu:{local}"


def device_lines(config: Config, device: str) -> Iterator[str]:
    """What runs where, and what was asked for but is not there."""
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    yield (
        f"PaddlePaddle {paddle.__version__} on {device}, {distributed.world_size()} process(es)"
        + (f", {threads} thread(s)" if device == "cpu" else "")
    )
    if config.Global.device.startswith("gpu") and device == "cpu":
        yield "Global.device is gpu, but this machine or this build of PaddlePaddle has none: running on the CPU"
    if config.AMP.use_amp and device == "cpu":
        yield "AMP.use_amp is on, but Paddle has no half-precision kernels on a CPU: training in float32"


def choose_seed(config: Config, saved: Checkpoint | None) -> int:
    """The seed of the configuration, of the run that is taken up, or a fresh one that all ranks share."""
    given = config.Global.seed
    if saved is not None:
        if given is not None and given != saved.states["seed"]:
            raise Refused(
                f"Global.seed is {given}, but the run in {saved.prefix} began with {saved.states['seed']}; "
                "leave Global.seed out to go on with that"
            )
        return int(saved.states["seed"])
    if given is not None:
        return given
    fresh = secrets.randbelow(2**31) if distributed.rank() == 0 else 0
    return int(distributed.all_sum(np.array([fresh]))[0])


def build_network(config: Config, num_classes: int) -> paddle.nn.Layer:
    """The backbone that `Arch` names."""
    arch = config.Arch
    network = BACKBONES[arch.name](num_classes=num_classes, in_channels=arch.in_channels, **arch.arguments)
    if arch.use_sync_bn:
        from ppcls_ext.layers import convert_sync_batchnorm

        network = convert_sync_batchnorm(network)
    return network


def build_dataset(config: Config, split: Split, seed: int, class_names: list[str] | None, num_classes: int | None) -> Any:
    """The dataset of one split, checked."""
    return configuration.build(
        DATASETS,
        split.dataset,
        channels=config.Arch.in_channels,
        num_classes=num_classes,
        class_names=class_names,
        seed=seed,
    )


def build_eval_loader(config: Config, class_names: list[str] | None, num_classes: int | None, seed: int = 0) -> Loader:
    """The evaluation split, divided over the ranks without padding."""
    split = config.DataLoader.Eval
    dataset = build_dataset(config, split, seed, class_names, num_classes)
    plan = configuration.build(SAMPLERS, split.sampler).evaluation_plan(
        len(dataset), distributed.rank(), distributed.world_size()
    )
    return make_loader(split, dataset, plan, evaluation=True)


def make_loader(split: Split, dataset: Any, plan: Callable[[int], list[np.ndarray]], evaluation: bool = False) -> Loader:
    """The loader of a split, with the options of its `loader` section."""
    return Loader(dataset, plan, evaluation=evaluation, **split.loader.model_dump())


def named(table: Any, components: list[Component]) -> dict[str, Callable]:
    """{"CELoss": the loss}; a second one of a name is numbered."""
    made: dict[str, Callable] = {}
    for component in components:
        name = component.name if component.name not in made else f"{component.name}_{len(made) + 1}"
        made[name] = configuration.build(table, component)
    return made


def eval_losses(config: Config) -> dict[str, Callable]:
    """The losses of evaluation; plain cross entropy where none is named."""
    return named(LOSSES, config.Loss.Eval or [Component(name="CELoss")])


def eval_metrics(config: Config) -> list[Callable]:
    """The metrics of evaluation and of training; top-1 and top-5 where none is named."""
    return list(named(METRICS, config.Metric.Eval or [Component(name="TopkAcc")]).values())


def build_run(config: Config, log: RunLog, folder: Path, seed: int, saved: Checkpoint | None) -> Run:
    """Everything a run needs, at the beginning or where `saved` stopped."""
    rank, world = distributed.rank(), distributed.world_size()
    options, split = config.Global, config.DataLoader.Train
    saved_names = saved.metadata.get("class_names") if saved else None
    dataset = build_dataset(config, split, seed, saved_names, config.Arch.class_num)
    sampler = configuration.build(SAMPLERS, split.sampler)
    loader = make_loader(split, dataset, sampler.training_plan(len(dataset), seed, rank, world))
    eval_loader = None
    if options.eval_during_train and config.DataLoader.Eval is not None:
        eval_loader = build_eval_loader(config, dataset.class_names, dataset.num_classes, seed)
    plan = loader.batches(1)
    if not plan:
        raise Refused(
            f"DataLoader.Train: {len(dataset)} images are fewer than one batch of {world} x {split.sampler.arguments}"
            " and drop_last is on; lower batch_size"
        )
    loader.start()  # workers are forked before the network exists: they share no memory with it
    if eval_loader is not None:
        eval_loader.start()

    paddle.seed(seed)
    network = build_network(config, dataset.num_classes)
    refuse_batches_of_one(network, plan)
    if saved is None and options.pretrained_model is not None:
        report = load_weights(network, options.pretrained_model, strict=False)
        log.info(report.summary())
    optimizer = build_optimizer(config.Optimizer, network)
    average = WeightAverage(network, config.EMA.decay, config.EMA.warmup) if config.EMA else None
    precision = Precision(config, network, optimizer)
    replica = paddle.DataParallel(network) if world > 1 else network
    run = Run(
        config=config,
        log=log,
        folder=folder,
        seed=seed,
        network=network,
        replica=replica,
        optimizer=optimizer,
        schedule=configuration.build(SCHEDULES, config.Optimizer.lr),
        losses=named(LOSSES, config.Loss.Train),
        metrics=list(named(METRICS, config.Metric.Train or [Component(name="TopkAcc")]).values()),
        average=average,
        precision=precision,
        train_loader=loader,
        eval_loader=eval_loader,
        steps_per_epoch=math.ceil(len(plan) / options.update_freq),
        class_names=dataset.class_names,
        position=Position(),
    )
    if saved is not None:
        take_up(run, saved)
    return run


def refuse_batches_of_one(network: paddle.nn.Layer, plan: list[np.ndarray]) -> None:
    """A batch norm over vectors divides by the spread of the batch, which one image does not have."""
    if any(isinstance(layer, paddle.nn.BatchNorm1D) for layer in network.sublayers()):
        if min(len(part) for part in plan) == 1:
            raise Refused(
                "DataLoader.Train.sampler: the last batch of an epoch would hold one image, which the batch norm of this "
                "network's head cannot train on; set drop_last: True or another batch_size"
            )


class Precision:
    """float32, or `paddle.amp` where the device has half precision."""

    def __init__(self, config: Config, network: paddle.nn.Layer, optimizer: paddle.optimizer.Optimizer) -> None:
        amp = config.AMP
        self.enabled = amp.use_amp and paddle.get_device().startswith("gpu")
        self.options = dict(level=amp.level, dtype=amp.dtype, use_promote=amp.use_promote)
        self.scaler = None
        if not self.enabled:
            return
        if amp.level == "O2":
            paddle.amp.decorate(network, optimizer, level="O2", dtype=amp.dtype, save_dtype="float32")
        if amp.dtype == "float16":  # bfloat16 has float32's range and needs no scaling
            self.scaler = paddle.amp.GradScaler(
                init_loss_scaling=amp.scale_loss, use_dynamic_loss_scaling=amp.use_dynamic_loss_scaling
            )

    def autocast(self) -> AbstractContextManager:
        """Half precision inside, where it is enabled."""
        return paddle.amp.auto_cast(**self.options) if self.enabled else nullcontext()

    def backward(self, loss: paddle.Tensor) -> None:
        """Gradients of the (scaled) loss."""
        (self.scaler.scale(loss) if self.scaler else loss).backward()

    def step(
        self, optimizer: paddle.optimizer.Optimizer, parameters: list[paddle.Tensor], clip_norm: float | None
    ) -> None:
        """Clip, then step; with a scaler a step whose gradients overflowed is left out."""
        if self.scaler:
            self.scaler.unscale_(optimizer)
        if clip_norm is not None:
            clip_by_global_norm(parameters, clip_norm)
        if self.scaler:
            self.scaler.step(optimizer)
            self.scaler.update()
        else:
            optimizer.step()


# ------------------------------------------------------------------------------------------------ saving


def equalise(run: Run) -> None:
    """Make the batch-norm statistics of all ranks, each of its own images, their mean."""
    distributed.equalise_statistics(run.network.state_dict())
    if run.average is not None:
        distributed.equalise_statistics(run.average.shadow)


def save(run: Run, name: str) -> None:
    """Write the set `<folder>/<name>.{pdparams,pdopt,pdstates}`; rank 0 writes, the others do not time out."""
    equalise(run)
    tensors: dict[str, dict[str, np.ndarray]] = {}
    if distributed.rank() == 0:
        weights = {key: tensor.numpy() for key, tensor in run.network.state_dict().items()}
        averaged = {**weights, **run.average.state()} if run.average is not None else {}
        if name == "best_model_ema":  # for use, not for taking up
            tensors[".pdparams"] = averaged
        else:
            tensors[".pdparams"] = weights
            tensors[".pdopt"] = optimizer_state(run.optimizer, run.network)
            if averaged:
                tensors["_ema.pdparams"] = averaged
    previous = run.folder / "previous" if name == "latest" else None
    states, metadata = states_of(run), metadata_of(run)
    distributed.first_does(lambda: save_set(run.folder / name, tensors, states, metadata, keep_previous=previous))


def states_of(run: Run) -> dict[str, Any]:
    """What besides tensors a run needs to go on."""
    return {
        **asdict(run.position),
        "seed": run.seed,
        "scaler": run.precision.scaler.state_dict() if run.precision.scaler else None,
        "plan": plan_of(run),
    }


def plan_of(run: Run) -> dict[str, int]:
    """What must stay the same for the rest of an epoch to be the rest of that epoch."""
    return {
        "images": len(run.train_loader.dataset),
        "steps_per_epoch": run.steps_per_epoch,
        "batch_size": run.config.DataLoader.Train.sampler.arguments.get("batch_size", 1),
        "processes": distributed.world_size(),
        "update_freq": run.config.Global.update_freq,
    }


def metadata_of(run: Run) -> dict[str, Any]:
    """What every weights file says of itself."""
    arch = run.config.Arch
    return {
        "arch": arch.name,
        "num_classes": run.network.num_classes,
        "in_channels": arch.in_channels,
        "arguments": arch.arguments,
        "class_names": run.class_names,
    }


def take_up(run: Run, saved: Checkpoint) -> None:
    """Put the run where `saved` stopped."""
    if saved.metadata["arch"] != run.config.Arch.name:
        raise Refused(f"{saved.prefix} is a {saved.metadata['arch']}; the configuration's Arch is {run.config.Arch.name}")
    if ".pdopt" not in saved.tensors:
        raise Refused(f"{saved.prefix} holds weights only; take a run up from latest, best_model or epoch_N")
    states = dict(saved.states)
    plan, now = states.pop("plan"), plan_of(run)
    changed = [f"{name} was {plan[name]}, is {now[name]}" for name in now if plan[name] != now[name]]
    if changed and states["step"]:
        raise Refused(
            f"{saved.prefix} stopped within epoch {states['epoch']}; its rest can only be taken up with the same data: "
            + "; ".join(changed)
        )
    if changed:
        run.log.warning(f"taken up with changes: {'; '.join(changed)}; the run goes on, but not as one unbroken")
    report = load_weights(run.network, member(saved.prefix, ".pdparams"), strict=True)
    run.log.info(report.summary())
    load_optimizer_state(run.optimizer, run.network, saved.tensors[".pdopt"])
    if run.average is not None and "_ema.pdparams" in saved.tensors:
        run.average.load(saved.tensors["_ema.pdparams"])
    elif run.average is not None:
        run.log.warning(f"{saved.prefix} holds no averaged weights: the average begins anew")
        run.average = WeightAverage(run.network, run.average.decay, run.average.warmup)
    scaler = states.pop("scaler")
    if run.precision.scaler and scaler:
        run.precision.scaler.load_state_dict(scaler)
    states.pop("seed")
    run.position = Position(**states)
    run.log.forget_after(run.position.global_step)
    run.log.info(
        f"taken up from {saved.prefix}: epoch {run.position.epoch}, step {run.position.step}, "
        f"{run.position.global_step} steps done, best metric {run.position.best or 'none yet'}"
    )


def describe_run(run: Run) -> None:
    """Write what the run is: resolved configuration, class map, versions, command."""
    if distributed.rank() != 0:
        return
    write_file(run.folder / "config.yaml", run.config.to_yaml())
    if run.class_names is not None:
        write_class_map(run.folder / CLASS_MAP_FILE, run.class_names)
    described = {
        "command": sys.argv,
        "seed": run.seed,
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
        "processes": distributed.world_size(),
        "device": paddle.get_device(),
        "versions": {"python": platform.python_version(), "paddle": paddle.__version__, "numpy": np.__version__},
        "parameters": int(sum(p.size for p in run.network.parameters() if p.trainable)),
    }
    write_file(run.folder / "run.json", json.dumps(described, indent=1) + "\n")
    run.log.info(
        f"{run.config.Arch.name}: {described['parameters']:,} parameters, {run.network.num_classes} classes; "
        f"{len(run.train_loader.dataset)} training images, {run.steps_per_epoch} steps an epoch; files in {run.folder}"
    )


def finish(run: Run) -> None:
    """The curves, the images that were left out, and where everything lies."""
    for loader, split in ((run.train_loader, "Train"), (run.eval_loader, "Eval")):
        if loader is not None and loader.skipped:
            listed = "\n".join(f"  {place}: {reason}" for place, reason in sorted(loader.skipped.items()))
            run.log.warning(f"{split}: {len(loader.skipped)} images could not be read and were left out:\n{listed}")
    if distributed.rank() == 0:
        draw_curves(run.folder)
    best = run.position.best
    if best:
        run.log.info(f"[Eval][best metric: {max(v for k, v in best.items() if k != 'epoch'):.5f} in epoch {best['epoch']}]")
    run.log.info(f"files in {run.folder}")


# ------------------------------------------------------------------------------------------------ signals


@contextmanager
def signals_ask(run: Run) -> Iterator[None]:
    """SIGTERM and Ctrl-C ask the run to save and stop; a second one ends it at once."""

    def ask(number: int, _frame: Any) -> None:
        if run.asked_to_stop:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        run.asked_to_stop = number

    kept = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
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
