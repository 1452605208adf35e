"""Components that exist in a configuration only, and what is common to writing and checking all components."""

from __future__ import annotations

import inspect
from typing import Annotated, Any

from pydantic import Field

from ppcls_ext.config.sections import Component, Positive
from ppcls_ext.registry import InputFile, Registry, arguments_of

# What the program, not the configuration, hands to a component.
PROGRAM_ARGUMENTS = {
    "dataset": frozenset({"channels", "num_classes", "class_names", "seed"}),
    "backbone": frozenset({"num_classes", "in_channels"}),
    "optimizer": frozenset({"parameters"}),
    "loss": frozenset({"counts"}),
}

REGULARIZERS = Registry("regularizer")
POSTPROCESSES = Registry("post-processing")


@REGULARIZERS.register("L2")
def l2(coeff: Annotated[float, Field(ge=0)] = 0.0) -> float:
    """Decay of the weights by `coeff` times their value."""
    return coeff


@POSTPROCESSES.register("Topk")
def topk(topk: Positive = 5, class_id_map_file: InputFile | None = None) -> None:
    """The `topk` best classes, named by `class_id_map_file` ("index name" lines)."""


@POSTPROCESSES.register("MultiLabelThreshOutput")
def multi_label(
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5, class_id_map_file: InputFile | None = None
) -> None:
    """Every class whose own probability exceeds `threshold`, for images with several labels."""


def build(table: Registry, component: Component, **program_arguments: Any) -> Any:
    """Make a component from its validated arguments and what the program adds."""
    return table[component.name](**component.arguments, **program_arguments)


def with_defaults(table: Registry, component: Component) -> dict[str, Any]:
    """The arguments of a component, defaults filled in, in the order of its signature."""
    target = table[component.name]
    hidden = PROGRAM_ARGUMENTS.get(table.kind, frozenset())
    parameters = inspect.signature(target).parameters
    return {
        name: component.arguments.get(name, parameters[name].default)
        for name in arguments_of(target, hidden)
        if name in component.arguments or parameters[name].default is not inspect.Parameter.empty
    }
