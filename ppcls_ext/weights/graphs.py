"""Choices of a network that its tensors do not show: weights may fit by every name and shape, and be wrong.

A network that has such choices names them in its attribute `graph`: {"padding": "same", "strides": [1, 2, ...]} of an
EfficientNet. They are compared, once every tensor has its place, with what the file says of itself (what it does not
name is not compared), or with what the project always does whose names the file has. timm's names
say nothing; there the count of training steps that PyTorch's batch norms keep does: weights that were converted from
TensorFlow (timm's tf_ networks, padding="same") have made none, those that were trained in PyTorch have.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from paddle import nn

from ppcls_ext.errors import Refused
from ppcls_ext.weights.files import Weights
from ppcls_ext.weights.layer_names import Rule
from ppcls_ext.weights.pytorch import COUNTER


def graph_of(model: nn.Layer) -> dict[str, Any]:
    """The choices that leave no trace in the tensors, in JSON's types: {} for most networks."""
    return dict(model.graph) if hasattr(model, "graph") else {}


def doubts_about_graph(model: nn.Layer, stored: Weights, rule: Rule | None, strict: bool) -> list[str]:
    """What is to be told. If the file is certainly of another graph, `Refused`, or with strict=False a warning."""
    graph = graph_of(model)
    said = stored.metadata.get("graph")
    source = "it says so"
    if not isinstance(said, Mapping):
        said, source = ({}, "") if rule is None else (rule.graph, f"its names are {rule.project}'s")
    wrong = [name for name in graph if name in said and said[name] != graph[name]]
    if wrong:
        name = wrong[0]
        text = (
            f"{stored.path} was trained with {name}={said[name]!r} ({source}), the network has {name}={graph[name]!r}: "
            f"it would load and answer wrongly. Build it with {name}={said[name]!r} "
            f"(-o Arch.{name}={said[name]})"
        )
        if strict:
            raise Refused(f"{text}.")
        return [f"WARNING: {text}"]
    if "padding" in graph and "padding" not in said:
        return _doubt_about_padding(graph["padding"], stored)
    return []


def _doubt_about_padding(padding: str, stored: Weights) -> list[str]:
    counters = [array for name, array in stored.tensors.items() if name.rpartition(".")[2] == COUNTER]
    if not counters:
        return []
    likely = "symmetric" if any(np.any(array) for array in counters) else "same"
    if likely == padding:
        return []
    origin = (
        "was trained in PyTorch, as timm's efficientnet_* with padding='symmetric' were"
        if likely == "symmetric"
        else "has made no training step in PyTorch, as timm's tf_efficientnet_* with padding='same'"
    )
    return [
        f"WARNING: {stored.path.name} {origin}; the network has padding={padding!r}. Names and shapes are the same for "
        f"both: if the answers are poor, build it with padding={likely!r} (-o Arch.padding={likely})"
    ]
