"""The compiled operators compute what Paddle's do, install themselves, and are left out where they cannot be built."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from conftest import MARCH, built_for

from ppcls_ext.layers import DepthwiseConv2D, DirectConv2D, Sequential, normalised
from ppcls_ext.layers.normalised import _compiled
from ppcls_ext.ops import cross_scan, depthwise_conv, direct_conv, native, token_conv

TOLERANCE = 1e-5  # of the largest value
INSTRUCTIONS = {"x86-64-v3": {"avx2", "fma", "bmi1", "bmi2", "f16c", "movbe", "abm"}}


def skip_unless_it_runs(march: str) -> None:
    """Skips, and says why, what is built for instructions that this processor has not."""
    with open("/proc/cpuinfo") as lines:
        known = next(line for line in lines if line.startswith("flags")).split()
    missing = INSTRUCTIONS.get(march, set()) - set(known)
    if missing:
        pytest.skip(f"this processor lacks {', '.join(sorted(missing))}, which are part of {march}")


def draw(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    rng = np.random.default_rng([len(shapes), *shapes[0]])
    return [rng.normal(size=shape) for shape in shapes]


def result_and_gradients(function: Callable, arrays: list[np.ndarray], dtype: str) -> list[np.ndarray]:
    tensors = [paddle.to_tensor(array.astype(dtype), stop_gradient=False) for array in arrays]
    y = function(*tensors)
    sent = np.random.default_rng(y.size).normal(1.0, 1.0, size=y.shape)  # not about 0, where sums would cancel out
    y.backward(paddle.to_tensor(sent.astype(dtype)))
    return [y.numpy(), *(tensor.grad.numpy() for tensor in tensors)]


def assert_agrees(function: Callable, arrays: list[np.ndarray]) -> None:
    """In float32, compiled, with Paddle's operators in float64."""
    assert native.library() is not None
    ours = result_and_gradients(function, arrays, "float32")
    for mine, other in zip(ours, result_and_gradients(function, arrays, "float64")):
        np.testing.assert_allclose(mine, other, rtol=0, atol=TOLERANCE * np.abs(other).max() + 1e-12)


MAPS = [(2, 3, 7, 9), (1, 2, 1, 1), (2, 4, 2, 3), (1, 1, 33, 18), (3, 17, 3, 5)]
KERNELS = [(3, 3), (5, 5), (1, 3), (5, 1), (7, 7), (2, 4)]
STRIDES = [(1, 1), (2, 2), (2, 1), (1, 3), (3, 2)]
PADDINGS = [(0, 1, 1, 2), (3, 0, 2, 5), (1, 1, 1, 1), (0, 0, 0, 0)]


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
@pytest.mark.parametrize("stride", STRIDES, ids=str)
def test_a_depthwise_convolution_of_any_shape_is_paddles(
    kernel: tuple[int, int], stride: tuple[int, int], built: None
) -> None:
    for shape in MAPS:
        for multiplier, padding in zip((1, 3, 1, 2), PADDINGS):
            if shape[2] + sum(padding[:2]) < kernel[0] or shape[3] + sum(padding[2:]) < kernel[1]:
                continue
            channels = shape[1] * multiplier
            arrays = draw(shape, (channels, 1, *kernel), (channels,))
            assert_agrees(lambda x, w, b, p=padding: depthwise_conv(x, w, b, stride, p), arrays)


# by rows: many taps, and a large map; by channels: many images and channels, with parts of the batch
@pytest.mark.parametrize(
    ("shape", "kernel"),
    [((2, 3, 40, 30), (12, 11)), ((1, 2, 190, 188), (3, 5)), ((11, 58, 6, 6), (3, 3)), ((5, 24, 12, 13), (9, 9))],
    ids=str,
)
@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (3, 2)], ids=str)
def test_a_depthwise_convolution_is_paddles_by_rows_and_by_channels(
    shape: tuple[int, ...], kernel: tuple[int, int], stride: tuple[int, int], built: None
) -> None:
    for multiplier in (1, 2) if shape[1] < 10 else (1,):
        channels = shape[1] * multiplier
        arrays = draw(shape, (channels, 1, *kernel), (channels,))
        assert_agrees(lambda x, w, b: depthwise_conv(x, w, b, stride, (4, 5, 3, 2)), arrays)


# (N, C, H, W), output channels, groups: tiles of many and of few channels, uneven ones, strips, blocks of images
MIXED = [
    ((2, 8, 7, 9), 8, 2),
    ((1, 3, 1, 1), 5, 1),
    ((1, 3, 60, 75), 20, 1),
    ((5, 16, 14, 14), 32, 2),
    ((3, 21, 5, 3), 51, 3),
    ((1, 6, 120, 61), 3, 3),
]


@pytest.mark.parametrize("kernel", [(3, 3), (7, 7), (1, 1), (1, 3), (2, 4)], ids=str)
@pytest.mark.parametrize("stride", STRIDES, ids=str)
def test_a_convolution_in_groups_or_in_one_of_any_shape_is_paddles(
    kernel: tuple[int, int], stride: tuple[int, int], built: None
) -> None:
    for i, (shape, out_channels, groups) in enumerate(MIXED):
        padding = [*PADDINGS, (3, 3, 3, 3)][(i + kernel[0] + stride[1]) % 5]
        if shape[2] + sum(padding[:2]) < kernel[0] or shape[3] + sum(padding[2:]) < kernel[1]:
            continue
        arrays = draw(shape, (out_channels, shape[1] // groups, *kernel), (out_channels,))
        assert_agrees(lambda x, w, b, p=padding, g=groups: direct_conv(x, w, b, stride, p, g), arrays)


@pytest.mark.parametrize("padding", ["half", "same"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_convolution_layer_is_paddles_whoever_computes_it(padding: str, bias: bool, built: None) -> None:
    for channels, groups in ((24, 2), (130, 1), (260, 2)):  # up to 128 in a group are compiled
        layer = DirectConv2D(channels, 4, 3, 2, padding, groups, bias)
        arrays = draw((2, channels, 8, 11))
        results = []
        for compiled in (True, False):
            layer.clear_gradients()
            with nullcontext() if compiled else native.plain():
                y = result_and_gradients(layer, arrays, "float32")
            results.append([*y, *(p.grad.numpy() for p in layer.parameters())])
        for mine, other in zip(*results):
            np.testing.assert_allclose(mine, other, rtol=0, atol=TOLERANCE * np.abs(other).max())


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (1, 1), (2, 5)], ids=str)
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_same_padding_is_paddles(size: tuple[int, int], kernel: int, stride: int, built: None) -> None:
    layer = DepthwiseConv2D(4, 4, (kernel, kernel), (stride, stride), padding="same")
    x = paddle.randn([2, 4, *size])
    expected = F.conv2d(x, layer.weight, stride=stride, padding="SAME", groups=4).numpy()
    np.testing.assert_allclose(layer(x).numpy(), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


# one place, few and many; blocks of several channels that do and do not fill vectors; more pieces than one, more images
# than are added in float
NORMALISED = [(2, 3, 7, 9), (4, 2, 1, 1), (1, 5, 16, 33), (6, 3, 4, 4), (3, 58, 3, 5), (70, 17, 6, 6), (9, 1100, 1, 1)]
ACTIVATIONS = [None, paddle.nn.ReLU(), paddle.nn.ReLU6(), paddle.nn.Silu(), paddle.nn.GELU()]


def normalised_with_gradients(
    arrays: list[np.ndarray], activation: paddle.nn.Layer | None, dtype: str
) -> list[np.ndarray]:
    """Result, the gradients of all inputs, and the running statistics."""
    weight, bias = 3 * np.random.default_rng(0).normal(size=(2, arrays[0].shape[1]))
    paddle.set_default_dtype(dtype)
    norm = paddle.nn.BatchNorm2D(len(weight), momentum=0.7, epsilon=1e-3)
    paddle.set_default_dtype("float32")
    norm.weight.set_value(weight.astype(dtype))
    norm.bias.set_value(bias.astype(dtype))
    results = result_and_gradients(lambda x, *added: normalised(norm, x, activation, *added), arrays, dtype)
    return results + [norm.weight.grad.numpy(), norm.bias.grad.numpy(), norm._mean.numpy(), norm._variance.numpy()]


@pytest.mark.parametrize("shape", NORMALISED, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda layer: type(layer).__name__)
@pytest.mark.parametrize("with_added", [False, True])
def test_a_batch_norm_with_what_follows_is_paddles_operators(
    shape: tuple[int, ...], activation: paddle.nn.Layer | None, with_added: bool, built: None
) -> None:
    arrays = draw(shape, shape)[: 1 + with_added]
    arrays[0] = 5 + 2 * arrays[0]
    ours, paddles = (normalised_with_gradients(arrays, activation, dtype) for dtype in ("float32", "float64"))
    for mine, other in zip(ours, paddles):
        np.testing.assert_allclose(mine, other, rtol=0, atol=TOLERANCE * np.abs(other).max() + 1e-6)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda layer: type(layer).__name__)
def test_the_gradient_at_the_ends_of_an_activation_is_paddles(activation: paddle.nn.Layer | None, built: None) -> None:
    norm, gradients = paddle.nn.BatchNorm2D(3), []
    norm.bias.set_value(paddle.to_tensor([0.0, 6.0, 3.0]))
    norm.weight.set_value(paddle.zeros([3]))
    for added in ((), (paddle.zeros([2, 3, 2, 2]),)):
        for compiled in (True, False):
            norm.clear_gradients()
            with nullcontext() if compiled else native.plain():
                normalised(norm, paddle.randn([2, 3, 2, 2]), activation, *added).sum().backward()
            gradients.append(norm.bias.grad.numpy())
    for other in gradients[1:]:
        np.testing.assert_allclose(gradients[0], other, rtol=0, atol=1e-5)


def test_a_batch_norm_in_evaluation_frozen_or_with_a_hook_is_paddles(built: None) -> None:
    norm, relu, x = paddle.nn.BatchNorm2D(3), paddle.nn.ReLU(), paddle.randn([2, 3, 5, 5])
    assert _compiled(norm, x, relu, x) == "relu" and _compiled(norm, x, relu, x[:, :, :1]) is None
    assert _compiled(norm, x, paddle.nn.Silu(), x) is None and _compiled(norm, x, paddle.nn.Tanh(), None) is None
    assert _compiled(norm, x, paddle.nn.GELU(approximate=True), None) is None
    assert _compiled(norm, x.astype("float64"), relu, None) is None
    with native.plain():
        assert _compiled(norm, x, relu, None) is None
    for layer in (norm, relu):
        seen = []
        hook = layer.register_forward_post_hook(lambda layer, inputs, y, seen=seen: seen.append(y))
        normalised(norm, x, relu)
        assert len(seen) == 1
        hook.remove()
    norm.eval()
    np.testing.assert_array_equal(normalised(norm, x, relu, x).numpy(), F.relu(norm(x) + x).numpy())
    others = [norm, paddle.nn.BatchNorm2D(3, use_global_stats=True), paddle.nn.BatchNorm2D(5, data_format="NHWC")]
    assert [_compiled(other, x, relu, x) for other in others] == [None] * 3


def test_a_sequence_computes_what_its_layers_do_one_by_one(built: None) -> None:
    layers = [paddle.nn.Conv2D(3, 4, 1), paddle.nn.BatchNorm2D(4), paddle.nn.ReLU6(), paddle.nn.BatchNorm2D(4)]
    ours, theirs, x = Sequential(*layers), paddle.nn.Sequential(*layers), paddle.randn([2, 3, 5, 5])
    relu, added = paddle.nn.ReLU(), paddle.randn([2, 4, 5, 5])
    for _ in range(2):  # in training and in evaluation
        with native.plain():
            plain, followed = theirs(x), relu(theirs(x) + added)
        np.testing.assert_allclose(ours(x).numpy(), plain.numpy(), rtol=0, atol=2e-5)
        np.testing.assert_allclose(ours(x, relu, added).numpy(), followed.numpy(), rtol=0, atol=2e-5)
        ours.eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    with pytest.raises(ValueError, match="BatchNorm2D has an activation of its own, ReLU6"):
        ours[:3](x, relu)


@pytest.mark.parametrize("activation", ["none", "silu", "gelu"])
@pytest.mark.parametrize(
    "size", [(1, 1, 1, 1, 3), (4, 2, 5, 4, 16), (2, 1, 1, 4, 35), (1, 2, 3, 7, 20), (2, 2, 53, 9, 5)], ids=str
)
def test_a_convolution_of_tokens_is_that_of_maps(size: tuple[int, ...], activation: str, built: None) -> None:
    sets, n, height, width, channels = size
    arrays = draw((sets, n, height * width, channels), (sets, channels, 3, 3), (sets, channels))
    assert_agrees(lambda x, w, b: token_conv(x, w, b, height, width, activation), arrays)


@pytest.mark.parametrize("size", [(1, 1, 1, 3), (2, 3, 5, 16), (1, 7, 7, 87), (2, 5, 6, 33), (1, 10, 13, 5)], ids=str)
def test_a_scan_of_maps_in_four_orders_is_that_of_single_rows(size: tuple[int, ...], built: None) -> None:
    n, height, width, channels = size
    shape = (4, n, height * width, channels)
    arrays = draw(shape, (4, channels, channels), (4, channels, 2), (4, channels), (4, channels), (4, channels))
    arrays[1], arrays[4] = arrays[1] / channels, -np.exp(arrays[4])
    arrays[3][0, 0] = 30.0  # far out on softplus

    def scan(u, step_weight, weight, bias, a, d):
        def projected(u):
            flat = u.flatten(1, 2)
            b, c = paddle.split(paddle.matmul(flat, weight), 2, axis=2)
            step = paddle.matmul(flat, step_weight).reshape(u.shape)
            return step, b.reshape([*shape[:3], 1]), c.reshape([*shape[:3], 1])

        return cross_scan(u, projected, bias, a, d, height, width)

    assert_agrees(scan, arrays)


def test_values_that_are_not_finite_stay_so(built: None) -> None:
    x, w, b = (paddle.to_tensor(array.astype(np.float32)) for array in draw((1, 1, 64, 16), (1, 16, 3, 3), (1, 16)))
    x[0, 0, 9, 2] = float("nan")
    for activation in ("none", "silu", "gelu"):
        wrong = np.isnan(token_conv(x, w, b, 8, 8, activation).numpy())
        assert wrong.sum() == 9 and wrong[..., 2].sum() == 9
    maps = paddle.ones([1, 4, 30, 30])
    maps[0, 0, 9, 9] = float("inf")
    assert (~np.isfinite(DirectConv2D(4, 6, 3, groups=2)(maps).numpy())).sum() == 3 * 9


def test_a_view_is_computed_like_its_copy(built: None) -> None:
    x = paddle.randn([2, 8, 9, 7])
    layer = DepthwiseConv2D(8, 8, (3, 3))
    view = x.transpose([0, 1, 3, 2])
    np.testing.assert_array_equal(layer(view).numpy(), layer(paddle.to_tensor(view.numpy())).numpy())


def test_what_is_frozen_gets_no_gradient_and_other_types_are_paddles(built: None) -> None:
    layer = DepthwiseConv2D(8, 8, (3, 3), bias=True)
    layer.weight.stop_gradient = True
    x = paddle.randn([2, 8, 9, 7])
    layer(x).sum().backward()
    assert layer.weight.grad is None and x.grad is None and layer.bias.grad is not None
    assert native.usable(x) and not native.usable(x.astype("float64")) and not native.usable(x[:0])
    with native.plain():
        assert not native.usable(x)
    assert native.usable(x)


# ------------------------------------------------------------------------------------------------ installation

WORK = """
import hashlib, os, sys
import numpy as np, paddle
from ppcls_ext.backbones.groupmamba import GroupMambaLayer, groupmamba
from ppcls_ext.layers import DepthwiseConv2D, DirectConv2D, LayerNorm, Linear, normalised
from ppcls_ext.ops import cross_scan, native, pointwise_conv
native.install()
def digest():
    paddle.seed(0)
    layer = DepthwiseConv2D(58, 58, (5, 5), (2, 2), bias=True)
    x = paddle.randn([5, 58, 29, 31]); x.stop_gradient = False
    layer(x).square().sum().backward()
    u = paddle.randn([4, 2, 49, 24]); u.stop_gradient = False
    project = lambda v: (v * 0.5, v[..., :1], v[..., 1:2])
    y = cross_scan(u, project, u[:, 0, 0], -u[:, 1, 1].abs(), u[:, 0, 1], 7, 7)
    y.square().sum().backward()
    tokens = paddle.randn([2, 900, 64]); tokens.stop_gradient = False
    linear, norm = Linear(64, 96), LayerNorm(96)
    outcome = norm(linear(tokens)); outcome.square().sum().backward()
    parts = [x.grad, layer.weight.grad, layer.bias.grad, y, u.grad, outcome, tokens.grad]
    parts += [w.grad for w in (linear.weight, linear.bias, norm.weight, norm.bias)]
    layer = DepthwiseConv2D(24, 24, (3, 3), bias=True)
    maps = paddle.randn([7, 24, 150, 149]); maps.stop_gradient = False
    y = layer(maps); y.square().sum().backward()
    parts += [y, maps.grad, layer.weight.grad, layer.bias.grad]
    mixing, tokens = GroupMambaLayer(64), paddle.randn([3, 900, 64])
    tokens.stop_gradient = False
    y = mixing(tokens, 30, 30); y.square().sum().backward()
    parts += [y, tokens.grad, *(w.grad for w in mixing.parameters())]
    for channels, groups in ((48, 1), (48, 3), (32, 8)):
        layer = DirectConv2D(channels, channels, 3, groups=groups, bias=True)
        maps = paddle.randn([3, channels, 40, 37]); maps.stop_gradient = False
        y = layer(maps); y.square().sum().backward()
        parts += [y, maps.grad, layer.weight.grad, layer.bias.grad]
        norm, y = paddle.nn.BatchNorm2D(channels), maps[:, :, :groups, :7].detach()
        y.stop_gradient = False
        normed = normalised(norm, y, paddle.nn.Silu()); normed.square().sum().backward()
        parts += [normed, y.grad, norm.weight.grad, norm.bias.grad, norm._mean, norm._variance]
    for shape, out in (((64, 70, 3, 3), 200), ((3, 30, 33, 40), 90)):
        maps, weight = paddle.randn(shape), paddle.randn([out, shape[1], 1, 1])
        maps.stop_gradient = weight.stop_gradient = False
        y = pointwise_conv(maps, weight); y.square().sum().backward()
        parts += [y, maps.grad, weight.grad]
    network = groupmamba(20, [64, 84], [2, 1], [8, 4])
    network.eval()
    with paddle.no_grad():
        for shape in ([3, 3, 180, 200], [13, 3, 23, 50]):
            x = paddle.randn(shape)
            parts += [network(x), *network.forward_stages(x)]
    return hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()
print(native.status())
print(digest())
"""


def run_program(code: str, cache: Path | None = None, **environment: str) -> list[str]:
    variables = {**os.environ, **environment, **({native.CACHE: str(cache)} if cache else {})}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=variables, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


# For vectors of other widths, too: which products a compiler fuses with sums depends on what it compiles for.
@pytest.mark.parametrize("march", ["native", "x86-64-v3", pytest.param("x86-64", marks=pytest.mark.slow)])
def test_bits_depend_neither_on_the_run_nor_on_threads_nor_on_forking_a_loaders_worker(built: None, march: str) -> None:
    skip_unless_it_runs(march)
    # The worker does what the loader's do, which compute without Paddle: its locks may be held when the fork comes.
    forked = """
child = os.fork()
if child == 0:
    os._exit(0 if np.ones(1000).sum() == 1000 else 1)
assert os.waitpid(child, 0)[1] == 0
print(digest())
"""
    work = f"from ppcls_ext.ops import native; native.FLAGS = {built_for(march)}\n" + WORK
    runs = [run_program(work, OMP_NUM_THREADS="1"), run_program(work + forked, OMP_NUM_THREADS="2")]
    digests = {line for run in runs for line in run[1:]}
    assert all(run[0].startswith("compiled operators: /") for run in runs), runs
    assert len(runs[1]) == 3 and len(digests) == 1, runs


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("march", ["x86-64-v3", "x86-64"])
def test_vectors_of_other_widths_pass_the_same_tests(built: None, march: str, repository: Path) -> None:
    skip_unless_it_runs(march)
    files = sorted(str(path) for path in (repository / "tests").glob("test_native*.py"))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "not slow", *files],
        capture_output=True,
        text=True,
        env={**os.environ, MARCH: march},
        cwd=repository,
    )
    assert done.returncode == 0, done.stdout[-5000:]


def test_processes_that_come_at_once_build_once_and_all_load(built: None, tmp_path: Path) -> None:
    code = "from ppcls_ext.ops import native; assert native.install(), native.status(); print(native.status())"
    environment = {**os.environ, native.CACHE: str(tmp_path / "cache")}
    started = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=120)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert sum(line.strip().endswith("(built now)") for line in said) == 1, said
    assert sorted(path.suffix for path in (tmp_path / "cache").iterdir()) == ["", ".so"]  # the lock, nothing half-done


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"CXX": "false"}, "/false failed with status 1"),
        ({"CXX": "no-such-compiler"}, "no compiler: no-such-compiler is not in the PATH"),
        ({native.SWITCH: "0"}, f"{native.SWITCH}=0"),
    ],
)
def test_without_a_compiler_paddles_operators_are_used_and_the_reason_is_said(
    environment: dict[str, str], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "_state", native._State())
    monkeypatch.setenv(native.CACHE, str(tmp_path))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert not native.install() and not native.install()
    assert native.status().startswith("compiled operators: left out, Paddle's own are used: ")
    assert reason in native.status()
    assert not list(tmp_path.glob("*.so"))
    layer, x = DepthwiseConv2D(4, 4, (3, 3)), paddle.randn([1, 4, 9, 9])
    np.testing.assert_allclose(layer(x).numpy(), F.conv2d(x, layer.weight, padding=1, groups=4).numpy(), rtol=1e-6)


def test_a_file_in_the_cache_that_is_no_library_is_told_and_left_out(
    built: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(native.CACHE, str(tmp_path))
    monkeypatch.setattr(native, "_build", lambda *arguments: arguments[-1].write_bytes(b"not a library"))
    monkeypatch.setattr(native, "_state", native._State())
    assert not native.install()
    assert "left out" in native.status() and str(tmp_path) in native.status()
