"""Resizing, cropping and flipping, on uint8 (H, W, C) arrays.

Sizes are an integer for a square, or [width, height]: PaddleClas's order. The back ends differ: OpenCV samples the
image at the new points, Pillow averages over all pixels that a new one covers, which is slower and does not alias.

`rounding` says whose convention decides where a size or a position falls between two pixels; weights are evaluated with
the one of the project that trained them, for half of all images give another row or column with the other:

| rounding | long side L of an image w x h, short side S | first row of a crop of c rows out of h |
|---|---|---|
| paddleclas | L * (S / short) to the nearest, half to even | (h - c) / 2 rounded down |
| torchvision, timm | S * L / short rounded down | (h - c) / 2 to the nearest, half to even |
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import cv2
import numpy as np
from PIL import Image

from ppcls_ext.errors import Refused, did_you_mean
from ppcls_ext.registry import TRANSFORMS
from ppcls_ext.transforms.flow import Backend, DecodeError, Flow, check_backend, need_probability

_CODES: dict[str, dict[str, int]] = {
    "cv2": {
        "nearest": cv2.INTER_NEAREST,
        "bilinear": cv2.INTER_LINEAR,
        "area": cv2.INTER_AREA,
        "bicubic": cv2.INTER_CUBIC,
        "lanczos": cv2.INTER_LANCZOS4,
    },
    "pil": {
        "nearest": Image.Resampling.NEAREST,
        "bilinear": Image.Resampling.BILINEAR,
        "bicubic": Image.Resampling.BICUBIC,
        "box": Image.Resampling.BOX,
        "lanczos": Image.Resampling.LANCZOS,
        "hamming": Image.Resampling.HAMMING,
    },
}
_DEFAULT_INTERPOLATION = {"cv2": "bilinear", "pil": "bicubic"}  # the libraries' own, which PaddleClas leaves in force
_RANDOM_INTERPOLATIONS = ("bilinear", "bicubic")

# timm resizes and crops with torchvision's functions
Rounding = Annotated[Literal["paddleclas", "torchvision"], "one of 'paddleclas', 'torchvision'"]


def check_rounding(rounding: str) -> None:
    """Refuse what is neither of the two conventions."""
    if rounding not in ("paddleclas", "torchvision"):
        raise Refused(f"rounding: {rounding!r}. {did_you_mean(rounding, ('paddleclas', 'torchvision'))}")


def size_by_short_side(width: int, height: int, short: int, rounding: str) -> tuple[int, int]:
    """(width, height) of an image made so that its short side is `short`."""
    smaller = min(width, height)
    if rounding == "torchvision":
        return short * width // smaller, short * height // smaller
    factor = short / smaller
    return round(width * factor), round(height * factor)


def middle(whole: int, part: int, rounding: str) -> int:
    """Where `part` pixels begin that are cut from the middle of `whole`."""
    return round((whole - part) / 2) if rounding == "torchvision" else (whole - part) // 2


def interpolation_name(interpolation: str | int | None, backend: str, also: tuple[str, ...] = ()) -> str:
    """The name of an interpolation given by name, by the back end's own number, or not at all."""
    check_backend(backend)
    codes = _CODES[backend]
    if interpolation is None:
        return _DEFAULT_INTERPOLATION[backend]
    if isinstance(interpolation, int):
        for name, code in codes.items():
            if code == interpolation:
                return name
    elif interpolation.lower() in (*codes, *also):
        return interpolation.lower()
    raise Refused(
        f"interpolation: {interpolation!r} with backend '{backend}'. {did_you_mean(interpolation, (*codes, *also))}"
    )


def interpolation_code(interpolation: str | int, backend: str) -> int:
    """The back end's own number of an interpolation."""
    return int(_CODES[backend][interpolation_name(interpolation, backend)])


def width_and_height(size: int | list[int]) -> tuple[int, int]:
    """(width, height) of a size argument."""
    width, height = (size, size) if isinstance(size, int) else size if len(size) == 2 else (0, 0)
    if min(width, height) < 1:
        raise Refused(f"size: expected a positive integer or [width, height], got {size}")
    return width, height


def resize(image: np.ndarray, size: tuple[int, int], interpolation: str, backend: str) -> np.ndarray:
    """To uint8 (height, width, C), where size is (width, height)."""
    if backend == "cv2":
        result = cv2.resize(image, size, interpolation=_CODES["cv2"][interpolation])
    else:
        result = pixels_of(to_picture(image).resize(size, _CODES["pil"][interpolation]))
    return result if result.ndim == 3 else result[:, :, None]


def pixels_of(picture: Image.Image) -> np.ndarray:
    """What np.asarray gives, in a third less time, for the modes L, RGB and RGBX."""
    return np.ndarray((picture.height, picture.width, len(picture.getbands())), np.uint8, picture.tobytes())


def to_picture(image: np.ndarray) -> Image.Image:
    """A Pillow image whose channels are resized alike, for uint8 (H, W, 1 or 3 or 4)."""
    height, width, channels = image.shape
    if channels == 3 and image.strides[1:] == (3, 1) and image.strides[0] > 0:  # a crop is read where it lies
        whole = np.lib.stride_tricks.as_strided(image, ((height - 1) * image.strides[0] + 3 * width,), (1,))
        return Image.frombuffer("RGB", (width, height), whole, "raw", "RGB", image.strides[0], 1)
    mode = {1: "L", 3: "RGB", 4: "RGBX"}[channels]  # RGBX: of RGBA, Pillow weights the colours by alpha
    return Image.frombytes(mode, (width, height), image.tobytes())


@TRANSFORMS.register("ResizeImage")
@dataclass
class ResizeImage:
    """To exactly `size`, or so that the short side is `resize_short`, the long one as `rounding` says.

    `interpolation` None is bilinear with cv2, bicubic with pil. `return_numpy` chooses PaddleClas's container for the
    next operator and changes no pixel: here the result is an array.
    """

    size: int | list[int] | None = None
    resize_short: int | None = None
    interpolation: str | int | None = None
    backend: Backend = "cv2"
    return_numpy: bool = True
    rounding: Rounding = "paddleclas"

    random: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if (self.size is None) == (self.resize_short is None):
            raise Refused("size, resize_short: give one of the two")
        if self.resize_short is not None and self.resize_short < 1:
            raise Refused(f"resize_short: expected a positive integer, got {self.resize_short}")
        if self.size is not None:
            width_and_height(self.size)
        check_rounding(self.rounding)
        self.interpolation = interpolation_name(self.interpolation, self.backend)

    def flow(self, before: Flow) -> Flow:
        before.need_pixels()
        if self.size is None:
            return replace(before, width=None, height=None, short_side=self.resize_short)
        width, height = width_and_height(self.size)
        return replace(before, width=width, height=height, short_side=min(width, height))

    def __call__(self, image: np.ndarray) -> np.ndarray:
        if self.size is None:
            size = self._by_short_side(*image.shape[1::-1])
        else:
            size = width_and_height(self.size)
        return resize(image, size, self.interpolation, self.backend)

    def _by_short_side(self, width: int, height: int) -> tuple[int, int]:
        size = size_by_short_side(width, height, self.resize_short, self.rounding)
        if Image.MAX_IMAGE_PIXELS is not None and size[0] * size[1] > 2 * Image.MAX_IMAGE_PIXELS:
            raise DecodeError(
                f"ResizeImage: an image of {width}x{height} (width x height) would become {size[0]}x{size[1]} with "
                f"resize_short {self.resize_short}; remove it, or give ResizeImage.size"
            )
        return size


@TRANSFORMS.register("CropImage")
@dataclass
class CropImage:
    """The middle of the image: `size` x `size`, or [width, height], beginning where `rounding` says.

    An image smaller than that is an error, not a smaller result: a batch needs one size, and padding or enlarging would
    change what the network sees without a word.
    """

    size: int | list[int]
    rounding: Rounding = "paddleclas"

    random: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self._size = width_and_height(self.size)
        check_rounding(self.rounding)

    def flow(self, before: Flow) -> Flow:
        before.need_pixels()
        width, height = self._size
        wide = before.width is not None and before.width < width
        high = before.height is not None and before.height < height
        # with only the short side known, the crop may still fit into an elongated image unless both its sides exceed it
        short = before.short_side is not None and min(width, height) > before.short_side
        if wide or high or short:
            made = f"{before.width}x{before.height}" if before.width else f"a short side of {before.short_side}"
            raise Refused(
                f"size: {width}x{height} (width x height) cannot be cut from images of {made}, as they are here; "
                "make them larger in ResizeImage, or lower size"
            )
        return replace(before, width=width, height=height, short_side=min(width, height))

    def __call__(self, image: np.ndarray) -> np.ndarray:
        (width, height), (w, h) = image.shape[1::-1], self._size
        if w > width or h > height:
            raise DecodeError(
                f"CropImage: the image is {width}x{height} (width x height), smaller than the crop of {w}x{h}; put "
                f"ResizeImage with resize_short of at least {max(w, h)} before it, or lower CropImage.size"
            )
        x, y = middle(width, w, self.rounding), middle(height, h, self.rounding)
        return image[y : y + h, x : x + w]


@TRANSFORMS.register("RandCropImage")
@dataclass
class RandCropImage:
    """The crop of the Inception networks: a random part of the image, resized to `size`.

    Its area is a uniform share of the image within `scale` (default 0.08 to 1), its width / height uniform within
    `ratio` (default 3/4 to 4/3), or log-uniform with `use_log_aspect`, which makes tall and wide ones equally likely.
    Where the image is too narrow for the drawn shape, `scale` is cut to what fits and one draw is enough, as in
    PaddleClas; with `attempt` above 0 area and shape are drawn anew, so many times at the most, and after that the
    largest centre is taken whose shape is within `ratio`: torchvision's crop (10 times) and timm's. `interpolation`
    None is bilinear with cv2, bicubic with pil; 'random' is either for each image.
    """

    size: int | list[int]
    scale: list[float] | None = None
    ratio: list[float] | None = None
    interpolation: str | int | None = None
    use_log_aspect: bool = False
    backend: Backend = "cv2"
    attempt: int = 0

    random: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.attempt < 0:
            raise Refused(f"attempt: expected a whole number from 0, got {self.attempt}")
        self._size = width_and_height(self.size)
        self.scale = [0.08, 1.0] if self.scale is None else list(self.scale)
        self.ratio = [3 / 4, 4 / 3] if self.ratio is None else list(self.ratio)
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise Refused(f"scale: expected [smallest, largest] share of the area, 0 to 1, got {self.scale}")
        if len(self.ratio) != 2 or not 0 < self.ratio[0] <= self.ratio[1] < math.inf:
            raise Refused(f"ratio: expected [smallest, largest] width / height, got {self.ratio}")
        self.interpolation = interpolation_name(self.interpolation, self.backend, also=("random",))

    def flow(self, before: Flow) -> Flow:
        before.need_pixels()
        width, height = self._size
        return replace(before, width=width, height=height, short_side=min(width, height))

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        x, y, w, h = self.box(*image.shape[1::-1], rng)
        interpolation = self.interpolation
        if interpolation == "random":
            interpolation = _RANDOM_INTERPOLATIONS[rng.integers(2)]
        return resize(image[y : y + h, x : x + w], self._size, interpolation, self.backend)

    def box(self, width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """A random (x, y, width, height) inside the image."""
        if self.attempt:
            return self._box_by_attempts(width, height, rng)
        shape, share, across, down = rng.random(4).tolist()
        ratio = self._ratio(shape)
        largest = min(width / height / ratio, height / width * ratio)  # the share of a crop that just fits
        smallest, largest = min(self.scale[0], largest), min(self.scale[1], largest)
        area = width * height * (smallest + (largest - smallest) * share)
        # a crop that just fits may come out a hair larger by rounding, one of a strip less than a pixel
        w = min(max(int(math.sqrt(area * ratio)), 1), width)
        h = min(max(int(math.sqrt(area / ratio)), 1), height)
        return int(across * (width - w + 1)), int(down * (height - h + 1)), w, h

    def _box_by_attempts(self, width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        for _ in range(self.attempt):
            shape, share, across, down = rng.random(4).tolist()
            ratio = self._ratio(shape)
            area = width * height * (self.scale[0] + (self.scale[1] - self.scale[0]) * share)
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return int(across * (width - w + 1)), int(down * (height - h + 1)), w, h
        low, high = self.ratio
        w, h = min(width, round(height * high)), min(height, round(width / low))
        return (width - w) // 2, (height - h) // 2, w, h

    def _ratio(self, shape: float) -> float:
        low, high = self.ratio
        return low * (high / low) ** shape if self.use_log_aspect else low + (high - low) * shape


@TRANSFORMS.register("RandFlipImage")
@dataclass
class RandFlipImage:
    """Mirrored with probability 1/2: left and right (`flip_code` 1), top and bottom (0), or both (-1)."""

    flip_code: int = 1

    random: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.flip_code not in (1, 0, -1):
            raise Refused(
                f"flip_code: expected 1 (left and right), 0 (top and bottom) or -1 (both), got {self.flip_code}"
            )

    def flow(self, before: Flow) -> Flow:
        before.need_pixels()
        return before

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if rng.random() >= 0.5:
            return image
        return cv2.flip(image, self.flip_code).reshape(image.shape)


@TRANSFORMS.register("RandomTranspose")
@dataclass
class RandomTranspose:
    """With probability `prob` mirrored on the main diagonal, on square images.

    With both flips it gives the eight positions of a square: for photographs from above, which have no upright.
    """

    prob: float = 0.5

    random: ClassVar[bool] = True

    def __post_init__(self) -> None:
        need_probability("prob", self.prob)

    def flow(self, before: Flow) -> Flow:
        before.need_pixels()
        if before.width is None or before.width != before.height:
            raise Refused("needs square images; move it behind RandCropImage or CropImage of one size")
        return before

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return cv2.transpose(image).reshape(image.shape) if rng.random() < self.prob else image
