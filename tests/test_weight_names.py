"""Weights under the names that other projects use find their place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle import nn
from safetensors.numpy import save_file

from ppcls_ext import create_model, load_weights
from ppcls_ext.checkpoint import save_tensors
from ppcls_ext.errors import Refused
from ppcls_ext.weights.names import in_our_names

NAMES = Path(__file__).resolve().parents[2] / "shared" / "parity" / "names"


def network_of(name: str) -> nn.Layer:
    """A small member with the published names: an expanding block and one that does not expand, a unit of each kind."""
    if name == "ShuffleNetV2":
        return create_model(name, widths=[4, 8, 8, 8], depths=[2, 1], num_classes=3)
    sizes = {"depths": [1, 2], "kernels": [3, 5], "strides": [1, 2], "expansions": [1, 2]}
    return create_model("EfficientNet", widths=[4, 8, 8, 8], squeeze=name != "Lite", num_classes=3, **sizes)


PAIRS = [
    ("EfficientNet", "features.0.1.running_mean", "bn1.running_mean"),
    ("EfficientNet", "features.1.0.block.0.0.weight", "blocks.0.0.conv_dw.weight"),
    ("EfficientNet", "features.1.0.block.1.fc2.bias", "blocks.0.0.se.conv_expand.bias"),
    ("EfficientNet", "features.1.0.block.2.1.weight", "blocks.0.0.bn2.weight"),
    ("EfficientNet", "features.2.1.block.0.0.weight", "blocks.1.1.conv_pw.weight"),
    ("EfficientNet", "features.2.1.block.3.1.bias", "blocks.1.1.bn3.bias"),
    ("EfficientNet", "features.3.0.weight", "conv_head.weight"),
    ("EfficientNet", "classifier.1.bias", "classifier.bias"),
    ("EfficientNet", "_ef._conv_stem._conv._conv._conv.weight", "conv_stem.weight"),
    ("EfficientNet", "_ef._blocks.0.._dcn._conv._bn._mean", "blocks.0.0.bn1._mean"),
    ("EfficientNet", "_ef._blocks.1.._se._conv1._conv.bias", "blocks.1.0.se.conv_reduce.bias"),
    ("EfficientNet", "_ef.block.2.._pcn._conv._conv._conv.weight", "blocks.1.1.conv_pwl.weight"),
    ("EfficientNet", "_conv._bn._variance", "bn2._variance"),
    ("EfficientNet", "_bn0.running_var", "bn1.running_var"),
    ("EfficientNet", "_blocks.0._bn1.weight", "blocks.0.0.bn1.weight"),
    ("Lite", "_blocks.0._project_conv.weight", "blocks.0.0.conv_pw.weight"),
    ("Lite", "_blocks.2._expand_conv.weight", "blocks.1.1.conv_pw.weight"),
    ("Lite", "_blocks.2._bn2.running_mean", "blocks.1.1.bn3.running_mean"),
    ("EfficientNet", "_bn1.bias", "bn2.bias"),
    ("ShuffleNetV2", "_conv1._batch_norm._mean", "conv1.1._mean"),
    ("ShuffleNetV2", "2_1._conv_dw_1._conv.weight", "stage2.0.branch1.0.weight"),
    ("ShuffleNetV2", "2_1._conv_linear_1._batch_norm.bias", "stage2.0.branch1.3.bias"),
    ("ShuffleNetV2", "3_1._conv_pw_2._conv.weight", "stage3.0.branch2.0.weight"),
    ("ShuffleNetV2", "2_2._conv_dw._batch_norm.weight", "stage2.1.branch2.4.weight"),
    ("ShuffleNetV2", "2_2._conv_linear._conv.weight", "stage2.1.branch2.5.weight"),
    ("ShuffleNetV2", "_last_conv._conv.weight", "conv5.0.weight"),
    ("ShuffleNetV2", "_fc.bias", "fc.bias"),
]


@pytest.mark.parametrize(("family", "theirs", "ours"), PAIRS)
def test_a_name_of_another_project_is_ours(family: str, theirs: str, ours: str) -> None:
    for prefix in ("", "module."):
        assert in_our_names({prefix + theirs: 1}, network_of(family).state_dict()) == {ours: 1}


@pytest.mark.parametrize("name", ["_blocks.999._bn1.weight", "features.0.0.block.9.0.weight", "_blocks.x._bn1.weight"])
def test_a_name_that_no_layer_has_stays(name: str) -> None:
    assert in_our_names({name: 1}, network_of("EfficientNet").state_dict()) == {name: 1}


PARTS = {
    "branch1.0": ("dw", "_conv"), "branch1.1": ("dw", "_batch_norm"),
    "branch1.2": ("linear", "_conv"), "branch1.3": ("linear", "_batch_norm"),
    "branch2.0": ("pw", "_conv"), "branch2.1": ("pw", "_batch_norm"),
    "branch2.3": ("dw", "_conv"), "branch2.4": ("dw", "_batch_norm"),
    "branch2.5": ("linear", "_conv"), "branch2.6": ("linear", "_batch_norm"),
}  # fmt: skip
ENDS = {
    "conv1.0": "_conv1._conv", "conv1.1": "_conv1._batch_norm",
    "conv5.0": "_last_conv._conv", "conv5.1": "_last_conv._batch_norm", "fc": "_fc",
}  # fmt: skip


def paddleclas_shufflenet(ours: str) -> str:
    """PaddleClas's name of a tensor of ours."""
    layer, _, leaf = ours.rpartition(".")
    if layer in ENDS:
        return f"{ENDS[layer]}.{leaf}"
    stage, unit, part = layer.split(".", 2)
    what, kind = PARTS[part]
    branch = f"_{part[6]}" if unit == "0" else ""
    return f"{stage[-1]}_{int(unit) + 1}._conv_{what}{branch}.{kind}.{leaf}"


def test_a_file_of_paddleclas_loads_whole(tmp_path: Path) -> None:
    source, target = network_of("ShuffleNetV2"), network_of("ShuffleNetV2")
    arrays = {name: tensor.numpy() for name, tensor in source.state_dict().items()}
    theirs = {paddleclas_shufflenet(name): array for name, array in arrays.items()}
    save_tensors(tmp_path / "theirs.pdparams", theirs, {})
    report = load_weights(target, tmp_path / "theirs.pdparams")
    assert report.loaded == report.total == len(arrays)
    x = paddle.to_tensor(np.random.default_rng(0).normal(size=(1, 3, 32, 32)).astype(np.float32))
    for network in (source, target):
        network.eval()
    np.testing.assert_array_equal(source(x).numpy(), target(x).numpy())


def test_a_file_of_another_size_names_what_it_lacks(tmp_path: Path) -> None:
    arrays = {name: tensor.numpy() for name, tensor in network_of("ShuffleNetV2").state_dict().items()}
    theirs = {paddleclas_shufflenet(name): array for name, array in arrays.items()}
    del theirs["2_2._conv_dw._conv.weight"]
    save_file(theirs, tmp_path / "theirs.safetensors")
    with pytest.raises(Refused, match=r"not in the file: stage2\.1\.branch2\.3\.weight"):
        load_weights(network_of("ShuffleNetV2"), tmp_path / "theirs.safetensors")


def published_maps() -> list[tuple[str, str, Callable[[], dict[str, str]]]]:
    def read(file: str, key: str, turned: bool) -> Callable[[], dict[str, str]]:
        def pairs() -> dict[str, str]:
            table = json.loads((NAMES / file).read_text())
            found = dict(next(table[name] for name in table if name.startswith(key)))
            return {theirs: ours for ours, theirs in found.items()} if turned else found

        return pairs

    return [
        *(
            (f"torchvision B{i}", f"EfficientNetB{i}", read("effnet_tv_to_timm.json", f"tv_efficientnet_b{i}", False))
            for i in range(8)
        ),
        ("PaddleClas B0", "EfficientNetB0", read("maps_paddleclas.json", "efficientnet_b0", True)),
        ("PaddleClas x1_0", "ShuffleNetV2_x1_0", read("maps_paddleclas.json", "shufflenetv2", True)),
    ]


@pytest.mark.parametrize(("name", "pairs"), [pytest.param(*case[1:], id=case[0]) for case in published_maps()])
def test_the_rules_give_the_published_maps(name: str, pairs: Callable[[], dict[str, str]]) -> None:
    if not NAMES.is_dir():
        pytest.skip(f"the published maps are not beside the repository ({NAMES})")
    expected = pairs()
    # of our tensors by the reference's names: the rules need the names alone, and building B7 takes seconds
    got = in_our_names({theirs: theirs for theirs in expected}, list(expected.values()))
    statistics = {"_mean": "running_mean", "_variance": "running_var"}
    for ours, theirs in got.items():
        layer, _, leaf = ours.rpartition(".")
        assert f"{layer}.{statistics.get(leaf, leaf)}" == expected[theirs], name
