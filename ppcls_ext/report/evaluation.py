"""An evaluation to look at: one HTML file with every class, what is taken for what, and the surest mistakes."""

from __future__ import annotations

import base64
import csv
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

matplotlib.use("Agg")
from matplotlib import pyplot

from ppcls_ext.files import write_file
from ppcls_ext.report.figures import png

REPORT_FILE, ANSWERS_FILE = "report.html", "answers.csv"
MOST_CLASSES = 60  # whose confusions fit into one picture
MISTAKES = 48  # that are shown
CONFUSIONS = 20  # that are listed
LEFT_OUT = 100  # images that could not be read, which are listed
THUMBNAIL = 160  # pixels of the longer side


@dataclass(frozen=True)
class Judged:
    """What a network answered about the images of a split: files (n,), labels (n,), probabilities (n, classes)."""

    files: Sequence[str]
    labels: np.ndarray
    probabilities: np.ndarray
    class_names: Sequence[str]

    @property
    def answers(self) -> np.ndarray:
        """The class of the largest probability, (n,)."""
        return self.probabilities.argmax(axis=1)

    @property
    def scores(self) -> np.ndarray:
        """Its probability, (n,)."""
        return self.probabilities.max(axis=1)


def write_report(
    folder: Path, title: str, facts: dict[str, str], judged: Judged, left_out: Mapping[str, str] | None = None
) -> Path:
    """Write `<folder>/report.html`, which holds its pictures, and `<folder>/answers.csv`, a line for each image.

    `facts` stand in a table at the top, `left_out` (images that could not be read, and why) at the end. Returns the
    page's path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / ANSWERS_FILE, _as_csv(judged), errors="backslashreplace")
    matrix = confusion_matrix(judged.labels, judged.answers, labels=range(len(judged.class_names)))
    parts = [
        _table(("", ""), [(html.escape(key), html.escape(value)) for key, value in facts.items()]),
        "<h2>Classes</h2>",
        _class_table(judged),
        "<h2>What is taken for what</h2>",
        _confusions(matrix, judged.class_names),
        f"<h2>The surest mistakes</h2><p>{_told_mistakes(judged)}</p>",
        _gallery(judged),
        _unread(left_out or {}),
    ]
    page = _PAGE.format(title=html.escape(title), body="\n".join(parts))
    write_file(folder / REPORT_FILE, page, errors="backslashreplace")
    return folder / REPORT_FILE


def _as_csv(judged: Judged) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "label", "answer", "probability", "right"])
    for file, label, answer, score in zip(judged.files, judged.labels, judged.answers, judged.scores):
        names = judged.class_names[label], judged.class_names[answer]
        writer.writerow([file, *names, f"{score:.5f}", int(label == answer)])
    return text.getvalue()


def _class_table(judged: Judged) -> str:
    """Recall, precision and F1 of every class that has images or answers, the hardest first."""
    classes = range(len(judged.class_names))
    precision, recall, f1, count = precision_recall_fscore_support(
        judged.labels, judged.answers, labels=classes, zero_division=0
    )
    answered = np.bincount(judged.answers, minlength=len(classes))
    shown = [c for c in np.lexsort((classes, recall)) if count[c] or answered[c]]
    rows = [
        (
            html.escape(judged.class_names[c]),
            str(count[c]),
            str(answered[c]),
            _bar(recall[c]) if count[c] else "no images",
            _bar(precision[c]) if answered[c] else "never answered",
            f"{f1[c]:.3f}",
        )
        for c in shown
    ]
    return _table(("class", "images", "answers", "recall", "precision", "F1"), rows)


def _bar(share: float) -> str:
    return f'<span class="bar"><i style="width:{100 * share:.0f}%"></i></span> {share:.3f}'


def _confusions(matrix: np.ndarray, names: Sequence[str]) -> str:
    """The matrix as a picture where it fits, and the most frequent confusions as a list."""
    wrong = matrix - np.diag(np.diag(matrix))
    order = [place for place in np.argsort(-wrong, axis=None, kind="stable")[:CONFUSIONS] if wrong.flat[place]]
    rows = []
    for place in order:
        label, answer = divmod(int(place), len(names))
        of = matrix[label].sum()
        rows.append((html.escape(names[label]), html.escape(names[answer]), f"{wrong[label, answer]} of {of}"))
    listed = _table(("class", "taken for", "images"), rows) if rows else "<p>No image is taken for another class.</p>"
    if len(names) > MOST_CLASSES:
        return f"<p>{len(names)} classes are too many for a picture.</p>{listed}"
    return f'<img src="data:image/png;base64,{_drawn(matrix, names)}" alt="confusion matrix">{listed}'


def _drawn(matrix: np.ndarray, names: Sequence[str]) -> str:
    """The confusion matrix as a PNG in base64: colours are shares of a class's images, numbers their counts."""
    side = 3.0 + 0.42 * len(names)
    figure, axis = pyplot.subplots(figsize=(side, side), constrained_layout=True)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for label, answer in np.argwhere(matrix):
        colour = "white" if shares[label, answer] > 0.5 else "black"
        axis.text(answer, label, str(matrix[label, answer]), ha="center", va="center", color=colour, fontsize=8)
    axis.set_xticks(range(len(names)), names, rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set_xlabel("answer")
    axis.set_ylabel("class")
    return base64.b64encode(png(figure, dpi=100)).decode("ascii")


def _mistakes(judged: Judged) -> np.ndarray:
    """The images with a wrong answer, the surest answer first."""
    wrong = np.flatnonzero(judged.answers != judged.labels)
    return wrong[np.argsort(-judged.scores[wrong], kind="stable")]


def _told_mistakes(judged: Judged) -> str:
    count = len(_mistakes(judged))
    shown = f", the first {MISTAKES} of them here" if count > MISTAKES else ""
    total = len(judged.labels)
    return f"{count} of {total} answers are wrong{shown}; all are in {ANSWERS_FILE}. Some may be wrong labels."


def _gallery(judged: Judged) -> str:
    figures = []
    for row in _mistakes(judged)[:MISTAKES]:
        label, answer = (html.escape(judged.class_names[c]) for c in (judged.labels[row], judged.answers[row]))
        caption = f"<b>{label}</b><br>taken for {answer} ({judged.scores[row]:.2f})"
        file = html.escape(Path(judged.files[row]).name)
        picture = f'<img src="{_thumbnail(judged.files[row])}" alt="">'
        figures.append(f"<figure>{picture}<figcaption>{caption}<br><small>{file}</small></figcaption></figure>")
    return f'<div class="gallery">{"".join(figures)}</div>'


def _unread(left_out: Mapping[str, str]) -> str:
    if not left_out:
        return ""
    rows = [(html.escape(place), html.escape(reason)) for place, reason in sorted(left_out.items())]
    listed = _table(("image", "why"), rows[:LEFT_OUT])
    more = f"<p>... and {len(rows) - LEFT_OUT} more</p>" if len(rows) > LEFT_OUT else ""
    return f"<h2>Images that could not be read</h2>{listed}{more}"


def _thumbnail(file: str) -> str:
    """The photograph, small and upright, as a data address; an empty one where Pillow cannot read it."""
    try:
        with Image.open(file) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, UnidentifiedImageError):  # what OpenCV alone can read
        return "data:,"
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    small = io.BytesIO()
    image.save(small, format="JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(small.getvalue()).decode('ascii')}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are HTML."""

    def line(cells: Sequence[str], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{cell}</{tag}>' for cell in cells)}</tr>"

    top = line(head, "th") if any(head) else ""
    return f"<table>{top}{''.join(line(row, 'td') for row in rows)}</table>"


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.45 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222; }}
table {{ border-collapse: collapse; margin: 1em 0; }}
td, th {{ text-align: left; padding: 3px 14px 3px 0; border-bottom: 1px solid #ddd; vertical-align: top; }}
img {{ max-width: 100%; }}
.bar {{ display: inline-block; width: 120px; height: 9px; background: #eee; }}
.bar i {{ display: block; height: 100%; background: #3a7ab8; }}
.gallery {{ display: flex; flex-wrap: wrap; gap: 14px; }}
figure {{ margin: 0; width: 160px; }}
figcaption {{ font-size: 13px; overflow-wrap: anywhere; }}
</style></head><body><h1>{title}</h1>
{body}
</body></html>
"""
