"""Decoding: every kind of file, upright and in the wanted channels, the same in both back ends; every refusal."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from ppcls_ext.transforms import (
    DecodeError,
    DecodeImage,
)

BACKENDS = ("cv2", "pil")
ROWS, COLUMNS = np.mgrid[0:48, 0:64]
RGB = np.stack([COLUMNS * 4, ROWS * 5, COLUMNS + ROWS * 2], axis=-1).astype(np.uint8)  # (48, 64, 3), smooth
GRAY = np.rint(RGB @ np.array([0.299, 0.587, 0.114]))  # ITU-R 601
ALPHA = (255 - COLUMNS * 4).astype(np.uint8)
NOISE = np.random.default_rng(7).integers(0, 256, size=(60, 90, 3), dtype=np.uint8)


def encode(image: np.ndarray | Image.Image, format: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(stream, format, **options)
    return stream.getvalue()


def picture(mode: str) -> Image.Image:
    return Image.fromarray(RGB).convert(mode)


def with_alpha(mode: str) -> Image.Image:
    image = picture(mode)
    image.putalpha(Image.fromarray(ALPHA))
    return image


def encode_16_bits(image: np.ndarray, suffix: str) -> bytes:
    return cv2.imencode(suffix, image)[1].tobytes()


# Each kind of file, what it shows in RGB, and by how many levels a decoder may differ.
KINDS: dict[str, tuple[Callable[[], bytes], np.ndarray, int]] = {
    "JPEG": (lambda: encode(RGB, "JPEG", quality=98, subsampling=0), RGB, 6),
    "progressive JPEG": (lambda: encode(RGB, "JPEG", quality=98, subsampling=0, progressive=True), RGB, 6),
    "gray JPEG": (lambda: encode(picture("L"), "JPEG", quality=98), GRAY, 3),
    "CMYK JPEG, inverted by Adobe's habit": (lambda: encode(picture("CMYK"), "JPEG", quality=98), RGB, 8),
    "CMYK TIFF": (lambda: encode(picture("CMYK"), "TIFF"), RGB, 1),
    "RGB PNG": (lambda: encode(RGB), RGB, 0),
    "gray PNG": (lambda: encode(picture("L")), GRAY, 1),
    "RGBA PNG": (lambda: encode(with_alpha("RGB")), RGB, 0),
    "gray PNG with alpha": (lambda: encode(with_alpha("L")), GRAY, 1),
    "RGB PNG with a transparent colour": (lambda: encode(RGB, transparency=(4, 5, 3)), RGB, 0),
    "gray PNG with a transparent level": (lambda: encode(picture("L"), transparency=9), GRAY, 1),
    "palette PNG": (lambda: encode(Image.fromarray(RGB).quantize(256)), RGB, 40),
    "palette PNG with transparency": (lambda: encode(Image.fromarray(RGB).quantize(256), transparency=3), RGB, 40),
    "palette PNG with partial transparency": (
        lambda: encode(Image.fromarray(RGB).quantize(256), transparency=bytes(range(256))),
        RGB,
        40,
    ),
    "1-bit PNG": (lambda: encode(Image.fromarray(COLUMNS >= 20)), (COLUMNS >= 20) * 255.0, 0),
    "16-bit gray PNG": (lambda: encode_16_bits((COLUMNS * 1000).astype(np.uint16), ".png"), COLUMNS * 1000 // 256, 0),
    "16-bit RGB PNG": (lambda: encode_16_bits(RGB[:, :, ::-1].astype(np.uint16) * 256 + 200, ".png"), RGB, 0),
    "16-bit gray TIFF": (lambda: encode((COLUMNS * 1000).astype(np.uint16), "TIFF"), COLUMNS * 1000 // 256, 0),
    "16-bit RGB TIFF": (lambda: encode_16_bits(RGB[:, :, ::-1].astype(np.uint16) * 256 + 200, ".tiff"), RGB, 0),
    "16-bit PGM": (lambda: encode_16_bits((COLUMNS * 1000).astype(np.uint16), ".pgm"), COLUMNS * 1000 // 256, 0),
    "RGBA TIFF": (lambda: encode(with_alpha("RGB"), "TIFF"), RGB, 0),
    "BMP": (lambda: encode(RGB, "BMP"), RGB, 0),
    "WebP": (lambda: encode(RGB, "WEBP", lossless=True), RGB, 0),
    "WebP with alpha": (lambda: encode(with_alpha("RGB"), "WEBP", lossless=True, exact=True), RGB, 0),
    "GIF": (lambda: encode(Image.fromarray(RGB).quantize(256), "GIF"), RGB, 40),
    "several frames": (lambda: encode(RGB, "TIFF", save_all=True, append_images=[Image.new("RGB", (64, 48))]), RGB, 0),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_becomes_rgb_the_same_in_both_back_ends(kind: str) -> None:
    make, truth, tolerance = KINDS[kind]
    truth = truth if truth.ndim == 3 else np.repeat(truth[:, :, None], 3, axis=2)
    images = [DecodeImage(backend=backend)(make()) for backend in BACKENDS]
    for image in images:
        assert image.dtype == np.uint8 and image.shape == (48, 64, 3)
        assert np.abs(image - truth.astype(float)).max() <= tolerance
    assert np.abs(images[0].astype(int) - images[1]).max() <= 2


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_becomes_gray_or_rgba_when_the_network_takes_that(kind: str) -> None:
    make, truth, tolerance = KINDS[kind]
    gray = truth if truth.ndim == 2 else GRAY
    for backend in BACKENDS:
        image = DecodeImage(backend=backend, channels=1)(make())
        assert image.dtype == np.uint8 and image.shape == (48, 64, 1)
        assert np.abs(image[:, :, 0] - gray.astype(float)).max() <= max(tolerance, 1)
        colours = DecodeImage(backend=backend)(make())
        image = DecodeImage(backend=backend, channels=4)(make())
        assert image.dtype == np.uint8 and image.shape == (48, 64, 4)
        assert np.abs(image[:, :, :3].astype(int) - colours).max() <= 2
    if kind in ("RGBA PNG", "gray PNG with alpha", "RGBA TIFF", "WebP with alpha"):
        assert np.array_equal(image[:, :, 3], ALPHA)
    elif "transparen" not in kind:
        assert (image[:, :, 3] == 255).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_a_jpeg_has_the_pixels_that_pillow_gives_it(
    backend: str, mode: str, progressive: bool, subsampling: int
) -> None:
    for width, height in ((64, 48), (61, 47), (17, 33), (2, 7), (1, 1)):
        for quality in (40, 90):
            picture = Image.fromarray(RGB[:height, :width]).convert(mode)
            encoded = encode(picture, "JPEG", quality=quality, progressive=progressive, subsampling=subsampling)
            theirs = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
            assert np.array_equal(DecodeImage(backend=backend)(encoded), theirs), (width, height, quality)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["RGB PNG", "JPEG", "RGBA PNG", "RGBA TIFF"])
def test_bgr_and_channels_first_are_rgb_reordered(backend: str, kind: str) -> None:
    encoded = KINDS[kind][0]()
    rgb = DecodeImage(backend=backend)(encoded)
    assert np.array_equal(DecodeImage(backend=backend, to_rgb=False)(encoded), rgb[:, :, ::-1])
    assert np.array_equal(DecodeImage(backend=backend, channel_first=True)(encoded), rgb.transpose(2, 0, 1))
    rgba = DecodeImage(backend=backend, channels=4)(encoded)
    assert np.array_equal(DecodeImage(backend=backend, channels=4, to_rgb=False)(encoded), rgba[:, :, [2, 1, 0, 3]])
    gray = DecodeImage(backend=backend, channels=1)(encoded)
    assert np.array_equal(DecodeImage(backend=backend, channels=1, to_rgb=False)(encoded), gray)


def stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """How a camera that notes this EXIF orientation has stored the upright image (H, W, C)."""
    sides = {1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1]}
    turned = {5: upright, 6: upright[:, ::-1], 7: upright[::-1, ::-1], 8: upright[::-1]}
    return np.ascontiguousarray(sides[orientation] if orientation < 5 else turned[orientation].transpose(1, 0, 2))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_all_eight_exif_orientations_come_out_upright(backend: str, format: str, channels: int) -> None:
    options = {"JPEG": {"quality": 98, "subsampling": 0}, "WEBP": {"lossless": True}}.get(format, {})
    plain = DecodeImage(backend=backend, channels=channels)(encode(RGB, format, **options))
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[274] = orientation
        encoded = encode(stored(RGB, orientation), format, exif=exif, **options)
        image = DecodeImage(backend=backend, channels=channels)(encoded)
        assert image.shape == (48, 64, channels), orientation
        assert np.abs(image.astype(int) - plain).max() <= (6 if format == "JPEG" else 0), orientation


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_exif_block_that_follows_a_pngs_pixels_counts(backend: str) -> None:
    exif = Image.Exif()
    exif[274] = 6
    encoded = encode(stored(RGB, 6), "PNG", exif=exif)
    start = encoded.index(b"eXIf") - 4
    end = start + 12 + struct.unpack(">I", encoded[start : start + 4])[0]
    tail = encoded.rindex(b"IEND") - 4
    moved = encoded[:start] + encoded[end:tail] + encoded[start:end] + encoded[tail:]
    assert np.array_equal(DecodeImage(backend=backend)(moved), RGB)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "block", [b"\xff" * 20, b"II*\0\x08\0\0\0\xff\xff", b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x63\0\0"]
)
def test_an_unreadable_exif_block_or_an_orientation_that_is_none_changes_nothing(backend: str, block: bytes) -> None:
    encoded = encode(RGB, "JPEG", quality=98)
    segment = b"\xff\xe1" + struct.pack(">H", 8 + len(block)) + b"Exif\0\0" + block
    image = DecodeImage(backend=backend)(encoded[:2] + segment + encoded[2:])
    assert np.array_equal(image, DecodeImage(backend=backend)(encoded))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
def test_a_truncated_file_is_refused_wherever_it_was_cut(backend: str, format: str) -> None:
    whole = encode(Image.fromarray(NOISE), format)
    for part in (0.02, 0.3, 0.6, 0.9):
        with pytest.raises(DecodeError) as refusal:
            DecodeImage(backend=backend)(whole[: int(len(whole) * part)])
        assert f"{int(len(whole) * part)} bytes" in str(refusal.value)


def png_that_claims(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("encoded", "words"),
    [
        (b"", "the file is empty (0 bytes)"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC, which is not read here; convert it to JPEG"),
        (b"<html>not found</html>", "not an image of a known format, or cut short: 22 bytes, b'<html>not found<'"),
        (b"\xff\xd8\xff", "3 bytes"),
        (png_that_claims(30_000, 30_000), "900000000 pixels"),
        (png_that_claims(30_000, 30_000), "raise PIL.Image.MAX_IMAGE_PIXELS"),
        (png_that_claims(200, 100), "PNG of 200x100 pixels"),
        (encode((COLUMNS / 64).astype(np.float32), "TIFF"), "TIFF with 32-bit pixels (mode F), of unknown range"),
        (encode((COLUMNS * 1000).astype(np.int32), "TIFF"), "save it with 8 or 16 bits"),
        (encode(RGB, "EPS"), "EPS is a vector format"),
    ],
)
def test_bytes_that_are_no_usable_image_are_refused_with_the_reason(backend: str, encoded: bytes, words: str) -> None:
    with pytest.raises(DecodeError) as refusal:
        DecodeImage(backend=backend)(encoded)
    assert words in str(refusal.value)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_array_is_a_decoded_rgb_image_unless_it_has_one_dimension(backend: str) -> None:
    decode = DecodeImage(backend=backend)
    assert np.array_equal(decode(np.frombuffer(encode(RGB), np.uint8)), RGB)
    assert np.array_equal(decode(RGB), RGB)
    assert np.array_equal(decode(np.dstack([RGB, ALPHA])), RGB)
    assert np.array_equal(decode(ALPHA), np.repeat(ALPHA[:, :, None], 3, axis=2))
    assert np.array_equal(DecodeImage(backend=backend, to_rgb=False)(RGB), RGB[:, :, ::-1])
    assert DecodeImage(backend=backend, channels=1)(RGB).shape == (48, 64, 1)
    for wrong in (RGB.astype(np.float32), RGB[:, :, :2], np.zeros((0, 5, 3), np.uint8)):
        with pytest.raises(DecodeError, match=r"decoded image is uint8|no pixels"):
            decode(wrong)
    with pytest.raises(TypeError, match="got str"):
        decode("picture.png")


def test_real_photographs_look_the_same_in_both_back_ends(shared: Path) -> None:
    files = sorted((shared / "data" / "imagenet_samples" / "images").iterdir())[:40:4]
    for path in files:
        encoded = path.read_bytes()
        images = [DecodeImage(backend=backend)(encoded).astype(int) for backend in BACKENDS]
        assert np.abs(images[0] - images[1]).mean() < 0.5, path.name
