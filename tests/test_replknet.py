"""RepLKNet: small members, merging, gradient checkpointing; the published members stand in test_parity.py."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import paddle
import pytest
from networks import SMALL
from paddle import nn
from parity import compare
from parity.fixture import load_full, reference_weights
from safetensors.numpy import save_file

from ppcls_ext import create_model, load_weights
from ppcls_ext.errors import Refused


def images(n: int = 2, height: int = 64, width: int = 64) -> paddle.Tensor:
    return paddle.to_tensor(np.random.default_rng([n, height, width]).normal(size=(n, 3, height, width)), "float32")


def small(**arguments: object) -> nn.Layer:
    return create_model("RepLKNet", **{**SMALL["RepLKNet"], "num_classes": 5, **arguments})


def trained_a_little(network: nn.Layer) -> nn.Layer:
    """The network with batch-norm statistics and scales that are not those of the start."""
    draw = np.random.default_rng(3)
    for layer in network.sublayers():
        if isinstance(layer, nn.BatchNorm2D):
            for tensor, low, high in ((layer._mean, -0.2, 0.2), (layer._variance, 0.5, 1.5), (layer.weight, 0.8, 1.2)):
                tensor.set_value(draw.uniform(low, high, tensor.shape).astype(np.float32))
    return network


@pytest.mark.parametrize("small_kernel", [3, None])
def test_a_merged_network_computes_the_same_with_one_kernel(small_kernel: int | None) -> None:
    network = trained_a_little(small(small_kernel=small_kernel))
    network.eval()
    expected = network(images()).numpy()
    parameters = sum(p.size for p in network.parameters())
    assert network.reparameterize() is network
    np.testing.assert_allclose(network(images()).numpy(), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert sum(p.size for p in network.parameters()) < parameters
    names = [name for name in network.state_dict() if "large_kernel" in name]
    assert {name.split("large_kernel.")[1] for name in names} == {"lkb_reparam.weight", "lkb_reparam.bias"}
    again = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    network.reparameterize()
    assert all(np.array_equal(tensor.numpy(), again[name]) for name, tensor in network.state_dict().items())


def test_merged_weights_load_into_a_network_built_merged(tmp_path: Path) -> None:
    network = trained_a_little(small()).reparameterize()
    network.eval()
    paddle.save(network.state_dict(), str(tmp_path / "merged.pdparams"))
    twin = small(merged=True)
    assert load_weights(twin, tmp_path / "merged.pdparams").loaded == len(network.state_dict())
    twin.eval()
    np.testing.assert_array_equal(twin(images()).numpy(), network(images()).numpy())


def test_a_merged_network_exports(tmp_path: Path) -> None:
    network = trained_a_little(small()).reparameterize()
    network.eval()
    spec = [paddle.static.InputSpec([None, 3, 64, 96], "float32")]
    paddle.jit.save(network, str(tmp_path / "graph"), input_spec=spec)
    graph = paddle.jit.load(str(tmp_path / "graph"))
    graph.eval()
    expected = network(images(3, 64, 96)).numpy()
    np.testing.assert_allclose(graph(images(3, 64, 96)).numpy(), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_new_weights_are_seen_at_once_in_evaluation() -> None:
    network, other = small(), small()
    network.eval(), other.eval()
    with paddle.no_grad():
        network(images())
        network.set_state_dict(other.state_dict())
        np.testing.assert_array_equal(network(images()).numpy(), other(images()).numpy())


@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_gradient_checkpointing_changes_memory_alone(drop_path: float) -> None:
    results = []
    for checkpointing in (False, True):
        paddle.seed(1)
        network = small(drop_path=drop_path, gradient_checkpointing=checkpointing)
        network.train()
        logits = network(images(4))
        logits.square().sum().backward()
        tensors = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
        tensors.update({f"gradient of {n}": p.grad.numpy() for n, p in network.named_parameters() if p.trainable})
        results.append({"logits": logits.numpy(), **tensors})
    plain, checkpointed = results
    assert plain.keys() == checkpointed.keys()
    for name, value in plain.items():
        tolerance = 1e-5 * max(1.0, float(np.abs(value).max()))
        np.testing.assert_allclose(checkpointed[name], value, rtol=1e-5, atol=tolerance, err_msg=name)


def test_the_groups_of_the_layer_decay_are_the_releases() -> None:
    network = small(depths=[2, 2, 6, 2], kernels=[5, 5, 5, 5], channels=[4, 4, 4, 4])
    groups = dict(network.layer_groups())
    assert list(groups) == [
        "stem",
        "stage0.0",
        "stage1.0",
        "stage2.0",
        "stage2.4",
        "stage2.8",
        "stage3.0",
        "head",
    ]
    assert groups["stage0.0"] == [*(f"stages.0.blocks.{i}." for i in range(4)), "transitions.0."]
    assert groups["stage2.8"][-1] == "transitions.2."
    assert groups["stage3.0"][-1] == "norm."


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernels": [7]}, "expected as many kernels as depths and channels"),
        ({"kernels": [7, 6, 5, 3]}, r"an odd kernel.*kernels\[1\] 6"),
        ({"small_kernel": 9}, r"not larger, or null, got kernels\[0\] 7 and small_kernel 9"),
        ({"small_kernel": 2}, "small_kernel 2"),
        ({"channels": [8, 0, 8, 8]}, r"channels\[1\]: expected a whole number above 0, got 0"),
        ({"dw_ratio": 0.0}, "leaves a block without channels"),
        ({"drop_path": 1.0}, "drop_path: expected 0 <= drop_path < 1, got 1.0"),
    ],
)
def test_a_replknet_that_cannot_be_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(Refused, match=message):
        create_model("RepLKNet", **{"kernels": [7, 7, 5, 5], "depths": [1] * 4, "channels": [8] * 4, **arguments})


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "name"), [("replknet_31b", "RepLKNet_31B"), ("replknet_xl", "RepLKNet_XL")])
def test_a_merged_member_is_the_references(variant: str, name: str, shared: Path, tmp_path: Path) -> None:
    path = shared / "parity" / "fixtures" / "replknet" / f"{variant}.json"
    expected = load_full(path)
    save_file(reference_weights(expected), tmp_path / "weights.safetensors", metadata={"format": "pt"})
    network = create_model(name)
    load_weights(network, tmp_path / "weights.safetensors")
    network.eval()
    network.reparameterize()
    reference = {n: s for n, s, _ in json.loads(path.read_text())["merged_state_dict"] if "num_batches" not in n}
    renamed = {n.replace("running_mean", "_mean").replace("running_var", "_variance"): s for n, s in reference.items()}
    ours = {n: tensor.shape for n, tensor in network.state_dict().items()}
    assert {n: s for n, s in ours.items() if n != "head.weight"} == {
        n: s for n, s in renamed.items() if n != "head.weight"
    }
    trainable = sum(p.size for p in network.parameters() if p.trainable)
    assert trainable == expected.facts["merged_num_params"]
    first = network.stages[0].blocks[0].large_kernel.lkb_reparam.weight.numpy()[0, 0]
    np.testing.assert_allclose(first, expected.arrays["merged_first_weight_c0"], rtol=1e-5, atol=1e-6)
    for tag in ("eval", "odd"):
        if f"merged_{tag}_logits" in expected.arrays:
            with paddle.no_grad():
                logits = network(paddle.to_tensor(compare.images(expected.facts[tag]))).numpy()
            difference = float(np.abs(logits - expected.arrays[f"merged_{tag}_logits"]).max())
            print(variant, "merged", tag, difference)
            assert difference <= 2e-4
