"""What a learning-rate range test becomes: the rates that are read from its losses, and a picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot

from ppcls_ext.errors import RunFailed
from ppcls_ext.report.figures import write_png

LR_RANGE_FILE = "find_lr.png"
SMOOTHING = 0.9  # of the loss from step to step


@dataclass(frozen=True)
class LrRange:
    """What the test found: the rates of its steps, their losses, and the rate it suggests."""

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    steepest: float  # the middle of the stretch in which the loss falls fastest
    lowest: float  # the rate at which it is lowest

    @property
    def suggestion(self) -> float:
        """A tenth of the rate at which the loss is lowest: a peak that leaves room.

        The steepest descent, which is drawn beside it, is noise where batches are small.
        """
        return self.lowest / 10


def smooth(losses: list[float]) -> list[float]:
    """Exponential mean, corrected for its beginning as Adam's moments are."""
    smoothed, mean = [], 0.0
    for count, loss in enumerate(losses, 1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        smoothed.append(mean / (1 - SMOOTHING**count))
    return smoothed


def read_range(rates: list[float], losses: list[float]) -> LrRange:
    """Rates and losses of the steps -> the whole result. Raises `RunFailed` where the loss never fell."""
    smoothed = smooth(losses)
    end = int(np.argmin(smoothed))
    if end < 3:
        raise RunFailed(
            f"the loss rose from the first rate on ({rates[0]:.3g}); begin lower: --first {rates[0] / 100:.3g}"
        )
    # a straight line through each stretch of losses: from one step to the next there is little but noise
    stretch = max(5, len(rates) // 6)
    logs, values = np.log(np.array(rates)), np.array(losses)
    slopes = [np.polyfit(logs[k : k + stretch], values[k : k + stretch], 1)[0] for k in range(len(rates) - stretch)]
    steepest = int(np.argmin(slopes)) + stretch // 2
    return LrRange(rates, losses, smoothed, rates[steepest], rates[end])


def draw_lr_range(result: LrRange, folder: Path) -> Path:
    """Draw `<folder>/find_lr.png`: the loss over the rate, with the rates that are read from it."""
    figure, axis = pyplot.subplots(figsize=(10, 4.8), constrained_layout=True)
    axis.plot(result.rates, result.losses, color="tab:blue", alpha=0.3, label="loss of a step")
    axis.plot(result.rates, result.smoothed, color="tab:blue", label="smoothed")
    for rate, label, colour in (
        (result.suggestion, "suggestion", "tab:green"),
        (result.steepest, "steepest descent", "tab:orange"),
        (result.lowest, "lowest", "tab:red"),
    ):
        axis.axvline(rate, color=colour, linestyle="--", label=f"{label}: {rate:.2g}")
    axis.set_xscale("log")
    lowest, start = min(result.smoothed), result.smoothed[0]
    room = start - lowest + 1e-6
    axis.set_ylim(min(*result.losses, lowest) - 0.1 * room, start + 0.5 * room)
    axis.set_xlabel("learning rate")
    axis.set_ylabel("training loss")
    axis.set_title(f"{folder.name}: learning-rate range test")
    axis.grid(alpha=0.3)
    axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    write_png(figure, folder / LR_RANGE_FILE)
    return folder / LR_RANGE_FILE
