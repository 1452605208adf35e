"""Top-k accuracy."""

from __future__ import annotations

from typing import ClassVar

import paddle

from ppcls_ext.registry import METRICS


@METRICS.register("TopkAcc")
class TopkAcc:
    """How many labels are among the k largest logits, for each k of `topk`; k is at most the number of classes."""

    whole: ClassVar[bool] = False
    counts_answers: ClassVar[bool] = True
    several_labels: ClassVar[bool] = False
    selects: ClassVar[bool] = True

    def __init__(self, topk: int | list[int] = [1, 5]) -> None:  # noqa: B006 - never changed
        self.topk = [topk] if isinstance(topk, int) else list(topk)
        if not self.topk or any(k < 1 for k in self.topk):
            raise ValueError(f"topk: expected whole numbers from 1, got {topk}")
        if len(set(self.topk)) < len(self.topk):
            raise ValueError(f"topk: a number stands twice in {topk}")

    def names(self) -> list[str]:
        """['top1', 'top5']."""
        return [f"top{k}" for k in self.topk]

    def __call__(self, logits: paddle.Tensor, labels: paddle.Tensor) -> list[paddle.Tensor]:
        """Logits (N, C), labels (N,) -> one number of correct answers for each k."""
        most = min(max(self.topk), logits.shape[-1])
        _, order = paddle.topk(logits.astype("float32"), most, axis=-1)
        correct = (order == labels.unsqueeze(-1)).astype("int64")
        return [correct[:, :k].sum() for k in self.topk]
