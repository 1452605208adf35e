"""Optimizers: each against its paper's formula in numpy, its state saved and taken back."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from test_engine import assert_same_bits, train

from ppcls_ext import config, engine
from ppcls_ext.checkpoint import load_set
from ppcls_ext.errors import Refused
from ppcls_ext.log import read_metrics
from ppcls_ext.optim import (
    build_optimizer,
    create_states,
    evaluation_weights,
    load_optimizer_state,
    make_clip,
    optimizer_state,
)
from ppcls_ext.registry import OPTIMIZERS
from ppcls_ext.trained import evaluate_trained

RATES = [0.0, 0.1, 0.2, 0.2, 0.05, 0.1]  # the first of a warm-up is 0
Array = np.ndarray
# state of one weight: update(weight, gradient, rate, decay, state, step from 1) -> the new weight
Update = Callable[[Array, Array, float, float, dict[str, Any], int], Array]


def sgd(w: Array, g: Array, rate: float, decay: float, s: dict[str, Any], t: int) -> Array:
    return w - rate * (g + decay * w)


def momentum(w: Array, g: Array, rate: float, decay: float, s: dict[str, Any], t: int) -> Array:
    s["v"] = 0.9 * s.get("v", 0) + g + decay * w
    return w - rate * s["v"]


def nesterov(w: Array, g: Array, rate: float, decay: float, s: dict[str, Any], t: int) -> Array:
    g = g + decay * w
    s["v"] = 0.9 * s.get("v", 0) + g
    return w - rate * (g + 0.9 * s["v"])


def adam_step(g: Array, s: dict[str, Any], t: int, epsilon: float) -> Array:
    s["m"] = 0.9 * s.get("m", 0) + 0.1 * g
    s["v"] = 0.999 * s.get("v", 0) + 0.001 * g * g
    return s["m"] / (1 - 0.9**t) / (np.sqrt(s["v"] / (1 - 0.999**t)) + epsilon)


def adam(w: Array, g: Array, rate: float, decay: float, s: dict[str, Any], t: int) -> Array:
    return w - rate * adam_step(g + decay * w, s, t, 1e-8)


def adamw(w: Array, g: Array, rate: float, decay: float, s: dict[str, Any], t: int) -> Array:
    return w * (1 - rate * decay) - rate * adam_step(g, s, t, 1e-8)


def rmsprop_from(first: float) -> Update:
    def rmsprop(w: Array, g: Array, rate: float, decay: float, s: dict[str, Any], t: int) -> Array:
        g = g + decay * w
        s["s"] = 0.9 * s.get("s", first) + 0.1 * g * g
        s["m"] = 0.8 * s.get("m", 0) + rate * g / np.sqrt(s["s"] + 1e-3)
        return w - s["m"]

    return rmsprop


def lamb(w: Array, g: Array, rate: float, decay: float, s: dict[str, Any], t: int) -> Array:
    step = adam_step(g, s, t, 1e-6) + decay * w
    trust = np.linalg.norm(w) / np.linalg.norm(step) if decay else 1.0
    return w - rate * trust * step


def lion(w: Array, g: Array, rate: float, decay: float, s: dict[str, Any], t: int) -> Array:
    m = s.get("m", np.zeros_like(g))
    s["m"] = 0.99 * m + 0.01 * g
    return w - rate * (np.sign(0.9 * m + 0.1 * g) + decay * w)


def schedule_free(w: Array, g: Array, rate: float, decay: float, s: dict[str, Any], t: int) -> Array:
    z, x = s.get("z", w), s.get("x", w)
    s["v"] = 0.999 * s.get("v", 0) + 0.001 * g * g
    rate = rate * math.sqrt(1 - 0.999**t)
    z = z - rate * (g / (np.sqrt(s["v"]) + 1e-8) + decay * w)
    s["rates"] = s.get("rates", 0) + rate**2
    share = rate**2 / s["rates"] if s["rates"] else 0
    s["z"], s["x"] = z, (1 - share) * x + share * z
    return 0.1 * s["z"] + 0.9 * s["x"]


FORMULAS: list[tuple[str, dict[str, Any], Update]] = [
    ("SGD", {}, sgd),
    ("Momentum", {"momentum": 0.9}, momentum),
    ("Momentum", {"momentum": 0.9, "use_nesterov": True}, nesterov),
    ("Adam", {}, adam),
    ("AdamW", {}, adamw),
    ("RMSProp", {"momentum": 0.8, "rho": 0.9, "epsilon": 1e-3}, rmsprop_from(1.0)),
    ("RMSProp", {"momentum": 0.8, "rho": 0.9, "epsilon": 1e-3, "initial_square": 0.0}, rmsprop_from(0.0)),
    ("LAMB", {}, lamb),
    ("Lion", {}, lion),
    ("ScheduleFreeAdamW", {}, schedule_free),
]
IDS = [f"{name} {' '.join(map(str, given.values()))}" for name, given, _ in FORMULAS]


def options(name: str, arguments: dict[str, Any] | None = None, **more: Any) -> config.OptimizerOptions:
    lr = config.Component(name="Constant", arguments={"learning_rate": 0.1})
    return config.OptimizerOptions(name=name, lr=lr, arguments=arguments or {}, **more)


class Small(paddle.nn.Layer):
    """Three layer groups."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = (paddle.nn.Linear(3, 3) for _ in range(3))

    def layer_groups(self) -> list[tuple[str, list[str]]]:
        return [("stem", ["stem."]), ("body", ["body."]), ("head", ["head."])]

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.head(self.body(self.stem(x)).tanh())


def small(seed: int = 0) -> Small:
    paddle.seed(seed)
    network = Small()
    for parameter in network.parameters():
        parameter.set_value(paddle.randn(parameter.shape))
    return network


def step(network: paddle.nn.Layer, optimizer: paddle.optimizer.Optimizer, number: int) -> dict[str, Array]:
    """One step on inputs of its own; the gradients."""
    x = np.random.default_rng(number).standard_normal((4, 3)).astype(np.float32)
    (network(paddle.to_tensor(x)) ** 2).sum().backward()
    gradients = {name: p.grad.numpy().copy() for name, p in network.named_parameters()}
    optimizer.set_lr(RATES[number])
    optimizer.step()
    optimizer.clear_grad()
    return gradients


@pytest.mark.parametrize(("name", "arguments", "update"), FORMULAS, ids=IDS)
def test_an_optimizer_takes_the_steps_of_its_paper(name: str, arguments: dict[str, Any], update: Update) -> None:
    network = small()
    given = options(name, {**arguments, "weight_decay": 0.05}, one_dim_param_no_weight_decay=True, layer_decay=0.5)
    optimizer = build_optimizer(given, network)
    create_states(optimizer)
    weights = {key: p.numpy().astype(np.float64) for key, p in network.named_parameters()}
    states: dict[str, dict[str, Any]] = {key: {} for key in weights}
    factor = {"stem": 0.25, "body": 0.5, "head": 1.0}
    for number, rate in enumerate(RATES):
        gradients = step(network, optimizer, number)
        for key, w in weights.items():
            decay = 0.05 if key.endswith("weight") else 0.0
            weights[key] = update(w, gradients[key], rate * factor[key.split(".")[0]], decay, states[key], number + 1)
        for key, p in network.named_parameters():
            np.testing.assert_allclose(p.numpy(), weights[key], rtol=2e-4, atol=2e-5, err_msg=f"{key}, step {number}")
    with evaluation_weights(optimizer):
        for key, p in network.named_parameters():
            np.testing.assert_allclose(p.numpy(), states[key].get("x", weights[key]), rtol=2e-4, atol=2e-5)


def test_every_optimizer_has_its_formula_here() -> None:
    assert {name for name, *_ in FORMULAS} | {"Lamb"} == set(OPTIMIZERS)


@pytest.mark.parametrize(("name", "arguments", "update"), FORMULAS, ids=IDS)
def test_an_optimizer_taken_up_goes_on_with_the_same_bits(name: str, arguments: dict[str, Any], update: Update) -> None:
    def fresh() -> tuple[Small, paddle.optimizer.Optimizer]:
        network = small()
        for parameter in network.stem.parameters():  # frozen at first
            parameter.stop_gradient = False
        optimizer = build_optimizer(options(name, arguments), network)
        network.stem.weight.stop_gradient = network.stem.bias.stop_gradient = True
        create_states(optimizer)
        return network, optimizer

    def go(network: Small, optimizer: paddle.optimizer.Optimizer, numbers: range) -> None:
        for number in numbers:
            if number == 3:
                network.stem.weight.stop_gradient = network.stem.bias.stop_gradient = False
            x = np.random.default_rng(number).standard_normal((4, 3)).astype(np.float32)
            (network(paddle.to_tensor(x)) ** 2).sum().backward()
            optimizer.set_lr(RATES[number])
            optimizer.step()
            optimizer.clear_grad()

    whole, its_optimizer = fresh()
    go(whole, its_optimizer, range(3))
    with evaluation_weights(its_optimizer):
        weights = {key: value.numpy().copy() for key, value in whole.state_dict().items()}
    state = optimizer_state(its_optimizer, whole)
    go(whole, its_optimizer, range(3, 6))
    other, other_optimizer = fresh()
    other.set_state_dict(weights)
    load_optimizer_state(other_optimizer, other, state)
    go(other, other_optimizer, range(3, 6))
    for key, value in whole.state_dict().items():
        assert value.numpy().tobytes() == other.state_dict()[key].numpy().tobytes(), key
    for key, array in optimizer_state(its_optimizer, whole).items():
        assert array.tobytes() == optimizer_state(other_optimizer, other)[key].tobytes(), key


def test_a_state_without_a_parameter_that_trains_now_is_refused() -> None:
    network = small()
    network.stem.weight.stop_gradient = True
    optimizer = build_optimizer(options("Momentum"), network)
    create_states(optimizer)
    state = optimizer_state(optimizer, network)
    network.stem.weight.stop_gradient = False
    more = build_optimizer(options("Momentum"), network)
    create_states(more)
    with pytest.raises(Refused, match="holds nothing of 'stem.weight', which trains now; start from the weights"):
        load_optimizer_state(more, network, state)


@pytest.mark.parametrize("name", ["Lion", "ScheduleFreeAdamW"])
def test_half_precision_weights_have_float32_masters(name: str) -> None:
    layer = paddle.nn.Linear(2, 2)
    layer.weight.set_value(paddle.ones([2, 2]))
    layer.to(dtype="bfloat16")
    optimizer = build_optimizer(options(name, {"multi_precision": True}), layer)
    create_states(optimizer)
    for _ in range(8):  # steps of 1e-3 are lost in bfloat16, whose numbers near 1 are 1/256 apart
        layer.weight.grad = paddle.ones([2, 2], "bfloat16")
        layer.bias.grad = paddle.ones([2], "bfloat16")
        optimizer.set_lr(1e-3)
        optimizer.step()
    master = optimizer_state(optimizer, layer)["weight:master"]
    assert master.dtype == np.float32 and (master < 1 - 1e-4).all()
    if name == "Lion":
        np.testing.assert_allclose(master, 1 - 8e-3, rtol=1e-5)
        np.testing.assert_allclose(layer.weight.astype("float32").numpy(), 1 - 8e-3, atol=2**-8)


def test_every_optimizer_of_paddleclas_own_files_resolves(shared: Path) -> None:
    names = set()
    for path in sorted((shared / "peers/paddleclas_configs").glob("*.yaml")):
        try:
            names.add(config.load(path).Optimizer.name)
        except Refused as refused:
            assert "Optimizer" not in str(refused)
    assert names


# ------------------------------------------------------------------------------------------------ clipping


class Convolved(paddle.nn.Layer):
    """A convolution, a linear layer and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.body, self.head = paddle.nn.Conv2D(2, 3, 3), paddle.nn.Linear(3, 4), paddle.nn.Linear(4, 2)

    def layer_groups(self) -> list[tuple[str, list[str]]]:
        return [("conv", ["conv."]), ("body", ["body."]), ("head", ["head."])]


def clipped(**given: float) -> tuple[dict[str, Array], dict[str, Array], dict[str, Array]]:
    """Weights, gradients, and what the clip of the configuration makes of them."""
    paddle.seed(0)
    network = Convolved()
    sum((p * paddle.randn(p.shape)).sum() for p in network.parameters()).backward()
    weights = {name: p.numpy().copy() for name, p in network.named_parameters()}
    before = {name: p.grad.numpy().copy() for name, p in network.named_parameters()}
    make_clip(options("SGD", **given), network)()
    return weights, before, {name: p.grad.numpy() for name, p in network.named_parameters()}


def test_adaptive_clipping_shortens_each_units_gradient_to_a_part_of_its_weights() -> None:
    weights, before, after = clipped(clip_adaptive=0.05)
    for name, gradient in before.items():
        if name.startswith("head"):
            np.testing.assert_array_equal(after[name], gradient)
            continue
        # (weights, gradient, result) of each unit: an output channel, an output, a whole vector
        views = [
            [x[i] if x.ndim == 4 else x[:, i] for i in range(x.shape[0] if x.ndim == 4 else x.shape[1])]
            if x.ndim > 1
            else [x]
            for x in (weights[name], gradient, after[name])
        ]
        for weight, own, found in zip(*views):
            longest = 0.05 * max(np.linalg.norm(weight), 1e-3)
            factor = min(1.0, longest / np.linalg.norm(own))
            np.testing.assert_allclose(found, own * factor, rtol=1e-5)
            assert factor < 1


def test_clipping_by_value_and_by_norm() -> None:
    _, before, after = clipped(clip_value=0.3)
    for name, gradient in before.items():
        np.testing.assert_array_equal(after[name], np.clip(gradient, np.float32(-0.3), np.float32(0.3)))
    _, before, after = clipped(clip_norm=0.5)
    norm = math.sqrt(sum((gradient**2).sum() for gradient in before.values()))
    for name, gradient in before.items():
        np.testing.assert_allclose(after[name], gradient * 0.5 / norm, rtol=1e-4)


def test_settings_of_the_optimizer_that_exclude_each_other_are_refused(write_config: Callable[..., Path]) -> None:
    for overrides, message in (
        (["clip_norm=1", "clip_value=1"], "Optimizer.clip_value: stands beside Optimizer.clip_norm"),
        (["name=ScheduleFreeAdamW", "momentum="], "EMA: ScheduleFreeAdamW evaluates and saves a mean of the weights"),
        (["layer_decay=1.5"], "Optimizer.layer_decay: expected less than or equal to 1, got 1.5"),
        (["name=RMSprop"], "Optimizer.name: unknown optimizer 'RMSprop'. Did you mean 'RMSProp'?"),
        (["lr={name: Plateau, learning_rate: 1}"], "Optimizer.lr: Plateau needs evaluations"),
    ):
        given = [f"Optimizer.{override}" for override in overrides] + ["EMA.decay=0.9"]
        given += ["Global.eval_during_train=False"] if "Plateau" in message else []
        with pytest.raises(Refused) as refused:
            config.load(write_config(), given, ["Train"])
        assert message in str(refused.value)


def test_a_schedule_free_run_saves_what_it_evaluated_and_is_taken_up_exactly(
    write_config: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lr = "lr: {name: Constant, learning_rate: 0.02, warmup_epoch: 0.5}"
    given = [f"Optimizer={{name: ScheduleFreeAdamW, {lr}}}", "Global.epochs=2", "Global.save_steps=1"]
    path = write_config()
    whole = train(path, *given, f"Global.output_dir={tmp_path}/whole")
    found = load_set(whole / "latest")
    for name, array in found.tensors[".pdparams"].items():
        if f"{name}:x_0" in found.tensors[".pdopt"]:
            np.testing.assert_array_equal(array, found.tensors[".pdopt"][f"{name}:x_0"])
    best = read_metrics(whole)
    best = max(record["top1"] for record in best if record["kind"] == "eval")
    loaded = config.load(path, [f"Global.pretrained_model={whole}/best_model"], ["Eval"])
    assert evaluate_trained(loaded)["top1"] == pytest.approx(best)

    class Cut(Exception):
        pass

    real = engine.save

    def save_then_die(run: engine.Run, name: str) -> None:
        real(run, name)
        if name == "latest" and run.position.global_step == 7:
            raise Cut

    monkeypatch.setattr(engine, "save", save_then_die)
    with pytest.raises(Cut):
        train(path, *given, f"Global.output_dir={tmp_path}/cut")
    monkeypatch.setattr(engine, "save", real)
    cut = tmp_path / "cut/MicroNet_M0"
    train(path, *given, f"Global.output_dir={tmp_path}/cut", f"Global.checkpoints={cut}/latest")
    again = load_set(cut / "latest")
    for member in found.tensors:
        assert_same_bits(found.tensors[member], again.tensors[member])
