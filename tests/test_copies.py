"""Images of an evaluation that are trained on are found and told, under whatever name."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from conftest import run_tool, small_config, write_pictures

from ppcls_ext.data import copies
from ppcls_ext.data.copies import identical_files, trained_on
from ppcls_ext.data.datasets import ClassFolderDataset

PLAIN = [{"DecodeImage": {"to_rgb": True, "channel_first": False}}]


def folder_of(root: Path, files: dict[str, bytes]) -> ClassFolderDataset:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return ClassFolderDataset(str(root), PLAIN)


def test_files_are_told_apart_by_size_head_and_rest(tmp_path: Path) -> None:
    head = bytes(range(256)) * 16
    contents = [head + b"one", head + b"two", head + b"one", b"short", b"other", b"short", head + b"longer"]
    files = [tmp_path / str(number) for number in range(len(contents))]
    for file, content in zip(files, contents):
        file.write_bytes(content)
    assert identical_files([str(file) for file in files]).tolist() == [0, 1, 0, 2, 3, 2, 4]


def test_a_copy_is_found_whatever_its_name_and_class(tmp_path: Path) -> None:
    training = folder_of(tmp_path / "train", {"a/1.jpg": b"first", "a/2.jpg": b"second", "b/3.jpg": b"third"})
    evaluation = folder_of(tmp_path / "val", {"a/1.jpg": b"other", "a/x.jpg": b"third", "b/y.jpg": b"first"})
    found = trained_on(training, evaluation)
    named = [tuple(os.path.relpath(path, tmp_path) for path in pair) for pair in found]
    assert named == [("val/a/x.jpg", "train/b/3.jpg"), ("val/b/y.jpg", "train/a/1.jpg")]
    assert len(trained_on(training, training)) == 3


def test_of_a_large_split_paths_are_compared_and_no_file_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = folder_of(tmp_path / "train", {"a/1.jpg": b"first", "b/2.jpg": b"second"})
    shutil.copytree(tmp_path / "train", tmp_path / "val")
    evaluation = ClassFolderDataset(str(tmp_path / "val"), PLAIN)
    assert len(trained_on(training, evaluation)) == 2
    monkeypatch.setattr(copies, "_COMPARED", 3)
    assert trained_on(training, evaluation) == []
    path = str(tmp_path / "train/b/2.jpg")
    assert trained_on(training, training)[1] == (path, path)


def test_a_file_that_cannot_be_read_is_left_to_the_loader(tmp_path: Path) -> None:
    training = folder_of(tmp_path / "train", {"a/1.jpg": b"first", "b/2.jpg": b"second"})
    os.remove(tmp_path / "train/a/1.jpg")
    assert len(trained_on(training, training)) == 1


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_says_that_its_evaluation_sees_what_it_trains_on(tmp_path: Path, processes: int) -> None:
    root = tmp_path / "pictures"
    write_pictures(root / "train", seed=0)
    write_pictures(root / "val", images=5, seed=1)
    kept = sorted((root / "train").rglob("*.png"))[0]
    copy = kept.parents[2] / "val" / kept.parent.name / "a copy.png"
    shutil.copy(kept, copy)
    raw = small_config(root, tmp_path)
    raw["Global"]["epochs"] = 1
    (tmp_path / "config.yaml").write_text(json.dumps(raw), encoding="utf-8")
    done = run_tool("tools/train.py", "-c", tmp_path / "config.yaml", processes=processes, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    images = len(list((root / "val").rglob("*.png")))
    said = done.stdout + done.stderr
    wanted = f"DataLoader.Eval: 1 of {images} images are trained on as well, so its score is not that of unseen images"
    assert said.count(wanted) == 1 and f"{copy} is {kept}; tools/split.py keeps copies on one side" in said
