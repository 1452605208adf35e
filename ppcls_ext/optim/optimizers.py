"""Paddle's optimizers behind PaddleClas's names, with weight decay per parameter and states under structured names.

Decay is set on each parameter (`regularizer`) or through AdamW's own filter, never through parameter groups: Paddle
clips and fuses group by group.
"""

from __future__ import annotations

import inspect
from typing import Annotated

import numpy as np
import paddle
from pydantic import Field

from ppcls_ext.config import OptimizerOptions
from ppcls_ext.errors import Refused, did_you_mean
from ppcls_ext.registry import OPTIMIZERS

Fraction = Annotated[float, Field(ge=0, lt=1)]
Decay = Annotated[float, Field(ge=0)]
Decayed = list[tuple[paddle.Tensor, float]]


def _couple(parameters: Decayed) -> list[paddle.Tensor]:
    """Decay as part of the gradient: gradient + decay * weight."""
    for parameter, decay in parameters:
        parameter.regularizer = paddle.regularizer.L2Decay(decay) if decay else None
    return [parameter for parameter, _ in parameters]


@OPTIMIZERS.register("SGD")
def sgd(parameters: Decayed, weight_decay: Decay = 0.0, multi_precision: bool = False) -> paddle.optimizer.Optimizer:
    """Plain stochastic gradient descent."""
    return paddle.optimizer.SGD(0.0, parameters=_couple(parameters), multi_precision=multi_precision)


@OPTIMIZERS.register("Momentum")
def momentum(
    parameters: Decayed,
    momentum: Fraction = 0.9,
    use_nesterov: bool = False,
    weight_decay: Decay = 0.0,
    multi_precision: bool = False,
) -> paddle.optimizer.Optimizer:
    """Stochastic gradient descent with momentum."""
    return paddle.optimizer.Momentum(
        0.0, momentum, parameters=_couple(parameters), use_nesterov=use_nesterov, multi_precision=multi_precision
    )


@OPTIMIZERS.register("Adam")
def adam(
    parameters: Decayed,
    beta1: Fraction = 0.9,
    beta2: Fraction = 0.999,
    epsilon: float = 1e-8,
    weight_decay: Decay = 0.0,
    multi_precision: bool = False,
) -> paddle.optimizer.Optimizer:
    """Adam (arXiv 1412.6980); weight decay is coupled, as in the paper's time."""
    return paddle.optimizer.Adam(
        0.0, beta1, beta2, epsilon, parameters=_couple(parameters), multi_precision=multi_precision
    )


@OPTIMIZERS.register("AdamW")
def adamw(
    parameters: Decayed,
    beta1: Fraction = 0.9,
    beta2: Fraction = 0.999,
    epsilon: float = 1e-8,
    weight_decay: Decay = 0.01,
    multi_precision: bool = False,
) -> paddle.optimizer.Optimizer:
    """AdamW (arXiv 1711.05101): decay decoupled from the gradient."""
    decayed = {parameter.name for parameter, decay in parameters if decay}
    return paddle.optimizer.AdamW(
        0.0,
        beta1,
        beta2,
        epsilon,
        parameters=[parameter for parameter, _ in parameters],
        weight_decay=weight_decay,
        apply_decay_param_fun=lambda name: name in decayed,
        multi_precision=multi_precision,
    )


def decays(options: OptimizerOptions, network: paddle.nn.Layer) -> dict[str, float]:
    """Weight decay of every trainable parameter by its structured name."""
    arguments = options.arguments
    if options.regularizer is not None:
        decay = options.regularizer.arguments.get("coeff", 0.0)
    else:
        default = inspect.signature(OPTIMIZERS[options.name]).parameters["weight_decay"].default
        decay = arguments.get("weight_decay", default)
    given = options.no_weight_decay_name or []
    excluded = given.split() if isinstance(given, str) else given
    trainable = {name: p for name, p in network.named_parameters() if p.trainable}
    for part in excluded:
        if not any(part in name for name in trainable):
            parts = {piece for name in trainable for piece in name.split(".")}
            raise Refused(
                f"Optimizer.no_weight_decay_name: '{part}' is in no parameter's name. {did_you_mean(part, parts)}"
            )

    def of(name: str, parameter: paddle.Tensor) -> float:
        free = options.one_dim_param_no_weight_decay and parameter.ndim <= 1
        return 0.0 if free or any(part in name for part in excluded) else decay

    return {name: of(name, parameter) for name, parameter in trainable.items()}


def build_optimizer(options: OptimizerOptions, network: paddle.nn.Layer) -> paddle.optimizer.Optimizer:
    """The optimizer over the trainable parameters; its rate is set before every step."""
    decay = decays(options, network)
    parameters = [(parameter, decay[name]) for name, parameter in network.named_parameters() if parameter.trainable]
    arguments = dict(options.arguments)
    if options.regularizer is not None:
        arguments["weight_decay"] = options.regularizer.arguments.get("coeff", 0.0)
    return OPTIMIZERS[options.name](parameters, **arguments)


# Paddle keys an optimizer's state by automatic parameter names (`conv2d_6.w_0`), which depend on what else was built in
# the process. On the disk it is keyed by structured names.


def _names(network: paddle.nn.Layer) -> dict[str, str]:
    return {parameter.name: name for name, parameter in network.named_parameters()}


def optimizer_state(optimizer: paddle.optimizer.Optimizer, network: paddle.nn.Layer) -> dict[str, np.ndarray]:
    """{"features.0.weight:velocity_0": array, ...}."""
    names = _names(network)
    longest_first = sorted(names, key=len, reverse=True)
    state = {}
    for key, value in optimizer.state_dict().items():
        if key == "LR_Scheduler":
            continue
        if key == "master_weights":
            state |= {f"{names[name]}:master": tensor.numpy() for name, tensor in value.items()}
            continue
        owner = next(name for name in longest_first if key.startswith(name + "_"))
        state[f"{names[owner]}:{key[len(owner) + 1 :]}"] = value.numpy()
    return state


def load_optimizer_state(
    optimizer: paddle.optimizer.Optimizer, network: paddle.nn.Layer, arrays: dict[str, np.ndarray]
) -> None:
    """Take back what `optimizer_state` returned. Refuses states of parameters that the network does not have."""
    automatic = {name: parameter.name for name, parameter in network.named_parameters()}
    state: dict = {}
    for key, array in arrays.items():
        name, _, slot = key.rpartition(":")
        if name not in automatic:
            raise Refused(f"The optimizer's state names '{name}', which this network does not have")
        if slot == "master":
            state.setdefault("master_weights", {})[automatic[name]] = paddle.to_tensor(array)
        else:
            state[f"{automatic[name]}_{slot}"] = paddle.to_tensor(array)
    optimizer.set_state_dict(state)
