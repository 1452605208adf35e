"""GroupMamba: small members, the two heads, gradients; the published members stand in test_parity.py."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from networks import SMALL
from paddle import nn

from ppcls_ext import create_model
from ppcls_ext.backbones.groupmamba import GroupMambaLayer
from ppcls_ext.errors import Refused


def images(n: int = 2, height: int = 64, width: int = 64) -> paddle.Tensor:
    return paddle.to_tensor(np.random.default_rng([n, height, width]).normal(size=(n, 3, height, width)), "float32")


def small(**arguments: object) -> nn.Layer:
    return create_model("GroupMamba", **{**SMALL["GroupMamba"], "num_classes": 5, **arguments})


def test_training_gives_two_logits_and_evaluation_their_mean() -> None:
    network = small()
    network.train()
    assert [list(logits.shape) for logits in network(images())] == [[2, 5], [2, 5]]
    network.eval()
    token = network.norm3(network.post_network[0](tokens(network.forward_features(images())))[:, 0])
    expected = (network.head(token) + network.dist_head(token)) / 2
    np.testing.assert_array_equal(network(images()).numpy(), expected.numpy())


def tokens(features: paddle.Tensor) -> paddle.Tensor:
    x = features.flatten(2).transpose([0, 2, 1])
    return paddle.concat([x.mean(1, keepdim=True), x], 1)


def test_without_distillation_there_is_one_head() -> None:
    network = small(distillation=False)
    network.train()
    assert network(images()).shape == [2, 5]
    assert not [name for name in network.state_dict() if name.startswith("dist_head")]


def test_a_token_is_told_by_its_direction_what_came_before_it() -> None:
    paddle.seed(0)
    layer = GroupMambaLayer(64)
    alone = np.zeros((16, 1, 3, 3), np.float32)
    alone[:, :, 1, 1] = 1.0  # no neighbours but through the scan
    for group in (layer.mamba_g1, layer.mamba_g2, layer.mamba_g3, layer.mamba_g4):
        group.conv2d.weight.set_value(alone)
    height, width, row, column = 4, 5, 2, 1
    seen: list[np.ndarray] = []
    hook = layer.proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].numpy()))
    layer.norm.forward = lambda x: x
    layer.fc2.weight.set_value(paddle.zeros_like(layer.fc2.weight))
    x = paddle.randn([1, height * width, 64])
    changed = x.clone()
    changed[:, row * width + column] += 1.0
    for each in (x, changed):
        layer(each, height, width)
    hook.remove()
    moved = np.abs(seen[1] - seen[0])[0].reshape(height, width, 4, 16).max(-1) > 0
    rows, columns = np.mgrid[:height, :width]
    by_row, by_column = rows * width + columns, columns * height + rows
    here_by_row, here_by_column = row * width + column, column * height + row
    expected = [by_row >= here_by_row, by_column >= here_by_column, by_row <= here_by_row, by_column <= here_by_column]
    for direction in range(4):
        np.testing.assert_array_equal(moved[:, :, direction], expected[direction])


@pytest.mark.parametrize("size", [(32, 64), (40, 33)])
def test_gradients_are_right_where_height_and_width_differ(size: tuple[int, int]) -> None:
    paddle.seed(0)
    network = small()
    network.to(dtype="float64")
    network.eval()  # batch norm as a fixed map
    x = images(1, *size).astype("float64")
    direction = paddle.to_tensor(np.random.default_rng(0).normal(size=x.shape))
    x.stop_gradient = False
    network(x).square().sum().backward()
    slope = float((x.grad * direction).sum())
    with paddle.no_grad():
        above, below = (float(network(x + sign * 1e-4 * direction).square().sum()) for sign in (1, -1))
    assert slope == pytest.approx((above - below) / 2e-4, rel=1e-5)


def test_gradient_checkpointing_changes_memory_alone() -> None:
    results = []
    for checkpointing in (False, True):
        paddle.seed(1)
        network = small(drop_path=0.3, gradient_checkpointing=checkpointing)
        network.train()
        logits = sum(network(images(4)))
        logits.square().sum().backward()
        tensors = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
        tensors.update({f"gradient of {n}": p.grad.numpy() for n, p in network.named_parameters() if p.trainable})
        results.append({"logits": logits.numpy(), **tensors})
    plain, checkpointed = results
    assert plain.keys() == checkpointed.keys()
    for name, value in plain.items():
        tolerance = 1e-5 * max(1e-3, float(np.abs(value).max()))
        np.testing.assert_allclose(checkpointed[name], value, rtol=1e-5, atol=tolerance, err_msg=name)


def test_initial_weights_are_the_releases() -> None:
    paddle.seed(0)
    network = small()
    group = network.block3[0].attn.mamba_g2
    steps = np.log1p(np.exp(group.dt_projs_bias.numpy()))
    assert 1e-3 <= steps.min() and steps.max() <= 0.1 and steps.std() > 0
    assert not np.any(group.A_logs.numpy()) and np.all(group.Ds.numpy() == 1)
    assert 0.5 < np.abs(group.dt_projs_weight.numpy()).max() <= 1
    assert float(network.block3[0].mlp.fc1.weight.std()) == pytest.approx(0.02, rel=0.1)
    assert float(network.patch_embed3.proj.weight.std()) == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.1)
    assert float(network.block3[0].mlp.dwconv.dwconv.weight.std()) == pytest.approx((2 / 9) ** 0.5, rel=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": [16]}, "expected as many channels as depths and mlp_ratios"),
        ({"channels": [16, 18]}, r"expected channels\[1\] to be a multiple of 4, at least 16, got 18"),
        ({"channels": [8, 16]}, r"expected channels\[0\] to be a multiple of 4, at least 16, got 8"),
        ({"depths": [1, 0]}, r"depths\[1\]: expected a whole number above 0, got 0"),
        ({"mlp_ratios": [1, 0.01]}, r"mlp_ratios\[1\] 0.01 leaves the MLP without channels"),
        ({"stem_width": 0}, "stem_width: expected a whole number above 0, got 0"),
    ],
)
def test_a_groupmamba_that_cannot_be_is_refused(arguments: dict[str, object], message: str) -> None:
    sizes = {"stem_width": 8, "channels": [16, 16], "depths": [1, 1], "mlp_ratios": [1, 1]}
    with pytest.raises(Refused, match=message):
        create_model("GroupMamba", **{**sizes, **arguments})
