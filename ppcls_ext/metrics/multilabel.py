"""Metrics of images with several labels, each label judged by itself."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import paddle
import paddle.nn.functional as F

from ppcls_ext.errors import Refused
from ppcls_ext.registry import METRICS


def average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """The area under precision over recall, as steps: (n,) scores and (n,) labels, at least one of them 1.

    Equal scores are one step, so that the order of the images is of no account.
    """
    order = np.argsort(-scores, kind="stable")
    last_of_step = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    right = np.cumsum(labels[order] > 0)[last_of_step]
    return float((np.diff(right, prepend=0) / right[-1] * right / (last_of_step + 1)).sum())


@METRICS.register("MultiLabelMAP")
class MultiLabelMAP:
    """Mean of the classes' average precisions; a class that no image has is left out."""

    whole: ClassVar[bool] = True
    several_labels: ClassVar[bool] = True
    selects: ClassVar[bool] = True

    def __init__(self) -> None:
        pass

    def names(self) -> list[str]:
        return ["mAP"]

    def of(self, logits: np.ndarray, labels: np.ndarray) -> list[float]:
        """Logits (N, C), labels (N, C) of the whole split."""
        present = np.flatnonzero(labels.any(axis=0))
        if not len(present):
            raise Refused("mAP: no image of the evaluation split has a label")
        return [float(np.mean([average_precision(logits[:, c], labels[:, c]) for c in present]))]


@METRICS.register("MultiLabelF1")
class MultiLabelF1:
    """F1 of the answers whose probability is above `threshold`: the mean of the classes', and of all answers together.

    A class without labels and without answers is left out of the mean.
    """

    whole: ClassVar[bool] = True
    several_labels: ClassVar[bool] = True
    selects: ClassVar[bool] = True

    def __init__(self, threshold: float = 0.5) -> None:
        if not 0 < threshold < 1:
            raise Refused(f"threshold: expected a probability between 0 and 1, got {threshold}")
        self.threshold = threshold

    def names(self) -> list[str]:
        return ["F1", "F1_micro"]

    def of(self, logits: np.ndarray, labels: np.ndarray) -> list[float]:
        """Logits (N, C), labels (N, C) of the whole split."""
        answers = logits > np.log(self.threshold / (1 - self.threshold))
        right = (answers & (labels > 0)).sum(axis=0)
        stated = answers.sum(axis=0) + (labels > 0).sum(axis=0)
        f1 = 2 * right[stated > 0] / stated[stated > 0]
        return [float(f1.mean()) if len(f1) else 0.0, float(2 * right.sum() / max(stated.sum(), 1))]


def _answers(logits: paddle.Tensor) -> paddle.Tensor:
    return (F.sigmoid(logits.astype("float32")) > 0.5).astype("float32")


@METRICS.register("HammingDistance")
class HammingDistance:
    """The share of labels that are answered wrongly; smaller is better."""

    whole: ClassVar[bool] = False
    counts_answers: ClassVar[bool] = False
    several_labels: ClassVar[bool] = True
    selects: ClassVar[bool] = False

    def __init__(self) -> None:
        pass

    def names(self) -> list[str]:
        return ["HammingDistance"]

    def __call__(self, logits: paddle.Tensor, labels: paddle.Tensor) -> list[paddle.Tensor]:
        """Logits (N, C), labels (N, C) -> the sum over images of the share of wrong answers."""
        return [(_answers(logits) != labels.astype("float32")).astype("float32").mean(-1).sum()]


@METRICS.register("AccuracyScore")
class AccuracyScore:
    """`base` label: the share of labels answered rightly; sample: of images all of whose labels are."""

    whole: ClassVar[bool] = False
    counts_answers: ClassVar[bool] = False
    several_labels: ClassVar[bool] = True
    selects: ClassVar[bool] = True

    def __init__(self, base: Literal["label", "sample"] = "label") -> None:
        self.base = base

    def names(self) -> list[str]:
        return ["AccuracyScore"]

    def __call__(self, logits: paddle.Tensor, labels: paddle.Tensor) -> list[paddle.Tensor]:
        """Logits (N, C), labels (N, C) -> the sum over images."""
        right = (_answers(logits) == labels.astype("float32")).astype("float32")
        return [right.mean(-1).sum() if self.base == "label" else right.min(-1).sum()]
