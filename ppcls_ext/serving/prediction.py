"""From image files to answers, for `tools/infer.py` and for the deployed model alike. numpy only.

An answer is PaddleClas's: {"class_ids": [178, 209], "scores": [0.99, 0.01], "file_name": "...", "label_names": [...]};
about an image that cannot be read it is {"file_name": "...", "error": "..."}.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ppcls_ext.errors import Refused
from ppcls_ext.files import write_file
from ppcls_ext.transforms import DecodeError, Pipeline

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")


def find_images(given: str | list[str]) -> list[Path]:
    """The image files that files, folders (searched through) and `.txt` lists (a path per line) name, in that order."""
    found: list[Path] = []
    for item in [given] if isinstance(given, str) else given:
        if not item:
            raise Refused("an image's path is empty; name files, folders or .txt lists")
        path = Path(item)
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
            if not inside:
                raise Refused(f"{path}: no images in this folder ({', '.join(IMAGE_SUFFIXES)})")
            found += inside
        elif path.suffix.lower() == ".txt" and path.is_file():
            try:
                lines = path.read_text(encoding="utf-8-sig").splitlines()
            except UnicodeDecodeError as error:
                raise Refused(f"{path}: not UTF-8; a list of images is a path per line, as UTF-8 text") from error
            found += _listed(path, [line.strip() for line in lines if line.strip()])
        elif path.exists():
            found.append(path)
        else:
            raise Refused(f"{path}: no such file or folder")
    if not found:
        raise Refused(f"no images in {given}")
    return found


def _listed(file: Path, lines: list[str]) -> list[Path]:
    """The paths of a list; one that is not there is reported with the others that cannot be read."""
    paths = [file.parent / line for line in lines]
    labelled = lines and all(line.rpartition(" ")[2].isdecimal() for line in lines)
    if labelled and not any(path.exists() for path in paths):
        raise Refused(f"{file}: holds labels; a list of images is one path a line, relative to the list")
    return paths


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Each class's own probability, for images with several labels."""
    return 1 / (1 + np.exp(-logits.astype(np.float64)))


def softmax(logits: np.ndarray) -> np.ndarray:
    """(N, C) -> (N, C), rows that sum to 1."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def answer(
    probabilities: np.ndarray, file_name: str, topk: int | None, class_names: list[str] | None, threshold: float = 0.0
) -> dict[str, Any]:
    """The `topk` best classes (None: all) of one image, (C,) probabilities, that exceed `threshold`.

    Equal ones stand in the order of their index.
    """
    order = np.argsort(-probabilities, kind="stable")[:topk].tolist()
    order = [index for index in order if threshold == 0 or probabilities[index] > threshold]
    result = {
        "class_ids": order,
        "scores": [round(float(probabilities[index]), 5) for index in order],
        "file_name": file_name,
    }
    if class_names is not None:
        result["label_names"] = [class_names[index] for index in order]
    return result


def predict_files(
    files: list[Path],
    pipeline: Pipeline,
    probabilities_of: Callable[[np.ndarray], np.ndarray],
    batch_size: int,
    topk: int | None,
    class_names: list[str] | None,
    threshold: float = 0.0,
) -> Iterator[list[dict[str, Any]]]:
    """The answers batch by batch, in the order of the files. One bad image does not lose the others.

    `probabilities_of` maps float32 (N, C, H, W) to (N, classes); answers of at most `threshold` are left out.
    """
    for first in range(0, len(files), batch_size):
        images, failed = [], {}
        batch = files[first : first + batch_size]
        for number, path in enumerate(batch):
            try:
                images.append(pipeline(path.read_bytes()))
            except OSError as error:
                failed[number] = f"cannot be read: {error.strerror}"
            except DecodeError as error:
                failed[number] = f"cannot be decoded: {error}"
        rows = probabilities_of(np.stack(images)) if images else np.zeros((0, 0), np.float32)
        if len(rows) != len(images):
            raise ValueError(f"{len(rows)} answers to {len(images)} images")
        answered = iter(rows)
        yield [
            {"file_name": str(path), "error": failed[number]}
            if number in failed
            else answer(next(answered), str(path), topk, class_names, threshold)
            for number, path in enumerate(batch)
        ]


def print_answers(batches: Iterable[list[dict[str, Any]]], save: Path | None = None) -> int:
    """Print each batch's answers on stdout and what could not be read on stderr; returns how many could not.

    With `save`, a .csv or .jsonl file, all of them are written there at the end, whichever it is: those that were given
    before Ctrl-C, or before an error, as well. See `answers_text`.
    """
    failures, lines, whole = 0, [], False
    try:
        for batch in batches:
            lines += batch if save is not None else []
            answers = [one for one in batch if "error" not in one]
            if answers:
                print(answers, flush=True)
            for one in batch:
                if "error" in one:
                    failures += 1
                    print(f"{one['file_name']}: {one['error']}", file=sys.stderr)
        whole = True
    finally:
        if save is not None and (whole or lines):
            save.parent.mkdir(parents=True, exist_ok=True)
            write_file(save, answers_text(lines, save.suffix), errors="backslashreplace")
            if not whole:
                print(f"{save}: the answers about the first {len(lines)} images", file=sys.stderr)
    return failures


def answers_text(answers: list[dict[str, Any]], suffix: str) -> str:
    """Every image, those too that could not be read ("error" says why).

    .jsonl: the answers whole, a line each. .csv: a line for each class that an image was answered with, the best with
    rank 1; an image without any has one line, without a rank.
    """
    if suffix == ".jsonl":
        return "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in answers)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file_name", "rank", "class_id", "label_name", "score", "error"])
    for one in answers:
        ids = one.get("class_ids", [])
        rows = [*zip(range(1, len(ids) + 1), ids, one.get("label_names", [""] * len(ids)), one.get("scores", []))]
        writer.writerows([one["file_name"], *row, one.get("error", "")] for row in rows or [("", "", "", "")])
    return text.getvalue()
