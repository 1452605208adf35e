"""The mean of checkpoints: its weights, its batch-norm statistics, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import paddle
import pytest
from conftest import Run
from test_engine import weights

from ppcls_ext import config
from ppcls_ext.averaging import measure_batch_norms
from ppcls_ext.checkpoint import read_tensors
from ppcls_ext.trained import evaluate_trained
from ppcls_ext.weights import read_metadata


def test_batch_norms_take_the_mean_over_the_images() -> None:
    network = paddle.nn.Sequential(paddle.nn.BatchNorm2D(3), paddle.nn.Dropout(0.5), paddle.nn.BatchNorm2D(3))
    rng = np.random.default_rng(0)
    parts = [rng.normal(2.0, 3.0, (n, 3, 4, 4)).astype(np.float32) for n in (8, 8, 2)]
    assert measure_batch_norms(network, map(paddle.to_tensor, parts)) == 18
    share = np.array([8, 8, 2]) / 18
    mean = sum(s * x.mean((0, 2, 3)) for s, x in zip(share, parts))
    variance = sum(s * x.var((0, 2, 3)) for s, x in zip(share, parts))
    np.testing.assert_allclose(network[0]._mean.numpy(), mean, rtol=1e-4)
    np.testing.assert_allclose(network[0]._variance.numpy(), variance, rtol=1e-4)
    assert network[0]._momentum == 0.9 and not network[0].training
    np.testing.assert_allclose(network[2]._mean.numpy(), 0, atol=1e-5)  # no dropout before it


def test_the_tool_writes_the_mean_of_the_last_epochs(trained: Path, run_here: Run, tmp_path: Path) -> None:
    path, out = trained.parent / "config.yaml", tmp_path / "mean/of_two"
    status, output, errors = run_here("tools/average.py", "-c", path, "--last", 2, "--out", out)
    assert status == 0, errors
    assert "batch-norm statistics of 36 training images" in output
    found, first, second = (
        read_tensors(Path(f"{out}.pdparams"))[0],
        weights(trained, "epoch_1"),
        weights(trained, "epoch_2"),
    )
    statistics = 0
    for name, array in found.items():
        if name.endswith(("_mean", "_variance")):
            statistics += not np.allclose(array, (first[name] + second[name]) / 2, rtol=1e-3)
        else:
            np.testing.assert_allclose(array, (first[name] + second[name]) / 2, rtol=1e-6, atol=1e-7)
    assert statistics > 20
    assert read_metadata(out)["class_names"] == ["class_0", "class_1", "class_2"]
    assert evaluate_trained(config.load(path, [f"Global.pretrained_model={out}"], ["Eval"]))["images"] == 15


def test_the_statistics_are_of_the_last_epochs_size_and_frozen_ones_stay(
    trained: Path, run_here: Run, tmp_path: Path
) -> None:
    def mean_with(*options: str) -> dict[str, np.ndarray]:
        out = tmp_path / "mean"
        command = ["tools/average.py", "-c", trained.parent / "config.yaml", "--out", out]
        given = [part for option in options for part in ("-o", option)]
        status, _, errors = run_here(*command, trained / "epoch_1", trained / "epoch_2", *given)
        assert status == 0, errors
        return read_tensors(Path(f"{out}.pdparams"))[0]

    plain = mean_with()
    growing = mean_with("DataLoader.Train.dataset.image_sizes={1: 16, 2: 32}")
    shrinking = mean_with("DataLoader.Train.dataset.image_sizes={1: 32, 2: 16}")
    frozen = mean_with("Freeze={until: stem}")
    first, second = weights(trained, "epoch_1"), weights(trained, "epoch_2")
    statistics = [name for name in plain if name.endswith(("_mean", "_variance"))]
    for name in statistics:
        np.testing.assert_array_equal(growing[name], plain[name])  # the configuration's own size is 32
        of_files = (first[name].astype(np.float64) + second[name]) / 2
        if ".stem." in name:
            np.testing.assert_array_equal(frozen[name], of_files.astype(np.float32))
    assert not all(np.array_equal(shrinking[name], plain[name]) for name in statistics)
    measured = [name for name in statistics if ".stem." not in name]
    assert [n for n in measured if np.array_equal(frozen[n], (first[n] + second[n]) / 2)] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--last", "3"], "holds 2 checkpoints of whole epochs, --last asks for 3"),
        (["{trained}/epoch_1", "{trained}/epoch_9"], "No weights at"),
        (["{trained}/epoch_1", "{trained}/epoch_2", "-o", "Arch.name=MicroNet_M1"], "holds weights of MicroNet_M0"),
    ],
)
def test_what_cannot_be_averaged_is_refused(
    trained: Path, run_here: Run, tmp_path: Path, arguments: list[str], message: str
) -> None:
    given = [text.format(trained=trained) for text in arguments]
    command = ["tools/average.py", "-c", trained.parent / "config.yaml", "--out", tmp_path / "mean", *given]
    status, _, errors = run_here(*command)
    assert status == 2 and message in errors
    assert not (tmp_path / "mean.pdparams").exists()
