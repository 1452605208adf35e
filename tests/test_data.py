"""Label lists, class maps, class folders, datasets, samplers and the split tool."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest

from ppcls_ext.data import label_list
from ppcls_ext.data.class_map import read_class_map, write_class_map
from ppcls_ext.data.datasets import ClassFolderDataset, ImageNetDataset, SampleError
from ppcls_ext.data.label_list import LabelList, read_label_list
from ppcls_ext.data.samplers import DistributedBatchSampler, cut_for_evaluation, cut_for_training
from ppcls_ext.data.split import split_folder
from ppcls_ext.errors import Refused
from ppcls_ext.registry import DATASETS, SAMPLERS, check_arguments

ROOT = Path(__file__).resolve().parents[1]
PLAIN = [{"DecodeImage": {"to_rgb": True, "channel_first": False}}, {"ToCHWImage": None}]


def write_image(path: Path, value: int = 0, size: tuple[int, int] = (6, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.full((*size, 3), value % 256, np.uint8)
    image[0, 0, 0] = value // 256 % 256
    assert cv2.imwrite(str(path), image)


def read(tmp_path: Path, content: str | bytes, **options) -> LabelList:
    file = tmp_path / "list.txt"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    options.setdefault("check_files", "none")
    return read_label_list(str(file), str(tmp_path), **options)


def refusal(tmp_path: Path, content: str | bytes, **options) -> str:
    with pytest.raises(Refused) as caught:
        read(tmp_path, content, **options)
    return str(caught.value).replace(f"{tmp_path}/", "")


# ------------------------------------------------------------------------------------------------ label lists


def test_the_label_is_what_stands_after_the_last_delimiter(tmp_path):
    found = read(tmp_path, "a b/c d.jpg 3\n  e.jpg   10 \nä/ü 1.jpg 0007")
    assert [found.paths[i] for i in range(3)] == ["a b/c d.jpg", "e.jpg", "ä/ü 1.jpg"]
    assert found.labels.tolist() == [3, 10, 7] and found.labels.dtype == np.int32
    assert found.origin(1) == f"{tmp_path}/list.txt:2"


@pytest.mark.parametrize("delimiter", ["\t", ",", ", ", ";;"])
def test_any_delimiter_will_do(tmp_path, delimiter):
    found = read(tmp_path, f"a b.jpg{delimiter}3\nc{delimiter}d.jpg{delimiter}4\n", delimiter=delimiter)
    assert [found.paths[i] for i in range(2)] == ["a b.jpg", f"c{delimiter}d.jpg"]
    assert found.labels.tolist() == [3, 4]


def test_a_byte_order_mark_and_windows_line_ends_are_of_no_account(tmp_path):
    found = read(tmp_path, b"\xef\xbb\xbfa.jpg 0\r\nb.jpg 1\r\n")
    assert [found.paths[i] for i in range(2)] == ["a.jpg", "b.jpg"] and found.labels.tolist() == [0, 1]


def test_every_bad_line_is_named_in_one_message(tmp_path):
    lines = [
        "a.jpg 0",
        "",
        "b.jpg",
        "c.jpg x",
        "d.jpg 1.0",
        "e.jpg -1",
        "f.jpg 3",
        "a.jpg 2",
        " 5",
        "g.jpg 99999999999",
    ]
    message = refusal(tmp_path, "\n".join(lines) + "\n", num_classes=3)
    assert message.splitlines() == [
        "list.txt: not a usable label list (9 problems):",
        "  - list.txt:2: blank line",
        "  - list.txt:3: expected 'path label', got 'b.jpg'",
        "  - list.txt:4: the label is not an integer: 'c.jpg x'",
        "  - list.txt:5: the label is not an integer: 'd.jpg 1.0'",
        "  - list.txt:6: label out of range (0 to 2, the network has 3 classes): 'e.jpg -1'",
        "  - list.txt:7: label out of range (0 to 2, the network has 3 classes): 'f.jpg 3'",
        "  - list.txt:9: expected 'path label', got ' 5'",
        "  - list.txt:10: label out of range (0 to 2, the network has 3 classes): 'g.jpg 99999999999'",
        "  - list.txt:1 and 8: 'a.jpg' has labels 0 and 2",
    ]


def test_a_list_may_end_with_one_line_end_but_not_with_a_blank_line(tmp_path):
    assert len(read(tmp_path, "a.jpg 0\n")) == len(read(tmp_path, "a.jpg 0")) == 1
    assert "list.txt:2: blank line" in refusal(tmp_path, "a.jpg 0\n\n")


def test_twenty_problems_are_shown_and_the_others_counted(tmp_path):
    message = refusal(tmp_path, "x\n" * 5000)
    assert "(5000 problems)" in message and message.count("expected 'path label'") == 20
    assert "... and 4980 more" in message
    assert "No line holds a path, ' ' and a label: is `delimiter` right?" in message


def test_one_path_with_two_labels_is_refused_and_a_mere_repeat_is_counted(tmp_path):
    assert read(tmp_path, "a.jpg 1\nb.jpg 0\na.jpg 1\n").repeated == 1
    message = refusal(tmp_path, "a.jpg 1\nb.jpg 0\na.jpg 1\na.jpg 2\nb.jpg 4\n")
    assert "list.txt:1 and 4: 'a.jpg' has labels 1 and 2" in message
    assert "list.txt:2 and 5: 'b.jpg' has labels 0 and 4" in message


def test_labels_counted_from_one_are_recognised(tmp_path):
    assert "The labels seem to be counted from 1" in refusal(tmp_path, "a.jpg 1\nb.jpg 2\nc.jpg 3\n", num_classes=3)


def test_text_that_is_not_utf8_is_refused_by_line(tmp_path):
    assert r"list.txt:2: not UTF-8: b'b\xe4r.jpg 1'" in refusal(tmp_path, b"\xc3\xa4.jpg 0\nb\xe4r.jpg 1\n")
    assert "is UTF-16 text; save it as UTF-8" in refusal(tmp_path, "a.jpg 0\n".encode("utf-16"))
    assert r"list.txt:2: expected 'path label', got 'b\x00.jpg 1'" in refusal(tmp_path, b"a.jpg 0\nb\0.jpg 1\n")


@pytest.mark.parametrize("content", [b"", b"\n", b"  \r\n \n"])
def test_an_empty_list_is_refused(tmp_path, content):
    assert refusal(tmp_path, content) == "list.txt: is empty; expected one 'path label' per line"


def test_a_list_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(Refused, match="none.txt: cannot be read: No such file or directory"):
        read_label_list(str(tmp_path / "none.txt"), str(tmp_path))


def test_missing_images_are_named_with_their_line(tmp_path):
    write_image(tmp_path / "a.png")
    message = refusal(tmp_path, "a.png 0\nb.png 0\n", check_files=None)
    assert "list.txt:2: no file 'b.png'" in message and "image_root" not in message


def test_when_all_images_are_missing_image_root_is_questioned(tmp_path):
    message = refusal(tmp_path, "a.png 0\nb.png 0\n", check_files="all")
    assert f"None of the 2 files looked for is there: is image_root '{tmp_path}' right?" in message


def test_of_a_long_list_a_sample_of_files_is_looked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(label_list, "CHECK_ALL_UP_TO", 5)
    monkeypatch.setattr(label_list, "SAMPLE", 3)
    for i in (0, 4, 9):
        write_image(tmp_path / f"{i}.png")
    lines = "".join(f"{i}.png 0\n" for i in range(10))
    assert len(read(tmp_path, lines, check_files=None)) == 10
    assert "(7 problems)" in refusal(tmp_path, lines, check_files="all")
    (tmp_path / "4.png").unlink()
    message = refusal(tmp_path, lines, check_files="sample")
    assert "list.txt:5: no file '4.png'" in message
    assert "Of 10 files 3 were looked for; check_files: all looks for each." in message


def test_a_list_of_200000_lines_takes_little_more_memory_than_its_bytes(tmp_path):
    lines = "".join(f"train/n{i % 1000:08d}/n{i % 1000:08d}_{i}.JPEG {i % 1000}\n" for i in range(200_000))
    content = lines.encode()
    del lines
    tracemalloc.start()
    try:
        found = read(tmp_path, content)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.paths[123_456] == "train/n00000456/n00000456_123456.JPEG" and found.labels[123_456] == 456
    assert held < len(content) + 13 * 200_000  # the file, two offsets and a label per line
    assert peak < 5 * len(content) + 40_000_000


# ------------------------------------------------------------------------------------------------ class maps


def test_a_class_map_is_read_back_as_it_was_written(tmp_path):
    names = ["tench, Tinca tinca", "Bär", "crane", "crane", "a  b"]
    file = str(tmp_path / "class_map.txt")
    write_class_map(file, names)
    assert Path(file).read_text("utf-8").startswith("0 tench, Tinca tinca\n1 Bär\n")
    assert read_class_map(file) == names
    assert os.listdir(tmp_path) == ["class_map.txt"]


def test_lines_of_a_class_map_may_stand_in_any_order(tmp_path):
    file = tmp_path / "map.txt"
    file.write_bytes(b"\xef\xbb\xbf1 b\r\n0\ta a\r\n")
    assert read_class_map(str(file)) == ["a a", "b"]


def test_everything_wrong_with_a_class_map_is_named_with_its_line(tmp_path):
    file = tmp_path / "map.txt"
    file.write_text("0 a\n\n1 b\n1 c\nx d\n4\n5 e\n")
    with pytest.raises(Refused) as caught:
        read_class_map(str(file))
    assert str(caught.value).replace(f"{tmp_path}/", "").splitlines() == [
        "map.txt: not a usable class map (5 problems):",
        "  - map.txt:2: blank line",
        "  - map.txt:4: class 1 stands already on line 3",
        "  - map.txt:5: expected 'index name', got 'x d'",
        "  - map.txt:6: expected 'index name', got '4'",
        "  - map.txt:7: class 5 stands here, but classes 2 to 4 are missing",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b"0 a\n1 \xe4\n", "map.txt:2: not UTF-8"), (None, "cannot be read: No such file")],
)
def test_a_file_that_is_no_class_map_is_refused(tmp_path, content, message):
    file = tmp_path / "map.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(Refused, match=message):
        read_class_map(str(file))


@pytest.mark.parametrize("name", ["", " a", "a\nb", "a\u2028b", "\udce4"])
def test_a_name_that_a_class_map_cannot_hold_is_refused_before_writing(tmp_path, name):
    with pytest.raises(Refused, match="class names that a class map cannot hold"):
        write_class_map(str(tmp_path / "map.txt"), ["good", name])
    assert os.listdir(tmp_path) == []


# ------------------------------------------------------------------------------------------------ datasets


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
    dataset = folders(tmp_path, ["a"])
    assert len(dataset) == 2
    assert dataset.notes == [f"{root}: 2 links back to a folder above are not followed: a/here"]
    (root / "a" / "9.png").symlink_to("gone.png")
    with pytest.raises(Refused, match="links to files that are not there.*\n.*a/9.png"):
        folders(tmp_path, ["a"])


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


# ------------------------------------------------------------------------------------------------ samplers


def test_the_order_depends_on_seed_and_epoch_alone():
    sampler, labels = SAMPLERS["DistributedBatchSampler"](4, shuffle=True), np.zeros(50, np.int32)
    first = np.concatenate(sampler.training_plan(labels, seed=3, epoch=1))
    assert first.tolist() == np.random.default_rng([3, 1]).permutation(50).tolist()
    assert first.tolist() == np.concatenate(sampler.training_plan(labels, seed=3, epoch=1)).tolist()
    assert first.tolist() != np.concatenate(sampler.training_plan(labels, seed=3, epoch=2)).tolist()
    unshuffled = SAMPLERS["BatchSampler"](4).training_plan(labels, seed=3, epoch=1)
    assert np.concatenate(unshuffled).tolist() == list(range(50))


@pytest.mark.parametrize("images", [1, 5, 6, 7, 11, 12, 24, 25])
@pytest.mark.parametrize("drop_last", [False, True])
def test_two_processes_see_batch_by_batch_what_one_with_twice_the_batch_sees(images, drop_last):
    order = np.random.default_rng(0).permutation(images)
    if drop_last and images < 6:
        with pytest.raises(Refused, match="drop_last leaves nothing"):
            cut_for_training(order, 3, drop_last, 0, 2)
        return
    one = cut_for_training(order, 6, drop_last, 0, 1)
    two = [cut_for_training(order, 3, drop_last, rank, 2) for rank in range(2)]
    assert len(one) == len(two[0]) == len(two[1])
    for whole, left, right in zip(one, *two):
        both = np.concatenate([left, right])
        assert len(left) == len(right) > 0
        assert both[: len(whole)].tolist() == whole.tolist()
        assert len(both) - len(whole) < 2 and both[len(whole) :].tolist() == order[: len(both) - len(whole)].tolist()
    seen = np.concatenate(one).tolist()
    assert len(seen) == len(set(seen)) == (images // 6 * 6 if drop_last else images)


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("images", [1, 2, 7, 12, 31])
def test_an_evaluation_counts_every_image_once_and_keeps_all_processes_in_step(images, world):
    plans = [cut_for_evaluation(np.arange(images), 3, rank, world) for rank in range(world)]
    assert len({len(plan) for plan in plans}) == 1
    in_order = np.concatenate([plan[number] for number in range(len(plans[0])) for plan in plans])
    assert in_order.tolist() == list(range(images))


def test_a_sampler_refuses_what_cannot_be():
    with pytest.raises(Refused, match="batch_size: expected at least 1, got 0"):
        DistributedBatchSampler(0)
    with pytest.raises(Refused, match="an evaluation counts every image; set it to False in DataLoader.Eval"):
        DistributedBatchSampler(4, drop_last=True).evaluation_plan(np.zeros(9, np.int32))


# ------------------------------------------------------------------------------------------------ split


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
    assert "tiny: 2 different images, 10 are enough" in str(caught.value)
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
    command = [
        sys.executable,
        "tools/split.py",
        str(tmp_path / "images"),
        "--out",
        str(tmp_path / "out"),
        "--val",
        "0.2",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == f"{tmp_path}/out: 2 classes, images: train_list.txt 16, val_list.txt 4"
    again = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert again.returncode == 2 and again.stderr.startswith("Refused: ") and "--force replaces" in again.stderr
