"""The operations that augmentation policies choose from: a Pillow picture (mode L or RGB) and a strength in, one out.

A strength of 0 changes nothing, except where an operation has none: `auto_contrast`, `equalize`, `invert`. What a
policy's magnitude comes to as a strength is the policy's own affair; see `policies.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image, ImageEnhance, ImageOps


@dataclass(frozen=True)
class Canvas:
    """How a picture is sampled at new points (Pillow's number), and the grey or colour beyond its edges."""

    resample: int
    fill: tuple[int, ...]

    def fill_of(self, picture: Image.Image) -> int | tuple[int, ...]:
        """The fill as Pillow wants it for the picture's channels; one number serves all of them."""
        count = len(picture.getbands())
        values = self.fill * count if len(self.fill) == 1 else self.fill
        return values[0] if count == 1 else values


Operation = Callable[[Image.Image, float, Canvas], Image.Image]


def _affine(picture: Image.Image, matrix: tuple[float, ...], canvas: Canvas) -> Image.Image:
    """Point (x, y) of the result is point (ax + by + c, dx + ey + f) of the picture."""
    return picture.transform(
        picture.size, Image.Transform.AFFINE, matrix, resample=canvas.resample, fillcolor=canvas.fill_of(picture)
    )


def shear_x(picture: Image.Image, slope: float, canvas: Canvas) -> Image.Image:
    """Rows move sideways by `slope` pixels a row, the first one not at all."""
    return _affine(picture, (1, slope, 0, 0, 1, 0), canvas)


def shear_y(picture: Image.Image, slope: float, canvas: Canvas) -> Image.Image:
    """Columns move up or down by `slope` pixels a column."""
    return _affine(picture, (1, 0, 0, slope, 1, 0), canvas)


def translate_x(picture: Image.Image, share: float, canvas: Canvas) -> Image.Image:
    """To the left by `share` of the width."""
    return shift_x(picture, share * picture.width, canvas)


def translate_y(picture: Image.Image, share: float, canvas: Canvas) -> Image.Image:
    """Upwards by `share` of the height."""
    return shift_y(picture, share * picture.height, canvas)


def shift_x(picture: Image.Image, pixels: float, canvas: Canvas) -> Image.Image:
    """To the left by `pixels`."""
    return _affine(picture, (1, 0, pixels, 0, 1, 0), canvas)


def shift_y(picture: Image.Image, pixels: float, canvas: Canvas) -> Image.Image:
    """Upwards by `pixels`."""
    return _affine(picture, (1, 0, 0, 0, 1, pixels), canvas)


def rotate(picture: Image.Image, degrees: float, canvas: Canvas) -> Image.Image:
    """Counter-clockwise about the middle; the size stays."""
    return picture.rotate(degrees, resample=canvas.resample, fillcolor=canvas.fill_of(picture))


def brightness(picture: Image.Image, change: float, canvas: Canvas) -> Image.Image:
    """Times 1 + change."""
    return ImageEnhance.Brightness(picture).enhance(1 + change)


def contrast(picture: Image.Image, change: float, canvas: Canvas) -> Image.Image:
    """The distance from the mean grey, times 1 + change."""
    return ImageEnhance.Contrast(picture).enhance(1 + change)


def color(picture: Image.Image, change: float, canvas: Canvas) -> Image.Image:
    """The distance from the grey picture, times 1 + change; a grey picture stays as it is."""
    return ImageEnhance.Color(picture).enhance(1 + change)


def sharpness(picture: Image.Image, change: float, canvas: Canvas) -> Image.Image:
    """The distance from the smoothed picture, times 1 + change."""
    return ImageEnhance.Sharpness(picture).enhance(1 + change)


def posterize(picture: Image.Image, dropped: float, canvas: Canvas) -> Image.Image:
    """Without the `dropped` lowest of a pixel's 8 bits."""
    mask = 0xFF & ~((1 << round(dropped)) - 1)
    return picture.point([value & mask for value in range(256)] * len(picture.getbands()))


def solarize(picture: Image.Image, reach: float, canvas: Canvas) -> Image.Image:
    """Values of 256 - reach and more are inverted."""
    return ImageOps.solarize(picture, threshold=256 - reach)


def solarize_add(picture: Image.Image, added: float, canvas: Canvas) -> Image.Image:
    """Values below 128 grow by `added`."""
    table = [min(255, value + int(added)) if value < 128 else value for value in range(256)]
    return picture.point(table * len(picture.getbands()))


def auto_contrast(picture: Image.Image, _: float, canvas: Canvas) -> Image.Image:
    """Each channel stretched over 0 to 255."""
    return ImageOps.autocontrast(picture)


def equalize(picture: Image.Image, _: float, canvas: Canvas) -> Image.Image:
    """Each channel with a flat histogram."""
    return ImageOps.equalize(picture)


def invert(picture: Image.Image, _: float, canvas: Canvas) -> Image.Image:
    """255 - value."""
    return ImageOps.invert(picture)


def hue(picture: Image.Image, turn: float) -> Image.Image:
    """The hue turned by `turn` of the whole circle; a grey picture stays as it is."""
    if picture.mode != "RGB":
        return picture
    angle, saturation, value = picture.convert("HSV").split()
    steps = round(turn * 256)
    turned = angle.point([(level + steps) % 256 for level in range(256)])
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")


OPERATIONS: dict[str, Operation] = {
    "shear_x": shear_x,
    "shear_y": shear_y,
    "translate_x": translate_x,
    "translate_y": translate_y,
    "shift_x": shift_x,
    "shift_y": shift_y,
    "rotate": rotate,
    "brightness": brightness,
    "contrast": contrast,
    "color": color,
    "sharpness": sharpness,
    "posterize": posterize,
    "solarize": solarize,
    "solarize_add": solarize_add,
    "auto_contrast": auto_contrast,
    "equalize": equalize,
    "invert": invert,
}
