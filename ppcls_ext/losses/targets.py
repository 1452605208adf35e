"""What the losses have in common: how labels become targets, and how much a class counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import paddle
import paddle.nn.functional as F

from ppcls_ext.errors import Refused

ClassWeight = Annotated[
    Literal["auto", "balanced"] | list[float], "'auto', 'balanced' or a list of one number per class"
]


@dataclass(frozen=True)
class LabelCounts:
    """Of the training split: how many images there are, and how many have each class."""

    images: int
    per_class: tuple[int, ...]


def count_labels(labels: np.ndarray, num_classes: int) -> LabelCounts:
    """Labels (n,) class indices, or (n, classes) of 0 and 1."""
    counts = np.bincount(labels, minlength=num_classes) if labels.ndim == 1 else labels.sum(axis=0, dtype=np.int64)
    return LabelCounts(len(labels), tuple(counts.tolist()))


def check_weight(weight: float) -> None:
    """Refuse a loss's factor that is not above 0."""
    if not 0 < weight < float("inf"):
        raise Refused(f"weight: expected a number above 0, got {weight}")


def check_epsilon(epsilon: float | None) -> float:
    """The mass that label smoothing takes from the labels; None is 0."""
    if epsilon is not None and not 0 <= epsilon < 1:
        raise Refused(f"epsilon: expected 0 <= epsilon < 1, got {epsilon}")
    return epsilon or 0.0


def distribution(labels: paddle.Tensor, classes: int, epsilon: float) -> paddle.Tensor:
    """Labels (N,), or (N, C) soft or several -> float32 (N, C), (1 - epsilon) of them and epsilon / C everywhere."""
    target = labels.astype("float32") if labels.ndim == 2 else F.one_hot(labels, classes)
    return (1 - epsilon) * target + epsilon / classes if epsilon else target


class ClassWeights:
    """One factor per class, resolved with the training split's counts; None counts all alike.

    balanced: images / (classes * images of the class), as scikit-learn has it. auto: its square root, in proportion.
    Both have mean 1 over the training images, so that the learning rate keeps its meaning; a class without any has 0.
    """

    def __init__(self, given: ClassWeight | None, counts: LabelCounts | None) -> None:
        if isinstance(given, list) and not (given and all(0 <= value < float("inf") for value in given) and any(given)):
            raise Refused(f"class_weight: expected numbers from 0, not all of them 0, got {given}")
        if isinstance(given, list) and counts is not None and len(given) != len(counts.per_class):
            raise Refused(f"class_weight: {len(given)} weights for {len(counts.per_class)} classes")
        self.given = given
        self.values = np.array(given, np.float32) if isinstance(given, list) else None
        if isinstance(given, str) and counts is not None:
            self.values = _by_counts(np.array(counts.per_class, np.float64), 0.5 if given == "auto" else 1.0)
        self._tensor: paddle.Tensor | None = None

    def tensor(self) -> paddle.Tensor | None:
        """float32 (C,), None where all classes count alike."""
        if self.given is None:
            return None
        if self.values is None:
            raise Refused(f"class_weight: '{self.given}' comes from the training split, which is not known here")
        if self._tensor is None:
            self._tensor = paddle.to_tensor(self.values)
        return self._tensor


def _by_counts(counts: np.ndarray, power: float) -> np.ndarray:
    weights = np.zeros(len(counts))
    weights[counts > 0] = counts[counts > 0] ** -power
    return (weights * counts.sum() / (weights * counts).sum()).astype(np.float32)
