"""How far a network of ours is from its reference, for one fixture: the largest differences, by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from parity.fixture import Fixture, images


@contextmanager
def recorded(network: paddle.nn.Layer, names: list[str], inputs: bool = False) -> Iterator[dict[str, Any]]:
    """Collect what the named sublayers give (or get, with `inputs`) while the network runs."""
    layers = dict(network.named_sublayers())
    seen: dict[str, Any] = {}

    def keep(name: str) -> Any:
        def hook(_: Any, given: Any, result: Any) -> None:
            seen[name] = given[0] if inputs else result

        return hook

    hooks = [layers[name].register_forward_post_hook(keep(name)) for name in names]
    yield seen
    for hook in hooks:
        hook.remove()


def evaluation(
    fixture: Fixture, network: paddle.nn.Layer, tag: str, stage_names: Mapping[str, str]
) -> dict[str, float]:
    """Largest differences of the logits and, relative to the stage's range, of the stages' channel means.

    `tag` is "eval" or "odd"; `stage_names` maps a reference's stage to our sublayer where they differ.
    """
    part = fixture.facts[tag]
    ours = [stage_names.get(stage["name"], stage["name"]) for stage in part["stages"]]
    network.eval()
    with paddle.no_grad(), recorded(network, ours) as seen:
        logits = network(paddle.to_tensor(images(part))).numpy()
    largest = 0.0
    for i, (stage, name) in enumerate(zip(part["stages"], ours)):
        value = seen[name].numpy()
        assert list(value.shape) == stage["shape"], f"{tag} {name}: {list(value.shape)}, expected {stage['shape']}"
        spread = max(1.0, stage["absmax"])
        # (N, C, H, W) or (N, H W, C) -> the channel means of the first image; (N, C) as it is
        tokens = stage["layout"] == "NLC"
        means = value[0].mean(0) if tokens else value[0].reshape(value.shape[1], -1).mean(1)
        wrong = [np.abs(means - fixture.arrays[f"{tag}_s{i}_cm"]).max() / spread]
        wrong += [abs(float(value.mean()) - stage["mean"]) / spread, abs(float(value.std()) - stage["std"]) / spread]
        wrong += [abs(float(np.abs(value).max()) - stage["absmax"]) / spread]
        largest = max(largest, *map(float, wrong))
    expected = fixture.arrays[f"{tag}_logits"]
    return {"logits": float(np.abs(logits[:, :: fixture.logit_step] - expected).max()), "stages": largest}


@dataclass(frozen=True)
class Step:
    """Differences of one training step; `gradients`: the relative one of each counted parameter's norm, by name."""

    loss: float
    logits: float
    gradients: dict[str, float]
    gradient_sums: float
    statistics: float


def training_step(fixture: Fixture, network: paddle.nn.Layer, our_name: Mapping[str, str]) -> Step:
    """One step in float32."""
    part, arrays = fixture.facts["train"], fixture.arrays
    before = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    norms = sorted({our_name[name].rpartition(".")[0] for name in part["bn_buffers"]})
    with recorded(network, norms, inputs=True) as seen:
        loss, logits, gradients = forward_and_backward(fixture, network, our_name, "float32")
    # a sum over n elements can be sqrt(n) times the norm
    scale = arrays["train_grad_norm"] * np.sqrt([gradient.size for gradient in gradients])
    with np.errstate(invalid="ignore"):  # a gradient that is 0 by design is not counted
        sums = np.abs([gradient.sum() for gradient in gradients] - arrays["train_grad_sum"]) / scale
    return Step(
        loss=abs(loss - part["loss"]),
        logits=max(
            float(np.abs(own[:, :: fixture.logit_step] - arrays[name]).max())
            for own, name in zip(logits, ("train_logits", "train_logits_dist"))
        ),
        gradients=norm_differences(fixture, gradients, arrays["train_grad_norm"]),
        gradient_sums=float(sums[counted(arrays["train_grad_norm"])].max()),
        statistics=statistics_difference(fixture, network, our_name, before, seen),
    )


def training_step_in_float64(
    fixture: Fixture, network: paddle.nn.Layer, our_name: Mapping[str, str]
) -> tuple[float, dict[str, float]]:
    """(difference of the loss, relative differences of the gradients' norms) of one step in float64."""
    network.to(dtype="float64")
    loss, _, gradients = forward_and_backward(fixture, network, our_name, "float64")
    differences = norm_differences(fixture, gradients, fixture.arrays["train_grad_norm_f64"])
    return abs(loss - fixture.facts["train"]["loss_f64"]), differences


def forward_and_backward(
    fixture: Fixture, network: paddle.nn.Layer, our_name: Mapping[str, str], dtype: str
) -> tuple[float, list[np.ndarray], list[np.ndarray]]:
    """(loss, logits of each head, gradients in the order of the fixture) of the fixture's batch.

    A second head learns from the teacher's labels; the loss is the mean of both.
    """
    part = fixture.facts["train"]
    network.train()
    outputs = network(paddle.to_tensor(images(part)).astype(dtype))
    heads = outputs if isinstance(outputs, tuple) else (outputs,)
    losses = [
        F.cross_entropy(logits, paddle.to_tensor(np.array(part[labels], np.int64)))
        for logits, labels in zip(heads, ("labels", "teacher_labels"))
    ]
    loss = sum(losses) / len(losses)
    loss.backward()
    parameters = dict(network.named_parameters())
    gradients = [parameters[our_name[name]].grad.numpy().astype(np.float64) for name in part["grad_names"]]
    return float(loss), [logits.numpy() for logits in heads], gradients


def counted(norms: np.ndarray) -> np.ndarray:
    """Which parameters have a gradient to speak of: what feeds a batch norm has none but noise."""
    return norms > 1e-3 * norms.max()


def norm_differences(fixture: Fixture, gradients: list[np.ndarray], expected: np.ndarray) -> dict[str, float]:
    norms = np.array([np.linalg.norm(gradient) for gradient in gradients])
    with np.errstate(invalid="ignore"):
        relative = np.abs(norms / expected - 1)
    names = fixture.facts["train"]["grad_names"]
    return {names[i]: float(relative[i]) for i in np.flatnonzero(counted(expected))}


def statistics_difference(
    fixture: Fixture,
    network: paddle.nn.Layer,
    our_name: Mapping[str, str],
    before: Mapping[str, np.ndarray],
    inputs: Mapping[str, Any],
) -> float:
    """The largest relative difference of the running statistics after one step.

    The reference keeps the unbiased variance of n values, Paddle's CPU kernel the biased one: n / (n - 1) apart.
    """
    after, layers = network.state_dict(), dict(network.named_sublayers())
    largest = 0.0
    for i, reference in enumerate(fixture.facts["train"]["bn_buffers"]):
        name = our_name[reference]
        value = after[name].numpy().astype(np.float64)
        if reference.endswith("running_var"):
            layer = name.rpartition(".")[0]
            shape, kept = inputs[layer].shape, layers[layer]._momentum * before[name]
            n = int(np.prod(shape)) // shape[1]
            value = kept + (value - kept) * n / (n - 1)
        arrays = fixture.arrays
        norm = float(arrays["train_bn_norm"][i])
        first = arrays["train_bn_first4"][i][: len(value)]
        wrong = [abs(value.mean() - arrays["train_bn_mean"][i]), np.abs(value[:4] - first).max()]
        largest = max(largest, abs(np.linalg.norm(value) / norm - 1), float(max(wrong)) / max(norm, 1.0))
    return largest
