"""Datasets: lists, class folders, and the arguments of a configuration."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from images import write_image

from ppcls_ext.data.class_map import write_class_map
from ppcls_ext.data.datasets import ClassFolderDataset, ImageNetDataset, SampleError
from ppcls_ext.errors import Refused
from ppcls_ext.registry import DATASETS, SAMPLERS, check_arguments

ROOT = Path(__file__).resolve().parents[1]
PLAIN = [{"DecodeImage": {"to_rgb": True, "channel_first": False}}, {"ToCHWImage": None}]


def listed(tmp_path: Path, count: int = 4, **options) -> ImageNetDataset:
    for i in range(count):
        write_image(tmp_path / f"{i}.png", i)
    (tmp_path / "list.txt").write_text("".join(f"{i}.png {i % 2}\n" for i in range(count)))
    options.setdefault("transform_ops", PLAIN)
    return ImageNetDataset(str(tmp_path), str(tmp_path / "list.txt"), **options)


def folders(tmp_path: Path, names: list[str], **options) -> ClassFolderDataset:
    for i, name in enumerate(names):
        write_image(tmp_path / "photos" / name / "0.png", i)
    return ClassFolderDataset(str(tmp_path / "photos"), PLAIN, **options)


def test_a_sample_of_a_list_is_image_and_label_and_knows_where_it_stands(tmp_path):
    dataset = listed(tmp_path)
    image, label = dataset.load(3, epoch=0)
    assert image.shape == (3, 6, 8) and image.dtype == np.float32 and image[1, 2, 2] == 3 and label == 1
    assert len(dataset) == 4 and dataset.num_classes == 2 and dataset.class_names is None and dataset.notes == []
    assert dataset.path(3) == f"{tmp_path}/3.png" and dataset.origin(3) == f"{tmp_path}/list.txt:4"


def test_the_randomness_of_a_sample_depends_on_seed_epoch_and_index_alone(tmp_path):
    ops = [PLAIN[0], {"RandFlipImage": {"flip_code": 1}}, {"ToCHWImage": None}]
    write_image(tmp_path / "x.png", 900)  # the first pixel differs from all others
    (tmp_path / "x.txt").write_text("".join("x.png 0\n" for _ in range(40)))

    def flipped(seed: int, epoch: int) -> list[bool]:
        dataset = ImageNetDataset(str(tmp_path), str(tmp_path / "x.txt"), ops, seed=seed)
        images = {index: dataset.load(index, epoch)[0] for index in reversed(range(40))}
        return [bool(images[index][2, 0, 0] == images[index][2, 1, 1]) for index in range(40)]

    assert flipped(1, 2) == flipped(1, 2)
    assert flipped(1, 2) != flipped(1, 3) and flipped(1, 2) != flipped(2, 2)
    assert 5 < sum(flipped(1, 2)) < 35


def test_an_image_that_cannot_be_read_is_named_with_its_line(tmp_path):
    dataset = listed(tmp_path)
    (tmp_path / "1.png").write_bytes(b"no image")
    (tmp_path / "2.png").unlink()
    with pytest.raises(SampleError, match=r"list.txt:2: .*1.png: cannot be decoded: "):
        dataset.load(1, 0)
    with pytest.raises(SampleError, match=r"list.txt:3: .*2.png: cannot be read: No such file or directory"):
        dataset.load(2, 0)


def test_repeated_lines_are_mentioned(tmp_path):
    write_image(tmp_path / "a.png")
    (tmp_path / "list.txt").write_text("a.png 0\na.png 0\n")
    dataset = ImageNetDataset(str(tmp_path), str(tmp_path / "list.txt"), PLAIN)
    assert dataset.notes == [f"{tmp_path}/list.txt: 1 lines repeat an earlier line"]


def test_a_class_map_gives_a_list_its_names(tmp_path):
    write_class_map(str(tmp_path / "map.txt"), ["cat", "dog"])
    dataset = listed(tmp_path, class_map=str(tmp_path / "map.txt"))
    assert dataset.class_names == ["cat", "dog"] and dataset.num_classes == 2
    with pytest.raises(Refused, match="map.txt has 2 classes, but the network has 3: set Arch.class_num=2"):
        listed(tmp_path, class_map=str(tmp_path / "map.txt"), num_classes=3)
    with pytest.raises(Refused, match="map.txt: class 1 is 'dog', but in the stored class map it is 'fox'"):
        listed(tmp_path, class_map=str(tmp_path / "map.txt"), class_names=["cat", "fox"])


def test_the_training_split_defines_the_class_map_by_sorted_folder_names(tmp_path):
    dataset = folders(tmp_path, ["b", "a", "C", "a10", "a2"])
    assert dataset.class_names == ["C", "a", "a10", "a2", "b"] and dataset.num_classes == 5
    assert dataset.labels.tolist() == [0, 1, 2, 3, 4] and dataset.labels.dtype == np.int32
    assert dataset.origin(1) == dataset.path(1) == f"{tmp_path}/photos/a/0.png"
    assert dataset.load(4, 0)[1] == 4


def test_an_evaluation_split_takes_its_indices_from_the_stored_map_and_may_lack_a_class(tmp_path):
    dataset = folders(tmp_path, ["c", "b"], class_names=["a", "b", "c"])
    assert [(dataset.path(i)[-7:], int(dataset.labels[i])) for i in range(2)] == [("b/0.png", 1), ("c/0.png", 2)]
    assert dataset.notes == [f"{tmp_path}/photos: no images of 1 of 3 classes: a"]


def test_a_folder_that_is_not_in_the_class_map_is_refused(tmp_path):
    with pytest.raises(Refused, match=r"photos/Catt: no such class in the class map. Did you mean 'Cat'\?"):
        folders(tmp_path, ["Catt"], class_names=["Cat", "Dog"])


def test_folders_and_network_must_agree_on_the_number_of_classes(tmp_path):
    with pytest.raises(
        Refused, match=r"photos has 2 classes, but the network has 3: set Arch.class_num=2. The classes are a, b"
    ):
        folders(tmp_path, ["a", "b"], num_classes=3)


def test_an_empty_class_folder_is_refused_in_training(tmp_path):
    (tmp_path / "photos" / "empty").mkdir(parents=True)
    (tmp_path / "photos" / "empty" / "notes.txt").write_text("x")
    with pytest.raises(Refused, match="photos/empty: holds no image; fill it or remove it"):
        folders(tmp_path, ["a"])
    assert len(folders(tmp_path, ["a"], class_names=["a", "empty"])) == 1


def test_nested_folders_count_hidden_files_do_not_and_other_files_are_mentioned(tmp_path):
    root = tmp_path / "photos"
    for name in ["a/x/y/1.PNG", "a/2.jpeg", "a/.3.png", "a/.hidden/4.png", ".git/5.png", "6.png"]:
        write_image(root / name)
    (root / "a" / "notes.txt").write_text("x")
    dataset = folders(tmp_path, ["b"])
    assert [dataset.path(i).removeprefix(f"{root}/") for i in range(3)] == ["a/2.jpeg", "a/x/y/1.PNG", "b/0.png"]
    assert dataset.notes == [f"{root}: 2 files are not images of a class and are not used: 6.png, a/notes.txt"]


def test_links_that_lead_back_are_not_followed_and_links_to_nothing_are_refused(tmp_path):
    root = tmp_path / "photos"
    write_image(root / "a" / "1.png")
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "here").symlink_to(".")
    dataset = folders(tmp_path, ["a", "b"])
    assert len(dataset) == 3
    assert dataset.notes == [f"{root}: 2 links back to a folder above are not followed: a/here"]
    (root / "a" / "9.png").symlink_to("gone.png")
    with pytest.raises(Refused, match="links to files that are not there.*\n.*a/9.png"):
        folders(tmp_path, ["a", "b"])


def test_one_class_folder_alone_is_refused_and_the_classes_in_it_are_named(tmp_path):
    with pytest.raises(Refused, match="photos: one class folder alone, a; add a folder for each other class"):
        folders(tmp_path, ["a"])
    write_image(tmp_path / "photos" / "a" / "oak" / "0.png")
    write_image(tmp_path / "photos" / "a" / "elm" / "0.png")
    with pytest.raises(Refused, match=r"alone, a, which holds folders \(elm, oak\); name .*photos/a instead"):
        folders(tmp_path, ["a"])
    assert folders(tmp_path, ["a"], class_names=["a", "b"]).num_classes == 2  # of a trained network that knows others


def test_a_root_without_class_folders_or_with_splits_in_it_is_refused(tmp_path):
    with pytest.raises(Refused, match="folders are splits, not classes .test, train.; name one of them as image_root"):
        folders(tmp_path, ["train", "test"])
    write_image(tmp_path / "flat" / "1.png")
    with pytest.raises(Refused, match="holds no class folders; expected image_root/<class>/<image>"):
        ClassFolderDataset(str(tmp_path / "flat"), PLAIN)
    with pytest.raises(Refused, match="none: cannot be read: No such file or directory"):
        ClassFolderDataset(str(tmp_path / "none"), PLAIN)


def test_a_name_that_stands_twice_in_the_map_cannot_name_a_folder(tmp_path):
    with pytest.raises(Refused, match="class name 'crane' stands twice in the map"):
        folders(tmp_path, ["crane"], class_names=["crane", "x", "crane"])


def test_file_names_that_are_not_utf8_are_read(tmp_path):
    write_image(tmp_path / "photos" / "a" / "1.png", 7)
    write_image(tmp_path / "photos" / "b" / "1.png", 8)
    os.rename(tmp_path / "photos" / "a" / "1.png", os.fsencode(tmp_path / "photos" / "a") + b"/\xe4.png")
    assert ClassFolderDataset(str(tmp_path / "photos"), PLAIN).load(0, 0)[0][0, 1, 1] == 7


def test_the_arguments_of_a_configuration_are_checked_against_the_signatures(tmp_path):
    hidden = frozenset({"channels", "num_classes", "class_names", "seed"})
    given = {"image_root": "x", "transform_ops": PLAIN, "cls_label_path": "y", "unreadable": "ignore", "delimitre": ","}
    _, problems = check_arguments(DATASETS["ImageNetDataset"], given, "dataset", hidden)
    assert problems == [
        "dataset.unreadable: expected one of 'error', 'skip', got 'ignore'",
        "dataset.delimitre: unknown argument. Did you mean 'delimiter'?",
    ]
    _, problems = check_arguments(SAMPLERS["DistributedBatchSampler"], {"shuffle": True, "batch_size": "4x"}, "sampler")
    assert problems == ["sampler.batch_size: expected int, got '4x'"]


def test_paddle_is_not_imported_with_the_data():
    code = (
        "import sys, ppcls_ext.data.loader, ppcls_ext.data.datasets, ppcls_ext.data.samplers, ppcls_ext.data.split\n"
        "assert 'paddle' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)


def test_photographs_of_a_format_that_cannot_be_read_are_named_with_the_cure(tmp_path):
    (tmp_path / "photos" / "phone").mkdir(parents=True)
    for name in ("1.HEIC", "2.heic", "3.dng", "notes.txt"):
        (tmp_path / "photos" / "phone" / name).write_bytes(b"x")
    cure = r"3 photographs \(.heic, .dng\) cannot be read: convert them to JPEG"
    with pytest.raises(Refused, match=f"photos/phone: holds no image; {cure}"):
        folders(tmp_path, ["a", "b"])
    write_image(tmp_path / "photos" / "phone" / "4.png")
    assert any(re.search(cure, note) for note in folders(tmp_path, ["a", "b"]).notes)
