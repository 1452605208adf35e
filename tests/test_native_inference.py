"""The compiled operators of inference compute what Paddle's do, and leave training and graphs to these."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import paddle
import pytest
from paddle import nn

from ppcls_ext import create_model
from ppcls_ext.backbones.groupmamba import Embedding, GroupMamba, groupmamba
from ppcls_ext.layers import LayerNorm, Linear
from ppcls_ext.ops import layer_norm, linear, native

TOLERANCE = 1e-5  # of the largest value
OF_A_NETWORK = 5e-5  # after many layers


def draw(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    rng = np.random.default_rng([len(shapes), *shapes[0]])
    return [rng.normal(size=shape) for shape in shapes]


def assert_agrees(function: Callable, arrays: list[np.ndarray]) -> None:
    """In float32, compiled, with Paddle's operators in float64."""
    computed = []
    for dtype in ("float32", "float64"):
        tensors = [paddle.to_tensor(array.astype(dtype)) for array in arrays]
        assert native.usable_for_inference(*tensors) == (dtype == "float32")
        results = function(*tensors)
        computed.append([y.numpy() for y in (results if isinstance(results, (list, tuple)) else [results])])
    assert len(computed[0]) == len(computed[1])
    for mine, other in zip(*computed):
        np.testing.assert_allclose(mine, other, rtol=0, atol=TOLERANCE * np.abs(other).max() + 1e-12)


ROWS = [(1, 1), (2, 7), (1, 23), (3, 197)]  # images and places: single rows, uneven tiles, more than one part


@pytest.mark.parametrize("rows", ROWS, ids=str)
@pytest.mark.parametrize("width", [(1, 1), (16, 32), (7, 3), (87, 174), (64, 33), (300, 49)], ids=str)
def test_a_linear_layer_of_any_shape_is_paddles(rows: tuple[int, int], width: tuple[int, int], built: None) -> None:
    inner, columns = width
    assert_agrees(linear, draw((*rows, inner), (inner, columns), (columns,)))
    assert_agrees(linear, draw((*rows, inner), (inner, columns)))


@pytest.mark.parametrize("rows", ROWS, ids=str)
@pytest.mark.parametrize("channels", [7, 16, 21, 87, 348])
def test_a_norm_is_paddles(rows: tuple[int, int], channels: int, built: None) -> None:
    x, weight, bias = draw((*rows, channels), (channels,), (channels,))
    assert_agrees(lambda x, w, b: layer_norm(x, w, b, 1e-5), [3 + x, weight, bias])


# ------------------------------------------------------------------------------------------------ whole networks


def drawn(layer: nn.Layer) -> nn.Layer:
    """The layer in evaluation, every weight and statistic moved away from 0 and 1, where many lie at the start."""
    rng = np.random.default_rng(0)
    for name, tensor in layer.state_dict().items():
        moved = tensor.numpy() + 0.2 * rng.normal(size=tensor.shape)
        tensor.set_value((np.abs(moved) + 0.1 if name.endswith("_variance") else moved).astype("float32"))
    layer.eval()
    return layer


def assert_one_call(network: GroupMamba, image: np.ndarray) -> None:
    """The network computes in one call what its parts do in float64, and each image by itself."""
    calls: list[str] = []
    library = native.library()
    assert library is not None

    def results(x: paddle.Tensor) -> list[np.ndarray]:
        return [network(x).numpy(), *(maps.numpy() for maps in network.forward_stages(x))]

    with paddle.no_grad(), counted(library, calls):
        x = paddle.to_tensor(image.astype("float32"))
        mine = results(x)
        assert calls == ["group_mamba_forward"] * 2
        for i in (1, len(x) - 1):  # with two threads, of those that one takes by itself, and of the rest
            for one, all_of_them in zip(results(x[i : i + 1]), mine):
                np.testing.assert_array_equal(one, all_of_them[i : i + 1])
    network.to(dtype="float64")
    with paddle.no_grad():
        others = results(paddle.to_tensor(image))
    for one, other in zip(mine, others):
        np.testing.assert_allclose(one, other, rtol=0, atol=OF_A_NETWORK * np.abs(other).max())


@contextmanager
def counted(library: object, calls: list[str]) -> Iterator[None]:
    """Notes the names of the compiled operators that are called."""

    class Counting:
        def __getattr__(self, name: str) -> object:
            if name.endswith("_forward"):
                calls.append(name)
            return getattr(library, name)

    native._state.library = Counting()
    try:
        yield
    finally:
        native._state.library = library


@pytest.mark.parametrize(
    ("stem_width", "channels", "depths", "ratios", "in_channels", "distillation"),
    [
        (32, [64, 128], [1, 2], [8, 2.5], 3, True),
        (7, [84, 20, 16], [2, 1, 1], [2.5, 4, 4], 1, False),
        (33, [16], [3], [4], 5, True),
    ],
)
# the inside of the last one's first MLP is too large for a cache: rows pass one by one
@pytest.mark.parametrize("size", [(1, 1), (23, 50), (200, 33), (268, 200)], ids=str)
def test_a_network_in_one_call_is_its_parts(
    stem_width: int,
    channels: list[int],
    depths: list[int],
    ratios: list[float],
    in_channels: int,
    distillation: bool,
    size: tuple[int, int],
    built: None,
) -> None:
    paddle.seed(0)
    network = groupmamba(stem_width, channels, depths, ratios, 7, in_channels, 0.1, distillation)
    (image,) = draw((9 if max(size) < 100 else 3, in_channels, *size))
    assert_one_call(drawn(network), image)


def test_what_one_call_would_pass_by_makes_the_parts_compute(built: None) -> None:
    paddle.seed(0)
    network = drawn(groupmamba(8, [16, 32], [2, 1], [2, 2], 5, drop_path=0.9))
    x = paddle.randn([2, 3, 40, 52])
    seen: list[nn.Layer] = []

    def one_call() -> tuple[bool, bool]:
        with paddle.no_grad():
            call = network.one_call
            return call.stages(network, x) is not None, call.logits(network, x) is not None

    with paddle.no_grad():
        expected = network(x).numpy()
        assert one_call() == (True, True)
        block, stem = network.block1[1], network.patch_embed1.conv
        for layer in (block.attn.mamba_g2.out_norm, block, block.drop_path, network.block1, stem[2], network.norm1):
            hook = layer.register_forward_post_hook(lambda layer, _, __: seen.append(layer))
            if layer is not network.block1:  # a list computes nothing
                np.testing.assert_allclose(network(x).numpy(), expected, rtol=1e-4, atol=1e-4)
                assert set(seen) == {layer}
                seen.clear()
            assert one_call() == (False, False)
            hook.remove()
        block.train()  # its paths are dropped
        assert one_call() == (False, False)
        block.eval()
        network.head = Linear(32, 9)  # as in transfer learning: of another shape, the stages are what they were
        assert one_call() == (True, False)
        network.dist_head = Linear(32, 9)
        assert network(x).shape == [2, 9]
        replaced = block.mlp.fc1
        block.mlp.fc1 = Linear(16, 32)  # another layer of this class and shape in its place is used
        block.eval()
        assert one_call() == (True, False)
        other = network(x).numpy()
        with native.plain():
            np.testing.assert_allclose(network(x).numpy(), other, rtol=1e-4, atol=1e-4)
        block.mlp.fc1 = nn.Linear(16, 32)  # of another class
        block.eval()
        assert one_call() == (False, False)
        block.mlp.fc1 = replaced
        block.mlp.fc1.weight = paddle.create_parameter([16, 32], "float64")
        assert one_call() == (False, False)
        block.mlp.fc1.weight = paddle.create_parameter([16, 32], "float32")
        assert one_call() == (True, False)
        norm = block.norm2
        del block.norm2  # twice: what is missing is not forgotten
        assert one_call() == one_call() == (False, False)
        block.norm2 = norm
        assert one_call() == (True, False)
        network.block1.append(block)
        assert one_call() == (False, False)
        del network.block1[2]
        assert one_call() == (True, False)
        del network.block1[1]
        assert one_call() == (False, False)
        assert network(x).shape == [2, 9]
        for shape in ([2, 4, 40, 52], [2, 3, 40]):
            with pytest.raises((ValueError, IndexError)):
                network(paddle.randn(shape))
    network(x).sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None and not p.stop_gradient] == []


def test_values_that_are_not_finite_stay_so(built: None) -> None:
    x = paddle.randn([1, 9, 16])
    x[0, 4, 3] = float("nan")
    layer, norm = Linear(16, 20), LayerNorm(16)
    with paddle.no_grad():
        for y in (layer(x), norm(x)):
            np.testing.assert_array_equal(np.isnan(y.numpy()).any((0, 2)), np.arange(9) == 4)
        maps = paddle.ones([1, 24 * 24, 4])
        maps[0, 9 * 24 + 9, 1] = float("inf")  # at odd places: in two windows of three each way
        y = drawn(Embedding(4, 16))(maps, 24, 24).numpy()
        assert (~np.isfinite(y)).all(2).sum() == (~np.isfinite(y)).any(2).sum() == 4
        network, x = drawn(groupmamba(8, [16, 32], [1, 1], [2, 2], 5)), paddle.randn([3, 3, 40, 52])
        bias = network.block1[0].mlp.dwconv["dwconv"].bias
        kept, own = bias.numpy(), bias.numpy()
        own[3] = -np.inf
        bias.set_value(own)  # GELU of it is not a number, as in Paddle
        assert np.isnan(network(x).numpy()).all()
        bias.set_value(kept)
        x[1, 2, 17, 30] = float("nan")
        np.testing.assert_array_equal(np.isnan(network(x).numpy()).all(1), [False, True, False])
        np.testing.assert_array_equal(np.isnan(network(x).numpy()).any(1), [False, True, False])


def test_training_and_frozen_layers_get_the_gradients_of_paddle(built: None) -> None:
    x = paddle.randn([2, 9, 16])
    for layer in (Linear(16, 20), LayerNorm(16)):
        results = []
        for compiled in (True, False):
            layer.clear_gradients()
            if compiled:
                layer(x).square().sum().backward()
            else:
                with native.plain():
                    layer(x).square().sum().backward()
            results.append([parameter.grad.numpy() for parameter in layer.parameters()])
        for mine, other in zip(*results):
            np.testing.assert_allclose(mine, other, rtol=0, atol=TOLERANCE * np.abs(other).max())


def test_weights_that_change_after_an_inference_are_used(built: None) -> None:
    layer, x = Linear(4, 4), paddle.ones([1, 4])
    with paddle.no_grad():
        before = layer(x).numpy()
        layer.weight.set_value(layer.weight * 2)
        np.testing.assert_allclose(layer(x).numpy(), before * 2, rtol=1e-5, atol=1e-6)


def test_a_network_gives_the_same_logits_with_and_without_the_compiled_operators(built: None) -> None:
    paddle.seed(0)
    network = create_model("GroupMamba_tiny", num_classes=10)
    network.eval()
    x = paddle.to_tensor(np.random.default_rng(0).normal(size=(2, 3, 64, 96)), "float32")
    with paddle.no_grad():
        mine = network(x).numpy()
        with native.plain():
            other = network(x).numpy()
    np.testing.assert_allclose(mine, other, rtol=0, atol=TOLERANCE * np.abs(other).max())
