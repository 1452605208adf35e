"""Augmentation policies on 8-bit images: AutoAugment, RandAugment, TrivialAugment.

A policy draws operations of `pictures.py` and how strong they are. What a share of the strongest, 0 to 1, comes to is
its `Space`: the policies agree on the operations and differ in their ranges.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from PIL import Image

from ppcls_ext.errors import Refused
from ppcls_ext.registry import TRANSFORMS
from ppcls_ext.transforms.flow import Flow
from ppcls_ext.transforms.geometry import interpolation_code, pixels_of, to_picture
from ppcls_ext.transforms.pictures import OPERATIONS, Canvas

# operation -> (strength of a share of the strongest, whether it also goes the other way)
Space = dict[str, tuple[Callable[[float], float], bool]]
Step = tuple[str, float, float]  # operation, probability, share of the strongest


def _ninth(*steps: tuple[str, float, int]) -> tuple[Step, ...]:
    """Sub-policies are published with magnitudes 0 to 9."""
    return tuple((name, probability, magnitude / 9) for name, probability, magnitude in steps)


# Cubuk et al., AutoAugment, arXiv 1805.09501, tables 9 (ImageNet) and 7 (CIFAR-10); a magnitude of 0 stands where the
# operation has none.
IMAGENET_POLICY: tuple[tuple[Step, ...], ...] = (
    _ninth(("posterize", 0.4, 8), ("rotate", 0.6, 9)),
    _ninth(("solarize", 0.6, 5), ("auto_contrast", 0.6, 0)),
    _ninth(("equalize", 0.8, 0), ("equalize", 0.6, 0)),
    _ninth(("posterize", 0.6, 7), ("posterize", 0.6, 6)),
    _ninth(("equalize", 0.4, 0), ("solarize", 0.2, 4)),
    _ninth(("equalize", 0.4, 0), ("rotate", 0.8, 8)),
    _ninth(("solarize", 0.6, 3), ("equalize", 0.6, 0)),
    _ninth(("posterize", 0.8, 5), ("equalize", 1.0, 0)),
    _ninth(("rotate", 0.2, 3), ("solarize", 0.6, 8)),
    _ninth(("equalize", 0.6, 0), ("posterize", 0.4, 6)),
    _ninth(("rotate", 0.8, 8), ("color", 0.4, 0)),
    _ninth(("rotate", 0.4, 9), ("equalize", 0.6, 0)),
    _ninth(("equalize", 0.0, 0), ("equalize", 0.8, 0)),
    _ninth(("invert", 0.6, 0), ("equalize", 1.0, 0)),
    _ninth(("color", 0.6, 4), ("contrast", 1.0, 8)),
    _ninth(("rotate", 0.8, 8), ("color", 1.0, 2)),
    _ninth(("color", 0.8, 8), ("solarize", 0.8, 7)),
    _ninth(("sharpness", 0.4, 7), ("invert", 0.6, 0)),
    _ninth(("shear_x", 0.6, 5), ("equalize", 1.0, 0)),
    _ninth(("color", 0.4, 0), ("equalize", 0.6, 0)),
    _ninth(("equalize", 0.4, 0), ("solarize", 0.2, 4)),
    _ninth(("solarize", 0.6, 5), ("auto_contrast", 0.6, 0)),
    _ninth(("invert", 0.6, 0), ("equalize", 1.0, 0)),
    _ninth(("color", 0.6, 4), ("contrast", 1.0, 8)),
    _ninth(("equalize", 0.8, 0), ("equalize", 0.6, 0)),
)
CIFAR10_POLICY: tuple[tuple[Step, ...], ...] = (
    _ninth(("invert", 0.1, 0), ("contrast", 0.2, 6)),
    _ninth(("rotate", 0.7, 2), ("translate_x", 0.3, 9)),
    _ninth(("sharpness", 0.8, 1), ("sharpness", 0.9, 3)),
    _ninth(("shear_y", 0.5, 8), ("translate_y", 0.7, 9)),
    _ninth(("auto_contrast", 0.5, 0), ("equalize", 0.9, 0)),
    _ninth(("shear_y", 0.2, 7), ("posterize", 0.3, 7)),
    _ninth(("color", 0.4, 3), ("brightness", 0.6, 7)),
    _ninth(("sharpness", 0.3, 9), ("brightness", 0.7, 9)),
    _ninth(("equalize", 0.6, 0), ("equalize", 0.5, 0)),
    _ninth(("contrast", 0.6, 7), ("sharpness", 0.6, 5)),
    _ninth(("color", 0.7, 7), ("translate_x", 0.5, 8)),
    _ninth(("equalize", 0.3, 0), ("auto_contrast", 0.4, 0)),
    _ninth(("translate_y", 0.4, 3), ("sharpness", 0.2, 6)),
    _ninth(("brightness", 0.9, 6), ("color", 0.2, 8)),
    _ninth(("solarize", 0.5, 2), ("invert", 0.0, 0)),
    _ninth(("equalize", 0.2, 0), ("auto_contrast", 0.6, 0)),
    _ninth(("equalize", 0.2, 0), ("equalize", 0.6, 0)),
    _ninth(("color", 0.9, 9), ("equalize", 0.6, 0)),
    _ninth(("auto_contrast", 0.8, 0), ("solarize", 0.2, 8)),
    _ninth(("brightness", 0.1, 3), ("color", 0.7, 0)),
    _ninth(("solarize", 0.4, 5), ("auto_contrast", 0.9, 0)),
    _ninth(("translate_y", 0.9, 9), ("translate_y", 0.7, 9)),
    _ninth(("auto_contrast", 0.9, 0), ("solarize", 0.8, 3)),
    _ninth(("equalize", 0.8, 0), ("invert", 0.1, 0)),
    _ninth(("translate_y", 0.7, 9), ("auto_contrast", 0.9, 0)),
)


def enhancing(strongest: float) -> Space:
    """Brightness, contrast, colour and sharpness up to 1 +- `strongest`."""
    names = ("brightness", "contrast", "color", "sharpness")
    return {name: (lambda share: strongest * share, True) for name in names}


WITHOUT_STRENGTH: Space = {name: (lambda share: 0.0, False) for name in ("auto_contrast", "equalize", "invert")}

AUTO_AUGMENT: Space = {
    "shear_x": (lambda share: 0.3 * share, True),
    "shear_y": (lambda share: 0.3 * share, True),
    "translate_x": (lambda share: 150 / 331 * share, True),
    "translate_y": (lambda share: 150 / 331 * share, True),
    "rotate": (lambda share: 30 * share, True),
    **enhancing(0.9),
    "posterize": (lambda share: round(4 * share), False),
    "solarize": (lambda share: 256 * share, False),
    **WITHOUT_STRENGTH,
}

# As PaddleClas has it, after the TPU reference: these two grow WEAKER with the magnitude.
RAND_AUGMENT: Space = {
    **AUTO_AUGMENT,
    "posterize": (lambda share: 8 - int(4 * share), False),
    "solarize": (lambda share: 256 * (1 - share), False),
}

# Mueller and Hutter, TrivialAugment, arXiv 2103.10158, table 2 (Wide), whose identity does nothing.
TRIVIAL_WIDE: Space = {
    "shear_x": (lambda share: 0.99 * share, True),
    "shear_y": (lambda share: 0.99 * share, True),
    "shift_x": (lambda share: 32 * share, True),
    "shift_y": (lambda share: 32 * share, True),
    "rotate": (lambda share: 135 * share, True),
    **enhancing(0.99),
    "posterize": (lambda share: round(6 * share), False),
    "solarize": (lambda share: 256 * share, False),
    "auto_contrast": (lambda share: 0.0, False),
    "equalize": (lambda share: 0.0, False),
}


def perform(
    picture: Image.Image, name: str, share: float, space: Space, canvas: Canvas, rng: np.random.Generator
) -> Image.Image:
    """The operation `name` at a share of its strongest; its direction is drawn."""
    strength, signed = space[name]
    value = strength(share)
    if signed and rng.random() < 0.5:
        value = -value
    return OPERATIONS[name](picture, value, canvas)


def canvas_of(fillcolor: int | list[int], interpolation: str | int, argument: str = "fillcolor") -> Canvas:
    """The canvas that arguments of a configuration describe."""
    fill = fill_of(fillcolor, argument)
    return Canvas(interpolation_code(interpolation, "pil"), fill)


def fill_of(fillcolor: int | list[int], argument: str) -> tuple[int, ...]:
    """One grey for all channels, or three numbers."""
    fill = (fillcolor,) if isinstance(fillcolor, int) else tuple(fillcolor)
    if len(fill) not in (1, 3) or not all(0 <= value <= 255 for value in fill):
        raise Refused(f"{argument}: expected one or three numbers from 0 to 255, got {fillcolor}")
    return fill


def need_grey_or_colour(before: Flow) -> None:
    """Refuse images that Pillow has no operations for."""
    before.need_pixels()
    if before.channels not in (1, 3):
        raise Refused(f"works on images of 1 or 3 channels, but they have {before.channels} here")


def need_whole(argument: str, value: float, smallest: int = 1) -> None:
    """Refuse a number below `smallest`."""
    if value < smallest:
        raise Refused(f"{argument}: expected at least {smallest}, got {value}")


@TRANSFORMS.register("AutoAugment")
@TRANSFORMS.register("ImageNetPolicy")
@dataclass
class AutoAugment:
    """One of 25 learned pairs of operations, each with its probability (Cubuk et al., arXiv 1805.09501).

    Moved and turned pictures go either way, as in the paper; PaddleClas turns one way only.
    """

    fillcolor: int | list[int] = 128
    policy: Literal["imagenet", "cifar10"] = "imagenet"
    interpolation: str | int = "nearest"

    random: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._canvas = canvas_of(self.fillcolor, self.interpolation)
        self._policy = {"imagenet": IMAGENET_POLICY, "cifar10": CIFAR10_POLICY}[self.policy]

    def flow(self, before: Flow) -> Flow:
        need_grey_or_colour(before)
        return before

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        picture = to_picture(image)
        for name, probability, share in self._policy[rng.integers(len(self._policy))]:
            if rng.random() < probability:
                picture = perform(picture, name, share, AUTO_AUGMENT, self._canvas, rng)
        return pixels_of(picture)


@TRANSFORMS.register("RandAugment")
@dataclass
class RandAugment:
    """`num_layers` operations of 14, each drawn anew, at `magnitude` tenths (Cubuk et al., arXiv 1909.13719).

    PaddleClas's ranges, in which posterize and solarize grow weaker with the magnitude; for timm's, which grow, and its
    noise on the magnitude: TimmAutoAugment.
    """

    num_layers: int = 2
    magnitude: float = 5
    fillcolor: int | list[int] = 128
    interpolation: str | int = "nearest"

    random: ClassVar[bool] = True

    def __post_init__(self) -> None:
        need_whole("num_layers", self.num_layers)
        if not 0 <= self.magnitude <= 10:
            raise Refused(f"magnitude: expected 0 to 10, got {self.magnitude}")
        self._canvas = canvas_of(self.fillcolor, self.interpolation)

    def flow(self, before: Flow) -> Flow:
        need_grey_or_colour(before)
        return before

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        picture = to_picture(image)
        names = list(RAND_AUGMENT)
        for _ in range(self.num_layers):
            name = names[rng.integers(len(names))]
            picture = perform(picture, name, self.magnitude / 10, RAND_AUGMENT, self._canvas, rng)
        return pixels_of(picture)


@TRANSFORMS.register("TrivialAugmentWide")
@dataclass
class TrivialAugmentWide:
    """One operation of 14, identity among them, at one of `num_magnitude_bins` strengths (arXiv 2103.10158)."""

    num_magnitude_bins: int = 31
    interpolation: str | int = "nearest"
    fill: int | list[int] = 0

    random: ClassVar[bool] = True

    def __post_init__(self) -> None:
        need_whole("num_magnitude_bins", self.num_magnitude_bins, 2)
        self._canvas = canvas_of(self.fill, self.interpolation, "fill")

    def flow(self, before: Flow) -> Flow:
        need_grey_or_colour(before)
        return before

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        names = [*TRIVIAL_WIDE, "identity"]
        name = names[rng.integers(len(names))]
        share = rng.integers(self.num_magnitude_bins) / (self.num_magnitude_bins - 1)
        if name == "identity":
            return image
        return pixels_of(perform(to_picture(image), name, share, TRIVIAL_WIDE, self._canvas, rng))
