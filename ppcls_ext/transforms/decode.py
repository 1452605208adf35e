"""DecodeImage: bytes of an image file -> pixels, upright, with the channels that the network takes.

The same for both back ends, which differ by at most a level or two, and in a JPEG not at all: libjpeg-turbo decodes
it for both, called by OpenCV, which is the faster way to the same pixels (a test compares them with Pillow's).
- EXIF orientation is applied; an EXIF block that cannot be read says nothing.
- Gray is repeated to 3 channels; colour becomes gray by the ITU-R 601 weights (a JPEG's own luma).
- Palettes are looked up, CMYK becomes RGB (inverted values, as Adobe writes them in a JPEG, are understood).
- Alpha is dropped, as PaddleClas does, not composited: the colour stored under transparent pixels shows. With
  `channels` 4 it is kept, and is 255 where the file has none.
- 16-bit pixels keep their high byte. 32-bit integers and floats have no agreed range and are refused.
- Of several frames or pages the first is taken.
- A file that ends early is refused, and so is one of more pixels than Pillow admits (PIL.Image.MAX_IMAGE_PIXELS).
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import cv2
import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from ppcls_ext.errors import Refused
from ppcls_ext.registry import TRANSFORMS
from ppcls_ext.transforms.flow import Backend, DecodeError, Flow, check_backend

Channels = Annotated[Literal[1, 3, 4] | None, "1 (gray), 3 (RGB) or 4 (RGBA)"]
MODES = {1: "L", 3: "RGB", 4: "RGBA"}

# What OpenCV reads for each back end, if no alpha is wanted; Pillow reads the rest for both. OpenCV multiplies a TIFF's
# colours by its alpha, overlooks the transparent level of a gray PNG, and has no ICO, GIF or AVIF (the latter two by
# version).
OPENCV_FORMATS = {
    "cv2": frozenset({"JPEG", "MPO", "PNG", "BMP", "WEBP"}),
    "pil": frozenset({"JPEG", "MPO"}),
}

# Bytes 4 to 11 of the photographs of many telephones, which no library here reads.
HEIC = tuple(b"ftyp" + brand for brand in (b"heic", b"heix", b"hevc", b"mif1", b"msf1"))

# Pillow would start another program to draw these.
VECTOR_FORMATS = frozenset({"EPS", "WMF", "EMF"})

# What Pillow's readers raise for damaged files.
_DAMAGED = (
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, ArithmeticError, RuntimeError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)

_ORIENTATION_TAG = 274
_AT_MOST_16_BITS = frozenset({"PNG", "PPM"})  # in Pillow's 32-bit mode nevertheless
_MAY_HOLD_ORIENTATION = frozenset({"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"})


@TRANSFORMS.register("DecodeImage")
@dataclass
class DecodeImage:
    """Encoded bytes -> uint8 (H, W, channels); (channels, H, W) with `channel_first`. See the module for the kinds.

    RGB, or BGR if `to_rgb` is False. An array is taken as bytes if it has one dimension, else as a decoded RGB (or
    gray, or RGBA) uint8 image. `to_np` chooses PaddleClas's container between operators and changes no pixel: here
    it is an array. Raises `DecodeError`.
    """

    to_rgb: bool = True
    to_np: bool = False
    channel_first: bool = False
    backend: Backend = "cv2"
    channels: Channels = None

    random: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self.channels = 3 if self.channels is None else self.channels
        if self.channels not in MODES:
            raise Refused(f"channels: expected 1 (gray), 3 (RGB) or 4 (RGBA), got {self.channels}")
        check_backend(self.backend)

    def flow(self, before: Flow) -> Flow:
        if before.layout != "encoded":
            raise Refused("stands twice; images are decoded once, by the first operator")
        return replace(before, channels=self.channels, layout="chw" if self.channel_first else "hwc")

    def __call__(self, encoded: bytes | np.ndarray) -> np.ndarray:
        if isinstance(encoded, np.ndarray) and encoded.ndim != 1:
            image = _ordered(in_channels(encoded, self.channels), self.to_rgb)
        else:
            image = decode(encoded, self.channels, self.to_rgb, self.backend)
        if image.ndim == 2:
            image = image[:, :, None]
        return np.ascontiguousarray(image.transpose(2, 0, 1)) if self.channel_first else image


def in_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """A decoded uint8 image, gray (H, W), (H, W, 1), RGB or RGBA, as (H, W, channels)."""
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in MODES):
        raise DecodeError(f"a decoded image is uint8 (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); got {_shape(image)}")
    if image.size == 0:
        raise DecodeError(f"the image has no pixels: {_shape(image)}")
    image = image[:, :, None] if image.ndim == 2 else image
    if image.shape[2] == channels:
        return image
    one = Image.fromarray(np.ascontiguousarray(image[:, :, 0] if image.shape[2] == 1 else image))
    return np.asarray(one.convert(MODES[channels])).reshape(*image.shape[:2], channels)


def _shape(image: np.ndarray) -> str:
    return f"{image.dtype} {tuple(image.shape)}"


def decode(encoded: bytes | np.ndarray, channels: int, to_rgb: bool, backend: str) -> np.ndarray:
    """The upright image, uint8 (H, W) or (H, W, channels), RGB or BGR, by the faster library that reads it right."""
    header = _open(encoded)
    try:
        orientation = _orientation(header, encoded)
        # Pillow reads CMYK, where libjpeg-turbo leaves the conversion to its caller.
        if header.format in OPENCV_FORMATS[backend] and channels != 4 and header.mode != "CMYK":
            image = cv2.imdecode(np.frombuffer(encoded, np.uint8), _FLAGS[channels, to_rgb])
        else:
            image = _ordered(np.asarray(_loaded(header, len(encoded), channels)), to_rgb)
    except DecodeError:
        raise
    except (cv2.error, *_DAMAGED) as error:
        raise _damaged(header, encoded, error) from error
    if image is None:
        raise _damaged(header, encoded, "truncated or damaged")
    return _upright(image, orientation)


def _loaded(image: ImageFile.ImageFile, size: int, channels: int) -> Image.Image:
    """The pixels of a file of `size` bytes, read by Pillow, in mode L, RGB or RGBA."""
    image.decodermaxblock = size  # one piece instead of 64 kB at a time
    if channels == 1:
        image.draft("L", None)  # a JPEG's luma, without decoding its colours
    image.load()
    return _in_mode(image, MODES[channels])


# By (channels, to_rgb). IMREAD_COLOR_RGB came with OpenCV 4.11, which is also the first to give nothing for a truncated
# JPEG; older ones fill in what is missing.
_FLAGS = {
    (1, True): cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION,
    (1, False): cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION,
    (3, True): cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION,
    (3, False): cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION,
}


def _ordered(image: np.ndarray, to_rgb: bool) -> np.ndarray:
    """RGB or RGBA as it is, or as BGR or BGRA; gray as it is."""
    if to_rgb or image.ndim == 2 or image.shape[2] == 1:
        return image
    return cv2.cvtColor(image, cv2.COLOR_RGB2BGR if image.shape[2] == 3 else cv2.COLOR_RGBA2BGRA)


def _open(encoded: bytes | np.ndarray) -> ImageFile.ImageFile:
    """The header alone, 40 microseconds: format, size, mode; refuses what is no image, and decompression bombs."""
    if not isinstance(encoded, (bytes, bytearray, memoryview, np.ndarray)):
        raise TypeError(f"expected the bytes of an image file or an array, got {type(encoded).__name__}")
    if len(encoded) == 0:
        raise DecodeError("the file is empty (0 bytes)")
    try:
        image = Image.open(io.BytesIO(encoded))
    except Image.DecompressionBombError as error:
        raise DecodeError(
            f"{error} If the file is what it should be, raise PIL.Image.MAX_IMAGE_PIXELS "
            "(half that limit) or make the file smaller"
        ) from error
    except UnidentifiedImageError as error:
        start = bytes(encoded[:16])
        if start[4:12] in HEIC:  # under whatever name: web sites rename them
            raise DecodeError("HEIC, which is not read here; convert it to JPEG") from error
        raise DecodeError(
            f"not an image of a known format, or cut short: {len(encoded)} bytes, {start!r}..."
        ) from error
    except _DAMAGED as error:
        raise DecodeError(f"the image's header cannot be read ({len(encoded)} bytes): {error}") from error
    if image.format in VECTOR_FORMATS:
        raise DecodeError(f"{image.format} is a vector format; save it as PNG or JPEG")
    return image


def _damaged(image: ImageFile.ImageFile, encoded: bytes | np.ndarray, reason: object) -> DecodeError:
    what = f"{image.format} of {image.width}x{image.height} pixels, {len(encoded)} bytes"
    return DecodeError(f"{what}: {str(reason).strip()}")


def _orientation(image: ImageFile.ImageFile, encoded: bytes | np.ndarray) -> int:
    """The EXIF orientation that is still to be applied, 1 if none is given."""
    if _MAY_HOLD_ORIENTATION.isdisjoint(image.info) and (image.format != "PNG" or b"eXIf" not in bytes(encoded)):
        return 1  # a TIFF is upright already; a PNG's block may follow the pixels, so that looking for it decodes them
    return image.getexif().get(_ORIENTATION_TAG, 1)


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    """As L, RGB or RGBA; 16-bit pixels keep their high byte."""
    if image.mode == mode:
        return image
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in _AT_MOST_16_BITS):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise DecodeError(
            f"{image.format} with 32-bit pixels (mode {image.mode}), of unknown range; save it with 8 or 16 bits"
        )
    elif "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert(mode)


def _upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """An array (H, W) or (H, W, C) turned as EXIF's orientation 2 to 8 says; other numbers say nothing."""
    if orientation in (5, 6, 7, 8):
        image = cv2.transpose(image)
    if orientation in (2, 3, 6, 7):
        image = cv2.flip(image, 1)
    if orientation in (3, 4, 7, 8):
        image = cv2.flip(image, 0)
    return image
