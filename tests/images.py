"""Small images for tests that ask nothing of what is in them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np


def write_image(path: Path, value: int = 0, size: tuple[int, int] = (6, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.full((*size, 3), value % 256, np.uint8)
    image[0, 0, 0] = value // 256 % 256
    assert cv2.imwrite(str(path), image)
