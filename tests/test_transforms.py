"""The operators against formulas written here, in both back ends, and the pipelines that they make."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image

from ppcls_ext.errors import Refused
from ppcls_ext.transforms import (
    CropImage,
    DecodeError,
    NormalizeImage,
    RandCropImage,
    RandFlipImage,
    ResizeImage,
    ToCHWImage,
    build_transforms,
    check_transforms,
)
from ppcls_ext.transforms.geometry import size_by_short_side

BACKENDS = ("cv2", "pil")
ROWS, COLUMNS = np.mgrid[0:48, 0:64]
RGB = np.stack([COLUMNS * 4, ROWS * 5, COLUMNS + ROWS * 2], axis=-1).astype(np.uint8)  # (48, 64, 3), smooth
NOISE = np.random.default_rng(7).integers(0, 256, size=(60, 90, 3), dtype=np.uint8)
TRAIN = [
    {"DecodeImage": {"to_rgb": True, "channel_first": False}},
    {"RandCropImage": {"size": 32}},
    {"RandFlipImage": {"flip_code": 1}},
    {
        "NormalizeImage": {
            "scale": "1.0/255.0",
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
            "order": "",
        }
    },
]


def encode(image: np.ndarray | Image.Image, format: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(stream, format, **options)
    return stream.getvalue()


def with_alpha() -> Image.Image:
    return Image.fromarray(np.dstack([RGB, 255 - RGB[:, :, 0]]))


# ------------------------------------------------------------------------------------------------ geometry


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("width", "height", "short", "expected"),
    [
        (500, 333, 256, (384, 256)),
        (333, 500, 256, (256, 384)),
        (100, 100, 7, (7, 7)),
        (3, 2, 5, (8, 5)),
        (5, 2, 3, (8, 3)),
    ],
)
def test_resize_short_rounds_the_long_side_half_to_even(
    backend: str, width: int, height: int, short: int, expected: tuple[int, int]
) -> None:
    image = ResizeImage(resize_short=short, backend=backend)(np.zeros((height, width, 3), np.uint8))
    assert image.shape == (*expected[::-1], 3)


# Worked out by hand: 500 * 256 / 357 = 358.54, 7.5, 333 * 232 / 200 = 386.28, 1000 * 7 / 999 = 7.007, 100.5 and 101.5
SIZES = [
    ((500, 357), 256, {"paddleclas": (359, 256), "torchvision": (358, 256)}),
    ((3, 2), 5, {"paddleclas": (8, 5), "torchvision": (7, 5)}),
    ((200, 333), 232, {"paddleclas": (232, 386), "torchvision": (232, 386)}),
    ((1000, 999), 7, {"paddleclas": (7, 7), "torchvision": (7, 7)}),
    ((201, 2), 1, {"paddleclas": (100, 1), "torchvision": (100, 1)}),
    ((2, 203), 1, {"paddleclas": (1, 102), "torchvision": (1, 101)}),
]


@pytest.mark.parametrize("rounding", ["paddleclas", "torchvision"])
@pytest.mark.parametrize(("size", "short", "expected"), SIZES)
def test_the_long_side_is_rounded_as_the_named_project_rounds_it(
    rounding: str, size: tuple[int, int], short: int, expected: dict[str, tuple[int, int]]
) -> None:
    width, height = size
    resized = ResizeImage(resize_short=short, rounding=rounding, backend="pil")(np.zeros((height, width, 3), np.uint8))
    assert resized.shape[1::-1] == expected[rounding]


def test_sizes_of_all_small_images_follow_the_exact_ratio() -> None:
    differing = 0
    for width in range(1, 90):
        for height in range(1, 90):
            exact = [Fraction(64 * side, min(width, height)) for side in (width, height)]
            ours = {name: size_by_short_side(width, height, 64, name) for name in ("paddleclas", "torchvision")}
            assert ours["torchvision"] == tuple(math.floor(side) for side in exact)
            if all(side.denominator != 2 for side in exact):  # a tie is decided by the rounding of the ratio itself
                assert ours["paddleclas"] == tuple(round(side) for side in exact)
            differing += ours["torchvision"] != ours["paddleclas"]
    assert differing > 2000  # of 7921


def test_a_crop_begins_where_the_named_project_begins_it() -> None:
    rows = np.arange(7, dtype=np.uint8)[:, None, None] * np.ones((1, 9, 3), np.uint8)
    # 4 of 7 rows: 1.5 from the top; 6 of 7: 0.5; 5 of 7: 1
    for size, paddleclas, torchvision in ((4, 1, 2), (6, 0, 0), (5, 1, 1)):
        assert CropImage(size=size)(rows)[0, 0, 0] == CropImage(size=size, rounding="paddleclas")(rows)[0, 0, 0]
        assert CropImage(size=size)(rows)[0, 0, 0] == paddleclas
        assert CropImage(size=size, rounding="torchvision")(rows)[0, 0, 0] == torchvision
        assert CropImage(size=size, rounding="torchvision")(rows.transpose(1, 0, 2))[0, 0, 0] == torchvision


def test_another_rounding_is_refused_with_its_place() -> None:
    ops = [{"DecodeImage": {}}, {"ResizeImage": {"resize_short": 8, "rounding": "torchvison"}}]
    [problem] = check_transforms(ops, "transforms", 3)
    assert problem.startswith("transforms.1.ResizeImage.rounding: ") and "'torchvison'" in problem
    with pytest.raises(Refused, match="rounding: 'floor'"):
        CropImage(size=8, rounding="floor")


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_resizing_is_the_librarys_own_on_each_channel(channels: int) -> None:
    image = np.dstack([NOISE, NOISE[:, :, :1]])[:, :, :channels]
    for name, code in (("nearest", 0), ("bilinear", 1), ("bicubic", 2), ("area", 3), ("lanczos", 4)):
        ours = ResizeImage(size=[40, 30], interpolation=name)(image)
        theirs = [
            cv2.resize(np.ascontiguousarray(image[:, :, c]), (40, 30), interpolation=code) for c in range(channels)
        ]
        assert np.abs(ours.astype(int) - np.stack(theirs, axis=-1)).max() <= 1  # OpenCV rounds by the count of channels
        assert np.array_equal(ResizeImage(size=[40, 30], interpolation=code)(image), ours)
    for name in ("nearest", "bilinear", "bicubic", "box", "lanczos", "hamming"):
        code = Image.Resampling[name.upper()]
        ours = ResizeImage(size=[40, 30], interpolation=name.upper(), backend="pil")(image)
        theirs = [np.asarray(Image.fromarray(image[:, :, c]).resize((40, 30), code)) for c in range(channels)]
        assert np.array_equal(ours, np.stack(theirs, axis=-1))
        assert np.array_equal(ResizeImage(size=[40, 30], interpolation=int(code), backend="pil")(image), ours)


def test_interpolation_is_by_default_the_librarys() -> None:
    assert ResizeImage(size=8).interpolation == RandCropImage(size=8).interpolation == "bilinear"
    assert (
        ResizeImage(size=8, backend="pil").interpolation
        == RandCropImage(size=8, backend="pil").interpolation
        == "bicubic"
    )


def test_cropping_takes_the_middle() -> None:
    assert np.array_equal(CropImage(size=20)(NOISE), NOISE[20:40, 35:55])
    assert np.array_equal(CropImage(size=[31, 17])(NOISE), NOISE[21:38, 29:60])
    assert np.array_equal(CropImage(size=[90, 60])(NOISE), NOISE)


@pytest.mark.parametrize("size", [[91, 10], [10, 61], 224])
def test_cropping_more_than_there_is_is_an_error_never_a_smaller_image(size: int | list[int]) -> None:
    with pytest.raises(DecodeError) as refusal:
        CropImage(size=size)(NOISE)
    width, height = (size, size) if isinstance(size, int) else size
    assert str(refusal.value) == (
        f"CropImage: the image is 90x60 (width x height), smaller than the crop of {width}x{height}; put ResizeImage "
        f"with resize_short of at least {max(width, height)} before it, or lower CropImage.size"
    )


def test_resizing_never_blows_a_thin_strip_up_to_a_bomb() -> None:
    with pytest.raises(DecodeError, match="20000x1 .* would become 5120000x256"):
        ResizeImage(resize_short=256)(np.zeros((1, 20_000, 3), np.uint8))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("use_log_aspect", [False, True])
def test_a_random_crop_is_the_formula_of_the_inception_networks(backend: str, use_log_aspect: bool) -> None:
    operator = RandCropImage(size=[24, 16], use_log_aspect=use_log_aspect, backend=backend, interpolation="bilinear")
    for seed in range(50):
        shape, share, across, down = np.random.default_rng(seed).random(4)
        if use_log_aspect:
            ratio = np.exp(np.log(3 / 4) + (np.log(4 / 3) - np.log(3 / 4)) * shape)
        else:
            ratio = 3 / 4 + (4 / 3 - 3 / 4) * shape
        bound = min(90 / 60 / ratio, 60 / 90 * ratio)
        area = 90 * 60 * (min(0.08, bound) + (min(1, bound) - min(0.08, bound)) * share)
        w, h = int(np.sqrt(area * ratio) + 1e-9), int(np.sqrt(area / ratio) + 1e-9)
        x, y = int(across * (90 - w + 1)), int(down * (60 - h + 1))
        assert operator.box(90, 60, np.random.default_rng(seed)) == (x, y, w, h)
        ours = operator(NOISE, np.random.default_rng(seed))
        part = np.ascontiguousarray(NOISE[y : y + h, x : x + w])
        theirs = {
            "cv2": lambda part=part: cv2.resize(part, (24, 16), interpolation=cv2.INTER_LINEAR),
            "pil": lambda part=part: np.asarray(Image.fromarray(part).resize((24, 16), Image.Resampling.BILINEAR)),
        }
        assert np.array_equal(ours, theirs[backend]())


@pytest.mark.parametrize(("width", "height"), [(500, 375), (1, 1), (1, 900), (900, 1), (2, 3)])
def test_random_crops_lie_inside_the_image_and_within_scale_and_ratio(width: int, height: int) -> None:
    operator = RandCropImage(size=8)
    rng = np.random.default_rng(0)
    for _ in range(2000):
        x, y, w, h = operator.box(width, height, rng)
        assert x >= 0 and y >= 0 and w >= 1 and h >= 1 and x + w <= width and y + h <= height
        if width == 500:
            assert 0.078 < w * h / (width * height) <= 1 and 0.73 < w / h < 1.36


def test_log_aspect_makes_tall_and_wide_crops_equally_likely() -> None:
    rng = np.random.default_rng(0)
    operator = RandCropImage(size=8, scale=[0.1, 0.2], use_log_aspect=True)
    boxes = [operator.box(4000, 4000, rng) for _ in range(4000)]
    assert abs(np.mean([w > h for _, _, w, h in boxes]) - 0.5) < 0.03
    plain = RandCropImage(size=8, scale=[0.1, 0.2])
    boxes = [plain.box(4000, 4000, rng) for _ in range(4000)]
    assert abs(np.mean([w > h for _, _, w, h in boxes]) - 4 / 7) < 0.03  # uniform in 3/4 to 4/3


@pytest.mark.parametrize("interpolation", [None, "random"])
def test_random_operators_draw_as_much_whatever_the_image(interpolation: str | None) -> None:
    states = []
    for image in (NOISE, RGB[:1, :50], np.zeros((300, 2, 3), np.uint8)):
        rng = np.random.default_rng(3)
        RandFlipImage()(RandCropImage(size=8, interpolation=interpolation)(image, rng), rng)
        states.append(rng.random())
    assert states[0] == states[1] == states[2]


def test_a_random_interpolation_is_bilinear_or_bicubic() -> None:
    seen = set()
    for seed in range(20):
        ours = RandCropImage(size=8, interpolation="random")(NOISE, np.random.default_rng(seed))
        for name in ("bilinear", "bicubic"):
            if np.array_equal(ours, RandCropImage(size=8, interpolation=name)(NOISE, np.random.default_rng(seed))):
                seen.add(name)
                break
        else:
            raise AssertionError("neither")
    assert seen == {"bilinear", "bicubic"}


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(
    ("code", "mirrored"), [(1, lambda a: a[:, ::-1]), (0, lambda a: a[::-1]), (-1, lambda a: a[::-1, ::-1])]
)
def test_flips_mirror_half_of_the_images(code: int, mirrored: Callable, channels: int) -> None:
    image = np.dstack([NOISE, NOISE[:, :, :1]])[:, :, :channels]
    flipped = 0
    for seed in range(200):
        result = RandFlipImage(flip_code=code)(image, np.random.default_rng(seed))
        is_flipped = np.random.default_rng(seed).random() < 0.5
        assert np.array_equal(result, mirrored(image) if is_flipped else image)
        flipped += is_flipped
    assert 70 < flipped < 130


# ------------------------------------------------------------------------------------------------ colour


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_normalising_is_the_float32_formula_to_the_last_bit(channels: int) -> None:
    image = np.dstack([NOISE, NOISE[:, :, :1]])[:, :, :channels]
    mean, std = [0.485, 0.456, 0.406, 0.3][:channels], [0.229, 0.224, 0.225, 0.2][:channels]
    operator = NormalizeImage(mean=mean, std=std)
    formula = (image.astype("float32") * np.float32(1 / 255) - np.float32(mean)) / np.float32(std)
    ours = operator(image)
    assert ours.dtype == np.float32 and np.array_equal(ours, formula)
    assert np.array_equal(operator.to_chw(image), formula.transpose(2, 0, 1))
    first = NormalizeImage(mean=mean, std=std, order="chw")(ToCHWImage()(image))
    assert np.array_equal(first, formula.transpose(2, 0, 1))
    exact = (image / 255.0 - mean) / std
    assert np.abs(ours - exact).max() < 1e-5


def test_normalising_gives_half_precision_and_a_fourth_channel_on_request() -> None:
    half = NormalizeImage(output_fp16=True)(NOISE)
    assert half.dtype == np.float16 and np.array_equal(half, NormalizeImage()(NOISE).astype(np.float16))
    padded = NormalizeImage(channel_num=4)(NOISE)
    assert np.array_equal(padded[:, :, :3], NormalizeImage()(NOISE)) and not padded[:, :, 3].any()
    ops = [{"DecodeImage": None}, {"NormalizeImage": {"channel_num": 4, "output_fp16": True}}]
    image = build_transforms(ops, channels=4)(encode(RGB))
    assert image.shape == (4, 48, 64) and image.dtype == np.float32
    assert check_transforms(ops, "ops", 4) == []


def test_normalising_refuses_what_its_table_does_not_hold() -> None:
    with pytest.raises(ValueError, match="expected uint8 images of 3 channels, got float32 of 3"):
        NormalizeImage()(NOISE.astype(np.float32))
    with pytest.raises(ValueError, match="of 3 channels, got uint8 of 1"):
        NormalizeImage()(NOISE[:, :, :1])


# ------------------------------------------------------------------------------------------------ pipelines


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("decoder", BACKENDS)
@pytest.mark.parametrize("resizer", BACKENDS)
@pytest.mark.parametrize("to_rgb", [True, False])
def test_a_pipeline_is_its_operators_one_after_the_other(
    channels: int, decoder: str, resizer: str, to_rgb: bool
) -> None:
    ops = [
        {"DecodeImage": {"backend": decoder, "to_rgb": to_rgb}},
        {"RandCropImage": {"size": [40, 20], "backend": resizer}},
        {"RandFlipImage": None},
        {"ResizeImage": {"resize_short": 16, "backend": resizer}},
        {"CropImage": {"size": [20, 16]}},
        {"NormalizeImage": {"mean": [0.5] * channels, "std": [0.25] * channels}},
    ]
    pipeline = build_transforms(ops, channels)
    assert pipeline.random and pipeline.output_shape == (channels, 16, 20)
    for encoded in (encode(NOISE, "JPEG"), encode(with_alpha()), NOISE, RGB[:, :, 0]):
        image: Any = encoded
        rng = np.random.default_rng(5)
        for operator in pipeline.operators:
            image = operator(image, rng) if operator.random else operator(image)
        ours = pipeline(encoded, np.random.default_rng(5))
        assert ours.dtype == np.float32 and ours.shape == (channels, 16, 20) and ours.flags.c_contiguous
        assert np.array_equal(ours, image)


def test_images_leave_channels_first_whether_or_not_the_list_says_so() -> None:
    encoded = encode(RGB)
    explicit = build_transforms([*TRAIN, {"ToCHWImage": None}])(encoded, np.random.default_rng(0))
    assert np.array_equal(build_transforms(TRAIN)(encoded, np.random.default_rng(0)), explicit)
    before = [{"DecodeImage": None}, {"ToCHWImage": None}, {"NormalizeImage": {"order": "chw"}}]
    first = [{"DecodeImage": {"channel_first": True}}, {"NormalizeImage": None}]
    after = [{"DecodeImage": None}, {"NormalizeImage": {"order": "hwc"}}, {"ToCHWImage": {}}]
    images = [build_transforms(ops)(encoded) for ops in (before, first, after)]
    assert np.array_equal(images[0], images[1]) and np.array_equal(images[0], images[2])


def test_without_normalising_levels_become_float32() -> None:
    image = build_transforms([{"DecodeImage": None}])(encode(RGB))
    assert image.dtype == np.float32 and np.array_equal(image, RGB.transpose(2, 0, 1))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_pipeline_written_out_and_read_back_is_the_same(backend: str, channels: int) -> None:
    ops = [
        {"DecodeImage": {"backend": backend.upper()}},
        {"RandCropImage": {"size": 24, "use_log_aspect": True, "backend": backend}},
        {"RandFlipImage": {"flip_code": -1}},
        {"NormalizeImage": {"scale": "1.0/255.0", "mean": [0.5] * channels, "std": ["1/4"] * channels}},
    ]
    given = copy.deepcopy(ops)
    pipeline = build_transforms(ops, channels)
    written = yaml.safe_dump(pipeline.to_config(), sort_keys=False)
    again = build_transforms(yaml.safe_load(written))
    assert ops == given
    assert again.to_config() == pipeline.to_config()
    copied = pickle.loads(pickle.dumps(pipeline))
    for seed in range(5):
        images = [p(encode(NOISE), np.random.default_rng(seed)) for p in (pipeline, again, copied)]
        assert np.array_equal(images[0], images[1]) and np.array_equal(images[0], images[2])


def test_the_written_pipeline_states_every_argument() -> None:
    assert build_transforms(
        [{"DecodeImage": None}, {"ResizeImage": {"size": 8, "backend": "pil"}}, {"NormalizeImage": {}}]
    ).to_config() == [
        {"DecodeImage": {"to_rgb": True, "to_np": False, "channel_first": False, "backend": "cv2", "channels": 3}},
        {
            "ResizeImage": {
                **{"size": 8, "resize_short": None, "interpolation": "bicubic", "backend": "pil"},
                **{"return_numpy": True, "rounding": "paddleclas"},
            }
        },
        {
            "NormalizeImage": {
                **{"scale": 1 / 255, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
                **{"order": "hwc", "output_fp16": False, "channel_num": 3},
            }
        },
        {"ToCHWImage": None},
    ]


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_same_generator_gives_the_same_image_and_others_give_others(backend: str) -> None:
    ops = [
        {name: {**(a or {}), **({"backend": backend} if name != "RandFlipImage" else {})} for name, a in op.items()}
        for op in TRAIN[:3]
    ]
    pipeline = build_transforms(ops)
    encoded = encode(NOISE)
    np.random.seed(0)  # the global generator is of no account
    images = [pipeline(encoded, np.random.default_rng([1, 2, index])) for index in (0, 0, 1)]
    assert np.array_equal(images[0], images[1]) and not np.array_equal(images[0], images[2])


def test_a_random_pipeline_asks_for_its_generator() -> None:
    with pytest.raises(ValueError, match="RandCropImage, RandFlipImage: random; call with a generator"):
        build_transforms(TRAIN)(encode(RGB))
    pipeline = build_transforms([TRAIN[0], {"CropImage": {"size": 32}}, TRAIN[3]])
    assert not pipeline.random and pipeline(encode(RGB)).shape == (3, 32, 32)


# torchvision 0.29's RandomResizedCrop.get_params, 20,000 boxes each: mean area, mean of log(width / height)
@pytest.mark.parametrize(
    "width, height, area, shape", [(500, 375, 0.4348, 0.031), (1000, 200, 0.1748, 0.103), (64, 64, 0.4854, 0.0)]
)
def test_a_crop_by_attempts_is_distributed_as_torchvisions(width: int, height: int, area: float, shape: float) -> None:
    crop = RandCropImage(size=32, use_log_aspect=True, attempt=10)
    rng = np.random.default_rng(0)
    boxes = np.array([crop.box(width, height, rng) for _ in range(20_000)])
    x, y, w, h = boxes.T
    assert (x >= 0).all() and (y >= 0).all() and (x + w <= width).all() and (y + h <= height).all()
    assert abs((w * h).mean() / (width * height) - area) < 0.006
    assert abs(np.log(w / h).mean() - shape) < 0.006


def test_a_crop_whose_attempts_all_fail_is_the_centre() -> None:
    crop = RandCropImage(size=32, scale=[0.9, 1.0], attempt=3)
    assert crop.box(1000, 10, np.random.default_rng(0)) == (493, 0, 13, 10)
    assert crop.box(10, 1000, np.random.default_rng(0)) == (0, 493, 10, 13)
    with pytest.raises(Refused, match="attempt: expected a whole number from 0, got -1"):
        RandCropImage(size=32, attempt=-1)
