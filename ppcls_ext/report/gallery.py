"""Images in rows and columns, as one PNG."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot

from ppcls_ext.report.figures import write_png


def draw_pairs(
    path: Path, pairs: list[tuple[np.ndarray, np.ndarray]], captions: list[str], title: str, columns: int = 8
) -> None:
    """uint8 (H, W, 1, 3 or 4) images, the first of a pair above the second; captions under the pairs."""
    columns = min(columns, len(pairs))
    rows = -(-len(pairs) // columns)
    figure, axes = pyplot.subplots(
        2 * rows, columns, figsize=(2.0 * columns, 4.3 * rows + 0.4), squeeze=False, constrained_layout=True
    )
    for axis in axes.flat:
        axis.axis("off")
    for number, (pair, caption) in enumerate(zip(pairs, captions)):
        row, column = divmod(number, columns)
        for part, image in enumerate(pair):
            shown = image[:, :, 0] if image.shape[2] == 1 else image[:, :, :3]
            axes[2 * row + part, column].imshow(shown, cmap="gray", vmin=0, vmax=255)
        under = axes[2 * row + 1, column]
        under.text(
            0.5, -0.03, caption.replace(", ", "\n"), ha="center", va="top", fontsize=7, transform=under.transAxes
        )
    figure.suptitle(title, fontsize=10)
    write_png(figure, path)
