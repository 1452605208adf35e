"""A training run: what it consists of, how it is set up and described."""

from __future__ import annotations

import json
import math
import platform
import secrets
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from ppcls_ext import config as configuration
from ppcls_ext import distributed
from ppcls_ext.checkpoint import Checkpoint
from ppcls_ext.config import Config, FreezeOptions, Split
from ppcls_ext.data.class_map import CLASS_MAP, write_class_map
from ppcls_ext.data.copies import trained_on
from ppcls_ext.data.datasets import ImageDataset
from ppcls_ext.data.loader import Loader
from ppcls_ext.device import Precision
from ppcls_ext.errors import Refused, did_you_mean
from ppcls_ext.files import folder_problem, write_file
from ppcls_ext.layers import SyncBatchNorm, convert_sync_batchnorm
from ppcls_ext.log import RunLog
from ppcls_ext.optim import (
    Schedule,
    WeightAverage,
    build_optimizer,
    create_states,
    make_clip,
)
from ppcls_ext.registry import BACKBONES, DATASETS, SAMPLERS, SCHEDULES
from ppcls_ext.report.curves import draw_curves
from ppcls_ext.training.criteria import eval_losses, eval_metrics, train_losses, train_metrics
from ppcls_ext.training.freezing import NEVER, Freezing
from ppcls_ext.training.objective import Objective
from ppcls_ext.weights import fit_weights, read_metadata

FEW_STEPS = 5  # of an epoch
CONFIG, DESCRIPTION = "config.yaml", "run.json"  # what describes a run


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
    schedule: Schedule
    rate_factor: float  # of every rate of the schedule, for the total batch
    clip: Callable[[], object] | None
    freezing: Freezing
    objective: Objective
    metrics: list[Callable]
    average: WeightAverage | None
    precision: Precision
    train_loader: Loader
    eval_loader: Loader | None
    steps_per_epoch: int
    class_names: list[str] | None
    position: Position
    last_saved: Path | None = None  # the newest checkpoint to go on from, of this run
    asked_to_stop: int = 0  # the signal's number


def folder_of(config: Config) -> Path:
    """Where a run writes; `Refused` where it could not."""
    folder = config.output_folder()
    if problem := folder_problem(folder):
        raise Refused(f"Global.output_dir: {problem}")
    return folder


def build_run(config: Config, log: RunLog, folder: Path, seed: int, saved: Checkpoint | None, opened: ExitStack) -> Run:
    """Everything a run needs, at its beginning; `saving.take_up` puts it where `saved` stopped.

    `opened` closes the loaders, of a run that cannot be built too.
    """
    options, world = config.Global, distributed.world_size()
    schedule = build_schedule(config)
    loader = build_train_loader(config, saved.metadata.get("class_names") if saved else None, seed)
    opened.callback(loader.close)
    dataset = loader.dataset
    eval_loader = None
    if options.eval_during_train and config.DataLoader.Eval is not None:
        eval_loader = build_eval_loader(config, dataset.class_names, dataset.num_classes, seed)
        opened.callback(eval_loader.close)
    for note in [*dataset.notes, *(eval_loader.dataset.notes if eval_loader else [])]:
        log.warning(note)
    if eval_loader is not None:
        tell_of_trained_images(dataset, eval_loader.dataset, log)
    plan = loader.batches(1)
    loader.start()  # workers are forked before the network exists: they share no memory with it
    if eval_loader is not None:
        eval_loader.start()

    paddle.seed(seed)
    network = build_network(config, dataset.num_classes)
    refuse_batches_of_one(network, plan)
    if saved is None and options.pretrained_model is not None:
        report = fit_weights(network, options.pretrained_model, replace_head=True)
        log.info(report.summary())
    freezing = Freezing(network, config.Freeze)
    freezing.apply(NEVER)  # what is never to train gets no state
    optimizer = build_optimizer(config.Optimizer, network)
    average = WeightAverage(network, config.EMA.decay, config.EMA.warmup) if config.EMA else None
    precision = Precision(config, network, optimizer)
    create_states(optimizer)
    # Of layers that thaw later it must not wait for gradients before; made anew in mid-run it would crash.
    replica = paddle.DataParallel(network, find_unused_parameters=freezing.thaws()) if world > 1 else network
    return Run(
        config=config,
        log=log,
        folder=folder,
        seed=seed,
        network=network,
        replica=replica,
        optimizer=optimizer,
        schedule=schedule,
        rate_factor=rate_factor(config),
        clip=make_clip(config.Optimizer, network),
        freezing=freezing,
        objective=Objective(
            train_losses(config, dataset), config.Distill, build_teacher(config, network, dataset.class_names)
        ),
        metrics=train_metrics(config),
        average=average,
        precision=precision,
        train_loader=loader,
        eval_loader=eval_loader,
        steps_per_epoch=math.ceil(len(plan) / options.update_freq),
        class_names=dataset.class_names,
        position=Position(),
    )


def tell_of_trained_images(training: ImageDataset, evaluation: ImageDataset, log: RunLog) -> None:
    """Warn where the score of an evaluation will not be that of unseen images."""
    known = distributed.first_does(lambda: trained_on(training, evaluation))
    if known:
        own, same = known[0]
        example = f"{own}{'' if own == same else f' is {same}'}{', ...' if len(known) > 1 else ''}"
        log.warning(
            f"DataLoader.Eval: {len(known)} of {len(evaluation)} images are trained on as well, so its score is not "
            f"that of unseen images: {example}; tools/split.py keeps copies on one side"
        )


def build_network(config: Config, num_classes: int) -> paddle.nn.Layer:
    """The backbone that `Arch` names."""
    arch = config.Arch
    network = BACKBONES[arch.name](num_classes=num_classes, in_channels=arch.in_channels, **arch.arguments)
    if arch.use_sync_bn:
        network = convert_sync_batchnorm(network)
    return network


def build_teacher(config: Config, student: paddle.nn.Layer, class_names: list[str] | None) -> paddle.nn.Layer | None:
    """The network of `Distill.teacher` with its weights, in evaluation mode; None without such a section."""
    distill = config.Distill
    if distill is None:
        return None
    metadata, name = read_metadata(distill.weights), distill.teacher.name
    if metadata.get("arch", name) != name:
        raise Refused(
            f"Distill.weights: {distill.weights} holds weights of {metadata['arch']}; Distill.teacher is {name}; name "
            "the same network in both"
        )
    if metadata.get("num_classes", student.num_classes) != student.num_classes:
        raise Refused(
            f"Distill.weights: {distill.weights} knows {metadata['num_classes']} classes, this run has "
            f"{student.num_classes}; a teacher answers in the classes of the run"
        )
    for number, (known, own) in enumerate(zip(metadata.get("class_names") or [], class_names or [])):
        if known != own:
            raise Refused(
                f"Distill.weights: class {number} of {distill.weights} is '{known}', of this run '{own}'; a teacher "
                "answers in the classes of the run"
            )
    teacher = configuration.build(
        BACKBONES, distill.teacher, num_classes=student.num_classes, in_channels=config.Arch.in_channels
    )
    try:
        fit_weights(teacher, distill.weights, strict=True)
    except Refused as error:
        raise Refused(f"Distill.weights: {error}") from error
    teacher.eval()
    return teacher


def build_schedule(config: Config) -> Schedule:
    """The schedule of the learning rate; one that follows a metric needs evaluations that count it."""
    schedule = configuration.build(SCHEDULES, config.Optimizer.lr)
    counted = {"loss", *eval_losses(config), *(name for metric in eval_metrics(config) for name in metric.names())}
    if schedule.metric is not None and schedule.metric not in counted:
        near = did_you_mean(schedule.metric, counted)
        raise Refused(f"Optimizer.lr.metric: evaluations have no '{schedule.metric}'. {near}")
    return schedule


def total_batch(config: Config) -> int:
    """Images of one optimizer step, of all processes and accumulated parts together."""
    each = config.DataLoader.Train.sampler.arguments.get("batch_size", 1)
    return each * distributed.world_size() * config.Global.update_freq


def rate_factor(config: Config) -> float:
    """What every rate of the schedule is multiplied with: total batch / `Optimizer.scale_lr_with_batch` (arXiv
    1706.02677)."""
    base = config.Optimizer.scale_lr_with_batch
    return 1.0 if base is None else total_batch(config) / base


def rate_now(run: Run) -> float:
    """The learning rate of the step at which the run stands."""
    return run.rate_factor * run.schedule(run.position.global_step, run.steps_per_epoch, run.config.Global.epochs)


def build_dataset(
    config: Config, split: Split, seed: int, class_names: list[str] | None, num_classes: int | None
) -> Any:
    """The dataset of one split, checked."""
    return configuration.build(
        DATASETS,
        split.dataset,
        channels=config.Arch.in_channels,
        num_classes=num_classes,
        class_names=class_names,
        seed=seed,
    )


def build_train_loader(config: Config, class_names: list[str] | None, seed: int) -> Loader:
    """The training split, divided over the ranks, in the order of each epoch."""
    split = config.DataLoader.Train
    dataset = build_dataset(config, split, seed, class_names, config.Arch.class_num)
    sampler = configuration.build(SAMPLERS, split.sampler)
    sampler.num_classes = dataset.num_classes
    rank, world = distributed.rank(), distributed.world_size()

    def plan_epoch(epoch: int) -> list[np.ndarray]:
        return sampler.training_plan(dataset.labels, seed=seed, epoch=epoch, rank=rank, world_size=world)

    return make_loader(split, dataset, plan_epoch)


def build_eval_loader(config: Config, class_names: list[str] | None, num_classes: int | None, seed: int = 0) -> Loader:
    """The evaluation split, divided over the ranks without padding."""
    split = config.DataLoader.Eval
    arguments = split.dataset.arguments
    if class_names is None and split.dataset.name == "ClassFolderDataset" and not arguments.get("class_map"):
        raise Refused(
            "DataLoader.Eval.dataset.class_map: missing; neither the weights nor the training split carry a class map, "
            "and the order of this split's folders need not be the order that the network was trained with"
        )
    dataset = build_dataset(config, split, seed, class_names, num_classes)
    plan = configuration.build(SAMPLERS, split.sampler).evaluation_plan(
        dataset.labels, rank=distributed.rank(), world_size=distributed.world_size()
    )
    return make_loader(split, dataset, lambda epoch: plan, evaluation=True)


def make_loader(
    split: Split, dataset: Any, plan: Callable[[int], list[np.ndarray]], evaluation: bool = False
) -> Loader:
    """The loader of a split, with the options of its `loader` section."""
    return Loader(dataset, plan, evaluation=evaluation, **split.loader.model_dump())


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


def refuse_batches_of_one(network: paddle.nn.Layer, plan: list[np.ndarray]) -> None:
    """A batch norm over vectors divides by the spread of the batch, which one image does not have."""
    kinds = (paddle.nn.BatchNorm1D, SyncBatchNorm) if distributed.world_size() == 1 else (paddle.nn.BatchNorm1D,)
    if any(isinstance(layer, kinds) for layer in network.sublayers()):
        if min(len(part) for part in plan) == 1:
            raise Refused(
                "DataLoader.Train.sampler: a batch of an epoch would hold one image, which the batch norm of this "
                "network's head cannot train on; choose a batch_size above 1 without a rest of 1, or drop_last: True"
            )


def describe_run(run: Run) -> None:
    """Write what the run is: resolved configuration, class map, versions, command. From here on its files change."""
    warmup = run.config.Optimizer.lr.arguments.get("warmup_epoch", 0)
    if warmup > run.config.Global.epochs:
        run.log.warning(f"the warm-up ({warmup:g} epochs) is longer than the run ({run.config.Global.epochs})")
    images, left_out = len(run.train_loader.dataset), ""
    if (used := sum(len(part) for part in run.train_loader.batches(1)) * distributed.world_size()) < images:
        left_out = f", which leave out {images - used} of {images} images each time"
    if run.steps_per_epoch < FEW_STEPS:
        run.log.warning(
            f"{run.steps_per_epoch} steps an epoch{left_out}: batch-norm statistics and averages of the weights lag "
            "behind; a smaller DataLoader.Train.sampler.batch_size makes more of them"
        )
    reached = run.config.Global.epochs
    late = [str(first) for first in run.train_loader.dataset.first_epochs if first > reached]
    if late:
        run.log.warning(f"image_sizes: the sizes from epoch {', '.join(late)} on are not reached in {reached} epochs")
    if run.config.Freeze != FreezeOptions() and not (run.config.Global.pretrained_model or run.last_saved):
        run.log.warning("Freeze: the frozen layers keep random weights; Global.pretrained_model names trained ones")
    run.log.begin(run.position.global_step, run.position.epoch, run.config.Global.use_visualdl)
    if distributed.rank() != 0:
        return
    write_file(run.folder / CONFIG, configuration.to_yaml(run.config))
    if run.class_names is not None:
        write_class_map(run.folder / CLASS_MAP, run.class_names)
    described = {
        "command": sys.argv,
        "seed": run.seed,
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
        "processes": distributed.world_size(),
        "device": paddle.get_device(),
        "versions": {"python": platform.python_version(), "paddle": paddle.__version__, "numpy": np.__version__},
        "parameters": int(sum(p.size for p in run.freezing.trainable.values())),
    }
    write_file(run.folder / DESCRIPTION, json.dumps(described, indent=1) + "\n")
    run.log.info(
        f"{run.config.Arch.name}: {described['parameters']:,} parameters, {run.network.num_classes} classes; "
        f"{len(run.train_loader.dataset)} training images, {run.steps_per_epoch} steps an epoch; files in {run.folder}"
    )
    if run.rate_factor != 1.0:
        base = run.config.Optimizer.scale_lr_with_batch
        run.log.info(
            f"learning rates times {run.rate_factor:g}: total batch {total_batch(run.config)}, given for {base}"
        )
    if run.objective.teacher is not None:
        distill = run.config.Distill
        run.log.info(f"teacher ({distill.kind}): {distill.teacher.name}, weights of {distill.weights}")


def finish(run: Run) -> None:
    """The curves, the images that were left out, and where everything lies."""
    for loader, split in ((run.train_loader, "Train"), (run.eval_loader, "Eval")):
        skipped = distributed.merged(loader.skipped) if loader is not None else {}
        if skipped:
            listed = "\n".join(f"  {place}: {reason}" for place, reason in sorted(skipped.items()))
            run.log.warning(f"{split}: {len(skipped)} images could not be read and were left out:\n{listed}")
    curves = draw_curves(run.folder) if distributed.rank() == 0 else None
    for title, name, best in (
        ("Eval", "best_model", run.position.best),
        ("Eval][EMA", "best_model_ema", run.position.best_ema),
    ):
        if best:
            value = max(value for key, value in best.items() if key != "epoch")
            run.log.info(f"[{title}][best metric: {value:.5f} in epoch {best['epoch']}] {run.folder / name}.pdparams")
    run.log.info(f"files in {run.folder}{f', curves: {curves}' if curves else ''}")
