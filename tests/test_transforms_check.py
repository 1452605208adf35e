"""A list of operators is checked before any image is seen: every mistake with its place, its value and its cure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ppcls_ext.errors import Refused
from ppcls_ext.registry import TRANSFORMS
from ppcls_ext.transforms import (
    DecodeImage,
    ResizeImage,
    build_transforms,
    check_transforms,
)

DECODE = {"DecodeImage": None}


@pytest.mark.parametrize(
    ("ops", "problem"),
    [
        (None, "ops: expected a list of operators, the first of them DecodeImage, got None"),
        ([], "ops: expected a list of operators, the first of them DecodeImage, got []"),
        ([{"DecodeImge": None}], "ops.0: Unknown transform 'DecodeImge'. Did you mean 'DecodeImage'?"),
        (["DecodeImage"], "ops.0: expected an operator with its arguments, got 'DecodeImage'; write 'DecodeImage:'"),
        (
            [{"DecodeImage": None, "to_rgb": True}],
            "ops.0: expected one operator, got DecodeImage, to_rgb; indent arguments deeper than their operator",
        ),
        ([3], "ops.0: expected one operator, as 'Name: {argument: value}', got 3"),
        ([{"DecodeImage": [1]}], "ops.0.DecodeImage: expected arguments as 'name: value', got [1]"),
        ([{"DecodeImage": {"to_rg": True}}], "ops.0.DecodeImage.to_rg: unknown argument. Did you mean 'to_rgb'?"),
        ([{"DecodeImage": {"backend": "PILL"}}], "ops.0.DecodeImage.backend: expected one of 'cv2', 'pil', got 'pill'"),
        (
            [{"DecodeImage": {"channels": 2}}],
            "ops.0.DecodeImage.channels: expected 1 (gray), 3 (RGB) or 4 (RGBA), got 2",
        ),
        (
            [{"DecodeImage": {"channels": 1}}],
            "ops: images end with 1 channel(s) (DecodeImage.channels, NormalizeImage.channel_num), but the network "
            "takes 3 (Arch.in_channels)",
        ),
        (
            [{"ResizeImage": {"size": 8}}],
            "ops.0.ResizeImage: stands before DecodeImage; DecodeImage has to be the first operator",
        ),
        ([DECODE, DECODE], "ops.1.DecodeImage: stands twice; images are decoded once, by the first operator"),
        ([DECODE, {"ResizeImage": None}], "ops.1.ResizeImage: size, resize_short: give one of the two"),
        (
            [DECODE, {"ResizeImage": {"size": 8, "resize_short": 8}}],
            "ops.1.ResizeImage: size, resize_short: give one of the two",
        ),
        (
            [DECODE, {"ResizeImage": {"resize_short": 0}}],
            "ops.1.ResizeImage.resize_short: expected a positive integer, got 0",
        ),
        (
            [DECODE, {"ResizeImage": {"size": 8, "interpolation": "bicubik"}}],
            "ops.1.ResizeImage.interpolation: 'bicubik' with backend 'cv2'. Did you mean 'bicubic'?",
        ),
        (
            [DECODE, {"ResizeImage": {"size": 8, "interpolation": "random"}}],
            "ops.1.ResizeImage.interpolation: 'random' with backend 'cv2'. "
            "Known: area, bicubic, bilinear, lanczos, nearest.",
        ),
        ([DECODE, {"CropImage": None}], "ops.1.CropImage.size: missing; expected int"),
        (
            [DECODE, {"CropImage": {"size": [8, 8, 3]}}],
            "ops.1.CropImage.size: expected a positive integer or [width, height], got [8, 8, 3]",
        ),
        (
            [DECODE, {"ResizeImage": {"resize_short": 200}}, {"CropImage": {"size": 224}}],
            "ops.2.CropImage.size: 224x224 (width x height) cannot be cut from images of a short side of 200, as they "
            "are here; make them larger in ResizeImage, or lower size",
        ),
        (
            [DECODE, {"ResizeImage": {"size": [300, 200]}}, {"CropImage": {"size": [224, 224]}}],
            "ops.2.CropImage.size: 224x224 (width x height) cannot be cut from images of 300x200, as they are here; "
            "make them larger in ResizeImage, or lower size",
        ),
        (
            [DECODE, {"RandCropImage": {"size": 8, "scale": [0.5, 0.1]}}],
            "ops.1.RandCropImage.scale: expected [smallest, largest] share of the area, 0 to 1, got [0.5, 0.1]",
        ),
        (
            [DECODE, {"RandCropImage": {"size": 8, "ratio": [0, 2]}}],
            "ops.1.RandCropImage.ratio: expected [smallest, largest] width / height, got [0.0, 2.0]",
        ),
        (
            [DECODE, {"RandFlipImage": {"flip_code": 2}}],
            "ops.1.RandFlipImage.flip_code: expected 1 (left and right), 0 (top and bottom) or -1 (both), got 2",
        ),
        (
            [DECODE, {"NormalizeImage": {"mean": [0.5], "std": [0.5]}}],
            "ops.1.NormalizeImage.mean: 1 value for images with 3 channels; give mean and std 3 values each",
        ),
        (
            [DECODE, {"NormalizeImage": {"mean": [0.5, 0.5]}}],
            "ops.1.NormalizeImage.std: 3 values for 2 values of mean",
        ),
        (
            [DECODE, {"NormalizeImage": {"std": [1, 0, 1]}}],
            "ops.1.NormalizeImage.std: expected positive numbers, got [1.0, 0.0, 1.0]",
        ),
        ([DECODE, {"NormalizeImage": {"scale": 0}}], "ops.1.NormalizeImage.scale: expected a positive number, got 0.0"),
        (
            [DECODE, {"NormalizeImage": {"scale": "__import__('os')"}}],
            "ops.1.NormalizeImage.scale: expected float",
        ),
        (
            [DECODE, {"NormalizeImage": {"channel_num": 1}}],
            "ops.1.NormalizeImage.channel_num: 1, but mean has 3 values",
        ),
        (
            [DECODE, {"NormalizeImage": {"order": "chw"}}],
            "ops.1.NormalizeImage.order: 'chw', but the image is (H, W, C) here; write order: ''",
        ),
        (
            [DECODE, {"ToCHWImage": None}, {"NormalizeImage": {"order": ""}}],
            "ops.2.NormalizeImage.order: '', but the image is (C, H, W) here; write order: chw",
        ),
        (
            [DECODE, {"NormalizeImage": None}, {"NormalizeImage": None}],
            "ops.2.NormalizeImage: stands twice; join the two into one",
        ),
        (
            [DECODE, {"NormalizeImage": None}, {"RandFlipImage": None}],
            "ops.2.RandFlipImage: stands after NormalizeImage, but works on 8-bit pixels; move it before "
            "NormalizeImage",
        ),
        (
            [DECODE, {"ToCHWImage": None}, {"ResizeImage": {"size": 8}}],
            "ops.2.ResizeImage: needs (H, W, C), but the image is (C, H, W) here; move it before ToCHWImage, and leave "
            "DecodeImage.channel_first False",
        ),
        (
            [DECODE, {"ToCHWImage": None}, {"ToCHWImage": None}],
            "ops.2.ToCHWImage: the image is (C, H, W) already; remove it (or DecodeImage.channel_first)",
        ),
    ],
)
def test_a_wrong_list_is_told_with_place_value_and_cure(ops: Any, problem: str) -> None:
    [found] = check_transforms(ops, "ops", 3)
    assert found.startswith(problem)
    if "Arch.in_channels" not in problem:
        with pytest.raises(Refused):
            build_transforms(ops)


def test_all_mistakes_of_a_list_are_told_at_once() -> None:
    ops = [
        {"DecodeImage": {"to_rbg": True}},
        {"RandCropImage": {"size": "big"}},
        {"RandFlip": None},
        {"CropImage": {"size": 0}},
    ]
    problems = check_transforms(ops, "DataLoader.Train.dataset.transform_ops", 3)
    assert [p.split(":")[0].removeprefix("DataLoader.Train.dataset.transform_ops.") for p in problems] == [
        *("0.DecodeImage.to_rbg", "1.RandCropImage.size", "2", "3.CropImage.size")
    ]
    with pytest.raises(Refused, match=r"transform_ops \(4 problems\)"):
        build_transforms(ops)


def test_direct_construction_refuses_an_unknown_back_end() -> None:
    for make in (lambda: DecodeImage(backend="turbo"), lambda: ResizeImage(size=8, backend="turbo")):
        with pytest.raises(Refused, match="backend: expected one of 'cv2', 'pil', got 'turbo'"):
            make()


def test_the_operators_of_paddleclas_configurations_are_valid_unchanged(shared: Path) -> None:
    files = sorted((shared / "peers" / "paddleclas_configs").glob("*.yaml"))
    assert files
    for path in files:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        lists = [raw["DataLoader"][split]["dataset"]["transform_ops"] for split in ("Train", "Eval")]
        for ops in [*lists, raw["Infer"]["transforms"]]:
            known = [op for op in ops if next(iter(op)) in TRANSFORMS]
            assert check_transforms(known, path.name, 3) == []
            unknown = len(ops) - len(known)
            assert len(check_transforms(ops, path.name, 3)) == unknown
            assert build_transforms(known).output_shape[0] == 3
