"""Losses that judge each class by itself: one label per image or several."""

from __future__ import annotations

from typing import ClassVar

import paddle
import paddle.nn.functional as F

from ppcls_ext.errors import Refused
from ppcls_ext.losses.targets import LabelCounts, check_epsilon, check_weight, distribution
from ppcls_ext.registry import LOSSES


@LOSSES.register("BCELoss")
class BCELoss:
    """Binary cross entropy of every class, as ResNet strikes back trains (arXiv 2110.00476); mean over classes.

    A target above `target_threshold` becomes 1, any other 0, after `epsilon` was spread over all classes; None leaves
    them. A positive target counts `pos_weight` times. `sum_classes` adds the classes up.
    """

    several_labels: ClassVar[bool] = True

    def __init__(
        self,
        weight: float = 1.0,
        epsilon: float | None = None,
        target_threshold: float | None = 0.2,
        pos_weight: float | None = None,
        sum_classes: bool = False,
    ) -> None:
        check_weight(weight)
        if target_threshold is not None and not 0 <= target_threshold < 1:
            raise Refused(f"target_threshold: expected 0 <= target_threshold < 1, got {target_threshold}")
        if pos_weight is not None and not 0 < pos_weight < float("inf"):
            raise Refused(f"pos_weight: expected a number above 0, got {pos_weight}")
        self.weight, self.target_threshold = weight, target_threshold
        self.pos_weight, self.sum_classes = pos_weight, sum_classes
        self.epsilon = check_epsilon(epsilon)

    def __call__(self, logits: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
        """Logits (N, C), labels (N,) class indices or (N, C) targets -> scalar, in float32."""
        target = distribution(labels, logits.shape[-1], self.epsilon)
        if self.target_threshold is not None:
            target = (target > self.target_threshold).astype("float32")
        terms = _binary_cross_entropy(logits, target)
        if self.pos_weight is not None:
            terms = terms * (1 + (self.pos_weight - 1) * target)
        return self.weight * (terms.sum(-1) if self.sum_classes else terms.mean(-1)).mean()


@LOSSES.register("MultiLabelLoss")
class MultiLabelLoss:
    """Binary cross entropy for several labels per image; PaddleClas's arguments.

    `size_sum` adds the classes up instead of taking their mean. `weight_ratio` makes rare answers count more: a label
    that stands at a share r of the training images counts exp(1 - r) where it stands and exp(r) where it does not.
    """

    several_labels: ClassVar[bool] = True

    def __init__(
        self,
        weight: float = 1.0,
        epsilon: float | None = None,
        size_sum: bool = False,
        weight_ratio: bool = False,
        counts: LabelCounts | None = None,
    ) -> None:
        check_weight(weight)
        self.weight, self.size_sum, self.weight_ratio, self.counts = weight, size_sum, weight_ratio, counts
        self.epsilon = check_epsilon(epsilon)

    def __call__(self, logits: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
        """Logits (N, C), labels (N, C) -> scalar, in float32."""
        target = distribution(labels, logits.shape[-1], self.epsilon)
        terms = _binary_cross_entropy(logits, target)
        if self.weight_ratio:
            if self.counts is None:
                raise Refused("weight_ratio: comes from the training split, which is not known here")
            ratio = paddle.to_tensor([count / self.counts.images for count in self.counts.per_class], "float32")
            stands = (target > 0.5).astype("float32")
            terms = terms * paddle.exp(stands * (1 - ratio) + (1 - stands) * ratio)
        return self.weight * (terms.sum(-1) if self.size_sum else terms.mean(-1)).mean()


@LOSSES.register("MultiLabelAsymmetricLoss")
class MultiLabelAsymmetricLoss:
    """Asymmetric loss (Ben-Baruch et al., arXiv 2009.14119, equations 4 to 7) for several labels per image.

    The term of a label that stands is multiplied by (1 - p)^gamma_pos, of one that does not by p_m^gamma_neg with
    p_m = max(p - clip, 0). `disable_focal_loss_grad` takes these factors for constants. `reduction` sum adds the
    classes up, mean averages them; images are averaged either way (PaddleClas's sum is over the batch as well).
    """

    several_labels: ClassVar[bool] = True

    def __init__(
        self,
        weight: float = 1.0,
        gamma_pos: float = 1.0,
        gamma_neg: float = 4.0,
        clip: float = 0.05,
        epsilon: float = 1e-8,
        disable_focal_loss_grad: bool = True,
        reduction: str = "sum",
    ) -> None:
        check_weight(weight)
        for name, value in (("gamma_pos", gamma_pos), ("gamma_neg", gamma_neg)):
            if value < 0:
                raise Refused(f"{name}: expected a number from 0, got {value}")
        if not 0 <= clip < 1 or not 0 < epsilon < 1:
            raise Refused(f"clip: expected 0 <= clip < 1 and 0 < epsilon < 1, got {clip} and {epsilon}")
        if reduction not in ("sum", "mean"):
            raise Refused(f"reduction: expected 'sum' or 'mean', got {reduction!r}")
        self.weight, self.gamma_pos, self.gamma_neg = weight, gamma_pos, gamma_neg
        self.clip, self.epsilon, self.reduction = clip, epsilon, reduction
        self.disable_focal_loss_grad = disable_focal_loss_grad

    def __call__(self, logits: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
        """Logits (N, C), labels (N, C) -> scalar, in float32."""
        p, target = F.sigmoid(logits.astype("float32")), labels.astype("float32")
        right = target * p + (1 - target) * paddle.clip(1 - p + self.clip, max=1.0)
        gamma = target * self.gamma_pos + (1 - target) * self.gamma_neg
        base = right.detach() if self.disable_focal_loss_grad else right
        # a floor, since the slope of a power below 1 has none at 0
        focus = paddle.clip(1 - base, min=1e-7) ** gamma
        terms = -paddle.log(paddle.clip(right, min=self.epsilon)) * focus
        return self.weight * (terms.sum(-1) if self.reduction == "sum" else terms.mean(-1)).mean()


def _binary_cross_entropy(logits: paddle.Tensor, target: paddle.Tensor) -> paddle.Tensor:
    """(N, C), (N, C) -> (N, C), in float32."""
    return F.binary_cross_entropy_with_logits(logits.astype("float32"), target, reduction="none")
