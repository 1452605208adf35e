"""What is particular to ShuffleNetV2; what it shares with all networks is in test_backbones and test_parity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

from ppcls_ext import config, create_model
from ppcls_ext.errors import Refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"widths": [8, 16, 32]}, "3 widths do not fit 3 depths"),
        ({"widths": [8, 32], "depths": []}, "2 widths do not fit 0 depths"),
        (
            {"widths": [8, 15, 32], "depths": [1]},
            r"widths\[1\]: a stage has two halves: expected an even number, got 15",
        ),
        ({"widths": [8, 0, 32], "depths": [1]}, r"widths\[1\]: expected a whole number above 0, got 0"),
        ({"widths": [8, 16, 32], "depths": [0]}, r"depths\[0\]: expected a whole number above 0, got 0"),
        ({"widths": [8, 16, 32], "depths": [1], "activation": "gelu"}, "expected one of 'relu', 'swish', got 'gelu'"),
    ],
)
def test_sizes_that_do_not_fit_together_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(Refused, match=message):
        create_model("ShuffleNetV2", **arguments)


def test_swish_takes_the_place_of_every_relu() -> None:
    x = paddle.to_tensor(np.random.default_rng(0).normal(size=(1, 3, 64, 64)).astype(np.float32))
    relu, swish = create_model("ShuffleNetV2_x1_0"), create_model("ShuffleNetV2_swish")
    swish.set_state_dict(relu.state_dict())
    for network, lowest in ((relu, 0.0), (swish, -0.2785)):
        network.eval()
        stages = network.forward_stages(x)
        assert all(lowest <= float(stage.min()) <= 0 for stage in stages)
    assert all(float(stage.min()) < 0 for stage in stages)
    assert not any(isinstance(layer, paddle.nn.ReLU) for layer in swish.sublayers())


def test_initial_weights_keep_the_size_of_what_passes() -> None:
    paddle.seed(0)
    network = create_model("ShuffleNetV2_x1_0")
    depthwise, dense = network.stage4[1].branch2[3].weight, network.conv5[0].weight
    assert float(depthwise.std()) == pytest.approx((2 / 9) ** 0.5, rel=0.1)
    assert float(dense.std()) == pytest.approx((2 / 464) ** 0.5, rel=0.1)
    assert not np.any(network.fc.bias.numpy())


def test_our_recipes_are_paddleclass(repository: Path, shared: Path) -> None:
    files = sorted((shared / "peers/paddleclas_configs").glob("ShuffleNetV2_*.yaml"))
    assert files
    for path in files:
        theirs, ours = config.load(path), config.load(repository / "configs" / f"{path.stem.lower()}.yaml")
        assert ours.Arch == theirs.Arch
        assert ours.Optimizer == theirs.Optimizer
        assert ours.Global.epochs == theirs.Global.epochs
        assert ours.DataLoader.Train.sampler == theirs.DataLoader.Train.sampler
