"""PaddleClas's label lists, one `relative/path.jpg 12` per line, read and checked at ImageNet's size.

The file stays as it was read, one block of bytes; what is found in it are arrays of offsets. The label is what stands
after the LAST delimiter, so that paths may contain spaces. Blanks around path and label, a byte order mark and Windows
line ends are of no account.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ppcls_ext.data.paths import Paths, spans
from ppcls_ext.errors import Problems, Refused

CheckFiles = Literal["all", "sample", "none"]

CHECK_ALL_UP_TO = 100_000  # entries; above, a sample is looked for unless `check_files: all`
SAMPLE = 10_000

_FINE, _BLANK, _NOT_UTF8, _MALFORMED, _NO_INTEGER, _OUT_OF_RANGE = range(6)
_PIECE = 1 << 22  # bytes looked at together, so that no mask of the whole file is ever made
_WHITE = np.isin(np.arange(256), [9, 13, 32])  # tab, carriage return, blank


@dataclass(frozen=True)
class LabelList:
    """A label list; entry i stands on line i + 1, since blank lines are refused."""

    file: str
    paths: Paths
    labels: np.ndarray  # int32 (n,)
    repeated: int  # lines that only repeat an earlier one

    def __len__(self) -> int:
        return len(self.labels)

    def origin(self, index: int) -> str:
        """'lists/train.txt:12'"""
        return f"{self.file}:{index + 1}"


def read_label_list(
    file: str,
    image_root: str,
    *,
    delimiter: str = " ",
    num_classes: int | None = None,
    check_files: CheckFiles | None = None,
) -> LabelList:
    """Read and check a label list. Everything wrong with it is one `Refused`: lines first, then missing images."""
    if not delimiter:
        raise Refused("delimiter: expected at least one character between path and label, got ''")
    blob = _read(file)
    data = np.frombuffer(blob, np.uint8)
    starts, ends = _lines(blob, data)
    _strip(data, starts, ends)
    kinds = np.where(starts == ends, _BLANK, _FINE).astype(np.uint8)
    _mark_not_utf8(blob, starts, ends, kinds)

    encoded = delimiter.encode()
    cuts = _last(data, encoded, starts, ends)
    path_ends = np.where(cuts < 0, starts, cuts)
    label_starts = np.where(cuts < 0, ends, cuts + len(encoded))
    _strip(data, starts, path_ends)
    _strip(data, label_starts, ends)
    _mark_malformed(blob, starts, path_ends, label_starts, ends, kinds)
    labels = _integers(blob, data, label_starts, ends, kinds)
    _mark_out_of_range(labels, num_classes, kinds)

    problems = Problems(f"{file}: not a usable label list")
    _report_lines(problems, file, blob, kinds, labels, delimiter, num_classes)
    conflicts, repeated = _same_paths(blob, starts, path_ends, labels, kinds)
    twice = (
        f"{file}:{a + 1} and {b + 1}: {_text(blob, starts[b], path_ends[b])} has labels {labels[a]} and {labels[b]}"
        for a, b in conflicts
    )
    problems.add(twice, len(conflicts))
    offset = np.uint32 if len(blob) < 2**32 else np.int64
    paths = Paths(blob, starts.astype(offset), path_ends.astype(offset))
    entries = LabelList(file, paths, labels.astype(np.int32), repeated)
    _report_missing(problems, entries, np.flatnonzero(kinds == _FINE), image_root, check_files)
    problems.refuse()
    return entries


def _read(file: str) -> bytes:
    try:
        with open(file, "rb") as opened:
            blob = opened.read()
    except OSError as error:
        raise Refused(f"{file}: cannot be read: {error.strerror}") from error
    if blob.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise Refused(f"{file}: is UTF-16 text; save it as UTF-8")
    if not blob.strip():
        raise Refused(f"{file}: is empty; expected one 'path label' per line")
    return blob


def _positions(data: np.ndarray, byte: int) -> np.ndarray:
    pieces = [np.flatnonzero(data[at : at + _PIECE] == byte) + at for at in range(0, len(data), _PIECE)]
    return np.concatenate(pieces)


def _lines(blob: bytes, data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Start and end of every line, int64 (n,); a line end at the end of the file begins no further line."""
    ends = _positions(data, ord("\n"))
    if not blob.endswith(b"\n"):
        ends = np.append(ends, len(blob))
    starts = np.empty_like(ends)
    starts[0] = 3 if blob.startswith(b"\xef\xbb\xbf") else 0
    starts[1:] = ends[:-1] + 1
    return starts, ends


def _strip(data: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> None:
    """Narrow the spans, in place, until they neither begin nor end with white space."""
    for edges, step, inside in ((starts, 1, 0), (ends, -1, -1)):
        rows = np.flatnonzero(starts < ends)
        while len(rows):
            rows = rows[_WHITE[data[edges[rows] + inside]]]
            edges[rows] += step
            rows = rows[starts[rows] < ends[rows]]


def _last(data: np.ndarray, delimiter: bytes, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Where the last delimiter within each span begins, -1 where there is none."""
    places = _positions(data, delimiter[0])
    for offset, byte in enumerate(delimiter[1:], 1):
        places = places[places + offset < len(data)]
        places = places[data[places + offset] == byte]
    places = np.concatenate([[-1], places])
    cuts = places[np.searchsorted(places, ends - len(delimiter), side="right") - 1]
    return np.where(cuts < starts, -1, cuts)


def _mark_not_utf8(blob: bytes, starts: np.ndarray, ends: np.ndarray, kinds: np.ndarray) -> None:
    if blob.isascii():
        return
    for row, (start, end) in enumerate(spans(starts, ends)):
        try:
            blob[start:end].decode()
        except UnicodeDecodeError:
            kinds[row] = _NOT_UTF8


def _mark_malformed(
    blob: bytes,
    starts: np.ndarray,
    path_ends: np.ndarray,
    label_starts: np.ndarray,
    ends: np.ndarray,
    kinds: np.ndarray,
) -> None:
    """No delimiter, no path, no label, or a NUL byte, which no file name holds."""
    bad = (starts >= path_ends) | (label_starts >= ends)
    if b"\0" in blob:
        bad[np.searchsorted(ends, _positions(np.frombuffer(blob, np.uint8), 0)).clip(max=len(ends) - 1)] = True
    kinds[bad & (kinds == _FINE)] = _MALFORMED


def _integers(blob: bytes, data: np.ndarray, starts: np.ndarray, ends: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """The labels, int64 (n,), -1 where there is none; lines whose label is no integer are marked in `kinds`."""
    labels = np.where(kinds == _FINE, 0, -1)
    widths = ends - starts
    plain = np.flatnonzero((kinds == _FINE) & (widths <= 9))
    odd = [np.flatnonzero((kinds == _FINE) & (widths > 9))]
    for column in range(9):
        plain = plain[widths[plain] > column]
        digits = data[starts[plain] + column].astype(np.int64) - ord("0")
        is_digit = (digits >= 0) & (digits <= 9)
        odd.append(plain[~is_digit])
        plain = plain[is_digit]
        labels[plain] = labels[plain] * 10 + digits[is_digit]
    for row in np.concatenate(odd).tolist():
        text = blob[starts[row] : ends[row]]
        if re.fullmatch(rb"[-+]?[0-9]{1,4000}", text):
            labels[row] = max(-1, min(int(text), 2**31))
        else:
            labels[row], kinds[row] = -1, _NO_INTEGER
    return labels


def _mark_out_of_range(labels: np.ndarray, num_classes: int | None, kinds: np.ndarray) -> None:
    above = 2**31 if num_classes is None else num_classes
    kinds[(kinds == _FINE) & ((labels < 0) | (labels >= above))] = _OUT_OF_RANGE


def _report_lines(
    problems: Problems,
    file: str,
    blob: bytes,
    kinds: np.ndarray,
    labels: np.ndarray,
    delimiter: str,
    num_classes: int | None,
) -> None:
    rows = np.flatnonzero(kinds)
    if not len(rows):
        return
    starts, ends = _lines(blob, np.frombuffer(blob, np.uint8))
    classes = "0 or above" if num_classes is None else f"0 to {num_classes - 1}, the network has {num_classes} classes"

    def describe() -> Iterator[str]:
        for row in rows.tolist():
            line = _text(blob, starts[row], ends[row])
            yield (
                f"{file}:{row + 1}: "
                + {
                    _BLANK: "blank line",
                    _NOT_UTF8: f"not UTF-8: {line}",
                    _MALFORMED: f"expected 'path{delimiter}label', got {line}",
                    _NO_INTEGER: f"the label is not an integer: {line}",
                    _OUT_OF_RANGE: f"label out of range ({classes}): {line}",
                }[int(kinds[row])]
            )

    problems.add(describe(), len(rows))
    if np.all(kinds == _MALFORMED):
        problems.hints.append(
            f'No line holds a path, {delimiter!r} and a label: is `delimiter` right? (A tab is "\\t" in double quotes.)'
        )
    outside = labels[kinds == _OUT_OF_RANGE]
    if len(outside) and np.all(outside == num_classes) and not np.any(labels == 0):
        problems.hints.append("The labels seem to be counted from 1; they are counted from 0.")


def _text(blob: bytes, start: int, end: int) -> str:
    line = blob[start:end].strip(b"\r")
    try:
        shown = repr(line.decode())
    except UnicodeDecodeError:
        shown = repr(line)
    return shown if len(shown) <= 120 else shown[:117] + "..."


def _same_paths(
    blob: bytes, starts: np.ndarray, ends: np.ndarray, labels: np.ndarray, kinds: np.ndarray
) -> tuple[list[tuple[int, int]], int]:
    """Paths on several lines: (first row, row with another label) of each conflict, and how many are mere repeats."""
    hashes = np.fromiter((hash(blob[a:b]) for a, b in spans(starts, ends)), np.int64, len(starts))
    order = np.argsort(hashes, kind="stable")
    twin = hashes[order[1:]] == hashes[order[:-1]]
    suspects = np.unique(np.concatenate([order[1:][twin], order[:-1][twin]]))
    first: dict[bytes, int] = {}
    conflicts, repeated = [], 0
    for row in suspects[kinds[suspects] == _FINE].tolist():
        earlier = first.setdefault(blob[starts[row] : ends[row]], row)
        if labels[earlier] != labels[row]:
            conflicts.append((earlier, row))
        elif earlier != row:
            repeated += 1
    return conflicts, repeated


def _report_missing(
    problems: Problems, entries: LabelList, rows: np.ndarray, image_root: str, check_files: CheckFiles | None
) -> None:
    if check_files == "none":
        return
    if check_files == "sample" or (check_files is None and len(rows) > CHECK_ALL_UP_TO):
        rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), SAMPLE)).astype(np.int64)]
    missing = [row for row in rows.tolist() if not os.path.isfile(os.path.join(image_root, entries.paths[row]))]
    problems.add(
        (f"{entries.origin(row)}: no file {os.path.join(image_root, entries.paths[row])!r}" for row in missing),
        len(missing),
    )
    if missing and len(missing) == len(rows):
        problems.hints.append(f"None of the {len(rows)} files looked for is there: is image_root {image_root!r} right?")
    elif missing and len(rows) < len(entries):
        problems.hints.append(f"Of {len(entries)} files {len(rows)} were looked for; check_files: all looks for each.")
