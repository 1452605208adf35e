"""The curves of a run: loss, top-1 and learning rate over the steps, as one PNG."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes

from ppcls_ext.log import METRICS_FILE, read_metrics
from ppcls_ext.report.figures import write_png

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
    metric = _metric_of(records)
    for axis, (key, title) in zip(axes, (("loss", "loss"), (metric, metric), ("lr", "learning rate"))):
        for kind, (label, colour, alpha) in _STYLES.items():
            points = [(record["step"], record[key]) for record in records if record["kind"] == kind and key in record]
            if not points:
                continue
            marker = "o" if len(points) == 1 or (kind != "train" and len(points) <= 60) else None
            axis.plot(*zip(*points), color=colour, alpha=alpha, label=label, marker=marker, markersize=3)
        axis.set_xlabel("optimizer step")
        axis.set_title(title)
        axis.grid(alpha=0.3)
    axes[1].set_title("\n".join([metric, *_best_lines(records, metric, axes[1])]), fontsize="medium")
    named = axes[0].get_legend_handles_labels()
    figure.legend(*named, loc="outside lower center", ncols=len(named[0]) or 1)  # over no curve
    figure.suptitle(folder.name)
    write_png(figure, folder / CURVES_FILE)
    return folder / CURVES_FILE


def _metric_of(records: list[dict]) -> str:
    """What the middle picture shows: top-1, or else the first number of an evaluation, mAP of several labels."""
    names = [name for record in records if record["kind"] == "eval" for name in record]
    others = [name for name in names if name not in ("kind", "step", "epoch", "loss")]
    return "top1" if "top1" in names or not others else others[0]


def _best_lines(records: list[dict], metric: str, axis: Axes) -> list[str]:
    """'best evaluation: 0.9815 (epoch 18)' for each kind of weights; each is marked by a star in the plot."""
    lines = []
    for kind in ("eval", "eval_ema"):
        found = [record for record in records if record["kind"] == kind and metric in record]
        if found:
            best = max(found, key=lambda record: record[metric])
            label, colour, _ = _STYLES[kind]
            axis.plot(best["step"], best[metric], marker="*", markersize=13, color=colour, markeredgecolor="black")
            lines.append(f"best {label}: {best[metric]:.4f} (epoch {best['epoch']})")
    return lines
