"""A configuration's list of operators, checked, and made into one function from bytes to a network's input."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from ppcls_ext.errors import Refused, refuse_all
from ppcls_ext.registry import TRANSFORMS, check_arguments
from ppcls_ext.transforms.color import IMAGENET_MEAN, NormalizeImage, ToCHWImage
from ppcls_ext.transforms.flow import Flow


class Transform(Protocol):
    """An operator: a dataclass named as it is registered, whose fields are its arguments.

    It is called with an image, and with a generator if `random`. Derived attributes are set in `__post_init__`.
    """

    random: bool
    __call__: Callable[..., Any]

    def flow(self, before: Flow) -> Flow: ...


class Pipeline:
    """Encoded bytes (or a decoded RGB array) -> float32 (C, H, W), C-contiguous.

    `random` says whether calls need a generator; `output_shape` is (C, H, W), with None for what depends on the image.
    """

    def __init__(self, operators: list[Transform], output: Flow) -> None:
        self.operators = operators
        self.random = any(operator.random for operator in operators)
        self.output_shape = (output.channels, output.height, output.width)
        self._steps = _steps(operators)

    def __call__(self, encoded: bytes | np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
        if rng is None and self.random:
            names = ", ".join(type(operator).__name__ for operator in self.operators if operator.random)
            raise ValueError(f"{names}: random; call with a generator, for example np.random.default_rng(0)")
        image: Any = encoded
        for step, random in self._steps:
            image = step(image, rng) if random else step(image)
        return image if image.dtype == np.float32 else image.astype(np.float32)

    def to_config(self) -> list[dict[str, dict[str, Any] | None]]:
        """The list with every argument resolved, in plain YAML types: it builds the same pipeline."""
        return [{type(operator).__name__: dataclasses.asdict(operator) or None} for operator in self.operators]


def _steps(operators: list[Transform]) -> list[tuple[Callable[..., Any], bool]]:
    """The calls to make, and whether each takes a generator. Two neighbours that can share work make one step."""
    steps: list[tuple[Callable[..., Any], bool]] = []
    for before, operator, after in zip([None, *operators], operators, [*operators[1:], None]):
        if isinstance(operator, NormalizeImage) and isinstance(after, ToCHWImage):
            steps.append((operator.to_chw, False))
        elif not (isinstance(operator, ToCHWImage) and isinstance(before, NormalizeImage)):
            steps.append((operator, operator.random))
    return steps


def build_transforms(ops: list[dict[str, dict[str, Any] | None]], channels: int = 3) -> Pipeline:
    """The pipeline of a list of one-key operators; `channels` is what the network takes, DecodeImage's default.

    An image leaves as (C, H, W) whether or not the list ends with ToCHWImage. Raises `Refused` with every mistake.
    """
    operators, flow, problems = _build(ops, "transform_ops", channels)
    refuse_all("transform_ops", problems)
    return Pipeline(operators, flow)


def check_transforms(ops: Any, place: str, channels: int) -> list[str]:
    """What is wrong with a list of operators for a network that takes `channels`: each mistake with its place."""
    _, flow, problems = _build(ops, place, channels)
    if not problems and flow.channels != channels:
        problems.append(
            f"{place}: images end with {flow.channels} channel(s) (DecodeImage.channels, NormalizeImage.channel_num), "
            f"but the network takes {channels} (Arch.in_channels)"
        )
    return problems


def _build(ops: Any, place: str, channels: int) -> tuple[list[Transform], Flow, list[str]]:
    """(operators, what follows the last one, problems); operators and flow are whole if there are no problems."""
    flow = Flow(channels=channels)
    if not isinstance(ops, list) or not ops:
        return [], flow, [f"{place}: expected a list of operators, the first of them DecodeImage, got {ops!r}"]
    operators: list[Transform] = []
    problems: list[str] = []
    for i, op in enumerate(ops):
        operator, wrong = _operator(op, f"{place}.{i}", _decoded_channels(ops, channels))
        problems += wrong
        if operator is None:
            continue
        if not problems:  # past a mistake the flow is not known
            try:
                flow, operator = _placed(operator, flow)
            except Refused as error:
                problems.append(_at(f"{place}.{i}.{type(operator).__name__}", error))
        operators.append(operator)
    if not problems and flow.layout == "hwc":
        operators.append(ToCHWImage())
        flow = operators[-1].flow(flow)
    return operators, flow, problems


def _decoded_channels(ops: list[Any], channels: int) -> int:
    """What DecodeImage gives by default: the network's channels less those that NormalizeImage adds."""
    for op in ops:
        arguments = op.get("NormalizeImage") if isinstance(op, dict) else None
        if isinstance(arguments, dict) and arguments.get("channel_num") == channels == 4:
            mean = arguments.get("mean")
            return len(mean) if isinstance(mean, list) else len(IMAGENET_MEAN)
    return channels


def _placed(operator: Transform, before: Flow) -> tuple[Flow, Transform]:
    """What follows the operator, and the operator with what its place decides."""
    after = operator.flow(before)
    if getattr(operator, "order", "") is None:
        operator = dataclasses.replace(operator, order=before.layout)
    return after, operator


def _operator(op: Any, place: str, channels: int) -> tuple[Transform | None, list[str]]:
    """One entry of the list, made; or what is wrong with it."""
    if isinstance(op, str):
        return None, [f"{place}: expected an operator with its arguments, got {op!r}; write '{op}:'"]
    if not isinstance(op, dict) or not op:
        return None, [f"{place}: expected one operator, as 'Name: {{argument: value}}', got {op!r}"]
    if len(op) > 1:
        names = ", ".join(map(str, op))
        return None, [f"{place}: expected one operator, got {names}; indent arguments deeper than their operator"]
    [(name, arguments)] = op.items()
    try:
        component = TRANSFORMS[name]
    except Refused as error:
        return None, [f"{place}: {error}"]
    if arguments is not None and not isinstance(arguments, dict):
        return None, [f"{place}.{name}: expected arguments as 'name: value', got {arguments!r}"]
    converted, problems = check_arguments(component, arguments or {}, f"{place}.{name}")
    if problems:
        return None, problems
    if name == "DecodeImage" and converted.get("channels") is None:
        converted["channels"] = channels
    try:
        return component(**converted), []
    except Refused as error:
        return None, [_at(f"{place}.{name}", error)]


def _at(place: str, error: Refused) -> str:
    """'place.argument: what' or 'place: what'; an operator's message opens with the argument if it is about one."""
    return f"{place}.{error}" if re.match(r"\w+: ", str(error)) else f"{place}: {error}"
