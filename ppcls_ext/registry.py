"""One small registry: a table of named components, and the check of YAML arguments against their signatures.

A component's signature is its schema. `check_arguments` compares the arguments of a configuration with names and
annotations before anything is built, and reports every mistake with its place.
"""

from __future__ import annotations

import functools
import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError

from ppcls_ext.errors import Refused, did_you_mean

# Annotations for arguments that name something on the disk; `ppcls_ext.config` checks that it exists.
InputFile = Annotated[str, "input file"]
InputFolder = Annotated[str, "input folder"]

_RATIO = re.compile(r"^\s*([-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*/\s*([-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*$")


class Registry:
    """Named components of one kind: `@TABLE.register("Name")` enters one, `TABLE["Name"]` finds it."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._table: dict[str, Callable[..., Any]] = {}

    def register(self, name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Decorator that enters a class or function under `name`; a name is taken once."""

        def enter(component: Callable[..., Any]) -> Callable[..., Any]:
            if name in self._table:
                raise KeyError(f"{self.kind} '{name}' is registered twice")
            self._table[name] = component
            return component

        return enter

    def __getitem__(self, name: str) -> Callable[..., Any]:
        if name not in self._table:
            raise Refused(f"Unknown {self.kind} '{name}'. {did_you_mean(name, self._table)}")
        return self._table[name]

    def __contains__(self, name: object) -> bool:
        return name in self._table

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._table))

    def __len__(self) -> int:
        return len(self._table)


BACKBONES = Registry("backbone")
LOSSES = Registry("loss")
TRANSFORMS = Registry("transform")
BATCH_TRANSFORMS = Registry("batch transform")
DATASETS = Registry("dataset")
SAMPLERS = Registry("sampler")
OPTIMIZERS = Registry("optimizer")
SCHEDULES = Registry("learning-rate schedule")
METRICS = Registry("metric")


def parse_ratio(value: Any) -> Any:
    """'1.0/255.0' -> 0.00392...; everything else is returned as it is. Lists are searched through."""
    if isinstance(value, list):
        return [parse_ratio(item) for item in value]
    match = _RATIO.match(value) if isinstance(value, str) else None
    if match is None:
        return value
    try:
        ratio = float(match[1]) / float(match[2])
    except (ValueError, ZeroDivisionError):
        return value
    return ratio if math.isfinite(ratio) else value


@functools.cache
def _signature(component: Callable[..., Any]) -> tuple[inspect.Signature, dict[str, Any]]:
    target = component.__init__ if inspect.isclass(component) else component
    return inspect.signature(component), typing.get_type_hints(target, include_extras=True)


def arguments_of(component: Callable[..., Any], hidden: frozenset[str] = frozenset()) -> dict[str, Any]:
    """The arguments that a configuration may give, with their annotations; `hidden` ones come from the program."""
    signature, hints = _signature(component)
    return {name: hints.get(name, Any) for name in signature.parameters if name not in hidden}


def check_value(annotation: Any, value: Any, place: str) -> tuple[Any, list[str]]:
    """Convert `value` to `annotation`, or say what is wrong with it: (converted value, problems)."""
    if isinstance(value, bool) and bool not in _kinds(annotation) and Any not in _kinds(annotation):
        return value, [f"{place}: expected {_name_of(annotation)}, got {value!r}"]
    adapter = TypeAdapter(annotation)
    for candidate in (value, parse_ratio(value)):
        try:
            converted = adapter.validate_python(candidate)
        except ValidationError as error:
            first = error.errors()[0]
        else:
            endless = [number for number in _numbers(converted) if not math.isfinite(number)]
            return converted, [f"{place}: expected a finite number, got {number}" for number in endless[:1]]
    inner = "".join(f".{part}" for part in first["loc"] if isinstance(part, int))
    given = repr(first["input"])
    given = given if len(given) < 80 else given[:77] + "..."
    out_of_range = first["type"].startswith(("greater_than", "less_than"))
    expected = first["msg"].removeprefix("Input should be ") if out_of_range else _name_of(annotation)
    return value, [f"{place}{inner}: expected {expected}, got {given}"]


def _numbers(value: Any) -> Iterator[float]:
    """The floating-point numbers of a value, those in lists too."""
    if isinstance(value, float):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _numbers(item)


def _kinds(annotation: Any) -> set[Any]:
    """The plain types that an annotation admits: Annotated[int, ...] | None -> {int, NoneType}."""
    if typing.get_origin(annotation) is Annotated:
        return _kinds(annotation.__origin__)
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return set().union(*(_kinds(choice) for choice in typing.get_args(annotation)))
    if typing.get_origin(annotation) is typing.Literal:
        return {type(choice) for choice in typing.get_args(annotation)}
    return {typing.get_origin(annotation) or annotation}


def _name_of(annotation: Any) -> str:
    if typing.get_origin(annotation) is Annotated:
        named = [note for note in annotation.__metadata__ if isinstance(note, str)]
        return named[0] if named else _name_of(annotation.__origin__)
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return " or ".join(_name_of(choice) for choice in typing.get_args(annotation))
    if annotation is types.NoneType:
        return "nothing"
    if typing.get_origin(annotation) is typing.Literal:
        choices = [repr(choice) for choice in typing.get_args(annotation)]
        return choices[0] if len(choices) == 1 else "one of " + ", ".join(choices)
    if typing.get_origin(annotation) is list and typing.get_args(annotation):
        return f"list of {_name_of(typing.get_args(annotation)[0])}"
    if isinstance(annotation, type) and typing.get_origin(annotation) is None:
        return annotation.__name__
    return re.sub(r"\b(typing|collections\.abc)\.", "", str(annotation)).replace("NoneType", "None")


def check_arguments(
    component: Callable[..., Any],
    arguments: dict[str, Any],
    place: str,
    hidden: frozenset[str] = frozenset(),
    also: Iterable[str] = (),
) -> tuple[dict[str, Any], list[str]]:
    """Bind `arguments` to the signature of `component` without calling it.

    Returns the converted arguments and a list of problems, each with its place: unknown names (with the nearest known
    one), missing ones, and values of a wrong type. `hidden` names are given by the program, not by a configuration;
    `also` are names that may stand beside the component's own, and that a misspelt one may have meant.
    """
    signature, _ = _signature(component)
    known = arguments_of(component, hidden)
    converted: dict[str, Any] = {}
    problems: list[str] = []
    for name, value in arguments.items():
        if name not in known:
            problems.append(f"{place}.{name}: unknown argument. {did_you_mean(name, known, also)}")
            continue
        converted[name], wrong = check_value(known[name], value, f"{place}.{name}")
        problems += wrong
    for name, parameter in signature.parameters.items():
        if name in known and parameter.default is inspect.Parameter.empty and name not in arguments:
            problems.append(f"{place}.{name}: missing; expected {_name_of(known[name])}")
    return converted, problems
