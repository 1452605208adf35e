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
    small = {
        "ResNet": ("ResNeXt", {"depths": [1, 2, 1], "groups": 4, "base_width": 16, "width": 16}),
        "ResNet vd": ("ResNeXt", {"depths": [1, 2, 1], "groups": 4, "base_width": 16, "width": 16, "vd": True}),
        "DenseNet": ("DenseNet", {"depths": [2, 3], "growth": 8, "width": 12, "bottleneck": 2}),
        "VGG": ("VGG", {"depths": [1, 2], "widths": [4, 8], "hidden": 12, "pooled": 3}),
        "ViT": ("VisionTransformer", {"depth": 2, "width": 24, "num_heads": 3, "patch": 8, "image_size": 64}),
    }
    if name in small:
        return create_model(small[name][0], num_classes=3, **small[name][1])
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
    ("ResNet", "conv._conv.weight", "conv1.weight"),
    ("ResNet", "conv._batch_norm._mean", "bn1._mean"),
    ("ResNet", "bb_0_0.conv0._conv.weight", "layer1.0.conv1.weight"),
    ("ResNet", "bb_1_1.conv2._batch_norm.bias", "layer2.1.bn3.bias"),
    ("ResNet", "bb_1_0.short._conv.weight", "layer2.0.downsample.0.weight"),
    ("ResNet", "bb_1_0.short._batch_norm._variance", "layer2.0.downsample.1._variance"),
    ("ResNet", "out.weight", "fc.weight"),
    ("ResNet", "stem.0.conv.weight", "conv1.weight"),
    ("ResNet", "stem.0.bn._mean", "bn1._mean"),
    ("ResNet", "blocks.2.conv1.conv.weight", "layer2.1.conv2.weight"),
    ("ResNet", "blocks.3.short.bn.bias", "layer3.0.downsample.1.bias"),
    ("ResNet vd", "conv1_1._conv.weight", "conv1.0.weight"),
    ("ResNet vd", "conv1_1._batch_norm._mean", "conv1.1._mean"),
    ("ResNet vd", "conv1_2._batch_norm.bias", "conv1.4.bias"),
    ("ResNet vd", "conv1_3._conv.weight", "conv1.6.weight"),
    ("ResNet vd", "conv1_3._batch_norm.weight", "bn1.weight"),
    ("ResNet vd", "bb_2_0.short._conv.weight", "layer3.0.downsample.1.weight"),
    ("ResNet vd", "bb_2_0.short._batch_norm.bias", "layer3.0.downsample.2.bias"),
    ("DenseNet", "conv1_func._conv.weight", "features.conv0.weight"),
    ("DenseNet", "conv1_func._batch_norm._mean", "features.norm0._mean"),
    ("DenseNet", "db_conv_2.conv2_1.bn_ac_func1._batch_norm.weight", "features.denseblock1.denselayer1.norm1.weight"),
    ("DenseNet", "db_conv_3.conv3_3.bn_ac_func2._conv.weight", "features.denseblock2.denselayer3.conv2.weight"),
    ("DenseNet", "tr_conv2_blk.conv_ac_func._batch_norm.bias", "features.transition1.norm.bias"),
    ("DenseNet", "tr_conv2_blk.conv_ac_func._conv.weight", "features.transition1.conv.weight"),
    ("DenseNet", "batch_norm._variance", "features.norm5._variance"),
    ("DenseNet", "out.bias", "classifier.bias"),
    (
        "DenseNet",
        "features.denseblock1.denselayer2.norm.1.running_mean",
        "features.denseblock1.denselayer2.norm1.running_mean",
    ),
    ("DenseNet", "features.denseblock2.denselayer3.conv.2.weight", "features.denseblock2.denselayer3.conv2.weight"),
    ("VGG", "conv_block_1.conv1.weight", "features.0.weight"),
    ("VGG", "conv_block_2.conv2.weight", "features.5.weight"),
    ("VGG", "fc2.bias", "classifier.3.bias"),
    ("VGG", "pre_logits.fc1.weight", "classifier.0.weight"),
    ("VGG", "head.fc.bias", "classifier.6.bias"),
    ("ViT", "conv_proj.bias", "patch_embed.proj.bias"),
    ("ViT", "encoder.layers.encoder_layer_1.ln_2.weight", "blocks.1.norm2.weight"),
    ("ViT", "encoder.layers.encoder_layer_0.self_attention.in_proj_weight", "blocks.0.attn.qkv.weight"),
    ("ViT", "encoder.layers.encoder_layer_0.self_attention.out_proj.bias", "blocks.0.attn.proj.bias"),
    ("ViT", "encoder.layers.encoder_layer_0.mlp.3.bias", "blocks.0.mlp.fc2.bias"),
    ("ViT", "encoder.layers.encoder_layer_0.mlp.linear_1.bias", "blocks.0.mlp.fc1.bias"),
    ("ViT", "heads.head.weight", "head.weight"),
]


@pytest.mark.parametrize(("family", "theirs", "ours"), PAIRS)
def test_a_name_of_another_project_is_ours(family: str, theirs: str, ours: str) -> None:
    for prefix in ("", "module."):
        assert in_our_names({prefix + theirs: 1}, network_of(family).state_dict())[0] == {ours: 1}


@pytest.mark.parametrize("name", ["_blocks.999._bn1.weight", "features.0.0.block.9.0.weight", "_blocks.x._bn1.weight"])
def test_a_name_that_no_layer_has_stays(name: str) -> None:
    assert in_our_names({name: 1}, network_of("EfficientNet").state_dict()) == ({name: 1}, None)


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


# ------------------------------------------------------------------------------------------------ whole files


def paddleclas_of(name: str, family: str) -> str:
    """PaddleClas's name of a tensor of our small network, written down the other way round."""
    layer, _, leaf = name.rpartition(".")
    known = {
        "ResNet": {"conv1": "conv._conv", "bn1": "conv._batch_norm", "fc": "out"},
        "ResNet vd": {
            "conv1.0": "conv1_1._conv", "conv1.1": "conv1_1._batch_norm", "conv1.3": "conv1_2._conv",
            "conv1.4": "conv1_2._batch_norm", "conv1.6": "conv1_3._conv", "bn1": "conv1_3._batch_norm", "fc": "out",
        },
        "DenseNet": {
            "features.conv0": "conv1_func._conv", "features.norm0": "conv1_func._batch_norm",
            "features.norm5": "batch_norm", "classifier": "out",
        },
    }[family]  # fmt: skip
    if layer in known:
        return f"{known[layer]}.{leaf}"
    parts = layer.split(".")
    if family == "DenseNet":
        kind, branch = {"n": "_batch_norm", "c": "_conv"}[parts[-1][0]], parts[-1][-1]
        stage = int(parts[1][-1]) + 1
        if parts[1].startswith("transition"):
            return f"tr_conv{stage}_blk.conv_ac_func.{kind}.{leaf}"
        return f"db_conv_{stage}.conv{stage}_{parts[2][-1]}.bn_ac_func{branch}.{kind}.{leaf}"
    unit = f"bb_{int(parts[0][-1]) - 1}_{parts[1]}"
    if parts[2] == "downsample":
        return f"{unit}.short.{('_conv', '_batch_norm')[int(parts[3]) - ('vd' in family)]}.{leaf}"
    return f"{unit}.conv{int(parts[2][-1]) - 1}.{'_conv' if parts[2].startswith('conv') else '_batch_norm'}.{leaf}"


@pytest.mark.parametrize("family", ["ResNet", "ResNet vd", "DenseNet"])
def test_whole_files_of_paddleclas_load(family: str, tmp_path: Path) -> None:
    source, target = network_of(family), network_of(family)
    arrays = {name: tensor.numpy() for name, tensor in source.state_dict().items()}
    save_tensors(tmp_path / "x.pdparams", {paddleclas_of(name, family): array for name, array in arrays.items()}, {})
    report = load_weights(target, tmp_path / "x.pdparams")
    assert report.loaded == report.total == len(arrays)
    for name, tensor in target.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), arrays[name], err_msg=name)


def test_a_vgg_of_paddleclas_answers_as_there(tmp_path: Path) -> None:
    target = network_of("VGG")
    names = {"0": "conv_block_1.conv1", "3": "conv_block_2.conv1", "5": "conv_block_2.conv2"}
    draw = np.random.default_rng(0)
    theirs = {}
    for name, tensor in target.state_dict().items():
        group, number, leaf = name.split(".")
        if group == "features" and leaf == "bias":
            continue  # its convolutions have none
        layer = names[number] if group == "features" else {"0": "fc1", "3": "fc2", "6": "fc3"}[number]
        theirs[f"{layer}.{leaf}"] = draw.normal(0, 0.3, tensor.shape).astype(np.float32)
    save_tensors(tmp_path / "x.pdparams", theirs, {})
    report = load_weights(target, tmp_path / "x.pdparams")
    assert report.loaded == report.total
    assert "PaddleClas: its convolutions have no biases (0 here)" in report.summary()
    x = paddle.to_tensor(draw.normal(size=(2, 3, 12, 12)).astype(np.float32))

    def conv(x: paddle.Tensor, name: str) -> paddle.Tensor:
        return nn.functional.relu(nn.functional.conv2d(x, paddle.to_tensor(theirs[f"{name}.weight"]), padding=1))

    def linear(x: paddle.Tensor, name: str) -> paddle.Tensor:
        return x @ paddle.to_tensor(theirs[f"{name}.weight"]) + paddle.to_tensor(theirs[f"{name}.bias"])

    drop = nn.Dropout(0.5, mode="downscale_in_infer")
    drop.eval()
    y = nn.functional.max_pool2d(conv(x, "conv_block_1.conv1"), 2)
    y = nn.functional.max_pool2d(conv(conv(y, "conv_block_2.conv1"), "conv_block_2.conv2"), 2)
    y = drop(nn.functional.relu(linear(y.flatten(1), "fc1")))
    y = linear(drop(nn.functional.relu(linear(y, "fc2"))), "fc3")
    target.eval()
    np.testing.assert_allclose(target(x).numpy(), y.numpy(), rtol=1e-5, atol=1e-5)


def test_timms_convolutions_over_a_whole_map_become_linear_layers(tmp_path: Path) -> None:
    source, target = network_of("VGG"), network_of("VGG")
    theirs = {}
    for name, tensor in source.state_dict().items():
        array = tensor.numpy()
        array = np.ascontiguousarray(array.T) if name.startswith("classifier") else array
        if name == "classifier.0.weight":
            array = array.reshape(12, 8, 3, 3)
        if name == "classifier.3.weight":
            array = array.reshape(12, 12, 1, 1)
        for ours, timms in (("classifier.0", "pre_logits.fc1"), ("classifier.3", "pre_logits.fc2")):
            name = name.replace(ours, timms)
        theirs[name.replace("classifier.6", "head.fc")] = array
    save_file(theirs, tmp_path / "x.safetensors", {"format": "pt"})
    load_weights(target, tmp_path / "x.safetensors")
    for name, tensor in target.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), source.state_dict()[name].numpy(), err_msg=name)


# ------------------------------------------------------------------------------------------------ what no tensor shows


def efficientnet(padding: str) -> nn.Layer:
    sizes = {"depths": [1, 2], "kernels": [3, 5], "strides": [1, 2], "expansions": [1, 2]}
    return create_model("EfficientNet", widths=[4, 8, 8, 8], num_classes=3, padding=padding, **sizes)


ENDS_OF_TORCHVISION = {
    "conv_stem": "features.0.0", "bn1": "features.0.1", "conv_head": "features.3.0", "bn2": "features.3.1",
    "classifier": "classifier.1",
}  # fmt: skip
PLAIN_BLOCK = ["conv_dw", "bn1", "se.conv_reduce", "se.conv_expand", "conv_pw", "bn2"]
EXPANDING_BLOCK = ["conv_pw", "bn1", "conv_dw", "bn2", "se.conv_reduce", "se.conv_expand", "conv_pwl", "bn3"]
PLACES_OF_TORCHVISION = ["0.0", "0.1", "1.0", "1.1", "2.fc1", "2.fc2", "3.0", "3.1"]


def torchvision_layer(layer: str) -> str:
    if layer in ENDS_OF_TORCHVISION:
        return ENDS_OF_TORCHVISION[layer]
    _, stage, number, part = layer.split(".", 3)
    places = PLACES_OF_TORCHVISION
    if stage == "0":  # the only one here that does not expand: all its places are one lower
        places = [f"{int(place[0]) - 1}{place[1:]}" for place in places[2:]]
    place = dict(zip(PLAIN_BLOCK if stage == "0" else EXPANDING_BLOCK, places))[part]
    return f"features.{int(stage) + 1}.{number}.block.{place}"


def in_pytorch(network: nn.Layer, layer_name: Callable[[str], str]) -> dict[str, np.ndarray]:
    """The tensors of an EfficientNet as a project in PyTorch saves them."""
    tensors = {}
    for name, tensor in network.state_dict().items():
        layer, _, leaf = name.rpartition(".")
        leaf = {"_mean": "running_mean", "_variance": "running_var"}.get(leaf, leaf)
        array = tensor.numpy()
        array = np.ascontiguousarray(array.T) if name == "classifier.weight" else array
        tensors[f"{layer_name(layer)}.{leaf}"] = array
    return tensors


def test_torchvisions_efficientnet_is_refused_where_the_padding_is_another(tmp_path: Path) -> None:
    save_file(in_pytorch(efficientnet("symmetric"), torchvision_layer), tmp_path / "x.safetensors")
    with pytest.raises(
        Refused,
        match=r"was trained with padding='symmetric' \(its names are torchvision's\), the network has padding='same': "
        r"it would load and answer wrongly\. Build it with padding='symmetric' \(-o Arch\.padding=symmetric\)",
    ):
        load_weights(efficientnet("same"), tmp_path / "x.safetensors")
    report = load_weights(efficientnet("same"), tmp_path / "x.safetensors", strict=False)
    assert "WARNING: " in report.summary() and "padding='symmetric'" in report.summary()
    assert load_weights(efficientnet("symmetric"), tmp_path / "x.safetensors").notes == ()


def test_a_file_of_ours_says_its_padding(tmp_path: Path) -> None:
    arrays = {name: tensor.numpy() for name, tensor in efficientnet("symmetric").state_dict().items()}
    save_tensors(tmp_path / "x.pdparams", arrays, {"graph": {"padding": "symmetric"}})
    with pytest.raises(Refused, match=r"padding='symmetric' \(it says so\)"):
        load_weights(efficientnet("same"), tmp_path / "x.pdparams")
    load_weights(efficientnet("symmetric"), tmp_path / "x.pdparams")


@pytest.mark.parametrize(
    ("steps", "likely", "origin"),
    [(7, "symmetric", "was trained in PyTorch"), (0, "same", "has made no training step in PyTorch")],
)
def test_timms_names_leave_a_doubt_which_is_told(steps: int, likely: str, origin: str, tmp_path: Path) -> None:
    tensors = in_pytorch(efficientnet(likely), lambda layer: layer)
    tensors["bn1.num_batches_tracked"] = np.array(steps)
    save_file(tensors, tmp_path / "x.safetensors", {"format": "pt"})
    assert load_weights(efficientnet(likely), tmp_path / "x.safetensors").notes == ()
    other = "same" if likely == "symmetric" else "symmetric"
    (note,) = load_weights(efficientnet(other), tmp_path / "x.safetensors").notes
    assert note.startswith(f"WARNING: x.safetensors {origin}")
    assert note.endswith(f"build it with padding={likely!r} (-o Arch.padding={likely})")


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
    got, _ = in_our_names({theirs: theirs for theirs in expected}, list(expected.values()))
    statistics = {"_mean": "running_mean", "_variance": "running_var"}
    for ours, theirs in got.items():
        layer, _, leaf = ours.rpartition(".")
        assert f"{layer}.{statistics.get(leaf, leaf)}" == expected[theirs], name
