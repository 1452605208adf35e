"""Optimizers that Paddle does not have, as Paddle's kind of optimizer.

Being `paddle.optimizer.Optimizer`, they are saved, scaled, kept in float32 at AMP level O2 and given a rate for each
parameter as Paddle's own are. They run in dynamic mode, a few operators a parameter.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import paddle
from paddle import Tensor

Decayed = list[tuple[Tensor, float]]  # parameters, each with its weight decay


class OwnOptimizer(paddle.optimizer.Optimizer):
    """What the optimizers of this file share: `slots` of each parameter's shape, `scalars` of shape (1,)."""

    slots: tuple[str, ...] = ()
    scalars: tuple[str, ...] = ()

    def __init__(self, parameters: Decayed, multi_precision: bool) -> None:
        super().__init__(0.0, parameters=[parameter for parameter, _ in parameters])
        self._multi_precision = multi_precision
        self._master_weights = {}
        self._decay = {parameter.name: decay for parameter, decay in parameters}

    def update(self, weight: Tensor, gradient: Tensor, rate: Tensor, decay: float, state: dict[str, Tensor]) -> Tensor:
        """The new weight; changes `state` in place. Everything is float32 where there are float32 masters."""
        raise NotImplementedError

    def begin(self, weight: Tensor, state: dict[str, Tensor]) -> None:
        """Fill `state`, which holds zeros, from the weight."""

    def state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        """The slots and scalars of one parameter."""
        return {slot: self._get_accumulator_master(slot, parameter) for slot in (*self.slots, *self.scalars)}

    # What `paddle.optimizer.Optimizer` calls. -------------------------------------------------------------------

    def _create_accumulators(self, block: Any, parameters: list[Tensor]) -> None:
        for parameter in parameters:
            half = self._multi_precision and parameter.dtype in (paddle.float16, paddle.bfloat16)
            weight = self._create_master_weight(parameter) if half else parameter
            if weight.name in self._accumulators[(*self.slots, *self.scalars)[0]]:
                continue
            for slot in self.slots:
                self._add_accumulator(slot, weight)
            for scalar in self.scalars:
                self._add_accumulator(scalar, weight, shape=[1])
            self.begin(weight, self.state_of(parameter))

    def _append_optimize_op(self, block: Any, param_and_grad: tuple[Tensor, Tensor]) -> None:
        parameter, gradient = param_and_grad
        weight = self._master_weights.get(parameter.name, parameter)
        rate = self._create_param_lr(param_and_grad)
        new = self.update(
            weight, gradient.astype(weight.dtype), rate, self._decay[parameter.name], self.state_of(parameter)
        )
        weight.set_value(new)
        if weight is not parameter:
            parameter.set_value(new.astype(parameter.dtype))


class Lion(OwnOptimizer):
    """Lion (arXiv 2302.06675, algorithm 2): the sign of an interpolation of momentum and gradient, decoupled decay."""

    slots = ("momentum",)

    def __init__(self, parameters: Decayed, beta1: float, beta2: float, multi_precision: bool) -> None:
        super().__init__(parameters, multi_precision)
        self.beta1, self.beta2 = beta1, beta2

    def update(self, weight: Tensor, gradient: Tensor, rate: Tensor, decay: float, state: dict[str, Tensor]) -> Tensor:
        momentum = state["momentum"]
        direction = (momentum * self.beta1 + gradient * (1 - self.beta1)).sign()
        momentum.set_value(momentum * self.beta2 + gradient * (1 - self.beta2))
        return weight - rate * (direction + weight * decay if decay else direction)


class ScheduleFreeAdamW(OwnOptimizer):
    """Schedule-free AdamW (arXiv 2405.15682, algorithm 1).

    The network trains at y = z + beta1 (x - z); z takes AdamW's steps without momentum, x is the mean of all z weighted
    by the squares of their rates. What is evaluated, saved and used is x: see `at_mean`.
    """

    slots = ("squares", "z", "x")
    scalars = ("beta2_power", "rates")  # beta2^t; the sum of the squares of the rates

    def __init__(self, parameters: Decayed, beta1: float, beta2: float, epsilon: float, multi_precision: bool) -> None:
        super().__init__(parameters, multi_precision)
        self.beta1, self.beta2, self.epsilon = beta1, beta2, epsilon

    def begin(self, weight: Tensor, state: dict[str, Tensor]) -> None:
        state["z"].set_value(weight)
        state["x"].set_value(weight)
        state["beta2_power"].set_value(paddle.ones([1], state["beta2_power"].dtype))

    def update(self, weight: Tensor, gradient: Tensor, rate: Tensor, decay: float, state: dict[str, Tensor]) -> Tensor:
        squares, z, x, power, rates = (state[name] for name in (*self.slots, *self.scalars))
        power.set_value(power * self.beta2)
        squares.set_value(squares * self.beta2 + gradient * gradient * (1 - self.beta2))
        rate = rate * (1 - power).sqrt()
        step = gradient / (squares.sqrt() + self.epsilon)
        z.set_value(z - rate * (step + weight * decay if decay else step))
        rates.set_value(rates + rate * rate)
        share = rate * rate / rates.clip(min=1e-30)  # a rate of 0, with which a warm-up begins, has no share
        x.set_value(x + share * (z - x))
        return self.training_point(z, x)

    def training_point(self, z: Tensor, x: Tensor) -> Tensor:
        """y; where x = z this is x with all its bits."""
        return z + self.beta1 * (x - z)

    @paddle.no_grad()
    def return_to_training(self) -> None:
        """Give the network y, from the states that were loaded."""
        for parameter in self._parameter_list:
            state = self.state_of(parameter)
            y = self.training_point(state["z"], state["x"])
            if parameter.name in self._master_weights:
                self._master_weights[parameter.name].set_value(y)
            parameter.set_value(y.astype(parameter.dtype))

    @contextmanager
    def at_mean(self) -> Iterator[None]:
        """Inside, the network has x; afterwards y again."""
        with paddle.no_grad():
            kept = [parameter.detach().clone() for parameter in self._parameter_list]
            for parameter in self._parameter_list:
                parameter.set_value(self.state_of(parameter)["x"].astype(parameter.dtype))
        try:
            yield
        finally:
            with paddle.no_grad():
                for parameter, value in zip(self._parameter_list, kept):
                    parameter.set_value(value)
