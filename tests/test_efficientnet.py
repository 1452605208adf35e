"""What is particular to EfficientNet; what it shares with all networks is in test_backbones and test_parity."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from networks import SMALL
from paddle import nn

from ppcls_ext import create_model
from ppcls_ext.errors import Refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depths": []}, "depths: expected at least one stage"),
        ({"widths": [8, 8, 12]}, r"widths: expected 5 \(stem, 3 stages, last convolution\), got 3"),
        ({"kernels": [3]}, "kernels: expected 3, as many as depths, got 1"),
        ({"kernels": [3, 4, 3]}, r"kernels\[1\] is 4, expected an odd number"),
        ({"strides": [1, 0, 2]}, r"strides\[1\] is 0, expected above 0"),
        ({"dropout": 1.0}, "dropout: expected 0 <= dropout < 1, got 1.0"),
        ({"drop_path": -0.1}, "drop_path: expected 0 <= drop_path < 1, got -0.1"),
        ({"norm_momentum": 1.0}, "expected 0 <= norm_momentum < 1 and norm_epsilon > 0, got 1 and 0.001"),
        ({"padding": "valid"}, "padding: expected one of 'same', 'symmetric', got 'valid'"),
        ({"activation": "gelu"}, "activation: expected one of 'swish', 'relu6', got 'gelu'"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(Refused, match=message):
        create_model("EfficientNet", **(SMALL["EfficientNet"] | arguments))


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (50, 35), (224, 97)])
def test_same_padding_is_right_at_every_size(size: tuple[int, int]) -> None:
    """The output has ceil(size / stride) values, the padding is as even as it can be, and the rest is at the end."""
    network = create_model("EfficientNet", **SMALL["EfficientNet"])
    x = paddle.to_tensor(np.random.default_rng(0).normal(size=(1, 3, *size)).astype(np.float32))
    for conv in [network.conv_stem, network.blocks[1][0].conv_dw, network.blocks[2][0].conv_dw]:
        kernel, channels = conv.weight.shape[-1], conv._in_channels
        x = paddle.tile(x[:, :1], [1, channels, 1, 1])
        padding = []
        for length in (x.shape[3], x.shape[2]):
            total = max((-(-length // 2) - 1) * 2 + kernel - length, 0)
            padding += [total // 2, total - total // 2]
        expected = F.conv2d(F.pad(x, padding), conv.weight, stride=2, groups=conv._groups)
        result = conv(x)
        assert result.shape[2:] == [-(-x.shape[2] // 2), -(-x.shape[3] // 2)]
        np.testing.assert_allclose(result.numpy(), expected.numpy(), atol=1e-5)
        x = result


@pytest.mark.parametrize(
    ("name", "padding", "constants"),
    [
        ("EfficientNetB0", "same", (1e-3, 0.99)),
        ("EfficientNetB0", "symmetric", (1e-5, 0.9)),
        ("EfficientNetB5", "symmetric", (1e-3, 0.99)),
        ("EfficientNetLite0", "symmetric", (1e-5, 0.9)),
    ],
)
def test_batch_norms_have_the_constants_of_their_graph(name: str, padding: str, constants: tuple[float, float]) -> None:
    network = create_model(name, padding=padding, num_classes=2)
    norms = [layer for layer in network.sublayers() if isinstance(layer, nn.BatchNorm2D)]
    assert {(norm._epsilon, norm._momentum) for norm in norms} == {constants}


def test_the_drop_rate_rises_over_the_blocks_and_spares_those_without_a_residual() -> None:
    network = create_model("EfficientNetB0", drop_path=0.32)
    blocks = [block for stage in network.blocks for block in stage]
    assert len(blocks) == 16 and sum(block.residual for block in blocks) == 9
    rates = [block.drop_path.rate if block.residual else block.drop_path for block in blocks]
    expected = [0.02 * i if block.residual else None for i, block in enumerate(blocks)]
    assert rates == pytest.approx(expected)


def test_the_lite_members_have_neither_squeeze_nor_swish() -> None:
    network = create_model("EfficientNetLite2")
    assert not any("se." in name for name in network.state_dict())
    assert not any(isinstance(layer, nn.Silu) for layer in network.sublayers())
    assert network.stage_channels == [16, 24, 48, 120, 1280]  # the stem and the end are not scaled


def test_initial_weights_keep_the_size_of_what_passes() -> None:
    paddle.seed(0)
    network = create_model("EfficientNetB0", num_classes=100)
    block = network.blocks[5][1]
    assert float(block.conv_dw.weight.std()) == pytest.approx((2 / 25) ** 0.5, rel=0.1)
    assert float(block.conv_pw.weight.std()) == pytest.approx((2 / 1152) ** 0.5, rel=0.1)


@pytest.mark.parametrize(("classes", "bound"), [(12, 1000**-0.5), (1000, 1000**-0.5), (4000, 4000**-0.5)])
def test_a_fresh_classifier_begins_small_whatever_the_number_of_classes(classes: int, bound: float) -> None:
    weight = create_model("EfficientNet", **SMALL["EfficientNet"], num_classes=classes).classifier.weight.numpy()
    assert 0.9 * bound < np.abs(weight).max() <= bound
