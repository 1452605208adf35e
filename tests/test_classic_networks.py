"""ResNeXt, ResNet v2, VGG, DenseNet: what the tests of every network and the fixtures do not show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from networks import SMALL
from paddle import nn

from ppcls_ext import config, create_model
from ppcls_ext.backbones import facts
from ppcls_ext.errors import Refused


def drawn(shape: list[int], seed: int = 0) -> paddle.Tensor:
    return paddle.to_tensor(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def filled(network: nn.Layer) -> nn.Layer:
    """The network in evaluation, with batch norms that are not the identity."""
    draw = np.random.default_rng(1)
    for name, tensor in network.state_dict().items():
        if tensor.ndim == 1:
            low, high = (0.5, 1.5) if name.endswith(("_variance", "weight")) else (-0.1, 0.1)
            tensor.set_value(draw.uniform(low, high, tensor.shape).astype(np.float32))
    network.eval()
    return network


# ------------------------------------------------------------------------------------------------ ResNeXt


def halved(x: paddle.Tensor) -> paddle.Tensor:
    """Means of 2x2, at an odd border of what is inside."""
    values = x.numpy()
    rows, columns = (range(0, size, 2) for size in values.shape[2:])
    means = [[values[:, :, i : i + 2, j : j + 2].mean((2, 3)) for j in columns] for i in rows]
    return paddle.to_tensor(np.stack([np.stack(row, -1) for row in means], -2))


def test_a_vd_member_is_the_published_graph_written_down() -> None:
    network = filled(create_model("ResNeXt", **SMALL["ResNeXt"], num_classes=7))
    weights = network.state_dict()
    groups = SMALL["ResNeXt"]["groups"]

    def conv(x: paddle.Tensor, name: str, stride: int = 1, groups: int = 1) -> paddle.Tensor:
        weight = weights[f"{name}.weight"]
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[2] // 2, groups=groups)

    def norm(x: paddle.Tensor, name: str) -> paddle.Tensor:
        parts = [weights[f"{name}.{leaf}"] for leaf in ("_mean", "_variance", "weight", "bias")]
        return F.batch_norm(x, *parts, epsilon=1e-5)

    def block(x: paddle.Tensor, name: str, stride: int, projected: bool) -> paddle.Tensor:
        y = F.relu(norm(conv(x, f"{name}.conv1"), f"{name}.bn1"))
        y = F.relu(norm(conv(y, f"{name}.conv2", stride, groups), f"{name}.bn2"))
        y = norm(conv(y, f"{name}.conv3"), f"{name}.bn3")
        if projected:
            x = halved(x) if stride == 2 else x
            x = norm(conv(x, f"{name}.downsample.1"), f"{name}.downsample.2")
        return F.relu(x + y)

    images = drawn([2, 3, 49, 75])  # maps of 13x19, 7x10, 4x5
    x = F.relu(norm(conv(images, "conv1.0", 2), "conv1.1"))
    x = F.relu(norm(conv(x, "conv1.3"), "conv1.4"))
    x = F.relu(norm(conv(x, "conv1.6"), "bn1"))
    x = block(F.max_pool2d(x, 3, 2, 1), "layer1.0", 1, True)
    x = block(x, "layer2.0", 2, True)
    x = block(x, "layer2.1", 1, False)
    x = block(x, "layer3.0", 2, True)
    logits = x.mean((2, 3)) @ weights["fc.weight"] + weights["fc.bias"]
    np.testing.assert_allclose(network(images).numpy(), logits.numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "millions", "more"),
    [("50_vd_32x4d", 25.12, 0.24), ("101_vd_64x4d", 83.68, 0.24), ("152_vd_32x4d", 60.17, 0.25)],
)
def test_vd_members_are_as_large_as_paddleclas_says(name: str, millions: float, more: float) -> None:
    """Its table counts the statistics of the batch norms too."""
    plain, vd = facts(f"ResNeXt{name.replace('_vd', '')}"), facts(f"ResNeXt{name}")
    assert (vd.macs - plain.macs) / 1e9 == pytest.approx(more, abs=0.011)
    assert 0 < millions - vd.params / 1e6 < 0.3
    assert vd.params - plain.params == 32 * 27 + 32 * 32 * 9 + 32 * 64 * 9 - 64 * 147 + 4 * 32


def test_resnet50_is_a_resnext_of_one_group() -> None:
    ours, theirs = (
        create_model(name, **arguments)
        for name, arguments in (
            ("ResNet50", {}),
            ("ResNeXt", {"depths": [3, 4, 6, 3], "groups": 1, "base_width": 64}),
        )
    )
    shapes = [{key: tuple(tensor.shape) for key, tensor in net.state_dict().items()} for net in (ours, theirs)]
    assert shapes[0] == shapes[1]


# ------------------------------------------------------------------------------------------------ all


@pytest.mark.parametrize(
    ("family", "arguments", "message"),
    [
        ("ResNeXt", {"depths": []}, "ResNeXt.depths: expected the number of blocks of each stage, got none"),
        ("ResNeXt", {"depths": [1, 0]}, r"ResNeXt.depths\[1\]: expected a whole number above 0, got 0"),
        ("ResNeXt", {"base_width": 2}, "ResNeXt.base_width: 2 of a width of 16 .* expected at least 4"),
        ("ResNeXt", {"width": 15, "base_width": 8}, "expected even, got 15"),
        ("ResNeXt", {"groups": 0}, "groups: expected a whole number above 0, got 0"),
        ("ResNetV2", {"depths": []}, "ResNetV2.depths: expected the number of blocks of each stage, got none"),
        ("ResNetV2", {"width": 0}, "width: expected a whole number above 0, got 0"),
        ("VGG", {"depths": [1]}, "VGG.depths, VGG.widths: .* got 1 and 2"),
        ("VGG", {"widths": [8, 0]}, r"VGG.widths\[1\]: expected a whole number above 0, got 0"),
        ("VGG", {"dropout": 1.0}, "VGG.dropout: expected 0 <= dropout < 1, got 1.0"),
        ("DenseNet", {"depths": []}, "DenseNet.depths: expected the number of layers of each dense block, got none"),
        ("DenseNet", {"growth": -1}, "growth: expected a whole number above 0, got -1"),
        ("DenseNet", {"dropout": -0.1}, "DenseNet.dropout: expected 0 <= dropout < 1, got -0.1"),
    ],
)
def test_a_network_that_cannot_be_is_refused(family: str, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(Refused, match=message):
        create_model(family, **SMALL[family] | arguments)


@pytest.mark.parametrize(
    ("family", "counts", "head"),
    [("ResNeXt", "out", 1 / 3), ("ResNetV2", "out", None), ("VGG", "out", None), ("DenseNet", "in", 1 / 3)],
)
def test_initial_weights_are_the_references(family: str, counts: str, head: float | None) -> None:
    paddle.seed(0)
    wide = {"ResNeXt": {"width": 64}, "ResNetV2": {"width": 64}, "VGG": {"widths": [32, 64]}, "DenseNet": {"width": 64}}
    network = create_model(family, **SMALL[family] | wide[family])
    for name, layer in network.named_sublayers():
        if isinstance(layer, (nn.Linear, nn.Conv2D)) and layer.weight.size > 2000:
            fan = {"out": 0, "in": 1}[counts]
            if name == "head.fc" or (isinstance(layer, nn.Linear) and head is None):
                expected = 0.01
            elif isinstance(layer, nn.Linear):
                expected = (head / layer.weight.shape[0]) ** 0.5  # uniform within 1 / sqrt(features)
            else:
                expected = (2 / (layer.weight.shape[fan] * layer.weight[0, 0].size)) ** 0.5
            assert float(layer.weight.std()) == pytest.approx(expected, rel=0.1), name


def test_a_vgg_but_for_its_head_can_be_frozen() -> None:
    network = create_model("VGG", **SMALL["VGG"], num_classes=5)
    groups = dict(network.layer_groups())
    assert groups["features.0"] == ["features.0.", "features.1."]  # with its batch norm
    frozen = tuple(prefix for group, prefixes in groups.items() if group != "head" for prefix in prefixes)
    for name, parameter in network.named_parameters():
        if name.startswith(frozen):
            parameter.stop_gradient = True
    left = [name for name, parameter in network.named_parameters() if not parameter.stop_gradient]
    assert left == ["classifier.6.weight", "classifier.6.bias"]


# ------------------------------------------------------------------------------------------------ recipes


def test_paddleclas_files_of_resnext_load_unchanged_and_are_our_recipes(repository: Path, shared: Path) -> None:
    files = sorted((shared / "peers/paddleclas_configs").glob("ResNeXt*_*x4d.yaml"))
    files = [path for path in files if "_vd_" not in path.name]  # those mix images up
    assert files
    for path in files:
        theirs = config.load(path)
        ours = config.load(repository / "configs" / f"{path.stem.lower()}.yaml")
        assert ours.Arch == theirs.Arch
        assert ours.Global.epochs == theirs.Global.epochs
        assert ours.Optimizer.regularizer == theirs.Optimizer.regularizer
        for key in ("decay_epochs", "values"):
            assert ours.Optimizer.lr.arguments[key] == theirs.Optimizer.lr.arguments[key]
        sizes = [each.DataLoader.Train.sampler.arguments["batch_size"] for each in (ours, theirs)]
        assert sizes == [64, 64]
