"""Layers that the networks share compute what Paddle's own layers compute."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn
from workers import sync_batch_norm

from ppcls_ext.errors import Refused
from ppcls_ext.layers import (
    DepthwiseConv2D,
    PermuteChannels,
    PointwiseConv2D,
    SyncBatchNorm,
    convert_sync_batchnorm,
    global_mean,
    make_divisible,
    require_positive,
    shuffled,
)


def forward_and_gradients(layer: nn.Layer, x: np.ndarray) -> list[np.ndarray]:
    """Output, gradient of the input, gradients of the parameters, for one fixed gradient of the output."""
    given = paddle.to_tensor(x, stop_gradient=False)
    result = layer(given)
    result.backward(paddle.to_tensor(np.random.default_rng(5).normal(size=result.shape).astype(np.float32)))
    gradients = [parameter.grad for parameter in layer.parameters() if parameter.trainable]
    return [tensor.numpy() for tensor in (result, given.grad, *gradients)]


def plain_twin(layer: nn.Conv2D) -> nn.Conv2D:
    """Paddle's own convolution with the same weights."""
    twin = nn.Conv2D.__new__(nn.Conv2D)
    twin.__dict__.update(layer.__dict__)
    return twin


def assert_equal(ours: list[np.ndarray], theirs: list[np.ndarray], tolerance: float = 1e-5) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other, rtol=tolerance, atol=tolerance * np.abs(other).max())


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (7, 5), (24, 24)])
@pytest.mark.parametrize(
    ("channels", "out", "kernel", "stride"),
    [
        (6, 6, (3, 1), (1, 1)),
        (6, 12, (1, 5), (1, 2)),
        (4, 8, (5, 1), (2, 1)),
        (3, 3, (3, 3), (2, 2)),
        (1, 3, (3, 1), (1, 1)),
    ],
)
def test_a_depthwise_convolution_is_paddles(
    channels: int, out: int, kernel: tuple[int, int], stride: tuple[int, int], size: tuple[int, int]
) -> None:
    layer = DepthwiseConv2D(channels, out, kernel, stride)
    x = np.random.default_rng(1).normal(size=(2, channels, *size)).astype(np.float32)
    ours = forward_and_gradients(layer, x)
    layer.clear_gradients()
    assert_equal(ours, forward_and_gradients(plain_twin(layer), x))


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_pointwise_convolution_is_paddles(groups: int) -> None:
    layer = PointwiseConv2D(8, 12, groups)
    x = np.random.default_rng(1).normal(size=(3, 8, 5, 4)).astype(np.float32)
    ours = forward_and_gradients(layer, x)
    layer.clear_gradients()
    assert_equal(ours, forward_and_gradients(plain_twin(layer), x))


def test_a_permutation_moves_channels_and_their_gradients() -> None:
    order = np.random.default_rng(0).permutation(10)
    x = np.random.default_rng(1).normal(size=(2, 10, 3, 3)).astype(np.float32)
    output, gradient = forward_and_gradients(PermuteChannels(order), x)
    np.testing.assert_array_equal(output, x[:, order])
    sent = np.random.default_rng(5).normal(size=(2, 10, 3, 3)).astype(np.float32)
    np.testing.assert_array_equal(gradient[:, order], sent)


def test_a_permutation_survives_a_change_of_precision_and_is_not_saved() -> None:
    layer = PermuteChannels(np.array([1, 0, 2]))
    layer.to(dtype="float64")
    assert layer(paddle.to_tensor([[1.0, 2.0, 3.0]], dtype="float64")).numpy().tolist() == [[2.0, 1.0, 3.0]]
    assert not layer.state_dict()


def test_an_order_that_is_no_permutation_is_no_layer() -> None:
    with pytest.raises(ValueError, match="every channel of 0 to 2 once, got"):
        PermuteChannels(np.array([0, 0, 2]))


def test_a_shuffled_order_is_paddles_channel_shuffle() -> None:
    x = paddle.arange(12, dtype="float32").reshape([1, 12, 1, 1])
    expected = F.channel_shuffle(x, 3).numpy().ravel()
    np.testing.assert_array_equal(shuffled(np.arange(12), 3), expected)


def test_the_global_mean_is_paddles() -> None:
    x = paddle.randn([2, 3, 5, 7])
    np.testing.assert_allclose(global_mean(x).numpy(), x.mean([2, 3]).numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("value", "expected"), [(1, 4), (4.4, 4), (5.9, 8), (13, 12), (14, 16), (100, 100)])
def test_make_divisible_stays_within_a_tenth_below(value: float, expected: int) -> None:
    assert make_divisible(value, 4) == expected


@pytest.mark.parametrize("value", [0, -1, 2.5, "3", True, None])
def test_a_size_that_is_no_count_is_refused(value: object) -> None:
    with pytest.raises(Refused, match=r"num_classes: expected a whole number above 0, got"):
        require_positive(num_classes=value)


# ------------------------------------------------------------------------------------------------ batch norm


@pytest.mark.parametrize("shape", [(6, 4), (3, 4, 5, 6)])
@pytest.mark.parametrize("training", [True, False])
def test_sync_batch_norm_of_one_process_is_batch_norm(shape: tuple[int, ...], training: bool) -> None:
    norms = []
    for _ in range(2):
        norms.append(nn.BatchNorm1D(4) if len(shape) == 2 else nn.BatchNorm2D(4))
        norms[-1].weight.set_value(paddle.to_tensor([0.5, 1.0, 1.5, 2.0]))
        norms[-1].train() if training else norms[-1].eval()
    ours, theirs = convert_sync_batchnorm(norms[0]), norms[1]
    assert isinstance(ours, SyncBatchNorm)
    x = np.random.default_rng(2).normal(3, 2, size=shape).astype(np.float32)
    assert_equal(forward_and_gradients(ours, x), forward_and_gradients(theirs, x))
    for name, tensor in theirs.state_dict().items():
        np.testing.assert_array_equal(ours.state_dict()[name].numpy(), tensor.numpy())


def test_conversion_keeps_parameters_and_names() -> None:
    model = sync_batch_norm.network()
    names, parameters = list(model.state_dict()), {id(parameter) for parameter in model.parameters()}
    convert_sync_batchnorm(model)
    assert not any(isinstance(layer, nn.layer.norm._BatchNormBase) for layer in model.sublayers())
    assert list(model.state_dict()) == names
    assert {id(parameter) for parameter in model.parameters()} == parameters


def test_two_processes_normalise_as_one(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "paddle.distributed.launch",
        "--nproc_per_node",
        "2",
        "--log_dir",
        str(tmp_path / "log"),
    ]
    repository = Path(__file__).resolve().parent.parent
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    environment["PYTHONPATH"] = str(repository)
    worker = Path(sync_batch_norm.__file__)
    run = subprocess.run(
        [*command, str(worker), str(tmp_path)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
    )
    logs = "\n".join(path.read_text(errors="replace")[-3000:] for path in tmp_path.glob("log/workerlog.*"))
    assert run.returncode == 0, logs
    paddle.seed(1)
    expected = sync_batch_norm.one_step(sync_batch_norm.network(), *sync_batch_norm.batch())
    for rank in (0, 1):
        with np.load(tmp_path / f"rank{rank}.npz") as stored:
            results = {name.replace("_layers.", ""): stored[name] for name in stored.files}
        assert set(results) == set(expected)
        for name, value in expected.items():
            if name == "evaluated" and rank == 1:
                continue  # another image
            np.testing.assert_allclose(
                results[name], value, rtol=1e-4, atol=1e-5 * max(1.0, np.abs(value).max()), err_msg=name
            )
