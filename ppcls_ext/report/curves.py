"""The curves of a run: loss, top-1 and learning rate over the steps, as one PNG."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from ppcls_ext.log import METRICS_FILE, read_metrics

CURVES_FILE = "curves.png"
_STYLES = {
    "train": ("training, mean of the epoch so far", "tab:blue", 0.35),
    "train_epoch": ("training, epoch mean", "tab:blue", 1.0),
    "eval": ("evaluation", "tab:orange", 1.0),
    "eval_ema": ("evaluation, averaged weights", "tab:green", 1.0),
}


def draw_curves(folder: Path) -> Path | None:
    """Draw `<folder>/curves.png` from its `metrics.jsonl`; None when there is nothing to draw."""
    if not (folder / METRICS_FILE).exists():
        return None
    records = read_metrics(folder)
    if not records:
        return None
    figure, axes = pyplot.subplots(1, 3, figsize=(15, 4.2), constrained_layout=True)
    for axis, (key, title) in zip(axes, (("loss", "loss"), ("top1", "top-1"), ("lr", "learning rate"))):
        for kind, (label, colour, alpha) in _STYLES.items():
            points = [(record["step"], record[key]) for record in records if record["kind"] == kind and key in record]
            if not points:
                continue
            marker = "o" if kind != "train" and len(points) <= 60 else None
            axis.plot(*zip(*points), color=colour, alpha=alpha, label=label, marker=marker, markersize=3)
        axis.set_xlabel("optimizer step")
        axis.set_title(title)
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0] and key != "lr":
            axis.legend()
    best = max((record for record in records if record["kind"] == "eval" and "top1" in record), default=None, key=_top1)
    if best is not None:
        axes[1].annotate(
            f"best {best['top1']:.4f}, epoch {best['epoch']}",
            (best["step"], best["top1"]),
            textcoords="offset points",
            xytext=(-8, -28),
            ha="right",
            arrowprops={"arrowstyle": "->"},
        )
    figure.suptitle(folder.name)
    figure.savefig(folder / CURVES_FILE, dpi=110)
    pyplot.close(figure)
    return folder / CURVES_FILE


def _top1(record: dict) -> float:
    return record["top1"]
