"""The random operators on images, each against a formula written here."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from ppcls_ext.errors import Refused
from ppcls_ext.registry import TRANSFORMS
from ppcls_ext.transforms import (
    AugMix,
    AutoAugment,
    ColorJitter,
    Cutout,
    Flow,
    GaussianBlur,
    GridMask,
    RandAugment,
    RandFlipImage,
    RandomErasing,
    RandomRotation,
    RandomTranspose,
    TimmAutoAugment,
    TrivialAugmentWide,
    build_transforms,
    check_transforms,
    pictures,
    timm_policy,
)
from ppcls_ext.transforms.policies import CIFAR10_POLICY, IMAGENET_POLICY
from ppcls_ext.transforms.timm_policy import parse_policy

NOISE = np.random.default_rng(3).integers(0, 256, size=(40, 56, 3), dtype=np.uint8)
FLOAT = np.random.default_rng(4).normal(size=(40, 56, 3)).astype(np.float32)
DECODE, NORMALIZE = {"DecodeImage": None}, {"NormalizeImage": None}
NAMES = (
    "AugMix AutoAugment ColorJitter Cutout GaussianBlur GridMask ImageNetPolicy RandAugment RandomErasing "
    "RandomRotation TimmAutoAugment TrivialAugmentWide"
).split()
CANVAS = pictures.Canvas(Image.Resampling.NEAREST, (7,))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# ------------------------------------------------------------------------------------------------ all of them


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_a_draw_depends_on_the_generator_alone_and_leaves_the_image(name: str, channels: int) -> None:
    operator = TRANSFORMS[name](**({"d1": 8, "d2": 16} if name == "GridMask" else {}))
    image = np.ascontiguousarray(NOISE[:, :, :channels])
    before = image.copy()
    results = [operator(image, rng(seed)) for seed in range(12)]
    assert np.array_equal(image, before)
    for seed, result in enumerate(results):
        assert result.shape == image.shape and result.dtype == np.uint8
        assert np.array_equal(result, operator(image, rng(seed)))
    if name != "ColorJitter":  # whose defaults change nothing
        assert any(not np.array_equal(result, image) for result in results)


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"Cutout", "GridMask", "RandomErasing"}))
def test_what_works_on_pixels_is_refused_after_normalisation(name: str) -> None:
    [problem] = check_transforms([DECODE, NORMALIZE, {name: None}], "ops", 3)
    assert "stands after NormalizeImage, but works on 8-bit pixels" in problem


@pytest.mark.parametrize("name", ["AugMix", "AutoAugment", "RandAugment", "TimmAutoAugment", "ColorJitter"])
def test_four_channels_are_refused_where_pillow_has_no_operation(name: str) -> None:
    ops = [{"DecodeImage": {"channels": 4}}, {name: None}]
    assert "works on images of 1 or 3 channels, but they have 4 here" in check_transforms(ops, "ops", 4)[0]


def test_a_pipeline_with_all_of_them_is_resolved_and_built_again() -> None:
    names = [name for name in NAMES if name not in ("RandomErasing", "ImageNetPolicy")]
    ops = [DECODE, *({name: None} for name in names), NORMALIZE, {"RandomErasing": {"mode": "pixel", "EPSILON": 1}}]
    first = build_transforms(ops)
    second = build_transforms(first.to_config())
    results = [pipeline(NOISE, rng(5)) for pipeline in (first, second)]
    assert results[0].shape == (3, 40, 56) and np.array_equal(*results)
    with pytest.raises(ValueError, match="call with a generator"):
        first(NOISE)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("Cutout", {"length": 0}, "Cutout.length: expected at least 1, got 0"),
        ("Cutout", {"fill_value": [1, 2]}, "Cutout.fill_value: 2 values for 3 channel(s); give one or as many"),
        ("RandomErasing", {"sl": 0.5, "sh": 0.1}, "RandomErasing.sl: expected 0 < sl <= sh <= 1, shares of the area"),
        ("RandomErasing", {"EPSILON": 2}, "RandomErasing.EPSILON: expected a probability, 0 to 1, got 2"),
        ("RandomErasing", {"mode": "pixel"}, "mode: 'pixel' draws colours of mean 0 and deviation 1; move it after"),
        ("RandomErasing", {"mode": "pixels"}, "RandomErasing.mode: expected one of 'const', 'rand', 'pixel'"),
        ("GridMask", {"d1": 96, "d2": 96}, "GridMask.d1: expected 2 <= d1 < d2"),
        ("AutoAugment", {"policy": "imagnet"}, "AutoAugment.policy: expected one of 'imagenet', 'cifar10'"),
        ("AutoAugment", {"fillcolor": [300]}, "fillcolor: expected one or three numbers from 0 to 255, got [300]"),
        ("RandAugment", {"magnitude": 11}, "RandAugment.magnitude: expected 0 to 10, got 11.0"),
        ("RandAugment", {"num_layer": 1}, "RandAugment.num_layer: unknown argument. Did you mean 'num_layers'?"),
        ("TimmAutoAugment", {"config_str": "rnd-m9"}, "config_str: expected it to begin with one of rand, augmix"),
        ("TimmAutoAugment", {"config_str": "rand-k9"}, "config_str: 'k9' in 'rand-k9' is not one of m<number>"),
        ("TimmAutoAugment", {"config_str": "rand-m11"}, "config_str: expected m from 0 to 10"),
        ("TimmAutoAugment", {"config_str": "rand-n1.5"}, "config_str: expected a whole number in 'n1.5'"),
        ("TimmAutoAugment", {"config_str": "rand-m9-m3"}, "config_str: 'rand-m9-m3' gives m twice"),
        ("TimmAutoAugment", {"config_str": "augmix-w0"}, "config_str: expected w and d of at least 1 and a above 0"),
        ("AugMix", {"mixture_depth": 0}, "AugMix.mixture_depth: expected at least 1, or -1 for 1 to 3, got 0"),
        ("AugMix", {"aug_prob_coeff": math.inf}, "AugMix.aug_prob_coeff: expected a finite number, got inf"),
        ("ColorJitter", {"contrast": [0.1, math.nan]}, "ColorJitter.contrast: expected a finite number, got nan"),
        ("GaussianBlur", {"sigma": 1e9}, "GaussianBlur.sigma: expected pixels above 0 to 100, or"),
        ("TrivialAugmentWide", {"num_magnitude_bins": 1}, "num_magnitude_bins: expected at least 2, got 1"),
        ("AugMix", {"mixture_width": 0}, "AugMix.mixture_width: expected at least 1, got 0"),
        ("ColorJitter", {"brightness": -1}, "ColorJitter.brightness: expected a number from 0, or [smallest, largest]"),
        ("ColorJitter", {"hue": 0.7}, "ColorJitter.hue: expected a number from 0, or [smallest, largest] from -0.5"),
        ("GaussianBlur", {"kernel_size": 4}, "GaussianBlur.kernel_size: expected an odd number, got 4"),
        ("RandomRotation", {"interpolation": "cubic"}, "Did you mean 'bicubic'?"),
        ("RandomRotation", {"interpolation": "area"}, "interpolation: 'area' is for resizing; expected nearest"),
        ("RandomTranspose", {}, "RandomTranspose: needs square images; move it behind RandCropImage or CropImage"),
        ("RandomTranspose", {"prob": 1.5}, "RandomTranspose.prob: expected a probability, 0 to 1, got 1.5"),
    ],
)
def test_a_wrong_argument_is_told_with_its_cure(name: str, arguments: dict[str, Any], message: str) -> None:
    problems = check_transforms([DECODE, {name: arguments}], "ops", 3)
    assert len(problems) == 1 and message in problems[0], problems


# ------------------------------------------------------------------------------------------------ taking away


@pytest.mark.parametrize("length", [1, 7, 8])
def test_cutout_clears_squares_of_its_length_that_edges_alone_cut(length: int) -> None:
    cuts = Counter()
    for seed in range(300):
        hole = (Cutout(length=length)(np.full((30, 20, 3), 9, np.uint8), rng(seed)) == 0).all(axis=2)
        rows, columns = np.flatnonzero(hole.any(axis=1)), np.flatnonzero(hole.any(axis=0))
        assert hole.sum() == len(rows) * len(columns)  # one rectangle
        whole = rows[0] > 0 and rows[-1] < 29 and columns[0] > 0 and columns[-1] < 19
        assert len(rows) <= length and len(columns) <= length
        assert not whole or len(rows) == len(columns) == length
        cuts[whole] += 1
    # the middle is uniform: the share that no edge touches is (h - length - 1 ... ) / h for each side
    expected = (30 - length - 1) / 30 * (20 - length - 1) / 20
    assert cuts[True] / 300 == pytest.approx(expected, abs=0.1)


def test_cutout_by_default_works_and_fills_what_it_is_told() -> None:
    assert (Cutout()(np.full((224, 224, 3), 9, np.uint8), rng()) == 0).any()  # the peer's default raises
    coloured = Cutout(n_holes=2, length=4, fill_value=[1, 2, 3])(np.full((50, 50, 3), 9, np.uint8), rng(1))
    assert {tuple(colour) for colour in coloured.reshape(-1, 3).tolist()} == {(9, 9, 9), (1, 2, 3)}
    drawn = Cutout(length=9, fill_value="none")(np.full((50, 50, 3), 9, np.uint8), rng(2))
    assert len({tuple(colour) for colour in drawn.reshape(-1, 3).tolist()}) == 2


def erased(operator: RandomErasing, image: np.ndarray, seed: int) -> np.ndarray:
    return (operator(image, rng(seed)) != image).any(axis=2)


@pytest.mark.parametrize("log", [False, True])
def test_erased_rectangles_have_the_area_and_the_shape_asked_for(log: bool) -> None:
    operator = RandomErasing(EPSILON=1, sl=0.05, sh=0.2, r1=0.5, use_log_aspect=log, mode="pixel")
    image = np.zeros((120, 100, 3), np.float32)
    shares, ratios = [], []
    for seed in range(400):
        hole = erased(operator, image, seed)
        rows, columns = hole.any(axis=1).sum(), hole.any(axis=0).sum()
        assert hole.sum() == rows * columns
        shares.append(hole.mean())
        ratios.append(rows / columns)
    assert 0.045 < min(shares) < 0.06 and 0.19 < max(shares) < 0.205
    assert np.mean(shares) == pytest.approx(0.125, abs=0.006)
    assert 0.46 < min(ratios) and max(ratios) < 2.2
    # uniform in [1/2, 2]: mean 5/4; log-uniform: as often above 1 as below
    assert np.mean(np.array(ratios) > 1) == pytest.approx(1 / 2 if log else 2 / 3, abs=0.07)


def test_erasing_happens_as_often_as_asked() -> None:
    operator = RandomErasing(EPSILON=0.25, mode="pixel")
    assert np.mean([erased(operator, FLOAT, seed).any() for seed in range(800)]) == pytest.approx(0.25, abs=0.05)


def test_the_modes_of_erasing_are_timms() -> None:
    image = np.full((100, 100, 3), 50, np.float32)
    area = {"EPSILON": 1, "sl": 0.3, "sh": 0.3}
    pixels = RandomErasing(**area, mode="pixel")(image, rng(1))
    drawn = pixels[pixels != 50]
    assert abs(drawn.mean()) < 0.03 and drawn.std() == pytest.approx(1, abs=0.03)
    colours = {tuple(c) for c in RandomErasing(**area, mode="rand")(image, rng(1)).reshape(-1, 3).tolist()}
    assert len(colours) == 2  # the image's, and one drawn
    assert set(np.unique(RandomErasing(**area, mean=[1, 2, 3])(image, rng(1)))) == {1, 2, 3, 50}


def test_several_rectangles_share_the_area() -> None:
    operator = RandomErasing(EPSILON=1, sl=0.2, sh=0.2, r1=1, count=4, mode="pixel")
    shares = [erased(operator, np.zeros((100, 100, 3), np.float32), seed).mean() for seed in range(100)]
    assert max(shares) < 0.21 and min(shares) > 0.08  # overlapping ones cover less


@pytest.mark.parametrize("name", ["Cutout", "RandomErasing", "GridMask"])
def test_what_is_taken_away_does_not_depend_on_the_layout(name: str) -> None:
    arguments = {
        "Cutout": {"length": 9},
        "RandomErasing": {"EPSILON": 1},
        "GridMask": {"d1": 8, "d2": 16, "rotate": 45},
    }
    last = TRANSFORMS[name](**arguments[name])(FLOAT, rng(2))
    first = TRANSFORMS[name](**arguments[name], order="chw")(np.ascontiguousarray(FLOAT.transpose(2, 0, 1)), rng(2))
    assert np.array_equal(first, last.transpose(2, 0, 1))
    ops = [DECODE, NORMALIZE, {"ToCHWImage": None}, {name: arguments[name]}]
    assert build_transforms(ops).operators[-1].order == "chw"
    ops[-1] = {name: {**arguments[name], "order": "hwc"}}
    assert "order: 'hwc', but the image is (C, H, W) here; write order: chw" in check_transforms(ops, "ops", 3)[0]


@pytest.mark.parametrize("mode", [0, 1])
def test_a_grid_keeps_the_squares_between_its_bars(mode: int) -> None:
    # period 10, bars of 4: of each period 6 x 6 pixels stay
    operator = GridMask(d1=10, d2=11, ratio=0.4, mode=mode)
    for seed in range(10):
        kept = operator(np.ones((60, 80, 3), np.uint8), rng(seed))[:, :, 0]
        assert kept.mean() == pytest.approx(0.36 if mode == 0 else 0.64, abs=1e-9)
        assert np.array_equal(kept[10:], kept[:-10]) and np.array_equal(kept[:, 10:], kept[:, :-10])


def test_a_turned_grid_covers_the_whole_image() -> None:
    operator = GridMask(d1=10, d2=11, ratio=0.4, rotate=90)
    for seed in range(20):
        kept = operator(np.ones((90, 90, 3), np.uint8), rng(seed))[:, :, 0]
        corners = [kept[:20, :20], kept[-20:, :20], kept[:20, -20:], kept[-20:, -20:]]
        assert all(0.15 < corner.mean() < 0.6 for corner in corners)
        assert kept.mean() == pytest.approx(0.36, abs=0.05)


# ------------------------------------------------------------------------------------------------ colour, blur, turning


def test_brightness_contrast_and_saturation_are_their_formulas() -> None:
    image = NOISE.astype(np.float64)
    luminance = image @ [0.299, 0.587, 0.114]
    expected = {
        "brightness": image * 1.3,
        "contrast": 1.3 * image + (1 - 1.3) * round(luminance.mean()),
        "saturation": 1.3 * image + (1 - 1.3) * luminance[:, :, None],
    }
    for name, value in expected.items():
        result = ColorJitter(**{name: [1.3, 1.3]})(NOISE, rng())
        assert np.abs(result - np.clip(value, 0, 255)).max() <= 1.5, name


def test_hue_turns_round_the_circle() -> None:
    red = np.full((4, 4, 3), [255, 0, 0], np.uint8)
    for turn, expected in ((0.5, [0, 255, 255]), (1 / 3, [0, 255, 0]), (-1 / 3, [0, 0, 255])):
        assert np.abs(ColorJitter(hue=[turn, turn])(red, rng()).astype(int) - expected).max() <= 6


def test_jitter_draws_from_the_whole_range_in_any_order() -> None:
    flat = np.full((2, 2, 3), 100, np.uint8)
    means = [ColorJitter(brightness=0.4)(flat, rng(seed)).mean() for seed in range(300)]
    assert min(means) < 64 and max(means) > 136 and np.mean(means) == pytest.approx(100, abs=4)
    assert np.mean([(ColorJitter(brightness=0.4, p=0.3)(flat, rng(s)) != flat).any() for s in range(400)]) < 0.4


def test_blur_spreads_an_edge_with_the_asked_deviation() -> None:
    edge = np.repeat(np.where(np.arange(61) < 30, 0, 255)[None, :, None], 61, axis=0).astype(np.uint8)
    profile = np.diff(GaussianBlur(sigma=2.0)(edge, rng())[30, :, 0].astype(np.float64))  # the kernel itself
    distance = np.arange(60) - (profile * np.arange(60)).sum() / 255
    assert profile.sum() == 255 and (profile * distance**2).sum() / 255 == pytest.approx(4, rel=0.05)
    assert np.array_equal(GaussianBlur(kernel_size=1)(NOISE, rng()), NOISE)


@pytest.mark.parametrize("backend", ["cv2", "pil"])
def test_a_quarter_turn_is_a_quarter_turn(backend: str) -> None:
    square = NOISE[:, :40]
    for image in (square, square[:, :, :1]):
        turn = RandomRotation(degrees=[90, 90], prob=1, interpolation="nearest", backend=backend)
        assert np.array_equal(turn(image, rng()), np.rot90(image))
    turn = RandomRotation(degrees=[45, 45], prob=1, fill=255, backend=backend)
    white = turn(np.zeros((101, 101, 3), np.uint8), rng())
    # the middle square and its copy turned by 45 degrees share an octagon of 2 (sqrt 2 - 1) of the area
    assert (white == 0).mean() == pytest.approx(2 * (2**0.5 - 1), abs=0.02)


def test_flips_and_transposition_give_the_eight_positions_of_a_square() -> None:
    square = NOISE[:, :40]
    steps = [RandFlipImage(flip_code=1), RandFlipImage(flip_code=0), RandomTranspose()]
    seen: Counter[bytes] = Counter()
    for seed in range(400):
        image, generator = square, rng(seed)
        for step in steps:
            image = step(image, generator)
        seen[image.tobytes()] += 1
    positions = {np.rot90(start, k).tobytes() for start in (square, square[:, ::-1]) for k in range(4)}
    assert set(seen) == positions and min(seen.values()) > 25


# ---------------------------------------------------------------------------------------------- operations of policies


def test_geometry_of_the_operations_is_that_of_the_autoaugment_paper() -> None:
    picture = Image.fromarray(NOISE)
    rows, columns = np.mgrid[0:40, 0:56]

    def looked_up(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        inside = (x >= 0) & (x < 56) & (y >= 0) & (y < 40)
        return np.where(inside[..., None], NOISE[np.clip(y, 0, 39), np.clip(x, 0, 55)], 7)

    for name, value, x, y in (
        ("shear_x", 0.25, np.floor(columns + 0.5 + 0.25 * (rows + 0.5)).astype(int), rows),
        ("shear_y", 0.25, columns, np.floor(rows + 0.5 + 0.25 * (columns + 0.5)).astype(int)),
        ("translate_x", 0.25, columns + 14, rows),
        ("translate_y", -0.25, columns, rows - 10),
        ("shift_x", -3, columns - 3, rows),
        ("shift_y", 3, columns, rows + 3),
    ):
        assert np.array_equal(np.asarray(pictures.OPERATIONS[name](picture, value, CANVAS)), looked_up(x, y)), name


def test_values_of_the_operations_are_their_formulas() -> None:
    picture, values = Image.fromarray(NOISE), NOISE.astype(int)
    for name, value, expected in (
        ("posterize", 3, values // 8 * 8),
        ("posterize", 0, values),
        ("solarize", 100, np.where(values < 156, values, 255 - values)),
        ("solarize", 0, values),
        ("solarize_add", 30, np.where(values < 128, values + 30, values)),
        ("invert", 0, 255 - values),
        ("brightness", 0, values),
        ("contrast", 0, values),
        ("color", 0, values),
        ("sharpness", 0, values),
    ):
        assert np.array_equal(np.asarray(pictures.OPERATIONS[name](picture, value, CANVAS)), expected), name
    assert np.array_equal(np.asarray(pictures.equalize(picture, 0, CANVAS)), np.asarray(ImageOps.equalize(picture)))
    dull = Image.fromarray((values // 2 + 30).astype(np.uint8))
    stretched = np.asarray(pictures.auto_contrast(dull, 0, CANVAS))
    assert (stretched.min(), stretched.max()) == (0, 255)


# ------------------------------------------------------------------------------------------------ policies


@pytest.fixture
def performed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    """What policies ask for, (operation, strength); nothing is done to pictures."""
    asked: list[tuple[str, float]] = []

    def recorder(name: str) -> pictures.Operation:
        def operation(picture: Image.Image, value: float, canvas: pictures.Canvas) -> Image.Image:
            asked.append((name, float(value)))
            return picture

        return operation

    for name in pictures.OPERATIONS:
        monkeypatch.setitem(pictures.OPERATIONS, name, recorder(name))
    return asked


def strengths(asked: list[tuple[str, float]], name: str) -> set[float]:
    return {round(value, 4) for operation, value in asked if operation == name}


@pytest.mark.parametrize(("policy", "table"), [("imagenet", IMAGENET_POLICY), ("cifar10", CIFAR10_POLICY)])
def test_autoaugment_takes_each_pair_alike_and_each_operation_as_often_as_published(
    performed: list, policy: str, table: tuple
) -> None:
    assert len(table) == 25 and all(len(pair) == 2 for pair in table)
    operator, image, draws = AutoAugment(policy=policy), NOISE[:4, :4], 4000
    for seed in range(draws):
        operator(image, rng(seed))
    counts = Counter(name for name, _ in performed)
    for name in counts:
        expected = sum(probability for pair in table for step, probability, _ in pair if step == name) / 25
        assert counts[name] / draws == pytest.approx(expected, abs=0.025), name


def test_autoaugment_has_the_papers_strengths(performed: list) -> None:
    for seed in range(3000):
        AutoAugment()(NOISE[:4, :4], rng(seed))
    assert strengths(performed, "rotate") == {-30, 30, -26.6667, 26.6667, -10, 10}  # 9, 8 and 3 ninths of 30 degrees
    assert strengths(performed, "posterize") == {4, 3, 2}  # 8, 7, 6, 5 ninths of 4 bits
    assert strengths(performed, "solarize") == {142.2222, 113.7778, 85.3333, 227.5556, 199.1111}
    assert strengths(performed, "shear_x") == {-0.1667, 0.1667}
    assert strengths(performed, "contrast") == {-0.8, 0.8}
    assert strengths(performed, "color") == {0, -0.0, -0.4, 0.4, -0.2, 0.2, -0.8, 0.8}


def test_randaugment_has_paddleclas_strengths_and_draws_fourteen_alike(performed: list) -> None:
    for seed in range(2000):
        RandAugment(num_layers=3, magnitude=5)(NOISE[:4, :4], rng(seed))
    counts = Counter(name for name, _ in performed)
    assert len(performed) == 6000 and len(counts) == 14
    assert all(count / 6000 == pytest.approx(1 / 14, abs=0.015) for count in counts.values())
    assert strengths(performed, "posterize") == {6}  # 2 bits stay
    assert strengths(performed, "solarize") == {128}
    assert strengths(performed, "translate_y") == {round(s * 75 / 331, 4) for s in (-1, 1)}
    assert strengths(performed, "rotate") == {-15, 15} and strengths(performed, "sharpness") == {-0.45, 0.45}


def test_trivialaugment_draws_one_of_fourteen_and_all_strengths(performed: list) -> None:
    for seed in range(6000):
        TrivialAugmentWide()(NOISE[:4, :4], rng(seed))
    assert len(performed) / 6000 == pytest.approx(13 / 14, abs=0.02)  # the fourteenth is identity
    assert len(strengths(performed, "rotate")) == 61 and max(strengths(performed, "rotate")) == 135
    assert max(strengths(performed, "shift_x")) == 32 and max(strengths(performed, "shear_y")) == 0.99
    assert strengths(performed, "posterize") == {0, 1, 2, 3, 4, 5, 6}


def test_timms_randaugment_grows_or_not_and_skips_half(performed: list) -> None:
    for seed in range(3000):
        TimmAutoAugment("rand-m9-n2-inc1")(NOISE[:4, :4], rng(seed))
    counts = Counter(name for name, _ in performed)
    assert len(counts) == 15 and len(performed) / 6000 == pytest.approx(1 / 2, abs=0.03)
    assert strengths(performed, "posterize") == {7} and strengths(performed, "solarize") == {230}
    assert strengths(performed, "color") == {-0.81, 0.81} and strengths(performed, "solarize_add") == {99}
    assert strengths(performed, "translate_x") == {-0.405, 0.405}
    performed.clear()
    for seed in range(1000):
        TimmAutoAugment("rand-m9-p1")(NOISE[:4, :4], rng(seed))
    assert len(performed) == 2000
    assert strengths(performed, "posterize") == {5} and strengths(performed, "solarize") == {26}
    assert strengths(performed, "color") == {0.72}  # a factor of 1.72
    performed.clear()
    for seed in range(1000):
        TimmAutoAugment("rand-m5-mstd1-w0-p1")(NOISE[:4, :4], rng(seed))
    degrees = np.abs([value for name, value in performed if name == "rotate"])
    assert degrees.mean() == pytest.approx(15, abs=0.5) and degrees.std() == pytest.approx(3, abs=0.4)
    # without replacement, so rarer than 2 x 0.3
    assert 0.45 < len(degrees) / 1000 < 0.6
    assert "invert" not in {name for name, _ in performed}


def test_timms_strings_are_read_with_timms_defaults() -> None:
    assert parse_policy("rand-m9-mstd0.5-inc1") == (
        "rand",
        {"m": 9, "n": 2, "mstd": 0.5, "inc": 1, "w": -1, "p": 0.5},
    )
    assert parse_policy("augmix-m5-w4-d2")[1] == {"m": 5, "w": 4, "d": 2, "a": 1, "mstd": math.inf}
    assert parse_policy("augmix-mstd0.5")[1]["mstd"] == 0.5
    assert parse_policy("rand-m9-mstd101")[1]["mstd"] == math.inf
    assert parse_policy("original-mstd0.5") == ("original", {"mstd": 0.5})
    with pytest.raises(Refused, match="the one table of weights is w0"):
        parse_policy("rand-w1")


@pytest.mark.parametrize("text", ["augmix-m8-w4-d2", "rand-m8-n4-mstd101-inc1"])
def test_timms_magnitude_without_a_deviation_or_with_an_infinite_one_is_uniform(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = []
    monkeypatch.setattr(timm_policy, "perform", lambda picture, name, share, *rest: shares.append(share) or picture)
    operator = TimmAutoAugment(text)
    for seed in range(300):
        operator(NOISE, rng(seed))
    assert len(shares) > 500 and 0 <= min(shares) < 0.02 and 0.78 < max(shares) <= 0.8
    assert np.quantile(shares, [0.25, 0.5, 0.75]) == pytest.approx([0.2, 0.4, 0.6], abs=0.05)


@pytest.mark.parametrize("text", ["augmix-m5-w4-d2", "original", "originalr-mstd0.5", "rand-m9-n3"])
def test_every_kind_of_timms_policies_runs(text: str) -> None:
    operator = TimmAutoAugment(text, interpolation="random")
    assert any(not np.array_equal(operator(NOISE, rng(seed)), NOISE) for seed in range(10))


@pytest.mark.parametrize(
    "operator", [AugMix(prob=1, aug_prob_coeff=1, mixture_depth=-1), TimmAutoAugment("augmix-m3-w4")]
)
def test_augmix_mixes_the_image_with_its_chains_in_shares_that_sum_to_one(
    operator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    white = Image.fromarray(np.full_like(NOISE, 255))
    for name in pictures.OPERATIONS:
        monkeypatch.setitem(pictures.OPERATIONS, name, lambda picture, value, canvas: white)
    shares = []
    for seed in range(40):
        result = operator(NOISE, rng(seed)).astype(np.float64)
        # every chain ends white, so the result is (1 - m) x + m 255 with one m for all pixels
        dark = NOISE < 128
        share = (result - NOISE)[dark] / (255.0 - NOISE[dark])
        assert share.max() - share.min() < 0.02
        shares.append(share.mean())
    assert np.mean(shares) == pytest.approx(0.5, abs=0.15)  # Beta(1, 1)


def test_a_policy_keeps_what_is_known_of_the_images() -> None:
    flow = Flow(channels=3, layout="hwc", width=8, height=9, short_side=8)
    for name in NAMES:
        assert TRANSFORMS[name]().flow(flow) == flow
