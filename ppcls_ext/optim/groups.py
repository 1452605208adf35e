"""What each parameter has of its own: weight decay, and a factor of the learning rate.

Both are set on the parameter, never through parameter groups: Paddle clips and fuses group by group.
"""

from __future__ import annotations

import inspect

import paddle

from ppcls_ext.config import OptimizerOptions
from ppcls_ext.errors import Refused, did_you_mean
from ppcls_ext.registry import OPTIMIZERS


def decays(options: OptimizerOptions, network: paddle.nn.Layer) -> dict[str, float]:
    """Weight decay of every trainable parameter by its structured name."""
    if options.regularizer is not None:
        decay = options.regularizer.arguments.get("coeff", 0.0)
    else:
        default = inspect.signature(OPTIMIZERS[options.name]).parameters["weight_decay"].default
        decay = options.arguments.get("weight_decay", default)
    given = options.no_weight_decay_name or []
    excluded = given.split() if isinstance(given, str) else given
    parameters = dict(network.named_parameters())
    for part in excluded:
        if not any(part in name for name in parameters):
            parts = {piece for name in parameters for piece in name.split(".")}
            raise Refused(
                f"Optimizer.no_weight_decay_name: '{part}' is in no parameter's name. {did_you_mean(part, parts)}"
            )

    def of(name: str, parameter: paddle.Tensor) -> float:
        free = options.one_dim_param_no_weight_decay and parameter.ndim <= 1
        return 0.0 if free or any(part in name for part in excluded) else decay

    return {name: of(name, parameter) for name, parameter in parameters.items() if parameter.trainable}


def group_of_parameters(network: paddle.nn.Layer) -> dict[str, str]:
    """The layer group of every parameter and batch-norm statistic, in the order of `layer_groups`."""
    if not hasattr(network, "layer_groups"):
        raise Refused(f"{type(network).__name__} has no layer groups")
    names = [name for name, _ in network.named_parameters()]
    return {
        name: group for group, prefixes in network.layer_groups() for name in names if name.startswith(tuple(prefixes))
    }


def set_layer_rates(layer_decay: float, network: paddle.nn.Layer) -> None:
    """Factor layer_decay^(n - 1 - i) of the rate for the parameters of the i-th of n layer groups (i from the input).

    So the head learns at the full rate (BEiT, arXiv 2106.08254; ELECTRA, arXiv 2003.10555).
    """
    groups = group_of_parameters(network)
    order = [group for group, _ in network.layer_groups()]
    for name, parameter in network.named_parameters():
        if parameter.trainable:
            depth = order.index(groups[name]) if name in groups else 0
            parameter.optimize_attr["learning_rate"] = layer_decay ** (len(order) - 1 - depth)
