"""What a training step minimises: the losses, over one head or two, with a teacher or without.

With a teacher (Hinton et al., arXiv 1503.02531; DeiT, arXiv 2012.12877, equations 2 and 3) the loss is
(1 - alpha) * losses + alpha * distillation. A network with two heads learns the labels with the first and the teacher
with the second, as DeiT and GroupMamba do. Without a teacher both heads learn the labels, each with half of the loss:
the authors' code would then leave the second one as it was drawn, and evaluation takes the mean of both.
"""

from __future__ import annotations

from collections.abc import Callable

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from ppcls_ext.config import DistillOptions

DISTILL = "Distill"  # the name of the teacher's term


def soft_distillation(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(logits / T)), mean of the batch: (N, C), (N, C) -> scalar."""
    target = F.softmax(teacher.astype("float32") / temperature)
    difference = F.log_softmax(teacher.astype("float32") / temperature) - F.log_softmax(
        logits.astype("float32") / temperature
    )
    return (target * difference).sum(-1).mean() * temperature**2


def hard_distillation(logits: Tensor, teacher: Tensor) -> Tensor:
    """Cross entropy with the teacher's answers as labels: (N, C), (N, C) -> scalar."""
    return F.cross_entropy(logits.astype("float32"), teacher.argmax(-1))


class Objective:
    """The terms of the loss of a batch, by name, and the logits that its accuracy is counted with."""

    def __init__(
        self, losses: dict[str, Callable], options: DistillOptions | None = None, teacher: paddle.nn.Layer | None = None
    ) -> None:
        self.losses = losses
        self.options = options
        self.teacher = teacher

    def __call__(
        self, network: Callable[[Tensor], Tensor | tuple[Tensor, ...]], images: Tensor, labels: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        """({"CELoss": scalar, ...}, logits (N, C)); the terms' sum is the loss. The teacher sees the same images."""
        output = network(images)
        heads = (output,) if isinstance(output, Tensor) else tuple(output)
        logits = sum(heads) / len(heads) if len(heads) > 1 else heads[0]
        if self.teacher is None:
            return {
                name: sum(loss(head, labels) for head in heads) / len(heads) for name, loss in self.losses.items()
            }, logits
        with paddle.no_grad():
            answers = self.teacher(images)
        options = self.options
        if options.kind == "soft":
            learned = soft_distillation(heads[-1], answers, options.temperature)
        else:
            learned = hard_distillation(heads[-1], answers)
        terms = {name: (1 - options.alpha) * loss(heads[0], labels) for name, loss in self.losses.items()}
        return {**terms, DISTILL: options.alpha * learned}, logits
