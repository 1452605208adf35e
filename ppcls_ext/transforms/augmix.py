"""AugMix (Hendrycks et al., arXiv 1912.02781): chains of operations, mixed with each other and with the image.

The paper's loss, which compares two mixtures of one image, is not here: this is its augmentation alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from PIL import Image

from ppcls_ext.errors import Refused
from ppcls_ext.registry import TRANSFORMS
from ppcls_ext.transforms.flow import Flow, need_probability
from ppcls_ext.transforms.geometry import pixels_of, to_picture
from ppcls_ext.transforms.pictures import Canvas
from ppcls_ext.transforms.policies import Space, canvas_of, need_grey_or_colour, need_whole, perform

# The authors' ranges; shares of a side instead of its third in pixels.
AUGMIX: Space = {
    "auto_contrast": (lambda share: 0.0, False),
    "equalize": (lambda share: 0.0, False),
    "posterize": (lambda share: 4 + int(4 * share), False),
    "rotate": (lambda share: int(30 * share), True),
    "solarize": (lambda share: int(256 * share), False),
    "shear_x": (lambda share: 0.3 * share, True),
    "shear_y": (lambda share: 0.3 * share, True),
    "translate_x": (lambda share: share / 3, True),
    "translate_y": (lambda share: share / 3, True),
}


def mix_chains(
    image: np.ndarray,
    operate: Callable[[Image.Image], Image.Image],
    width: int,
    depth: int,
    alpha: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """uint8 (H, W, C) mixed with `width` chains of `depth` operations each (drawn from 1 to 3 where it is below 1).

    The chains' weights are Dirichlet(alpha), the share of their sum in the result Beta(alpha, alpha).
    """
    weights = rng.dirichlet([alpha] * width)
    share = rng.beta(alpha, alpha)
    original = to_picture(image)
    mixed = np.zeros(image.shape, np.float32)
    for weight in weights:
        picture = original
        for _ in range(depth if depth > 0 else rng.integers(1, 4)):
            picture = operate(picture)
        mixed += np.float32(weight) * pixels_of(picture)
    result = (1 - share) * image.astype(np.float32) + share * mixed
    return np.clip(np.rint(result), 0, 255).astype(np.uint8)


@TRANSFORMS.register("AugMix")
@dataclass
class AugMix:
    """With probability `prob` a mixture of `mixture_width` chains; `aug_severity` is the strongest, in tenths.

    `aug_prob_coeff` is the parameter of the Dirichlet and Beta distributions of the weights, `mixture_depth` the length
    of a chain (-1: drawn from 1 to 3). Each operation's strength is uniform up to `aug_severity`.
    """

    prob: float = 0.5
    aug_prob_coeff: float = 0.1
    mixture_width: int = 3
    mixture_depth: int = 1
    aug_severity: float = 1

    random: ClassVar[bool] = True

    def __post_init__(self) -> None:
        need_probability("prob", self.prob)
        if not self.aug_prob_coeff > 0:
            raise Refused(f"aug_prob_coeff: expected a number above 0, got {self.aug_prob_coeff}")
        if not 0.1 <= self.aug_severity <= 10:
            raise Refused(f"aug_severity: expected 0.1 to 10, got {self.aug_severity}")
        need_whole("mixture_width", self.mixture_width)
        if self.mixture_depth < 1 and self.mixture_depth != -1:
            raise Refused(f"mixture_depth: expected at least 1, or -1 for 1 to 3, got {self.mixture_depth}")
        self._canvas: Canvas = canvas_of(0, "bilinear")
        self._names = list(AUGMIX)

    def flow(self, before: Flow) -> Flow:
        need_grey_or_colour(before)
        return before

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if rng.random() >= self.prob:
            return image

        def operate(picture: Image.Image) -> Image.Image:
            name = self._names[rng.integers(len(self._names))]
            return perform(picture, name, rng.uniform(0.1, self.aug_severity) / 10, AUGMIX, self._canvas, rng)

        return mix_chains(image, operate, self.mixture_width, self.mixture_depth, self.aug_prob_coeff, rng)
