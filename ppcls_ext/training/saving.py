"""A training run saved, and taken up again.

A run's state is its weights, the optimizer's state and a position; everything random is a function of
(seed, epoch, sample index) or (seed, step, rank). So a run that is taken up ends with the bits of an unbroken one.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from ppcls_ext import config as configuration
from ppcls_ext import distributed
from ppcls_ext.checkpoint import STATES, Checkpoint, member, newest_other, save_set
from ppcls_ext.data.class_map import CLASS_MAP
from ppcls_ext.distributed import failures
from ppcls_ext.errors import Refused, RunFailed
from ppcls_ext.log import METRICS_FILE, SCALARS_FOLDER
from ppcls_ext.optim import WeightAverage, evaluation_weights, load_optimizer_state, optimizer_state
from ppcls_ext.report.curves import CURVES_FILE
from ppcls_ext.training.run import CONFIG, DESCRIPTION, Position, Run
from ppcls_ext.weights import fit_weights, graph_of, state_arrays

# `latest.ema.pdparams`; `best_model_ema` is a set of its own, whose files must have other names.
EMA_MEMBER = ".ema.pdparams"
BATCHES = "batches"
# Of a run, what a fresh one in the same folder would replace, its checkpoints aside.
RECORDS = (CONFIG, DESCRIPTION, CLASS_MAP, METRICS_FILE, SCALARS_FOLDER, CURVES_FILE)


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
        with evaluation_weights(run.optimizer):
            weights = state_arrays(run.network)
        averaged = {**weights, **run.average.state()} if run.average is not None else {}
        if name == "best_model_ema":  # for use, not for taking up
            tensors[".pdparams"] = averaged
        else:
            tensors[".pdparams"] = weights
            tensors[".pdopt"] = optimizer_state(run.optimizer, run.network)
            if averaged:
                tensors[EMA_MEMBER] = averaged
    previous = run.folder / "previous" if name == "latest" else None
    states, metadata = states_of(run), metadata_of(run)

    def write() -> None:
        broken = [key for key, array in tensors[".pdparams"].items() if not np.isfinite(array).all()]
        if broken:
            # a step's loss is computed before its update: the update may be what broke them
            raise RunFailed(
                f"weights that are not finite after step {run.position.global_step} ({broken[0]} and {len(broken) - 1} "
                f"more tensors); nothing of them is saved, the last checkpoint is {run.last_saved or 'none yet'}"
            )
        save_set(run.folder / name, tensors, states, metadata, keep_previous=previous)

    distributed.first_does(write)
    if name == "latest":
        run.last_saved = run.folder / name
        failures.remember(run.last_saved)


def states_of(run: Run) -> dict[str, Any]:
    """What besides tensors a run needs to go on."""
    return {
        **asdict(run.position),
        "sums": distributed.sum_of_all(run.position.sums),
        "seed": run.seed,
        "config": configuration.to_yaml(run.config),
        "scaler": run.precision.scaler_state(),
        "plan": plan_of(run, run.position),
        "optimizer": run.config.Optimizer.name,
        "schedule": {"name": run.config.Optimizer.lr.name, **run.schedule.state()},
    }


def plan_of(run: Run, position: Position) -> dict[str, int]:
    """What must stay the same for the rest of an epoch to be the rest of that epoch."""
    return {
        **({BATCHES: batches_of(run, position.epoch)} if position.step else {}),
        "images": len(run.train_loader.dataset),
        "steps_per_epoch": run.steps_per_epoch,
        "batch_size": run.config.DataLoader.Train.sampler.arguments.get("batch_size", 1),
        "processes": distributed.world_size(),
        "update_freq": run.config.Global.update_freq,
    }


def batches_of(run: Run, epoch: int) -> int:
    """A number that stands for which images, of which classes, are in which batch of an epoch, on all processes."""
    # so short that its sum over thousands of processes is a whole number in float64 too
    own = int.from_bytes(run.train_loader.digest(epoch)[:5], "little")
    return int(distributed.all_sum(np.array([own]))[0])


def metadata_of(run: Run) -> dict[str, Any]:
    """What every weights file says of itself."""
    arch = run.config.Arch
    return {
        "arch": arch.name,
        "num_classes": run.network.num_classes,
        "in_channels": arch.in_channels,
        "arguments": arch.arguments,
        "class_names": run.class_names,
        "graph": graph_of(run.network),
    }


def set_earlier_aside(run: Run) -> None:
    """Move what an earlier run left in the folder of a fresh one to `earlier_N` in it, so that they do not mix."""
    distributed.any_rank(False)  # by now every process has read the weights that it begins with, perhaps from here
    aside = distributed.first_does(lambda: _set_aside(run.folder))
    if aside is not None:
        found = aside / "latest"
        if not member(found, STATES).exists():
            found, _ = newest_other(found) or (None, {})
        go_on = f"to go on with that one: -o Global.checkpoints={found}" if found else "it had saved no checkpoint"
        run.log.warning(f"{run.folder} holds an earlier run, which is in {aside} now; {go_on}")


def _set_aside(folder: Path) -> Path | None:
    states = sorted(folder.glob("*" + STATES))
    if not states and not (folder / METRICS_FILE).exists():
        return None
    number = next(number for number in count(1) if not (folder / f"earlier_{number}").exists())
    aside = folder / f"earlier_{number}"
    aside.mkdir()
    for path in states:
        prefix = path.with_name(path.name.removesuffix(STATES))
        for suffix in (".pdparams", ".pdopt", EMA_MEMBER, STATES):
            for own in (member(prefix, suffix), member(prefix, suffix + ".new")):
                if own.exists():
                    os.replace(own, aside / own.name)
    for name in RECORDS:
        if (folder / name).exists():
            os.replace(folder / name, aside / name)
    return aside


def whole_epoch_beside(prefix: Path) -> str:
    """The cure for a set that stopped within an epoch: another one that ends one."""
    found = newest_other(prefix, lambda states: states.get("step") == 0)
    if found is None:
        return f"No other checkpoint in {prefix.parent} ends an epoch; go on as it was begun"
    return f"{found[0].name} ends epoch {found[1]['epoch'] - 1}: -o Global.checkpoints={found[0]}"


def take_up(run: Run, saved: Checkpoint) -> None:
    """Put the run where `saved` stopped."""
    if saved.metadata["arch"] != run.config.Arch.name:
        raise Refused(
            f"{saved.prefix} is a {saved.metadata['arch']}; the configuration's Arch is {run.config.Arch.name}"
        )
    if ".pdopt" not in saved.tensors:
        raise Refused(f"{saved.prefix} holds weights only; take a run up from latest, best_model or epoch_N")
    states = dict(saved.states)
    if states.pop("optimizer") != run.config.Optimizer.name:
        raise Refused(
            f"{saved.prefix} was trained with {saved.states['optimizer']}, the configuration's Optimizer is "
            f"{run.config.Optimizer.name}; start from its weights alone with -o Global.pretrained_model={saved.prefix}"
        )
    plan, now = states.pop("plan"), plan_of(run, Position(epoch=states["epoch"], step=states["step"]))
    other = plan.pop(BATCHES, now.get(BATCHES)) != now.pop(BATCHES, None)
    changed = [f"{name} was {plan[name]}, is {now[name]}" for name in now if plan[name] != now[name]]
    if other and not changed:
        changed = ["the epoch's batches are others (the images' names, their labels or DataLoader.Train.sampler)"]
    if changed and states["step"]:
        raise Refused(
            f"{saved.prefix} stopped within epoch {states['epoch']}; its rest can only be taken up with the same data: "
            f"{'; '.join(changed)}. {whole_epoch_beside(saved.prefix)}"
        )
    if changed:
        run.log.warning(f"taken up with changes: {'; '.join(changed)}; the run goes on, but not as one unbroken")
    if changes := configuration.differences(states.pop("config", None), configuration.to_yaml(run.config)):
        run.log.warning(f"taken up with another configuration: {'; '.join(changes)}")
    report = fit_weights(run.network, member(saved.prefix, ".pdparams"), strict=True)
    run.log.info(report.summary())
    load_optimizer_state(run.optimizer, run.network, saved.tensors[".pdopt"])
    if run.average is not None and EMA_MEMBER in saved.tensors:
        run.average.load(saved.tensors[EMA_MEMBER])
    elif run.average is not None:
        run.log.warning(f"{saved.prefix} holds no averaged weights: the average begins anew")
        run.average = WeightAverage(run.network, run.average.decay, run.average.warmup)
    elif EMA_MEMBER in saved.tensors:
        run.log.warning(f"{saved.prefix} holds averaged weights, which are left behind: the configuration has no EMA")
    scaler = states.pop("scaler")
    if run.precision.scaler and scaler:
        run.precision.scaler.load_state_dict(scaler)
    schedule = states.pop("schedule", {})
    if run.schedule.state() and schedule.pop("name", None) == run.config.Optimizer.lr.name:
        run.schedule.load(schedule)
    states.pop("seed")
    run.position = Position(**states)
    if distributed.rank() != 0:  # they are sums over all processes
        run.position.sums = dict.fromkeys(run.position.sums, 0.0)
    run.last_saved = saved.prefix
    failures.remember(run.last_saved)
    if changed:  # the learning rate is a function of the step: count in steps of now
        run.position.global_step = (run.position.epoch - 1) * run.steps_per_epoch
    run.log.info(
        f"taken up from {saved.prefix}: epoch {run.position.epoch}, step {run.position.step}, "
        f"{run.position.global_step} steps done, best metric {run.position.best or 'none yet'}"
    )
