"""A `Config` -> YAML that `load` reads back, defaults included."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from ppcls_ext import registry
from ppcls_ext.config.components import POSTPROCESSES, REGULARIZERS, with_defaults
from ppcls_ext.config.sections import Component, Config, Split, Terms
from ppcls_ext.registry import Registry


def to_yaml(config: Config) -> str:
    """The resolved whole in PaddleClas's shape."""
    return yaml.safe_dump(_as_written(config), sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _as_written(config: Config) -> dict[str, Any]:
    """The nested mapping in PaddleClas's shape."""

    def named(table: Registry, component: Component) -> dict[str, Any]:
        return {"name": component.name, **with_defaults(table, component)}

    def terms(table: Registry, part: Terms) -> dict[str, Any]:
        return {key: [{c.name: with_defaults(table, c)} for c in getattr(part, key)] for key in ("Train", "Eval")}

    def split(part: Split) -> dict[str, Any]:
        return {
            "dataset": named(registry.DATASETS, part.dataset),
            "sampler": named(registry.SAMPLERS, part.sampler),
            "loader": part.loader.model_dump(),
        }

    arch = Component(name=config.Arch.name, arguments=config.Arch.arguments)
    distill = None
    if config.Distill is not None:
        distill = config.Distill.model_dump() | {"teacher": named(registry.BACKBONES, config.Distill.teacher)}
    written: dict[str, Any] = {
        "Global": config.Global.model_dump(),
        "AMP": config.AMP.model_dump(),
        "EMA": config.EMA.model_dump() if config.EMA else None,
        "Arch": {**config.Arch.model_dump(exclude={"arguments"}), **with_defaults(registry.BACKBONES, arch)},
        "Freeze": config.Freeze.model_dump(),
        "Distill": distill,
        "Loss": terms(registry.LOSSES, config.Loss),
    }
    if config.Optimizer is not None:
        optimizer = config.Optimizer
        own = with_defaults(registry.OPTIMIZERS, Component(name=optimizer.name, arguments=optimizer.arguments))
        if optimizer.regularizer is not None:
            own.pop("weight_decay", None)
        written["Optimizer"] = {
            **optimizer.model_dump(exclude={"arguments", "lr", "regularizer"}),
            **own,
            "lr": named(registry.SCHEDULES, optimizer.lr),
            "regularizer": named(REGULARIZERS, optimizer.regularizer) if optimizer.regularizer else None,
        }
    splits = {"Train": config.DataLoader.Train, "Eval": config.DataLoader.Eval}
    written["DataLoader"] = {name: split(part) for name, part in splits.items() if part is not None}
    written["Infer"] = {
        **config.Infer.model_dump(exclude={"PostProcess"}),
        "PostProcess": named(POSTPROCESSES, config.Infer.PostProcess),
    }
    written["Metric"] = terms(registry.METRICS, config.Metric)
    return _plain(written)


# What may change within a run without a word: it moves no number.
_FREE = (
    *("Global.checkpoints", "Global.output_dir", "Global.pretrained_model"),
    *("DataLoader.Train.loader.", "DataLoader.Eval.loader."),
)


def differences(before: str | None, now: str) -> list[str]:
    """What a resolved configuration (YAML) has otherwise than one before: ["Global.epochs: 3, was 2"]."""
    if before is None:
        return []
    old, new = (dict(_leaves(yaml.safe_load(text))) for text in (before, now))
    return [
        f"{place}: {new.get(place, 'not there')}, was {old.get(place, 'not there')}"
        for place in [*new, *(place for place in old if place not in new)]
        if new.get(place) != old.get(place) and not place.startswith(_FREE)
    ]


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if not entries:
        yield place, value
        return
    for key, inner in entries:
        yield from _leaves(inner, f"{place}.{key}" if place else str(key))
