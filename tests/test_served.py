"""The exported folder: what is in it, that it answers as the trained network, and what is found of a spoilt one."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import Run, answers_in, config_of, run_tool, weights

from ppcls_ext import config, export
from ppcls_ext.errors import Refused, RunFailed
from ppcls_ext.files import file_digest
from ppcls_ext.serving.model import ServedModel, read_description
from ppcls_ext.transforms import build_transforms


@pytest.fixture(scope="module")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "inference"
    loaded = config.load(config_of(trained), [weights(trained), f"Global.save_inference_dir={folder}"])
    return export.export(loaded).folder


def test_the_exported_model_answers_as_the_trained_one(
    trained: Path, exported: Path, run_here: Run, pictures: Path, tmp_path: Path
) -> None:
    _, dynamic, _ = run_here(
        "tools/infer.py", "-c", config_of(trained), "-o", weights(trained), f"Infer.infer_imgs={pictures}/val"
    )
    saved = tmp_path / "answers.jsonl"
    status, static, errors = run_here("deploy/predict.py", exported, pictures / "val", "--save", saved)
    assert status == 0, errors
    ours, theirs = answers_in(dynamic), answers_in(static)
    assert len(ours) == len(theirs) == 15
    assert [json.loads(line) for line in saved.read_text("utf-8").splitlines()] == theirs
    for a, b in zip(ours, theirs):
        assert (
            a["class_ids"] == b["class_ids"]
            and a["label_names"] == b["label_names"]
            and a["file_name"] == b["file_name"]
        )
        np.testing.assert_allclose(a["scores"], b["scores"], atol=2e-5)


def test_the_exported_folder_carries_its_preprocessing_names_and_digests(exported: Path) -> None:
    names = {path.name for path in exported.iterdir()}
    assert names in (
        {"inference.json", "inference.pdiparams", "inference.yml"},
        {"inference.pdmodel", "inference.pdiparams", "inference.yml"},
    )
    description, _ = read_description(exported)
    assert description["PostProcess"]["Topk"]["label_list"] == ["class_0", "class_1", "class_2"]
    assert [next(iter(op)) for op in description["PreProcess"]["transform_ops"]] == [
        "DecodeImage", "ResizeImage", "NormalizeImage", "ToCHWImage",
    ]  # fmt: skip
    served = ServedModel(exported)
    assert served.onednn == (description["OneDNN"]["operators"] if description["OneDNN"]["enabled"] else None)
    for batch in (1, 3):  # the batch is dynamic
        assert served.probabilities(np.zeros((batch, 3, 32, 32), np.float32)).shape == (batch, 3)


def test_the_description_of_an_export_is_plain_yaml(exported: Path) -> None:
    assert yaml.safe_load((exported / "inference.yml").read_text())["Global"]["model_name"] == "MicroNet_M0"


def test_an_export_that_differs_is_refused_and_leaves_nothing(
    trained: Path, run_here: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ServedModel.probabilities
    monkeypatch.setattr(ServedModel, "probabilities", lambda self, images: real(self, images) + 1e-3)
    folder = tmp_path / "model"
    status, _, errors = run_here(
        "tools/export_model.py", "-c", config_of(trained), "-o", weights(trained), f"Global.save_inference_dir={folder}"
    )
    assert status == 3
    assert "the static model differs from the trained one by up to 0.001" in errors and "nothing was exported" in errors
    assert not folder.exists()


def test_an_export_replaces_an_older_one_whole(trained: Path, run_here: Run, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("inference.json", "inference.pdmodel", "inference.pdiparams", "inference.yml"):
        (folder / name).write_text("old")
    options = [weights(trained), f"Global.save_inference_dir={folder}", "Infer.infer_imgs="]
    status, output, _ = run_here("tools/export_model.py", "--no-onednn", "-c", config_of(trained), "-o", *options)
    assert status == 0
    assert "china.jpg" in output  # without images of the user's, two photographs of scikit-learn's
    assert len(list(folder.iterdir())) == 3
    assert ServedModel(folder).class_names == ["class_0", "class_1", "class_2"]


def write_model(folder: Path, version: str) -> None:
    """What `read_description` looks at, of files that say which version they are."""
    folder.mkdir(parents=True)
    for name in ("inference.json", "inference.pdiparams"):
        (folder / name).write_text(f"{name} of {version}")
    description = {
        "Global": {"model_name": version, "image_shape": [3, 32, 32]},
        "PreProcess": {"transform_ops": []},
        "PostProcess": {"Topk": {"topk": 1, "label_list": None}},
        "Digests": {name: file_digest(folder / name) for name in ("inference.json", "inference.pdiparams")},
    }
    export.write_description(folder, description)


def killed_export(aside: Path, folder: Path, renames: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """`take_places`, killed after so many renames."""
    done = []

    def replace(source: Path, target: Path) -> None:
        if len(done) == renames:
            raise KeyboardInterrupt
        done.append(target)
        source.rename(target)

    with monkeypatch.context() as killing, pytest.raises(KeyboardInterrupt):
        killing.setattr(export.os, "replace", replace)
        export.take_places(aside, folder)


def version_in(folder: Path) -> str:
    """Which of `write_model`'s versions a folder holds, whole."""
    description, files = read_description(folder)
    version = description["Global"]["model_name"]
    assert {file.read_text() for file in files.values()} == {f"{name} of {version}" for name in files}
    return version


@pytest.mark.parametrize("first", range(7))
def test_an_export_that_is_killed_between_two_renames_leaves_the_old_model_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    for second in range(7):  # and another one after it
        root = tmp_path / str(second)
        for version in ("old", "new", "newer", "last"):
            write_model(root / version, version)
        folder = root / "old"
        killed_export(root / "new", folder, first, monkeypatch)
        left = version_in(folder)
        assert left == ("old" if first < 5 else "new")  # two renames begin, two more before the description's
        killed_export(root / "newer", folder, second, monkeypatch)
        assert version_in(folder) == (left if second < 5 else "newer")
        export.take_places(root / "last", folder)
        assert version_in(folder) == "last"
        assert {path.name for path in folder.iterdir()} == {"inference.json", "inference.pdiparams", "inference.yml"}


def test_an_export_takes_away_what_killed_ones_left_and_nothing_of_another_that_runs(tmp_path: Path) -> None:
    folder, killed = tmp_path / "model", tmp_path / "model/.new-killed"
    killed.mkdir(parents=True)
    with export.folder_aside(folder) as first:
        assert not killed.exists()
        with export.folder_aside(folder) as second:
            assert first.exists() and second != first
        assert first.exists() and not second.exists()
    assert list(folder.iterdir()) == []


def test_an_export_that_fails_leaves_none_of_the_folders_it_made(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    with pytest.raises(RunFailed), export.folder_aside(tmp_path / "models/a/b"):
        raise RunFailed("the static model differs")
    assert list(tmp_path.rglob("*")) == [tmp_path / "models"]


def test_an_export_for_another_size_than_its_transforms_make_is_refused(
    trained: Path, run_here: Run, tmp_path: Path
) -> None:
    options = [weights(trained), f"Global.save_inference_dir={tmp_path}/model", "Global.image_shape=[3, 64, 64]"]
    status, _, errors = run_here("tools/export_model.py", "--no-onednn", "-c", config_of(trained), "-o", *options)
    assert status == 2
    assert "Global.image_shape is [3, 64, 64], but images are prepared as [3, 32, 32] (by Infer.transforms" in errors


def test_an_export_is_compared_on_a_batch_even_of_one_image(trained: Path, pictures: Path, tmp_path: Path) -> None:
    one = f"Infer.infer_imgs={pictures}/val/class_0/0.png"
    loaded = config.load(config_of(trained), [weights(trained), one, f"Global.save_inference_dir={tmp_path}/m"])
    pipeline = build_transforms(loaded.Infer.transforms)
    names, images = export.real_images(loaded, pipeline)
    assert len(names) == len(images) == 2
    assert export.export(loaded, probe=False).compared == names[:1]


def test_a_served_folder_without_its_description_is_refused(run_here: Run, tmp_path: Path) -> None:
    status, _, errors = run_here("deploy/predict.py", tmp_path, tmp_path)
    assert status == 2 and "is not an exported model: inference.yml is missing" in errors


def edited(exported: Path, folder: Path, change: Callable[[dict], object]) -> Path:
    """A copy of an exported folder with another `inference.yml`."""
    shutil.copytree(exported, folder)
    description = yaml.safe_load((folder / "inference.yml").read_text(encoding="utf-8"))
    change(description)
    (folder / "inference.yml").write_text(yaml.safe_dump(description), encoding="utf-8")
    return folder


def test_a_description_that_was_edited_is_checked_value_by_value(
    exported: Path, run_here: Run, tmp_path: Path, pictures: Path
) -> None:
    def spoil(description: dict) -> None:
        description["Global"] = {"image_shape": [3, 32]}
        description["PreProcess"]["transform_ops"] = "all of them"
        description["PostProcess"]["Topk"] |= {"topk": "3", "label_list": "abc"}
        description["OneDNN"] = 1

    status, _, errors = run_here("deploy/predict.py", edited(exported, tmp_path / "m", spoil), pictures)
    assert (
        status == 2 and f"{tmp_path}/m/inference.yml cannot be used; mend it, or export the model again (5 " in errors
    )
    for said in (
        "Global.image_shape: List should have at least 3 items",
        "PreProcess.transform_ops: Input should be a valid list, got 'all of them'",
        "PostProcess.Topk.topk: Input should be a valid integer, got '3'",
        "PostProcess.Topk.label_list: Input should be a valid list, got 'abc'",
        "OneDNN: Input should be a valid dictionary",
    ):
        assert said in errors
    changes = [
        (lambda d: d["PostProcess"].clear(), "PostProcess: expected Topk or MultiLabelThreshOutput"),
        (lambda d: d["PostProcess"].update(Topk=None), "PostProcess.Topk: Input should be a valid dictionary"),
        (lambda d: d["PostProcess"].update(Top1={}), "PostProcess.Top1: Extra inputs are not permitted"),
        (lambda d: d["Digests"].pop("inference.pdiparams"), "Digests: expected those of a graph and of inference.pdi"),
        (lambda d: d["Digests"].update({"../x": "0"}), "Digests: expected those of a graph and of inference.pdiparams"),
    ]
    for number, (change, said) in enumerate(changes):
        with pytest.raises(Refused, match=re.escape(said)):
            read_description(edited(exported, tmp_path / str(number), change))


def test_a_class_map_of_another_length_than_the_models_answers_is_refused(
    exported: Path, run_here: Run, tmp_path: Path, pictures: Path
) -> None:
    folder = edited(exported, tmp_path / "m", lambda d: d["PostProcess"]["Topk"]["label_list"].pop(0))
    status, output, errors = run_here("deploy/predict.py", folder, pictures / "val")
    assert (status, output) == (2, "")
    assert "PostProcess names 2 classes in its label_list, the model answers with 3" in errors


def test_preprocessing_that_was_changed_after_the_comparison_is_told(
    exported: Path, run_here: Run, tmp_path: Path, pictures: Path
) -> None:
    def change(description: dict) -> None:
        [flat] = [op["NormalizeImage"] for op in description["PreProcess"]["transform_ops"] if "NormalizeImage" in op]
        flat["mean"] = [0.1, 0.1, 0.1]

    folder = edited(exported, tmp_path / "m", change)
    status, _, errors = run_here("deploy/predict.py", folder, pictures / "val")
    assert status == 0 and "PreProcess.transform_ops were changed after the model was compared with the" in errors
    for quiet in (
        exported,
        edited(folder, tmp_path / "wanted", lambda d: d["PreProcess"].pop("sha256")),
        edited(exported, tmp_path / "same", lambda d: None),
    ):
        assert run_here("deploy/predict.py", quiet, pictures / "val")[2] == ""


def test_a_model_that_answers_about_fewer_images_than_it_was_given_is_stopped(exported: Path) -> None:
    served = ServedModel(exported)
    images = np.zeros((2, *served.image_shape), np.float32)
    assert served.probabilities(images).shape == (2, 3)
    served._run = lambda images: np.full((1, 3), 1 / 3, np.float32)
    with pytest.raises(RunFailed, match=f"{exported}: 1 answers to 2 images; export the model again"):
        served.probabilities(images)


def test_what_onednn_says_at_the_first_run_does_not_stand_among_the_answers(
    exported: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from paddle import inference

    class Talks:
        """Paddle's predictor, which writes to stdout as C++ does."""

        def __init__(self, options: inference.Config) -> None:
            self._real = create(options)

        def __getattr__(self, name: str) -> object:
            return getattr(self._real, name)

        def run(self) -> None:
            os.write(1, b"CheckIfOneDNNSupport\n")
            self._real.run()

    create = inference.create_predictor
    monkeypatch.setattr(inference, "create_predictor", Talks)
    served = ServedModel(exported)
    served.probabilities(np.zeros((1, *served.image_shape), np.float32))
    said = capfd.readouterr()
    assert said.out == "" and "CheckIfOneDNNSupport" in said.err


def test_a_name_that_is_not_text_is_printed_and_saved(exported: Path, tmp_path: Path, pictures: Path) -> None:
    odd = tmp_path / os.fsdecode(b"odd\xff.png")
    shutil.copy(pictures / "val/class_0/0.png", odd)
    for suffix in ("csv", "jsonl"):
        done = run_tool("deploy/predict.py", exported, odd, "--save", tmp_path / f"saved.{suffix}")
        assert done.returncode == 0, done.stderr
        assert r"odd\udcff.png" in (tmp_path / f"saved.{suffix}").read_text("utf-8")
    told = json.loads((tmp_path / "saved.jsonl").read_text("utf-8"))
    assert told["file_name"] == str(odd)
