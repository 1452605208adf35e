"""An optimizer's state as arrays under structured names.

Paddle keys it by automatic parameter names (`conv2d_6.w_0`), which depend on what else was built in the process.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import numpy as np
import paddle
from paddle.base.layer_helper import LayerHelper

from ppcls_ext.errors import Refused
from ppcls_ext.optim.own import ScheduleFreeAdamW


def create_states(optimizer: paddle.optimizer.Optimizer) -> None:
    """Make the states of all parameters now, not at their first gradient.

    Paddle makes them at the first step that a parameter takes; a run in which some are frozen at first could then not
    be taken up. Call it when the network has its weights and their final type.
    """
    optimizer.helper = LayerHelper(type(optimizer).__name__)
    block = paddle.static.default_main_program().global_block()
    with paddle.no_grad():
        optimizer._create_accumulators(block, optimizer._parameter_list)


def optimizer_state(optimizer: paddle.optimizer.Optimizer, network: paddle.nn.Layer) -> dict[str, np.ndarray]:
    """{"features.0.weight:velocity_0": array, ...}."""
    names = {parameter.name: name for name, parameter in network.named_parameters()}
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
    """Take back what `optimizer_state` returned, after `create_states`.

    Refuses states of parameters that the network does not have, and a state that lacks what the optimizer needs.
    """
    automatic = {name: parameter.name for name, parameter in network.named_parameters()}
    lacking = [key for key in optimizer_state(optimizer, network) if key not in arrays]
    if lacking:
        raise Refused(
            f"The optimizer's state holds nothing of '{lacking[0].rpartition(':')[0]}', which trains now; "
            "start from the weights alone: Global.pretrained_model in the place of Global.checkpoints"
        )
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
    if isinstance(optimizer, ScheduleFreeAdamW):
        optimizer.return_to_training()


def evaluation_weights(optimizer: paddle.optimizer.Optimizer) -> AbstractContextManager[None]:
    """Inside, the network has the weights that this optimizer means for use: its own, or a schedule-free mean."""
    return optimizer.at_mean() if isinstance(optimizer, ScheduleFreeAdamW) else nullcontext()
