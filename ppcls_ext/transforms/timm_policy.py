"""TimmAutoAugment: the policies that timm writes as one string, 'rand-m9-mstd0.5-inc1'."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from PIL import Image

from ppcls_ext.errors import Refused
from ppcls_ext.registry import TRANSFORMS
from ppcls_ext.transforms.augmix import mix_chains
from ppcls_ext.transforms.color import IMAGENET_MEAN
from ppcls_ext.transforms.flow import Flow
from ppcls_ext.transforms.geometry import interpolation_code, pixels_of, to_picture
from ppcls_ext.transforms.pictures import Canvas
from ppcls_ext.transforms.policies import (
    IMAGENET_POLICY,
    WITHOUT_STRENGTH,
    Space,
    enhancing,
    need_grey_or_colour,
    perform,
)

# 'inc0': brightness and its like from 0.1 to 1.9, in one direction; posterize and solarize grow weaker.
LEVELS: Space = {
    **WITHOUT_STRENGTH,
    "rotate": (lambda share: 30 * share, True),
    "posterize": (lambda share: 8 - int(4 * share), False),
    "solarize": (lambda share: 256 - int(256 * share), False),
    "solarize_add": (lambda share: int(110 * share), False),
    **{name: (lambda share: 1.8 * share - 0.9, False) for name in enhancing(0.9)},
    "shear_x": (lambda share: 0.3 * share, True),
    "shear_y": (lambda share: 0.3 * share, True),
    "translate_x": (lambda share: 0.45 * share, True),
    "translate_y": (lambda share: 0.45 * share, True),
}
INCREASING: Space = {
    **LEVELS,
    **enhancing(0.9),
    "posterize": (lambda share: 4 + int(4 * share), False),
    "solarize": (lambda share: int(256 * share), False),
}
# Neither inverts nor adds; translates less.
MIXING: Space = {
    **{name: level for name, level in INCREASING.items() if name not in ("invert", "solarize_add")},
    "translate_x": (lambda share: 0.3 * share, True),
    "translate_y": (lambda share: 0.3 * share, True),
}
# 'original' posterizes less with the magnitude, 'originalr' more.
ORIGINAL: Space = {**LEVELS, "posterize": (lambda share: 4 - int(4 * share), False)}
ORIGINAL_INCREASING: Space = {**LEVELS, "posterize": (lambda share: 4 + int(4 * share), False)}

# 'w0': how often each is drawn.
WEIGHTS = {
    "rotate": 0.3,
    "shear_x": 0.2,
    "shear_y": 0.2,
    "translate_x": 0.1,
    "translate_y": 0.1,
    "color": 0.025,
    "sharpness": 0.025,
    "auto_contrast": 0.025,
    "solarize": 0.005,
    "solarize_add": 0.005,
    "contrast": 0.005,
    "brightness": 0.005,
    "equalize": 0.005,
}

UNIFORM = 100  # a standard deviation above this means a magnitude from 0 to m, all alike
# kind -> {letters: default}
_SECTIONS: dict[str, dict[str, float]] = {
    "rand": {"m": 10, "n": 2, "mstd": 0, "inc": 0, "w": -1, "p": 0.5},
    "augmix": {"m": 3, "w": 3, "d": -1, "a": 1, "mstd": math.inf},
    "original": {"mstd": 0},
    "originalr": {"mstd": 0},
}


def parse_policy(text: str) -> tuple[str, dict[str, float]]:
    """'rand-m9-inc1' -> ("rand", {"m": 9, "inc": 1, "n": 2, ...}), with timm's defaults."""
    kind, *sections = text.split("-")
    if kind not in _SECTIONS:
        raise Refused(f"config_str: expected it to begin with one of {', '.join(_SECTIONS)}, got {text!r}")
    values = dict(_SECTIONS[kind])
    given = set()
    for section in sections:
        found = re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?)", section)
        if found is None or found[1] not in values:
            known = ", ".join(f"{letters}<number>" for letters in values)
            raise Refused(f"config_str: {section!r} in {text!r} is not one of {known}")
        if found[1] in given:
            raise Refused(f"config_str: {text!r} gives {found[1]} twice")
        given.add(found[1])
        values[found[1]] = float(found[2])
        if found[1] in ("n", "w", "d") and "." in found[2]:
            raise Refused(f"config_str: expected a whole number in {section!r}, got {text!r}")
    if kind == "rand" and values["mstd"] > UNIFORM:
        values["mstd"] = math.inf
    if not 0 <= values.get("m", 0) <= 10 or values.get("n", 1) < 1 or not 0 <= values.get("p", 0) <= 1:
        raise Refused(f"config_str: expected m from 0 to 10, n of at least 1 and p from 0 to 1, got {text!r}")
    if kind == "augmix" and not (values["w"] >= 1 and values["d"] != 0 and values["a"] > 0):
        raise Refused(f"config_str: expected w and d of at least 1 and a above 0, got {text!r}")
    if kind == "rand" and (values["w"] not in (-1, 0) or (values["w"] == 0 and values["n"] > len(WEIGHTS))):
        raise Refused(f"config_str: the one table of weights is w0, for up to {len(WEIGHTS)} operations, got {text!r}")
    return kind, values


@TRANSFORMS.register("TimmAutoAugment")
@dataclass
class TimmAutoAugment:
    """timm's policies: `rand` (RandAugment), `augmix`, `original` and `originalr` (AutoAugment).

    rand: m magnitude 0 to 10, n operations, mstd its standard deviation from one to the next (above 100: uniform from
    0 to m), inc1 ranges that grow with m, w0 weighted choice, p the probability of each operation (0.5). augmix: m, w
    width, d depth, a alpha; without mstd the magnitude is uniform from 0 to m.
    `mean` (ImageNet's) fills what is beyond the edges; `img_size` is PaddleClas's; shares of a side need none.
    """

    config_str: str = "rand-m9-mstd0.5-inc1"
    interpolation: str | int = "bicubic"
    img_size: int | list[int] = 224
    mean: list[float] | None = None

    random: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._kind, self._values = parse_policy(self.config_str)
        self.mean = list(IMAGENET_MEAN if self.mean is None else self.mean)
        if len(self.mean) not in (1, 3) or not all(0 <= value <= 1 for value in self.mean):
            raise Refused(f"mean: expected one or three numbers from 0 to 1, got {self.mean}")
        fill = tuple(min(255, round(255 * value)) for value in self.mean)
        names = ("bilinear", "bicubic") if self.interpolation == "random" else (self.interpolation,)
        self._canvases = [Canvas(interpolation_code(name, "pil"), fill) for name in names]
        increasing = self._values.get("inc", 0) > 0
        self._space = {
            "rand": INCREASING if increasing else LEVELS,
            "augmix": MIXING,
            "original": ORIGINAL,
            "originalr": ORIGINAL_INCREASING,
        }[self._kind]
        self._names = list(self._space)
        weights = np.array([WEIGHTS.get(name, 0.0) for name in self._names])
        self._weights = weights / weights.sum() if self._values.get("w") == 0 and self._kind == "rand" else None

    def flow(self, before: Flow) -> Flow:
        need_grey_or_colour(before)
        return before

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        values = self._values
        if self._kind == "augmix":

            def operate(picture: Image.Image) -> Image.Image:
                return self._one(picture, self._names[rng.integers(len(self._names))], 1.0, values["m"], rng)

            return mix_chains(image, operate, int(values["w"]), int(values["d"]), values["a"], rng)
        picture = to_picture(image)
        if self._kind == "rand":
            chosen = rng.choice(len(self._names), int(values["n"]), replace=self._weights is None, p=self._weights)
            steps = [(self._names[number], values["p"], values["m"]) for number in chosen.tolist()]
        else:
            chosen = IMAGENET_POLICY[rng.integers(len(IMAGENET_POLICY))]
            steps = [(name, probability, 9 * share) for name, probability, share in chosen]
        for name, probability, magnitude in steps:
            picture = self._one(picture, name, probability, magnitude, rng)
        return pixels_of(picture)

    def _one(
        self, picture: Image.Image, name: str, probability: float, magnitude: float, rng: np.random.Generator
    ) -> Image.Image:
        if probability < 1 and rng.random() >= probability:
            return picture
        if self._values["mstd"] == math.inf:
            magnitude = rng.uniform(0, magnitude)
        elif self._values["mstd"]:
            magnitude = rng.normal(magnitude, self._values["mstd"])
        canvas = self._canvases[rng.integers(len(self._canvases)) if len(self._canvases) > 1 else 0]
        return perform(picture, name, min(max(magnitude, 0.0), 10.0) / 10, self._space, canvas, rng)
