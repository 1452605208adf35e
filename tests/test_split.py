"""The split of a folder into training, validation and test lists, and its tool."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import run_tool
from images import write_image

from ppcls_ext.data.class_map import read_class_map
from ppcls_ext.data.datasets import ImageNetDataset
from ppcls_ext.data.split import split_folder
from ppcls_ext.errors import Refused

PLAIN = [{"DecodeImage": {"to_rgb": True, "channel_first": False}}, {"ToCHWImage": None}]


def lines(file: Path) -> list[str]:
    return file.read_text("utf-8").splitlines()


def make_classes(root: Path, counts: dict[str, int]) -> None:
    for number, (name, count) in enumerate(counts.items()):
        for i in range(count):
            write_image(root / name / f"{i:03d}.png", 1000 * number + i)


def test_a_split_is_stratified_complete_and_repeatable(tmp_path):
    make_classes(tmp_path / "images", {"cat": 40, "a dog": 20})
    first = split_folder(str(tmp_path / "images"), str(tmp_path / "one"), val=0.15, test=0.2, seed=5)
    split_folder(str(tmp_path / "images"), str(tmp_path / "two"), val=0.15, test=0.2, seed=5)
    split_folder(str(tmp_path / "images"), str(tmp_path / "other"), val=0.15, test=0.2, seed=6)
    parts = [lines(tmp_path / "one" / f"{part}_list.txt") for part in ("train", "val", "test")]
    assert [len(part) for part in parts] == [39, 9, 12]
    assert [sum(line.startswith("cat/") for line in part) for part in parts] == [26, 6, 8]
    assert sorted(sum(parts, [])) == sorted(
        [f"cat/{i:03d}.png 1" for i in range(40)] + [f"a dog/{i:03d}.png 0" for i in range(20)]
    )
    for file in ("train_list.txt", "val_list.txt", "test_list.txt", "class_map.txt"):
        assert lines(tmp_path / "one" / file) == lines(tmp_path / "two" / file)
    assert lines(tmp_path / "one" / "val_list.txt") != lines(tmp_path / "other" / "val_list.txt")
    assert read_class_map(str(tmp_path / "one" / "class_map.txt")) == ["a dog", "cat"]
    assert "2 classes, images: train_list.txt 39, val_list.txt 9, test_list.txt 12" in str(first)
    dataset = ImageNetDataset(
        str(tmp_path / "images"),
        str(tmp_path / "one" / "val_list.txt"),
        PLAIN,
        class_map=str(tmp_path / "one" / "class_map.txt"),
    )
    assert len(dataset) == 9 and dataset.num_classes == 2


def test_identical_files_are_in_one_part_of_a_split(tmp_path):
    make_classes(tmp_path / "images", {"a": 20, "b": 20})
    for i in range(20):
        (tmp_path / "images" / "a" / f"copy_{i}.png").write_bytes(
            (tmp_path / "images" / "a" / f"{i:03d}.png").read_bytes()
        )
    (tmp_path / "images" / "b" / "x.png").write_bytes((tmp_path / "images" / "a" / "000.png").read_bytes())
    result = split_folder(str(tmp_path / "images"), str(tmp_path / "out"), val=0.3)
    part_of = {}
    for part in ("train", "val"):
        for line in lines(tmp_path / "out" / f"{part}_list.txt"):
            part_of[line.rsplit(" ", 1)[0]] = part
    assert len(part_of) == 61
    assert all(part_of[f"a/copy_{i}.png"] == part_of[f"a/{i:03d}.png"] for i in range(20))
    assert part_of["b/x.png"] == part_of["a/000.png"]
    assert "21 files are exact copies of another; copies were kept in one part" in result.notes
    assert "The same image stands in two classes: a/000.png and b/x.png" in result.notes


def test_a_class_too_small_for_every_part_is_named(tmp_path):
    make_classes(tmp_path / "images", {"big": 60, "tiny": 2, "small": 3})
    with pytest.raises(Refused) as caught:
        split_folder(str(tmp_path / "images"), str(tmp_path / "out"), val=0.1, test=0.1)
    assert "tiny: 2 images of its own, 10 are enough" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_split_is_not_overwritten_unless_forced(tmp_path):
    make_classes(tmp_path / "images", {"a": 10, "b": 10})
    split_folder(str(tmp_path / "images"), str(tmp_path / "out"), val=0.2, test=0.2)
    with pytest.raises(
        Refused, match="out holds class_map.txt, train_list.txt, val_list.txt, test_list.txt already; --force"
    ):
        split_folder(str(tmp_path / "images"), str(tmp_path / "out"), val=0.2)
    split_folder(str(tmp_path / "images"), str(tmp_path / "out"), val=0.2, force=True)
    assert sorted(os.listdir(tmp_path / "out")) == ["class_map.txt", "train_list.txt", "val_list.txt"]


def test_shares_and_names_that_cannot_be_are_refused(tmp_path):
    make_classes(tmp_path / "images", {"a": 4, "b": 4})
    for val, test in ((0.0, 0.1), (0.6, 0.4), (-0.1, 0.2)):
        with pytest.raises(Refused, match="Expected val > 0, test >= 0 and val . test < 1"):
            split_folder(str(tmp_path / "images"), str(tmp_path / "out"), val=val, test=test)
    with pytest.raises(Refused, match="val: 1 of 8 images cannot hold all 2 classes"):
        split_folder(str(tmp_path / "images"), str(tmp_path / "out"), val=0.1)
    write_image(tmp_path / "images" / "a" / "x\ny.png")
    with pytest.raises(Refused, match="names that a label list cannot hold"):
        split_folder(str(tmp_path / "images"), str(tmp_path / "out"), val=0.5)


def test_the_split_tool_says_what_it_wrote_or_why_not(tmp_path):
    make_classes(tmp_path / "images", {"a": 10, "b": 10})
    given = ["tools/split.py", tmp_path / "images", "--out", tmp_path / "out", "--val", "0.2"]
    done = run_tool(*given)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == f"{tmp_path}/out: 2 classes, images: train_list.txt 16, val_list.txt 4"
    again = run_tool(*given)
    assert again.returncode == 2 and again.stderr.startswith("Refused: ") and "--force replaces" in again.stderr
