"""The optimizers by PaddleClas's names and arguments; decay per parameter, rates set before every step."""

from __future__ import annotations

from typing import Annotated, Any

import paddle
from pydantic import Field

from ppcls_ext.config import OptimizerOptions
from ppcls_ext.optim.groups import decays, set_layer_rates
from ppcls_ext.optim.own import Decayed, Lion, ScheduleFreeAdamW
from ppcls_ext.registry import OPTIMIZERS

Fraction = Annotated[float, Field(ge=0, lt=1)]
Decay = Annotated[float, Field(ge=0)]
Epsilon = Annotated[float, Field(gt=0)]


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
    epsilon: Epsilon = 1e-8,
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
    epsilon: Epsilon = 1e-8,
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


class _RMSProp(paddle.optimizer.RMSProp):
    """Paddle's, whose mean square may begin at another value than 0."""

    initial_square = 0.0

    def _add_accumulator(self, name: str, param: paddle.Tensor, *rest: Any, **more: Any) -> paddle.Tensor:
        if name == self._mean_square_acc_str:
            more["fill_value"] = self.initial_square
        return super()._add_accumulator(name, param, *rest, **more)


@OPTIMIZERS.register("RMSProp")
def rmsprop(
    parameters: Decayed,
    momentum: Fraction = 0.0,
    rho: Fraction = 0.95,
    epsilon: Epsilon = 1e-6,
    weight_decay: Decay = 0.0,
    multi_precision: bool = False,
    initial_square: Annotated[float, Field(ge=0)] = 1.0,
) -> paddle.optimizer.Optimizer:
    """RMSProp in TensorFlow's form: epsilon inside the root, the rate inside the momentum, mean square from 1.

    s = rho s + (1 - rho) g^2; m = momentum m + rate g / sqrt(s + epsilon); weight - m. PaddleClas begins with s = 0
    (`initial_square: 0`), which makes its first steps 1 / sqrt(1 - rho) long in every direction.
    """
    optimizer = _RMSProp(0.0, rho, epsilon, momentum, parameters=_couple(parameters))
    optimizer.initial_square = initial_square
    optimizer._multi_precision = multi_precision
    return optimizer


@OPTIMIZERS.register("Lamb")
@OPTIMIZERS.register("LAMB")
def lamb(
    parameters: Decayed,
    beta1: Fraction = 0.9,
    beta2: Fraction = 0.999,
    epsilon: Epsilon = 1e-6,
    weight_decay: Decay = 0.01,
    multi_precision: bool = False,
    always_adapt: bool = False,
) -> paddle.optimizer.Optimizer:
    """LAMB (arXiv 1904.00962, algorithm 2): Adam's step and the decay, scaled by |weight| / |step| for each tensor.

    Tensors without decay take Adam's step as it is, unless `always_adapt`.
    """
    decayed = {parameter.name for parameter, decay in parameters if decay}
    return paddle.optimizer.Lamb(
        0.0,
        weight_decay,
        beta1,
        beta2,
        epsilon,
        parameters=[parameter for parameter, _ in parameters],
        exclude_from_weight_decay_fn=lambda parameter: parameter.name not in decayed,
        multi_precision=multi_precision,
        always_adapt=always_adapt,
    )


@OPTIMIZERS.register("Lion")
def lion(
    parameters: Decayed,
    beta1: Fraction = 0.9,
    beta2: Fraction = 0.99,
    weight_decay: Decay = 0.0,
    multi_precision: bool = False,
) -> paddle.optimizer.Optimizer:
    """Lion (arXiv 2302.06675): rates 3 to 10 times smaller than AdamW's, the decoupled decay as much larger."""
    return Lion(parameters, beta1, beta2, multi_precision)


@OPTIMIZERS.register("ScheduleFreeAdamW")
def schedule_free_adamw(
    parameters: Decayed,
    beta1: Annotated[float, Field(gt=0, lt=1)] = 0.9,
    beta2: Fraction = 0.999,
    epsilon: Epsilon = 1e-8,
    weight_decay: Decay = 0.0,
    multi_precision: bool = False,
) -> paddle.optimizer.Optimizer:
    """Schedule-free AdamW (arXiv 2405.15682): a constant rate after the warm-up; a mean of the weights is evaluated."""
    return ScheduleFreeAdamW(parameters, beta1, beta2, epsilon, multi_precision)


def build_optimizer(options: OptimizerOptions, network: paddle.nn.Layer) -> paddle.optimizer.Optimizer:
    """The optimizer over the trainable parameters; its rate is set before every step."""
    decay = decays(options, network)
    parameters = [(parameter, decay[name]) for name, parameter in network.named_parameters() if parameter.trainable]
    arguments = dict(options.arguments)
    if options.regularizer is not None:
        arguments["weight_decay"] = options.regularizer.arguments.get("coeff", 0.0)
    if options.layer_decay is not None:
        set_layer_rates(options.layer_decay, network)
    return OPTIMIZERS[options.name](parameters, **arguments)
