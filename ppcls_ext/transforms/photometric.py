"""ColorJitter, GaussianBlur and RandomRotation, on 8-bit images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np

from ppcls_ext.errors import Refused
from ppcls_ext.registry import TRANSFORMS
from ppcls_ext.transforms import pictures
from ppcls_ext.transforms.flow import Backend, Flow, need_probability
from ppcls_ext.transforms.geometry import interpolation_code, pixels_of, to_picture
from ppcls_ext.transforms.pictures import Canvas
from ppcls_ext.transforms.policies import fill_of, need_grey_or_colour


def _range(argument: str, given: float | list[float], middle: float, low: float, high: float) -> tuple[float, float]:
    """A number r is the range middle - r to middle + r, cut at `low`; a list is the range itself."""
    first, last = given if isinstance(given, list) and len(given) == 2 else (0.0, -1.0)
    if not isinstance(given, list):
        first, last = (max(low, middle - given), middle + given) if given >= 0 else (0.0, -1.0)
    if not low <= first <= last <= high:
        ends = f"from {low:g} to {high:g}"
        raise Refused(f"{argument}: expected a number from 0, or [smallest, largest] {ends}, got {given}")
    return first, last


@TRANSFORMS.register("ColorJitter")
@dataclass
class ColorJitter:
    """With probability `p` brightness, contrast, saturation and hue change, in a random order.

    Of the first three a number r draws a factor from max(0, 1 - r) to 1 + r, a list [a, b] from a to b; of hue a turn
    of the circle from -r to r, r at most 1/2. torchvision's and PaddleClas's meaning.
    """

    brightness: float | list[float] = 0.0
    contrast: float | list[float] = 0.0
    saturation: float | list[float] = 0.0
    hue: float | list[float] = 0.0
    p: float = 1.0

    random: ClassVar[bool] = True

    def __post_init__(self) -> None:
        need_probability("p", self.p)
        self._factors = [
            (operation, _range(name, given, 1.0, 0.0, math.inf))
            for name, given, operation in (
                ("brightness", self.brightness, pictures.brightness),
                ("contrast", self.contrast, pictures.contrast),
                ("saturation", self.saturation, pictures.color),
            )
        ]
        self._hue = _range("hue", self.hue, 0.0, -0.5, 0.5)

    def flow(self, before: Flow) -> Flow:
        need_grey_or_colour(before)
        return before

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if rng.random() >= self.p:
            return image
        picture, canvas = to_picture(image), Canvas(0, (0,))
        for number in rng.permutation(4).tolist():
            if number == 3:
                turn = rng.uniform(*self._hue)
                picture = pictures.hue(picture, turn) if turn else picture
            else:
                operation, (low, high) = self._factors[number]
                factor = rng.uniform(low, high)
                picture = operation(picture, factor - 1, canvas) if factor != 1 else picture
        return pixels_of(picture)


@TRANSFORMS.register("GaussianBlur")
@dataclass
class GaussianBlur:
    """With probability `p` smoothed by a Gaussian whose deviation, in pixels, is drawn from `sigma`.

    The kernel reaches `kernel_size` // 2 pixels, by default four deviations.
    """

    sigma: float | list[float] | None = None
    kernel_size: int | None = None
    p: float = 1.0

    random: ClassVar[bool] = True

    def __post_init__(self) -> None:
        need_probability("p", self.p)
        self.sigma = [0.1, 2.0] if self.sigma is None else self.sigma
        low, high = self.sigma if isinstance(self.sigma, list) and len(self.sigma) == 2 else (self.sigma, self.sigma)
        if isinstance(low, list) or not 0 < low <= high <= 100:
            raise Refused(f"sigma: expected pixels above 0 to 100, or [smallest, largest], got {self.sigma}")
        if self.kernel_size is not None and (self.kernel_size < 1 or self.kernel_size % 2 == 0):
            raise Refused(f"kernel_size: expected an odd number, got {self.kernel_size}")
        self._range = (float(low), float(high))

    def flow(self, before: Flow) -> Flow:
        before.need_pixels()
        return before

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if rng.random() >= self.p:
            return image
        sigma = rng.uniform(*self._range)
        size = self.kernel_size or 2 * math.ceil(4 * sigma) + 1
        return cv2.GaussianBlur(image, (size, size), sigma).reshape(image.shape)


@TRANSFORMS.register("RandomRotation")
@dataclass
class RandomRotation:
    """With probability `prob` turned about the middle by an angle from -`degrees` to `degrees`, or from a list [a, b].

    The size stays; `fill` is what is beyond the edges. Positive angles turn counter-clockwise.
    """

    degrees: float | list[float] = 90.0
    prob: float = 0.5
    interpolation: str | int = "bilinear"
    fill: int | list[int] = 0
    backend: Backend = "cv2"

    random: ClassVar[bool] = True

    def __post_init__(self) -> None:
        need_probability("prob", self.prob)
        self._range = _range("degrees", self.degrees, 0.0, -360.0, 360.0)
        self._code = interpolation_code(self.interpolation, self.backend)
        if self._code == cv2.INTER_AREA and self.backend == "cv2":
            raise Refused("interpolation: 'area' is for resizing; expected nearest, bilinear, bicubic or lanczos")
        self._fill = fill_of(self.fill, "fill")

    def flow(self, before: Flow) -> Flow:
        need_grey_or_colour(before)
        return before

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if rng.random() >= self.prob:
            return image
        angle = rng.uniform(*self._range)
        if self.backend == "pil":
            return pixels_of(pictures.rotate(to_picture(image), angle, Canvas(self._code, self._fill)))
        height, width = image.shape[:2]
        matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1.0)
        fill = self._fill * 3 if len(self._fill) == 1 else self._fill
        return cv2.warpAffine(image, matrix, (width, height), flags=self._code, borderValue=fill).reshape(image.shape)
