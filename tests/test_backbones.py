"""What every registered network owes: a network is tested by being registered."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

import numpy as np
import paddle
import pytest
from networks import SMALL, WITHOUT_GRADIENT, all_params, images, lively, published_params, rounding
from paddle import nn

from ppcls_ext import create_model, list_models
from ppcls_ext.backbones import facts
from ppcls_ext.backbones.micronet import M0_ROWS, Row
from ppcls_ext.errors import Refused, RunFailed
from ppcls_ext.models import table
from ppcls_ext.registry import BACKBONES

NAMES = list_models()
SMALL_ROWS = SMALL["MicroNet"]["rows"]


def trainable(network: nn.Layer) -> int:
    return sum(int(parameter.size) for parameter in network.parameters() if parameter.trainable)


@contextmanager
def multiply_adds(network: nn.Layer) -> Iterator[list[int]]:
    """Counts those of convolutions and linear layers while the network runs."""
    counts: list[int] = []

    def hook(layer: nn.Layer, _: object, result: paddle.Tensor) -> None:
        if isinstance(layer, nn.Linear):
            counts.append(int(layer.weight.size) * int(np.prod(result.shape[:-1])))
        else:
            counts.append(int(layer.weight.size) * result.shape[0] * result.shape[2] * result.shape[3])

    hooks = [
        layer.register_forward_post_hook(hook)
        for layer in network.sublayers()
        if isinstance(layer, (nn.Conv2D, nn.Linear))
    ]
    yield counts
    for each in hooks:
        each.remove()


@pytest.fixture(params=published_params())
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=all_params())
def build(request: pytest.FixtureRequest) -> Callable[..., nn.Layer]:
    """build(num_classes=...) -> a network, of every published name and of a small member of every family."""
    name, arguments = request.param
    return partial(create_model, name, **arguments)


def test_parameters_and_multiply_adds_are_the_published_ones(name: str) -> None:
    network, known = create_model(name), facts(name)
    network.eval()
    with multiply_adds(network) as counts, paddle.no_grad():
        logits = network(images(1, 3, known.input_size, known.input_size))
    assert logits.shape == [1, 1000]
    assert trainable(network) == known.params
    assert sum(counts) == known.macs


def test_shapes_are_what_the_network_says(build: Callable[..., nn.Layer]) -> None:
    network = lively(build(num_classes=7))
    network.eval()
    x = images(2, 3, 65, 97)
    features = network.forward_features(x)
    assert features.shape[:2] == [2, network.num_features]
    assert network.num_classes == 7
    np.testing.assert_array_equal(network(x).numpy(), network.forward_head(features).numpy())
    stages = network.forward_stages(x)
    positions = stages[-1].flatten(2)  # the features of a network with a class token have that first
    np.testing.assert_array_equal(positions.numpy(), features.flatten(2)[:, :, -positions.shape[2] :].numpy())
    for stage, channels, stride in zip(stages, network.stage_channels, network.stage_strides, strict=True):
        assert stage.shape[:2] == [2, channels]
        # half of 65 is 33 for most and 32 for poolings without padding
        for size, side in zip((65, 97), stage.shape[2:]):
            assert size // stride <= side <= -(-size // stride)


def test_gradients_reach_every_trainable_parameter(build: Callable[..., nn.Layer]) -> None:
    def without_gradient(seed: int) -> set[str]:
        network = lively(build(num_classes=7), seed)
        network.train()
        outputs = network(images(4))
        heads = outputs if isinstance(outputs, tuple) else (outputs,)
        sum((logits * images(4, 7, 1, 1).flatten(1)).sum() for logits in heads).backward()
        names = {key for key, p in network.named_parameters() if p.trainable and not np.any(p.grad.numpy())}
        return {key for key in names if not any(fnmatchcase(key, pattern) for pattern in WITHOUT_GRADIENT)}

    # the four ReLUs of an affinity may all be dead with one draw of the weights
    without = without_gradient(0)
    assert not without or not without & without_gradient(1)


@pytest.mark.parametrize("training", [False, True])
def test_a_hook_on_any_layer_sees_what_it_computes(build: Callable[..., nn.Layer], training: bool) -> None:
    network = build(num_classes=7)
    network.train() if training else network.eval()
    seen: set[str] = set()

    def see(name: str) -> Callable[..., None]:
        return lambda *_: seen.add(name)

    # what holds others may leave it to its holder to call them
    leaves = {name: layer for name, layer in network.named_sublayers() if not layer._sub_layers}
    # of a small network one by one: a hook on one part may stop what would pass by another's
    small = sum(int(parameter.size) for parameter in network.parameters()) < 200_000
    for names in [[name] for name in leaves] if small else [list(leaves)]:
        hooks = [leaves[name].register_forward_post_hook(see(name)) for name in names]
        with paddle.set_grad_enabled(training):
            network(images(2))
        assert seen == set(names)
        seen.clear()
        for hook in hooks:
            hook.remove()


def test_a_sample_does_not_depend_on_its_batch_in_evaluation(build: Callable[..., nn.Layer]) -> None:
    network = lively(build(num_classes=7))
    network.eval()
    x = images(5)
    with paddle.no_grad():
        together, alone = network(x).numpy(), network(x[2:3]).numpy()
    np.testing.assert_allclose(alone[0], together[2], rtol=0, atol=rounding(network, x, together))
    assert np.abs(together[0] - together[1]).max() > 1e-2 * np.abs(together).max()


def test_the_exported_graph_computes_what_the_network_computes(build: Callable[..., nn.Layer], tmp_path: Path) -> None:
    network = lively(build(num_classes=7))
    network.eval()
    shape = paddle.static.InputSpec([None, 3, None, None], "float32")
    paddle.jit.save(network, str(tmp_path / "graph"), input_spec=[shape])
    graph = paddle.jit.load(str(tmp_path / "graph"))
    graph.eval()
    for x in (images(3), images(1, 3, 48, 80)):
        with paddle.no_grad():
            expected = network(x).numpy()
        np.testing.assert_allclose(graph(x).numpy(), expected, rtol=0, atol=rounding(network, x, expected))


@pytest.mark.parametrize("channels", [1, 5])
def test_images_may_have_any_number_of_channels(build: Callable[..., nn.Layer], channels: int) -> None:
    network = build(num_classes=7, in_channels=channels)
    network.eval()
    assert network(images(2, channels)).shape == [2, 7]


@pytest.mark.parametrize("classes", [1, 2, 21841])
def test_any_number_of_classes_changes_the_head_alone(build: Callable[..., nn.Layer], classes: int) -> None:
    shapes = {key: tuple(tensor.shape) for key, tensor in build().state_dict().items()}
    network = build(num_classes=classes)
    head = tuple(dict(network.layer_groups())["head"])
    changed = {key for key, tensor in network.state_dict().items() if tuple(tensor.shape) != shapes[key]}
    assert changed and all(key.startswith(head) for key in changed)


def test_layer_groups_hold_every_parameter_once(build: Callable[..., nn.Layer]) -> None:
    network = build(num_classes=7)
    groups = network.layer_groups()
    assert len({group for group, _ in groups}) == len(groups)
    assert groups[-1][0] == "head"
    for key in network.state_dict():
        assert sum(key.startswith(tuple(prefixes)) for _, prefixes in groups) == 1, key


@pytest.mark.parametrize("argument", ["num_classes", "in_channels"])
@pytest.mark.parametrize("value", [0, -3])
def test_a_count_below_one_is_refused(build: Callable[..., nn.Layer], argument: str, value: int) -> None:
    with pytest.raises(Refused, match=f"{argument}: expected a whole number above 0, got {value}"):
        build(**{argument: value})


def test_two_networks_of_one_family_live_side_by_side(build: Callable[..., nn.Layer]) -> None:
    paddle.seed(4)
    first = build(num_classes=7)
    paddle.seed(4)
    second = build(num_classes=7)
    mine, other = first.state_dict(), second.state_dict()
    assert list(mine) == list(other)
    for key in mine:
        np.testing.assert_array_equal(mine[key].numpy(), other[key].numpy())
    assert not {p.name for p in first.parameters()} & {p.name for p in second.parameters()}
    lively(second)
    assert any(np.any(mine[key].numpy() != other[key].numpy()) for key in mine)


def test_a_copy_is_independent(build: Callable[..., nn.Layer]) -> None:
    network = lively(build(num_classes=7))
    twin = copy.deepcopy(network)
    for each in (network, twin):
        each.eval()
    before = network(images()).numpy()
    for parameter in twin.parameters():
        parameter.set_value(paddle.zeros_like(parameter))
    np.testing.assert_array_equal(network(images()).numpy(), before)


def test_the_state_dict_holds_floating_point_numbers_alone(build: Callable[..., nn.Layer]) -> None:
    assert {str(tensor.dtype) for tensor in build().state_dict().values()} == {"paddle.float32"}


# ------------------------------------------------------------------------------------------------ by name


def test_names_match_patterns_in_either_case() -> None:
    assert list_models("micronet*") == list_models("MicroNet_M?") == [f"MicroNet_M{i}" for i in range(4)]
    assert list_models("no such *") == []


def test_an_unknown_network_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(Refused, match=r"Unknown backbone 'MicroNet_M4'. Did you mean 'MicroNet_M"):
        create_model("MicroNet_M4")
    with pytest.raises(Refused, match=r"No published facts of a network 'MicroNet_m0'. Did you mean 'MicroNet_M0'"):
        facts("MicroNet_m0")


def test_arguments_that_a_builder_does_not_take_are_refused_together() -> None:
    with pytest.raises(Refused) as refusal:
        create_model("MicroNet_M0", dropuot=0.1, dropout="much")
    assert "MicroNet_M0.dropuot: unknown argument. Did you mean 'dropout'?" in str(refusal.value)
    assert "MicroNet_M0.dropout: expected float, got 'much'" in str(refusal.value)


def test_importing_the_package_does_not_import_paddle() -> None:
    program = (
        "import sys, ppcls_ext; assert ppcls_ext.__version__; assert 'paddle' not in sys.modules; ppcls_ext.missing"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parent.parent
    )
    assert "AttributeError: module 'ppcls_ext' has no attribute 'missing'" in run.stderr


def test_the_table_names_every_network_and_its_source() -> None:
    lines = table(NAMES, markdown=True).splitlines()
    assert len(lines) == len(NAMES) + 2
    assert lines[0].startswith("| network | parameters | MACs | top-1 |")
    assert any(
        line.startswith("| MicroNet_M3 | 2,622,960 | 18.2 M | 62.5 |") and "2108.05894" in line for line in lines
    )


# ------------------------------------------------------------------------------------------------ MicroNet


def small_micronet(**arguments: object) -> nn.Layer:
    return create_model(
        "MicroNet", **{"rows": SMALL_ROWS, "stem_groups": [2, 2], "width": 12, "num_classes": 3} | arguments
    )


def test_a_small_micronet_can_be_written_down() -> None:
    network = small_micronet()
    network.eval()
    assert network(images()).shape == [2, 3]
    assert len(network.features) == 5  # stem, 1 + 2 + 1 blocks
    assert (network.stage_strides, network.stage_channels) == ([2, 4, 8], [4, 8, 16])


def test_the_published_rows_give_the_published_network() -> None:
    network = create_model("MicroNet", rows=M0_ROWS, stem_groups=[2, 2], width=640)
    assert trainable(network) == facts("MicroNet_M0").params


def changed(row: int, **values: int) -> list[list[int]]:
    names = [field.name for field in fields(Row)]
    rows = copy.deepcopy(SMALL_ROWS)
    for key, value in values.items():
        rows[row][names.index(key)] = value
    return rows


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rows": []}, "MicroNet.rows: expected at least one row of 15 numbers, got none"),
        ({"rows": [[1, 2]]}, r"rows\[0\]: expected 15 numbers, got 2"),
        ({"rows": changed(0, kernel=4)}, r"rows\[0\]: kernel is 4, expected an odd number"),
        ({"rows": changed(0, act1=3)}, r"rows\[0\]: act1 is 3, expected 0, 1 or 2"),
        ({"rows": changed(1, stride=0)}, r"rows\[1\]: stride is 0, expected at least 1"),
        ({"rows": changed(1, groups1=3)}, r"rows\[1\]: groups1 of the input: 8 channels cannot be divided by 3"),
        ({"rows": changed(1, shift2=3)}, r"rows\[1\]: shift2: 8 channels cannot be divided by 3"),
        ({"rows": changed(2, channels=20)}, r"rows\[2\]: channels is 20; a block that ends expanded has 16"),
        ({"rows": changed(2, stride=2)}, r"rows\[2\]: stride is 2; a block that ends expanded has 1"),
        ({"stem_groups": [2, 0]}, r"stem_groups\[1\]: expected a whole number above 0, got 0"),
        ({"width": 0}, "width: expected a whole number above 0, got 0"),
        ({"dropout": 1.0}, "dropout: expected 0 <= dropout < 1, got 1.0"),
    ],
)
def test_a_micronet_that_cannot_be_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(Refused, match=message):
        small_micronet(**arguments)


def test_training_on_one_image_is_stopped_with_a_cure() -> None:
    network = small_micronet()
    network.train()
    with pytest.raises(RunFailed, match=r"at least 2 images, got 1.*drop_last: True"):
        network(images(1))
    network.eval()
    assert network(images(1)).shape == [1, 3]


def test_initial_weights_are_the_releases() -> None:
    paddle.seed(0)
    network = create_model("MicroNet_M3")
    for layer in network.sublayers():
        if isinstance(layer, nn.Conv2D) and layer.weight.size > 2000:
            out, _, height, width = layer.weight.shape
            assert float(layer.weight.std()) == pytest.approx((2 / (height * width * out)) ** 0.5, rel=0.1)
        elif isinstance(layer, nn.Linear):
            assert not np.any(layer.bias.numpy())
            if layer.weight.size > 2000:
                assert float(layer.weight.std()) == pytest.approx(0.01, rel=0.1)


def test_every_builder_is_published_or_has_a_small_member_here() -> None:
    assert set(NAMES) | set(SMALL) == set(BACKBONES)


def test_the_code_on_the_page_of_networks_runs_and_gives_what_its_comments_say(repository: Path) -> None:
    page = (repository / "docs/networks.md").read_text(encoding="utf-8")
    code = page.split("## From Python")[1].split("```python\n")[1].split("```")[0]
    names: dict = {}
    exec(code, names)
    network = names["network"]
    assert f"strides: {network.stage_channels}, {network.stage_strides}" in code.replace("(", "[").replace(")", "]")
    for name in ("logits", "features"):
        assert f"({', '.join(map(str, names[name].shape))})" in code
    assert [map.shape[1] for map in names["maps"]] == list(network.stage_channels)
    assert [name for name, _ in network.layer_groups()][:: len(network.layer_groups()) - 1] == ["stem", "head"]


@pytest.mark.parametrize(
    "arguments, cure",
    [
        ({"features_only": True}, "forward_stages(x) gives the maps of every resolution"),
        ({"num_classes": 0}, "forward_features(x) leaves the classifier out"),
        ({"drop_path_rate": 0.1, "pretrained": True}, "load_weights(network, path) reads weights"),
        ({"drop_rate": 0.1}, "called dropout here"),
        ({"in_chans": 1}, "called in_channels here"),
    ],
)
def test_arguments_of_timm_are_refused_with_their_names_here(arguments: dict[str, object], cure: str) -> None:
    with pytest.raises(Refused) as refused:
        create_model("ResNet50", **arguments)
    assert "ResNet50 cannot be built" in str(refused.value) and cure in str(refused.value)
