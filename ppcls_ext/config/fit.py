"""What losses, metrics and data ask of each other, and what the optimizer asks of the rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ppcls_ext.config.components import with_defaults
from ppcls_ext.config.sections import Component, Split, Splits, Terms
from ppcls_ext.registry import BATCH_TRANSFORMS, DATASETS, LOSSES, METRICS, SCHEDULES
from ppcls_ext.transforms import Pipeline

# Arguments that are computed from the labels of the training split.
_OF_TRAINING = ("class_weight", "weight_ratio")


def fit_problems(losses: Terms, metrics: Terms, loaders: Splits) -> list[str]:
    """What of the three does not fit together, each with its place."""
    return [*_labels(losses, metrics, loaders), *_smoothing(losses, loaders.Train), *_places(losses, metrics)]


def answer_problems(process: str, loaders: Splits) -> list[str]:
    """Whether prediction answers in the kind of labels that the network has learnt."""
    known = [split for split in (loaders.Train, loaders.Eval) if split is not None]
    several = {DATASETS[split.dataset.name].several_labels for split in known}
    fitting = {True: "MultiLabelThreshOutput", False: "Topk"}
    right = fitting[several.pop()] if len(several) == 1 else process
    if process != right:
        place, name = "Infer.PostProcess.name", known[0].dataset.name
        return [f"{place}: {process}, but {name} has labels for {right}: -o Infer.PostProcess={{name: {right}}}"]
    return []


def infer_problems(pipeline: Pipeline, place: str = "Infer.transforms") -> list[str]:
    """What prediction cannot use: random operators, and images that keep a size of their own."""
    problems = []
    if pipeline.random:
        problems.append(f"{place}: holds random operators, which prediction cannot use")
    if None in pipeline.output_shape:
        problems.append(f"{place}: images keep their own sizes; add ResizeImage and CropImage with fixed ones")
    return problems


def optimization_problems(sections: Mapping[str, Any]) -> Iterator[str]:
    """What optimizer, schedule, teacher and averages ask of each other and of the data; by the names of `Config`."""
    optimizer, loaders = sections["Optimizer"], sections["DataLoader"]
    if sections["Distill"] is not None and loaders.Train and DATASETS[loaders.Train.dataset.name].several_labels:
        yield f"Distill: a teacher answers with one class, images of {loaders.Train.dataset.name} may have several"
    if optimizer is None:
        return
    if optimizer.name == "ScheduleFreeAdamW" and sections["EMA"] is not None:
        yield "EMA: ScheduleFreeAdamW evaluates and saves a mean of the weights already; take EMA out"
    evaluates = sections["Global"].eval_during_train and loaders.Eval is not None
    if SCHEDULES[optimizer.lr.name] is SCHEDULES["Plateau"] and not evaluates:
        yield "Optimizer.lr: Plateau needs evaluations: Global.eval_during_train=True and DataLoader.Eval"


def _labels(losses: Terms, metrics: Terms, loaders: Splits) -> Iterator[str]:
    """One label per image, or several: the data, the losses and the metrics agree."""
    for split_name, split in (("Train", loaders.Train), ("Eval", loaders.Eval)):
        if split is None:
            continue
        several = DATASETS[split.dataset.name].several_labels
        for section, table, terms in (("Loss", LOSSES, losses), ("Metric", METRICS, metrics)):
            for number, term in enumerate(getattr(terms, split_name)):
                place = f"{section}.{split_name}.{number}.{term.name}"
                fitting = [name for name in table if table[name].several_labels == several]
                if several and not table[term.name].several_labels:
                    yield f"{place}: takes one label per image, {split.dataset.name} has several; {_one_of(fitting)}"
                # BCELoss takes one label as well as several
                if not several and table[term.name].several_labels and term.name != "BCELoss":
                    yield f"{place}: takes several labels per image, {split.dataset.name} has one; {_one_of(fitting)}"


def _one_of(names: list[str]) -> str:
    return f"take {' or '.join(names)}"


def _smoothing(losses: Terms, split: Split | None) -> Iterator[str]:
    """Labels are smoothed once: by the operator that mixes them, or by the loss."""
    for op in (split.dataset.arguments.get("batch_transform_ops") if split else None) or []:
        for name, own in {**op, **(op.get("OpSampler") or {})}.items():
            if name not in BATCH_TRANSFORMS:
                continue  # refused by its name
            mixed = with_defaults(BATCH_TRANSFORMS, Component(name=name, arguments=own or {})).get("label_smoothing")
            for number, loss in enumerate(losses.Train):
                if mixed and loss.arguments.get("epsilon"):
                    yield (
                        f"Loss.Train.{number}.{loss.name}.epsilon: {loss.arguments['epsilon']} would smooth labels "
                        f"that {name}.label_smoothing ({mixed}) has smoothed already; give one of the two"
                    )


def _places(losses: Terms, metrics: Terms) -> Iterator[str]:
    """What belongs to training alone, and what to evaluation."""
    for number, loss in enumerate(losses.Eval):
        for name in _OF_TRAINING:
            if loss.arguments.get(name):
                yield f"Loss.Eval.{number}.{loss.name}.{name}: an evaluation counts every image alike; take it out"
    if metrics.Eval and not any(METRICS[metric.name].selects for metric in metrics.Eval):
        able = " or ".join(name for name in METRICS if METRICS[name].selects)
        yield f"Metric.Eval: names no metric that can choose the best model; add {able}"
    for number, metric in enumerate(metrics.Train):
        if METRICS[metric.name].whole:
            yield f"Metric.Train.{number}.{metric.name}: needs a whole split; it belongs in Metric.Eval"
