"""Learning rates as pure functions of the step: `schedule(step, steps_per_epoch, epochs) -> float`.

`step` counts optimizer steps from 0. All schedules share a linear warm-up of `warmup_epoch` epochs (a fraction is
allowed) from `warmup_start_lr`, after which the schedule proper begins; with `by_epoch` the rate changes only where an
epoch begins. One schedule, Plateau, also looks at evaluations, and has a state.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from itertools import accumulate
from typing import Annotated, Any, Literal

from pydantic import Field

from ppcls_ext.registry import SCHEDULES

Count = Annotated[int, Field(ge=0)]
AtLeastOne = Annotated[int, Field(ge=1)]


class Schedule:
    """Warm-up, then `after_warmup(done, total, steps_per_epoch)` with `done` in [0, total) steps.

    `metric` names what `observe` looks for in an evaluation, None for nothing.
    """

    metric: str | None = None

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

    def observe(self, result: Mapping[str, float]) -> None:
        """Take note of an evaluation of the weights; most schedules do not care."""

    def state(self) -> dict[str, Any]:
        """What `observe` has changed, in plain types."""
        return {}

    def load(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned."""


@SCHEDULES.register("Cosine")
class Cosine(Schedule):
    """Half a cosine from `learning_rate` to the floor `eta_min` (Loshchilov and Hutter, arXiv 1608.03983, equation 5).

    With `cycles` it begins anew that often in the run, each cycle `cycle_mult` times as long as the one before, from a
    peak `cycle_decay` times as high.
    """

    def __init__(
        self,
        learning_rate: float,
        eta_min: float = 0.0,
        warmup_epoch: float = 0.0,
        warmup_start_lr: float = 0.0,
        by_epoch: bool = False,
        cycles: AtLeastOne = 1,
        cycle_mult: Annotated[float, Field(gt=0)] = 1.0,
        cycle_decay: Annotated[float, Field(gt=0, le=1)] = 1.0,
    ) -> None:
        super().__init__(learning_rate, warmup_epoch, warmup_start_lr, by_epoch)
        lowest = learning_rate * cycle_decay ** (cycles - 1)
        if not 0 <= eta_min <= lowest:
            at = " at its last peak" if cycles > 1 else ""
            raise ValueError(f"eta_min: expected 0 to learning_rate{at} ({lowest:g}), got {eta_min}")
        self.eta_min = eta_min
        if abs(math.log(cycle_mult)) * (cycles - 1) > math.log(1e6):
            raise ValueError(
                f"cycle_mult: {cycle_mult:g} makes some of {cycles} cycles a million times as long as others"
            )
        lengths = [cycle_mult**cycle for cycle in range(cycles)]
        ends = list(accumulate(lengths))
        self.begins = [0.0, *(end / ends[-1] for end in ends)]  # parts of the run
        self.cycle_decay = cycle_decay

    def after_warmup(self, done: int, total: int, steps_per_epoch: int, step: int) -> float:
        cycle = min(bisect_right(self.begins, done / total), len(self.begins) - 1) - 1
        first, last = self.begins[cycle] * total, self.begins[cycle + 1] * total
        peak = self.learning_rate * self.cycle_decay**cycle
        part = min((done - first) / (last - first), 1)
        return self.eta_min + (peak - self.eta_min) * 0.5 * (1 + math.cos(math.pi * part))


@SCHEDULES.register("Linear")
@SCHEDULES.register("Polynomial")
class Linear(Schedule):
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
        if not 0 <= end_lr <= learning_rate:
            raise ValueError(f"end_lr: expected 0 to learning_rate ({learning_rate:g}), got {end_lr}")
        self.end_lr = end_lr
        self.power = power

    def after_warmup(self, done: int, total: int, steps_per_epoch: int, step: int) -> float:
        return self.end_lr + (self.learning_rate - self.end_lr) * (1 - min(done / total, 1)) ** self.power


@SCHEDULES.register("MultiStep")
@SCHEDULES.register("MultiStepDecay")
class MultiStep(Schedule):
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
class Piecewise(Schedule):
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
        if any(number < 0 for number in (*decay_epochs, *values)):
            raise ValueError(f"decay_epochs and values: expected numbers from 0, got {decay_epochs} and {values}")
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
class Constant(Schedule):
    """The same rate throughout, after the warm-up."""

    def __init__(
        self, learning_rate: float, warmup_epoch: float = 0.0, warmup_start_lr: float = 0.0, by_epoch: bool = False
    ) -> None:
        super().__init__(learning_rate, warmup_epoch, warmup_start_lr, by_epoch)

    def after_warmup(self, done: int, total: int, steps_per_epoch: int, step: int) -> float:
        return self.learning_rate


@SCHEDULES.register("Step")
class Step(Schedule):
    """`learning_rate` times `gamma` after every `step_size` epochs of the run, warm-up included."""

    def __init__(
        self,
        learning_rate: float,
        step_size: Annotated[float, Field(gt=0)],
        gamma: Annotated[float, Field(gt=0)] = 0.1,
        warmup_epoch: float = 0.0,
        warmup_start_lr: float = 0.0,
        by_epoch: bool = False,
    ) -> None:
        super().__init__(learning_rate, warmup_epoch, warmup_start_lr, by_epoch)
        self.step_size = step_size
        self.gamma = gamma

    def after_warmup(self, done: int, total: int, steps_per_epoch: int, step: int) -> float:
        return self.learning_rate * self.gamma ** math.floor(step / (self.step_size * steps_per_epoch))


@SCHEDULES.register("Exponential")
class Exponential(Schedule):
    """`learning_rate` times `gamma` to the power of the epochs since the warm-up: smoothly, or in steps by `by_epoch`.

    EfficientNet's 0.97 every 2.4 epochs is `gamma: 0.9874`.
    """

    def __init__(
        self,
        learning_rate: float,
        gamma: Annotated[float, Field(gt=0, le=1)],
        warmup_epoch: float = 0.0,
        warmup_start_lr: float = 0.0,
        by_epoch: bool = False,
    ) -> None:
        super().__init__(learning_rate, warmup_epoch, warmup_start_lr, by_epoch)
        self.gamma = gamma

    def after_warmup(self, done: int, total: int, steps_per_epoch: int, step: int) -> float:
        return self.learning_rate * self.gamma ** (done / steps_per_epoch)


@SCHEDULES.register("OneCycle")
class OneCycle(Schedule):
    """Up from learning_rate / `divide_factor` to `learning_rate` in the part `phase_pct` of the run, then down to
    `end_learning_rate` (Smith and Topin, arXiv 1708.07120); only the rate goes round, not the momentum.

    The rise comes after the warm-up, where one is asked for.
    """

    def __init__(
        self,
        learning_rate: float,
        divide_factor: Annotated[float, Field(ge=1)] = 25.0,
        end_learning_rate: float = 0.0,
        phase_pct: Annotated[float, Field(gt=0, lt=1)] = 0.3,
        anneal_strategy: Literal["cos", "linear"] = "cos",
        warmup_epoch: float = 0.0,
        warmup_start_lr: float = 0.0,
        by_epoch: bool = False,
    ) -> None:
        if not 0 <= end_learning_rate <= learning_rate:
            raise ValueError(
                f"end_learning_rate: expected 0 to learning_rate ({learning_rate}), got {end_learning_rate}"
            )
        self.first = learning_rate / divide_factor
        super().__init__(self.first, warmup_epoch, warmup_start_lr, by_epoch)  # the warm-up ends where the rise begins
        self.peak = learning_rate
        self.end = end_learning_rate
        self.phase_pct = phase_pct
        self.anneal_strategy = anneal_strategy

    def after_warmup(self, done: int, total: int, steps_per_epoch: int, step: int) -> float:
        rise = self.phase_pct * total
        if done < rise:
            begin, end, part = self.first, self.peak, done / rise
        else:
            begin, end, part = self.peak, self.end, min((done - rise) / (total - rise), 1)
        if self.anneal_strategy == "cos":
            part = 0.5 * (1 - math.cos(math.pi * part))
        return begin + (end - begin) * part


@SCHEDULES.register("Plateau")
@SCHEDULES.register("ReduceOnPlateau")
class Plateau(Schedule):
    """`learning_rate`, times `factor` whenever more than `patience` evaluations running bring no gain.

    A gain is a `metric` ("loss", "top1", ...) better than the best by more than `threshold` (`rel`: a part of the
    best). After a reduction `cooldown` evaluations are not counted. The rate stays at `min_lr` or above. Paddle's rule
    (`paddle.optimizer.lr.ReduceOnPlateau`), whose argument names these are; the state is saved with the run.
    """

    def __init__(
        self,
        learning_rate: float,
        metric: str = "loss",
        mode: Literal["min", "max"] | None = None,
        factor: Annotated[float, Field(gt=0, lt=1)] = 0.1,
        patience: Count = 10,
        threshold: Annotated[float, Field(ge=0)] = 1e-4,
        threshold_mode: Literal["rel", "abs"] = "rel",
        cooldown: Count = 0,
        min_lr: Annotated[float, Field(ge=0)] = 0.0,
        warmup_epoch: float = 0.0,
        warmup_start_lr: float = 0.0,
        by_epoch: bool = False,
    ) -> None:
        super().__init__(learning_rate, warmup_epoch, warmup_start_lr, by_epoch)
        if min_lr > learning_rate:
            raise ValueError(f"min_lr: expected 0 to learning_rate ({learning_rate}), got {min_lr}")
        self.metric = metric
        self.sign = {"min": -1, "max": 1}[mode or ("min" if "loss" in metric.lower() else "max")]
        self.factor, self.patience, self.cooldown, self.min_lr = factor, patience, cooldown, min_lr
        self.threshold, self.threshold_mode = threshold, threshold_mode
        self.best: float | None = None
        self.bad = self.resting = self.reductions = 0

    def after_warmup(self, done: int, total: int, steps_per_epoch: int, step: int) -> float:
        return max(self.learning_rate * self.factor**self.reductions, self.min_lr)

    def observe(self, result: Mapping[str, float]) -> None:
        value = result[self.metric]
        margin = self.threshold * (abs(self.best) if self.best is not None and self.threshold_mode == "rel" else 1)
        if self.best is None or self.sign * (value - self.best) > margin:
            self.best, self.bad = value, 0
        else:
            self.bad += 1
        if self.resting:
            self.resting, self.bad = self.resting - 1, 0
        elif self.bad > self.patience:
            self.reductions, self.bad, self.resting = self.reductions + 1, 0, self.cooldown

    def state(self) -> dict[str, Any]:
        return {"best": self.best, "bad": self.bad, "resting": self.resting, "reductions": self.reductions}

    def load(self, state: dict[str, Any]) -> None:
        self.best = state["best"]
        self.bad, self.resting, self.reductions = state["bad"], state["resting"], state["reductions"]
