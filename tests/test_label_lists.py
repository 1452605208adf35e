"""Label lists and class maps."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from images import write_image

from ppcls_ext.data import label_list
from ppcls_ext.data.class_map import read_class_map, write_class_map
from ppcls_ext.data.label_list import LabelList, read_label_list
from ppcls_ext.errors import Refused


def read(tmp_path: Path, content: str | bytes, **options) -> LabelList:
    file = tmp_path / "list.txt"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    options.setdefault("check_files", "none")
    return read_label_list(str(file), str(tmp_path), **options)


def refusal(tmp_path: Path, content: str | bytes, **options) -> str:
    with pytest.raises(Refused) as caught:
        read(tmp_path, content, **options)
    return str(caught.value).replace(f"{tmp_path}/", "")


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
