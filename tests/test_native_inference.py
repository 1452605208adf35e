"""The compiled operators of inference compute what Paddle's do, and leave training and graphs to these."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import paddle
import pytest
from paddle import nn

from ppcls_ext import create_model
from ppcls_ext.backbones.groupmamba import Blocks, ClassBlock, Embedding
from ppcls_ext.layers import LayerNorm, Linear
from ppcls_ext.ops import layer_norm, linear, native

TOLERANCE = 1e-5  # of the largest value


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


# ------------------------------------------------------------------------------------------------ whole blocks


def drawn(layer: nn.Layer) -> nn.Layer:
    """The layer in evaluation, every weight and statistic moved away from 0 and 1, where many lie at the start."""
    rng = np.random.default_rng(0)
    for name, tensor in layer.state_dict().items():
        moved = tensor.numpy() + 0.2 * rng.normal(size=tensor.shape)
        tensor.set_value((np.abs(moved) + 0.1 if name.endswith("_variance") else moved).astype("float32"))
    layer.eval()
    return layer


def assert_one_call(layer: nn.Layer, image: np.ndarray, *size: int) -> None:
    """The layer computes in one call what its parts do in float64, and each image by itself."""
    calls = []
    library = native.library()
    assert library is not None
    with paddle.no_grad(), counted(library, calls):
        x = paddle.to_tensor(image.astype("float32"))
        mine = layer(x, *size).numpy()
        assert len(calls) == 1, calls
        np.testing.assert_array_equal(layer(x[1:2], *size).numpy(), mine[1:2])
    layer.to(dtype="float64")
    with paddle.no_grad():
        other = layer(paddle.to_tensor(image), *size).numpy()
    np.testing.assert_allclose(mine, other, rtol=0, atol=TOLERANCE * np.abs(other).max())


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


@pytest.mark.parametrize("channels", [16, 84, 128])
# the inside of the last one's MLP is too large for a cache: rows pass one by one
@pytest.mark.parametrize("size", [(1, 1), (3, 7), (9, 2), (16, 57), (67, 50)], ids=str)
def test_the_blocks_of_a_stage_in_one_call_are_their_parts(channels: int, size: tuple[int, int], built: None) -> None:
    paddle.seed(0)
    (x,) = draw((3, size[0] * size[1], channels))
    assert_one_call(drawn(Blocks(channels, 2.5, [0.0, 0.1], checkpointing=True)), x, *size)
    if size == (3, 7):
        assert_one_call(drawn(ClassBlock(channels, 4)), x)


@pytest.mark.parametrize(
    ("channels", "stem_width", "out_channels"), [(3, 32, 64), (1, 7, 21), (5, 33, 16), (16, None, 40), (33, None, 9)]
)
@pytest.mark.parametrize("size", [(1, 1), (4, 9), (23, 50), (64, 5)], ids=str)
def test_the_way_into_a_stage_in_one_call_is_its_parts(
    channels: int, stem_width: int | None, out_channels: int, size: tuple[int, int], built: None
) -> None:
    paddle.seed(0)
    places = (size[0] * size[1], channels) if stem_width is None else (channels, *size)
    (x,) = draw((3, *places))
    assert_one_call(drawn(Embedding(channels, out_channels, stem_width)), x, *size)


def test_what_blocks_in_one_call_would_pass_by_makes_them_compute_by_parts(built: None) -> None:
    blocks, x = drawn(Blocks(16, 2, [0.0, 0.5], checkpointing=False)), paddle.randn([2, 12, 16])
    seen: list[nn.Layer] = []
    with paddle.no_grad():
        expected = blocks(x, 3, 4).numpy()
        for layer in (blocks[1].attn.mamba_g2.out_norm, blocks[0]):
            hook = layer.register_forward_post_hook(lambda layer, _, __: seen.append(layer))
            np.testing.assert_allclose(blocks(x, 3, 4).numpy(), expected, rtol=1e-4, atol=1e-4)
            hook.remove()
            assert seen.pop() is layer and not seen
        blocks[1].train()  # paths are dropped
        dropped = blocks(x, 3, 4).numpy()
        assert not np.allclose(dropped, expected, atol=1e-2)
        blocks.eval()
        blocks[1].mlp.fc1 = Linear(16, 32)  # another layer in its place
        assert not np.allclose(blocks(x, 3, 4).numpy(), expected, atol=1e-2)
        last = blocks[1]
        del blocks[1]
        shorter = blocks(x, 3, 4)
        np.testing.assert_allclose(
            last(shorter, 3, 4).numpy(), blocks.append(last)(x, 3, 4).numpy(), rtol=1e-4, atol=1e-4
        )
    blocks(x, 3, 4).sum().backward()
    assert all(parameter.grad is not None for parameter in blocks.parameters())


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
