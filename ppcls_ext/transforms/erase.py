"""Parts of an image taken away: Cutout, RandomErasing, GridMask.

They stand before or after NormalizeImage and take (H, W, C) and (C, H, W) alike; `order` says which, None takes what
the operators before left ((H, W, C) for a call outside a pipeline). After NormalizeImage a 0 is the mean colour.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import cv2
import numpy as np

from ppcls_ext.errors import Refused
from ppcls_ext.registry import TRANSFORMS
from ppcls_ext.transforms.color import Order
from ppcls_ext.transforms.flow import Flow, need_probability


def _channels_last(image: np.ndarray, order: str | None) -> np.ndarray:
    """A copy to write to, and to look at as (H, W, C)."""
    copy = image.copy()
    return copy.transpose(1, 2, 0) if order == "chw" else copy


def _as_it_came(view: np.ndarray, order: str | None) -> np.ndarray:
    return view.transpose(2, 0, 1) if order == "chw" else view


def _need_fill(argument: str, fill: list[float], before: Flow) -> None:
    """Refuse a colour that does not fit the images at this place."""
    if len(fill) not in (1, before.channels):
        raise Refused(f"{argument}: {len(fill)} values for {before.channels} channel(s); give one or as many")
    if not before.normalized and not all(0 <= value <= 255 for value in fill):
        raise Refused(f"{argument}: expected numbers from 0 to 255 before NormalizeImage, got {fill}")


@TRANSFORMS.register("Cutout")
@dataclass
class Cutout:
    """`n_holes` squares of side `length`, their middles anywhere, cut at the edges (DeVries, arXiv 1708.04552).

    `fill_value` is one number, one per channel, or 'none' for a random 8-bit colour of each hole.
    """

    n_holes: int = 1
    length: int = 112
    fill_value: float | list[float] | Literal["none"] = 0.0
    order: Order = None

    random: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.n_holes < 1 or self.length < 1:
            name = "n_holes" if self.n_holes < 1 else "length"
            raise Refused(f"{name}: expected at least 1, got {min(self.n_holes, self.length)}")
        given = [] if self.fill_value == "none" else self.fill_value
        self._fill = given if isinstance(given, list) else [given]

    def flow(self, before: Flow) -> Flow:
        before.need_decoded()
        before.need_order(self.order)
        if self._fill:
            _need_fill("fill_value", self._fill, before)
        elif before.normalized:
            raise Refused("fill_value: 'none' draws 8-bit colours; move it before NormalizeImage")
        return before

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        view = _channels_last(image, self.order)
        height, width, channels = view.shape
        for _ in range(self.n_holes):
            top = int(rng.integers(height)) - self.length // 2
            left = int(rng.integers(width)) - self.length // 2
            fill = self._fill or rng.integers(256, size=channels)
            view[max(top, 0) : max(top + self.length, 0), max(left, 0) : max(left + self.length, 0)] = fill
        return _as_it_came(view, self.order)


@TRANSFORMS.register("RandomErasing")
@dataclass
class RandomErasing:
    """With probability `EPSILON` a rectangle is replaced (Zhong et al., arXiv 1708.04896); PaddleClas's arguments.

    Its area is a uniform share of the image between `sl` and `sh`, its height / width between `r1` and 1/`r1`,
    log-uniform with `use_log_aspect`; a rectangle that does not fit is drawn anew, up to `attempt` times. `mode` is
    timm's: const puts `mean` in its place, rand one normally distributed colour, pixel one for each pixel; the two are
    for images after NormalizeImage, where colours have mean 0 and deviation 1. `count` rectangles at most, the area
    divided by their number.
    """

    EPSILON: float = 0.5
    sl: float = 0.02
    sh: float = 0.4
    r1: float = 0.3
    mean: float | list[float] = 0.0
    attempt: int = 100
    use_log_aspect: bool = False
    mode: Literal["const", "rand", "pixel"] = "const"
    count: int = 1
    order: Order = None

    random: ClassVar[bool] = True

    def __post_init__(self) -> None:
        need_probability("EPSILON", self.EPSILON)
        if not 0 < self.sl <= self.sh <= 1:
            raise Refused(f"sl: expected 0 < sl <= sh <= 1, shares of the area, got sl {self.sl} and sh {self.sh}")
        if not 0 < self.r1 <= 1:
            raise Refused(f"r1: expected the smallest height / width, above 0 to 1, got {self.r1}")
        if min(self.attempt, self.count) < 1:
            name = "attempt" if self.attempt < 1 else "count"
            raise Refused(f"{name}: expected at least 1, got {min(self.attempt, self.count)}")
        if self.mode not in ("const", "rand", "pixel"):
            raise Refused(f"mode: expected one of 'const', 'rand', 'pixel', got {self.mode!r}")
        self._fill = self.mean if isinstance(self.mean, list) else [self.mean]

    def flow(self, before: Flow) -> Flow:
        before.need_decoded()
        before.need_order(self.order)
        if self.mode == "const":
            _need_fill("mean", self._fill, before)
        elif not before.normalized:
            raise Refused(f"mode: '{self.mode}' draws colours of mean 0 and deviation 1; move it after NormalizeImage")
        return before

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if rng.random() >= self.EPSILON:
            return image
        view = _channels_last(image, self.order)
        count = int(rng.integers(1, self.count + 1)) if self.count > 1 else 1
        for _ in range(count):
            found = self.rectangle(*view.shape[:2], count, rng)
            if found is not None:
                top, left, height, width = found
                view[top : top + height, left : left + width] = self._colours(height, width, view.shape[2], rng)
        return _as_it_came(view, self.order)

    def rectangle(
        self, rows: int, columns: int, count: int, rng: np.random.Generator
    ) -> tuple[int, int, int, int] | None:
        """(top, left, height, width) inside the image; None if none was found."""
        for _ in range(self.attempt):
            area = rng.uniform(self.sl, self.sh) * rows * columns / count
            if self.use_log_aspect:
                aspect = math.exp(rng.uniform(math.log(self.r1), -math.log(self.r1)))
            else:
                aspect = rng.uniform(self.r1, 1 / self.r1)
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < height < rows and 0 < width < columns:
                return int(rng.integers(rows - height + 1)), int(rng.integers(columns - width + 1)), height, width
        return None

    def _colours(self, height: int, width: int, channels: int, rng: np.random.Generator) -> np.ndarray | list[float]:
        if self.mode == "rand":
            return rng.standard_normal(channels, np.float32)
        if self.mode == "pixel":
            return rng.standard_normal((height, width, channels), np.float32)
        return self._fill


@TRANSFORMS.register("GridMask")
@dataclass
class GridMask:
    """With probability `prob` a grid of squares set to 0 (Chen et al., arXiv 2001.04086).

    The period is drawn from `d1` up to (not including) `d2` pixels, `ratio` of it is the side of a bar, the offset is
    drawn, and the grid is turned by a whole angle below `rotate` degrees. `mode` 0 clears the bars, so that squares
    stay; 1 clears the squares between them. PaddleClas raises the probability from 0 over 240 epochs that it never
    counts, so its grid never shows; here `prob` is what it says.
    """

    d1: int = 96
    d2: int = 224
    rotate: int = 1
    ratio: float = 0.5
    mode: Literal[0, 1] = 0
    prob: float = 1.0
    order: Order = None

    random: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 2 <= self.d1 < self.d2:
            raise Refused(f"d1: expected 2 <= d1 < d2, periods in pixels, got d1 {self.d1} and d2 {self.d2}")
        if self.rotate < 1:
            raise Refused(f"rotate: expected at least 1 (angles below it are drawn), got {self.rotate}")
        if not 0 < self.ratio < 1:
            raise Refused(f"ratio: expected a share between 0 and 1, got {self.ratio}")
        need_probability("prob", self.prob)

    def flow(self, before: Flow) -> Flow:
        before.need_decoded()
        before.need_order(self.order)
        return before

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if rng.random() >= self.prob:
            return image
        view = _channels_last(image, self.order)
        view[self.mask(*view.shape[:2], rng) == 0] = 0
        return _as_it_came(view, self.order)

    def mask(self, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
        """uint8 (H, W): 1 where the image stays."""
        period = int(rng.integers(self.d1, self.d2))
        bar = int(period * self.ratio + 0.5)
        down, across = rng.integers(period, size=2).tolist()
        angle = int(rng.integers(self.rotate))
        # of the grid's size when it is turned: the diagonal covers every angle
        side = math.ceil(math.hypot(height, width))
        rows = (np.arange(side) - down) % period < bar
        columns = (np.arange(side) - across) % period < bar
        mask = np.where(rows[:, None] | columns[None, :], 0, 1).astype(np.uint8)
        if angle:
            turn = cv2.getRotationMatrix2D((side / 2, side / 2), angle, 1.0)
            mask = cv2.warpAffine(mask, turn, (side, side), flags=cv2.INTER_NEAREST)
        top, left = (side - height) // 2, (side - width) // 2
        mask = mask[top : top + height, left : left + width]
        return mask if self.mode == 0 else 1 - mask
