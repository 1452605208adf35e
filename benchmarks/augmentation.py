"""What each random operator costs: python benchmarks/augmentation.py [--size 224]

Medians per image on one core, for one photograph-like image; batch operators on 32 images, per image.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import cv2
import numpy as np

import ppcls_ext.data.mixing  # registers its operators
import ppcls_ext.transforms  # noqa: F401 - the same
from ppcls_ext.registry import BATCH_TRANSFORMS, TRANSFORMS

# where the defaults do nothing, or less than a recipe asks for
ARGUMENTS = {
    "AugMix": {"prob": 1.0},
    "ColorJitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4},
    "RandCropImage": {"size": 224},
    "RandomErasing": {"EPSILON": 1.0},
    "RandomRotation": {"prob": 1.0},
    "Mixup": {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "mode": "elem"},
    "OpSampler": {"MixupOperator": {"alpha": 0.2, "prob": 0.5}, "CutmixOperator": {"alpha": 1.0, "prob": 0.5}},
}


def median(operator: Callable[..., object], subject: np.ndarray, repeats: int) -> float:
    """Milliseconds."""
    times = []
    for number in range(repeats):
        rng = np.random.default_rng(number)
        began = time.perf_counter()
        operator(subject, rng)
        times.append(time.perf_counter() - began)
    return float(np.median(times)) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=100)
    arguments = parser.parse_args()
    cv2.setNumThreads(0)
    size = arguments.size
    small = np.random.default_rng(0).integers(0, 256, size=(size // 8, size // 8, 3), dtype=np.uint8)
    image = cv2.resize(small, (size, size), interpolation=cv2.INTER_CUBIC)
    print(f"| operator | ms per image of {size} px |\n|---|---|")
    for name in TRANSFORMS:
        if not TRANSFORMS[name].random or name == "ImageNetPolicy":
            continue
        operator = TRANSFORMS[name](**ARGUMENTS.get(name, {}))
        print(f"| {name} | {median(operator, image, arguments.repeats):.2f} |")
    images = np.random.default_rng(0).normal(size=(32, 3, size, size)).astype(np.float32)
    for name in BATCH_TRANSFORMS:
        operator = BATCH_TRANSFORMS[name](**ARGUMENTS.get(name, {}))
        cost = median(operator, images, max(arguments.repeats // 10, 3)) / len(images)
        print(f"| {name} (batch of 32) | {cost:.2f} |")


if __name__ == "__main__":
    main()
