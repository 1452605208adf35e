"""The ImageNet recipes: every published network has one, and it says what was published."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY, Run, paths_and_sizes

from ppcls_ext import config
from ppcls_ext.backbones import facts, published_names
from ppcls_ext.errors import Refused

sys.path.insert(0, str(REPOSITORY / "tools"))
import recipes

PAGE = REPOSITORY / "docs/imagenet_recipes.md"


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, config.Config]]:
    """Network -> its file and configuration, checked as `tools/train.py` checks it; the data are an empty list."""
    root = tmp_path_factory.mktemp("data")
    (root / "list.txt").write_text("")
    places = [
        f"DataLoader.{split}.dataset.{key}={value}"
        for split in ("Train", "Eval")
        for key, value in (("image_root", root), ("cls_label_path", root / "list.txt"))
    ]
    result = {}
    for name, path in recipes.published_configurations().items():
        teacher = [f"Distill.weights={root / 'list.txt'}"] if name.startswith("GroupMamba") else []
        result[name] = (path, config.load(path, [*places, *teacher], ["Train"]))
    return result


def test_every_published_network_has_its_configuration(loaded: dict[str, tuple[Path, config.Config]]) -> None:
    assert list(loaded) == published_names()
    for name, (path, made) in loaded.items():
        assert (made.Arch.name, made.Arch.class_num) == (name, 1000), path.name
        assert made.Optimizer is not None and made.Metric.Eval, path.name


def test_a_network_without_a_configuration_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "CONFIGS", tmp_path)
    with pytest.raises(Refused, match="holds no configuration of DenseNet121, EfficientNetB0"):
        recipes.published_configurations()


def test_every_header_says_command_hardware_expected_top1_and_differences(
    loaded: dict[str, tuple[Path, config.Config]],
) -> None:
    for name, (path, made) in loaded.items():
        assert path.read_text().startswith(f"# {name}"), path.name
        header = recipes.header_of(path)
        assert list(header) == ["Command", "Hardware", "Expected", "Differs"], path.name
        assert f"tools/train.py -c configs/{path.name}" in header["Command"], path.name
        assert f"top-1 {facts(name).top1} (published" in header["Expected"], path.name
        assert "not yet run by this project" in header["Expected"], path.name
        total = recipes.total_batch(made, header["Command"])
        assert f"total batch {total} (published" in header["Hardware"], path.name
        if "Global.pretrained_model" in header["Command"]:
            assert "FILE holds" in header["Differs"], path.name


def test_images_are_prepared_as_the_facts_say(loaded: dict[str, tuple[Path, config.Config]]) -> None:
    for name, (path, made) in loaded.items():
        known = facts(name)
        train, evaluation = (
            {op: given for entry in part.dataset.arguments["transform_ops"] for op, given in entry.items()}
            for part in (made.DataLoader.Train, made.DataLoader.Eval)
        )
        assert train["RandCropImage"]["size"] == known.input_size, path.name
        assert made.Global.image_shape == [3, known.crop, known.crop], path.name
        resize = evaluation["ResizeImage"]
        assert resize["interpolation"] == known.interpolation, path.name
        if known.warped:
            assert resize["size"] == known.resize == known.crop and "CropImage" not in evaluation, path.name
        else:
            assert (resize["resize_short"], evaluation["CropImage"]["size"]) == (known.resize, known.crop), path.name
        for given in (train["NormalizeImage"], evaluation["NormalizeImage"]):
            white = {"1.0/255.0": 1, 1.0: 255}[given["scale"]]  # (x - 127) / 128 is (x / 255 - mean) / std
            assert np.allclose(given["mean"], white * np.array(known.mean)), path.name
            assert np.allclose(given["std"], white * np.array(known.std)), path.name
        # images are read and sizes rounded as they were when the top-1 was measured
        if known.measured_with == "torchvision":
            rounded = [given for op, given in evaluation.items() if op == "CropImage" or "resize_short" in given]
            assert {given["rounding"] for given in rounded} <= {"torchvision"}, path.name
            assert resize["backend"] == "pil", path.name
        else:
            of_opencv = [*train.values(), *evaluation.values()]
            assert {given.get("backend", "cv2") for given in of_opencv} == {"cv2"}, path.name
            assert {given.get("rounding", "paddleclas") for given in evaluation.values()} == {"paddleclas"}, path.name
        prediction = {op: given for entry in made.Infer.transforms for op, given in entry.items()}
        assert {op: given for op, given in prediction.items() if op != "ToCHWImage"} == evaluation, path.name


@pytest.mark.parametrize("name", published_names())
def test_the_numbers_are_those_of_the_facts(name: str, loaded: dict[str, tuple[Path, config.Config]]) -> None:
    path, made = loaded[name]
    said = facts(name).recipe
    # what was published for ImageNet-1k; of two stages the second, and of three networks only words
    said = said.partition("; then ")[2] or said
    if not re.match(r"\d+ epochs", said):
        assert name.startswith(("ViT_", "RepLKNet_XL", "ResNetV2_50"))
        return
    number = r"(\d+(?:\.\d+)?(?:e-\d+)?)"
    rates = made.Optimizer.lr.arguments
    decay = made.Optimizer.regularizer.arguments["coeff"] if made.Optimizer.regularizer else None
    found = {
        rf"^{number} epochs": made.Global.epochs,
        rf"batch {number}": recipes.total_batch(made, recipes.header_of(path)["Command"]),
        rf"\blr {number}": rates.get("learning_rate", rates.get("values", [None])[0]),
        rf"weight decay {number}": made.Optimizer.arguments["weight_decay"] if decay is None else decay,
        rf"{number} epochs? of warm-up": rates.get("warmup_epoch"),
        rf"label smoothing {number}": smoothing(made),
        rf"drop path {number}": made.Arch.arguments.get("drop_path", 0.2),
    }
    for pattern, value in found.items():
        published = re.search(pattern, said)
        assert published is None or float(published[1]) == value, f"{path.name}: {pattern}"
    assert len([pattern for pattern in found if re.search(pattern, said)]) >= 4


def smoothing(made: config.Config) -> float | None:
    """Label smoothing of a recipe, by the loss or by the operator that mixes."""
    mixing = made.DataLoader.Train.dataset.arguments.get("batch_transform_ops") or [{}]
    return mixing[0].get("Mixup", {}).get("label_smoothing") or made.Loss.Train[0].arguments.get("epsilon")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("EfficientNetB0", "EfficientNetLite0", "GroupMamba_tiny", "MicroNet_M0", "RepLKNet_31B", "RepLKNet_31L"),
        *("ResNeXt50_vd_32x4d", "ResNetV2_50", "ShuffleNetV2_x0_25", "ViT_tiny_patch16_224"),
    ],
)
def test_a_recipe_trains_with_other_paths_and_sizes(name: str, photographs: Path, run_here: Run) -> None:
    path = recipes.published_configurations()[name]
    overrides = [*paths_and_sizes(path, photographs), *(["Distill="] if name.startswith("GroupMamba") else [])]
    status, output, errors = run_here("tools/train.py", "-c", path, "-o", *overrides)
    assert status == 0, errors
    assert "[Eval][Epoch 1]" in output


def test_the_tables_of_the_page_are_those_that_the_command_makes() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert recipes.filled(text) == text, "python tools/recipes.py --write docs/imagenet_recipes.md"
    for name, (_, rate) in recipes.PUBLISHED_RATES.items():
        assert f"| {name} | {recipes.PUBLISHED_RATES[name][0]} | {rate:,.0f} | {1_281_167 / rate / 60:,.1f} |" in text
