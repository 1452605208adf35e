"""The losses and metrics of a run, as its configuration and its data ask for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ppcls_ext import config as configuration
from ppcls_ext.config import Component, Config, Split
from ppcls_ext.errors import Refused
from ppcls_ext.losses import count_labels
from ppcls_ext.registry import DATASETS, LOSSES, METRICS, Registry, arguments_of


def has_several_labels(split: Split | None) -> bool:
    """Whether an image of the split may have several labels."""
    return split is not None and DATASETS[split.dataset.name].several_labels


def named(table: Registry, components: list[Component], **program_arguments: Any) -> dict[str, Callable]:
    """{"CELoss": the loss}; a second one of a name is numbered. Each gets those program arguments that it takes."""
    made: dict[str, Callable] = {}
    for component in components:
        name = component.name if component.name not in made else f"{component.name}_{len(made) + 1}"
        known = arguments_of(table[component.name])
        taken = {key: value for key, value in program_arguments.items() if key in known}
        made[name] = configuration.build(table, component, **taken)
    return made


def train_losses(config: Config, dataset: Any) -> dict[str, Callable]:
    """The losses of training; class weights come from the split's labels."""
    try:
        return named(LOSSES, config.Loss.Train, counts=count_labels(dataset.labels, dataset.num_classes))
    except Refused as error:
        raise Refused(f"Loss.Train: {error}") from error


def eval_losses(config: Config) -> dict[str, Callable]:
    """The losses of evaluation; plain cross entropy where none is named, of each class where an image has several."""
    default = Component(name="MultiLabelLoss" if has_several_labels(config.DataLoader.Eval) else "CELoss")
    return named(LOSSES, config.Loss.Eval or [default])


def eval_metrics(config: Config) -> list[Callable]:
    """The metrics of evaluation; top-1 and top-5 where none is named, mAP where an image has several labels."""
    default = Component(name="MultiLabelMAP" if has_several_labels(config.DataLoader.Eval) else "TopkAcc")
    return list(named(METRICS, config.Metric.Eval or [default]).values())


def selection_metric(config: Config) -> str:
    """The number that decides which model is best: the first of the first metric that is better when it is larger."""
    return next(metric.names()[0] for metric in eval_metrics(config) if metric.selects)


def train_metrics(config: Config) -> list[Callable]:
    """The metrics of training; top-1 and top-5 where none is named, and nothing where an image has several labels."""
    if not config.Metric.Train and has_several_labels(config.DataLoader.Train):
        return []
    return list(named(METRICS, config.Metric.Train or [Component(name="TopkAcc")]).values())
