"""Learning rates as pure functions of the step: `schedule(step, steps_per_epoch, epochs) -> float`.

`step` counts optimizer steps from 0. All schedules share a linear warm-up of `warmup_epoch` epochs (a fraction is
allowed) from `warmup_start_lr`, after which the schedule proper begins; with `by_epoch` the rate changes only where an
epoch begins.
"""

from __future__ import annotations

import math
from bisect import bisect_right

from ppcls_ext.registry import SCHEDULES


class _Schedule:
    """Warm-up, then `after_warmup(done, total, steps_per_epoch)` with `done` in [0, total) steps."""

    def __init__(self, learning_rate: float, warmup_epoch: float, warmup_start_lr: float, by_epoch: bool) -> None:
        for name, value in (("learning_rate", learning_rate), ("warmup_epoch", warmup_epoch)):
            if not value >= 0 or math.isinf(value):
                raise ValueError(f"{name}: expected a number from 0, got {value}")
        if not 0 <= warmup_start_lr <= learning_rate:
            raise ValueError(f"warmup_start_lr: expected 0 to learning_rate ({learning_rate}), got {warmup_start_lr}")
        self.learning_rate = learning_rate
        self.warmup_epoch = warmup_epoch
        self.warmup_start_lr = warmup_start_lr
        self.by_epoch = by_epoch

    def __call__(self, step: int, steps_per_epoch: int, epochs: int) -> float:
        """The rate of optimizer step `step`."""
        if self.by_epoch:
            step -= step % steps_per_epoch
        warmup = int(round(self.warmup_epoch * steps_per_epoch))
        if step < warmup:
            return self.warmup_start_lr + (self.learning_rate - self.warmup_start_lr) * step / warmup
        total = max(epochs * steps_per_epoch - warmup, 1)
        return self.after_warmup(step - warmup, total, steps_per_epoch, step)

    def after_warmup(self, done: int, total: int, steps_per_epoch: int, step: int) -> float:
        raise NotImplementedError


@SCHEDULES.register("Cosine")
class Cosine(_Schedule):
    """Half a cosine from `learning_rate` to `eta_min` (Loshchilov and Hutter, arXiv 1608.03983, equation 5)."""

    def __init__(
        self,
        learning_rate: float,
        eta_min: float = 0.0,
        warmup_epoch: float = 0.0,
        warmup_start_lr: float = 0.0,
        by_epoch: bool = False,
    ) -> None:
        super().__init__(learning_rate, warmup_epoch, warmup_start_lr, by_epoch)
        if not 0 <= eta_min <= learning_rate:
            raise ValueError(f"eta_min: expected 0 to learning_rate ({learning_rate}), got {eta_min}")
        self.eta_min = eta_min

    def after_warmup(self, done: int, total: int, steps_per_epoch: int, step: int) -> float:
        return self.eta_min + (self.learning_rate - self.eta_min) * 0.5 * (1 + math.cos(math.pi * min(done / total, 1)))


@SCHEDULES.register("Linear")
class Linear(_Schedule):
    """A straight line (or, with `power`, a polynomial) from `learning_rate` to `end_lr` at the end of the run."""

    def __init__(
        self,
        learning_rate: float,
        end_lr: float = 0.0,
        power: float = 1.0,
        warmup_epoch: float = 0.0,
        warmup_start_lr: float = 0.0,
        by_epoch: bool = False,
    ) -> None:
        super().__init__(learning_rate, warmup_epoch, warmup_start_lr, by_epoch)
        if power <= 0:
            raise ValueError(f"power: expected a number above 0, got {power}")
        self.end_lr = end_lr
        self.power = power

    def after_warmup(self, done: int, total: int, steps_per_epoch: int, step: int) -> float:
        return self.end_lr + (self.learning_rate - self.end_lr) * (1 - min(done / total, 1)) ** self.power


@SCHEDULES.register("MultiStep")
@SCHEDULES.register("MultiStepDecay")
class MultiStep(_Schedule):
    """`learning_rate` times `gamma` for every milestone (in epochs of the run, warm-up included) passed."""

    def __init__(
        self,
        learning_rate: float,
        milestones: list[float],
        gamma: float = 0.1,
        warmup_epoch: float = 0.0,
        warmup_start_lr: float = 0.0,
        by_epoch: bool = False,
    ) -> None:
        super().__init__(learning_rate, warmup_epoch, warmup_start_lr, by_epoch)
        if sorted(milestones) != milestones or any(epoch < 0 for epoch in milestones):
            raise ValueError(f"milestones: expected rising epochs from 0, got {milestones}")
        if gamma <= 0:
            raise ValueError(f"gamma: expected a number above 0, got {gamma}")
        self.milestones = milestones
        self.gamma = gamma

    def after_warmup(self, done: int, total: int, steps_per_epoch: int, step: int) -> float:
        return self.learning_rate * self.gamma ** bisect_right(self.milestones, step / steps_per_epoch)


@SCHEDULES.register("Piecewise")
class Piecewise(_Schedule):
    """`values[i]` between the epochs `decay_epochs[i-1]` and `decay_epochs[i]`: one value more than epochs."""

    def __init__(
        self,
        decay_epochs: list[float],
        values: list[float],
        learning_rate: float | None = None,
        warmup_epoch: float = 0.0,
        warmup_start_lr: float = 0.0,
        by_epoch: bool = False,
    ) -> None:
        if sorted(decay_epochs) != decay_epochs or len(values) != len(decay_epochs) + 1:
            raise ValueError(
                f"decay_epochs and values: expected rising epochs and one value more, got {decay_epochs} and {values}"
            )
        if learning_rate is not None and learning_rate != values[0]:
            raise ValueError(
                f"learning_rate: expected the first of values ({values[0]}) or nothing, got {learning_rate}"
            )
        super().__init__(values[0], warmup_epoch, warmup_start_lr, by_epoch)
        self.decay_epochs = decay_epochs
        self.values = values

    def after_warmup(self, done: int, total: int, steps_per_epoch: int, step: int) -> float:
        return self.values[bisect_right(self.decay_epochs, step / steps_per_epoch)]


@SCHEDULES.register("Constant")
@SCHEDULES.register("ConstLR")
class Constant(_Schedule):
    """The same rate throughout, after the warm-up."""

    def __init__(
        self, learning_rate: float, warmup_epoch: float = 0.0, warmup_start_lr: float = 0.0, by_epoch: bool = False
    ) -> None:
        super().__init__(learning_rate, warmup_epoch, warmup_start_lr, by_epoch)

    def after_warmup(self, done: int, total: int, steps_per_epoch: int, step: int) -> float:
        return self.learning_rate
