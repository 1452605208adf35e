"""Losses of one class per image: cross entropy, and focal loss."""

from __future__ import annotations

from typing import ClassVar

import paddle
import paddle.nn.functional as F

from ppcls_ext.errors import Refused
from ppcls_ext.losses.targets import (
    ClassWeight,
    ClassWeights,
    LabelCounts,
    check_epsilon,
    check_weight,
    distribution,
)
from ppcls_ext.registry import LOSSES


@LOSSES.register("CELoss")
class CELoss:
    """Mean cross entropy of a batch, times `weight`.

    `epsilon` is the mass that label smoothing spreads over all classes (Szegedy et al., arXiv 1512.00567, section 7);
    `class_weight` says how much a class counts, see `ClassWeights`: class c's term of the sum is multiplied by it.
    Mixed labels are taken as they are.
    """

    several_labels: ClassVar[bool] = False

    def __init__(
        self,
        weight: float = 1.0,
        epsilon: float | None = None,
        class_weight: ClassWeight | None = None,
        counts: LabelCounts | None = None,
    ) -> None:
        check_weight(weight)
        self.weight = weight
        self.epsilon = check_epsilon(epsilon)
        self.class_weights = ClassWeights(class_weight, counts)

    def __call__(self, logits: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
        """Logits (N, C), labels (N,) class indices or (N, C) distributions -> scalar, in float32."""
        logits = logits.astype("float32")
        class_weights = self.class_weights.tensor()
        if self.epsilon == 0 and labels.ndim == 1 and class_weights is None:
            return self.weight * F.cross_entropy(logits, labels)
        target = distribution(labels, logits.shape[-1], self.epsilon)
        if class_weights is not None:
            target = target * class_weights
        return self.weight * -(target * F.log_softmax(logits)).sum(-1).mean()


@LOSSES.register("SoftTargetCrossEntropy")
class SoftTargetCrossEntropy(CELoss):
    """PaddleClas's and timm's name for the cross entropy with mixed labels: CELoss without its options."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__(weight)


@LOSSES.register("FocalLoss")
class FocalLoss:
    """Cross entropy whose term of class c is multiplied by (1 - p_c)^gamma (Lin et al., arXiv 1708.02002, section 3).

    With softmax probabilities; for several labels per image MultiLabelAsymmetricLoss with gamma_pos = gamma_neg is it.
    """

    several_labels: ClassVar[bool] = False

    def __init__(
        self,
        weight: float = 1.0,
        gamma: float = 2.0,
        epsilon: float | None = None,
        class_weight: ClassWeight | None = None,
        counts: LabelCounts | None = None,
    ) -> None:
        check_weight(weight)
        if gamma < 0:
            raise Refused(f"gamma: expected a number from 0, got {gamma}")
        self.weight, self.gamma = weight, gamma
        self.epsilon = check_epsilon(epsilon)
        self.class_weights = ClassWeights(class_weight, counts)

    def __call__(self, logits: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
        """Logits (N, C), labels (N,) class indices or (N, C) distributions -> scalar, in float32."""
        log_p = F.log_softmax(logits.astype("float32"))
        target = distribution(labels, logits.shape[-1], self.epsilon)
        class_weights = self.class_weights.tensor()
        if class_weights is not None:
            target = target * class_weights
        # a floor, since the slope of (1 - p)^gamma has none at p = 1 for gamma below 1
        focus = paddle.clip(1 - log_p.exp(), min=1e-7) ** self.gamma
        return self.weight * -(target * focus * log_p).sum(-1).mean()
