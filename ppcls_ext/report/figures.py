"""How a matplotlib figure becomes a file."""

from __future__ import annotations

import io
from pathlib import Path

from matplotlib import pyplot
from matplotlib.figure import Figure

from ppcls_ext.files import write_file


def png(figure: Figure, dpi: int) -> bytes:
    """The figure as PNG; it is closed."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=dpi)
    pyplot.close(figure)
    return picture.getvalue()


def write_png(figure: Figure, path: Path, dpi: int = 110) -> None:
    """Replace `path` by the figure in one step; its folder is made where it is missing. The figure is closed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, png(figure, dpi))
