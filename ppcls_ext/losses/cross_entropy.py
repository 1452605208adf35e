"""Cross entropy with label smoothing (Szegedy et al., arXiv 1512.00567, section 7)."""

from __future__ import annotations

import paddle
import paddle.nn.functional as F

from ppcls_ext.registry import LOSSES


@LOSSES.register("CELoss")
class CELoss:
    """Mean cross entropy of a batch, times `weight`; `epsilon` is the mass that smoothing spreads over all classes."""

    def __init__(self, weight: float = 1.0, epsilon: float | None = None) -> None:
        if not 0 < weight < float("inf"):
            raise ValueError(f"weight: expected a number above 0, got {weight}")
        if epsilon is not None and not 0 <= epsilon < 1:
            raise ValueError(f"epsilon: expected 0 <= epsilon < 1, got {epsilon}")
        self.weight = weight
        self.epsilon = epsilon or 0.0

    def __call__(self, logits: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
        """Logits (N, C), labels (N,) class indices or (N, C) distributions -> scalar, in float32."""
        logits = logits.astype("float32")
        soft = labels.ndim == 2
        if self.epsilon == 0 and not soft:
            return self.weight * F.cross_entropy(logits, labels)
        classes = logits.shape[-1]
        target = labels if soft else F.one_hot(labels, classes)
        target = (1 - self.epsilon) * target + self.epsilon / classes
        return self.weight * -(target * F.log_softmax(logits)).sum(-1).mean()
