"""Weights: read without running them, compared name by name, refused with both sides named."""

from __future__ import annotations

import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from networks import arrays_of, small_network
from paddle import nn
from safetensors.numpy import save_file

from ppcls_ext import create_model, load_weights
from ppcls_ext.checkpoint import save_tensors
from ppcls_ext.errors import Refused
from ppcls_ext.pickles.arrays import unpickle_arrays
from ppcls_ext.weights import find_weights, graph_of, read_metadata, read_weights, state_arrays

STORED = Path(__file__).parent / "weights"


def micronet(num_classes: int = 5) -> nn.Layer:
    return create_model("MicroNet_M0", num_classes=num_classes)


def assert_same(network: nn.Layer, arrays: dict[str, np.ndarray]) -> None:
    for name, tensor in network.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), arrays[name], err_msg=name)


def in_pytorch_form(arrays: dict[str, np.ndarray], network: nn.Layer) -> dict[str, np.ndarray]:
    """What a PyTorch twin of the network would have saved."""
    linear = {f"{name}.weight" for name, layer in network.named_sublayers() if isinstance(layer, nn.Linear)}
    tensors = {}
    for name, array in arrays.items():
        renamed = name.replace("._mean", ".running_mean").replace("._variance", ".running_var")
        tensors[renamed] = np.ascontiguousarray(array.T) if name in linear else array
        if renamed.endswith("running_mean"):
            tensors[renamed.replace("running_mean", "num_batches_tracked")] = np.zeros((), np.int64)
    return tensors


# ------------------------------------------------------------------------------------------------ what is read


def test_a_file_of_paddle_and_one_of_ours_load_whole(tmp_path: Path) -> None:
    source = micronet()
    paddle.save(source.state_dict(), str(tmp_path / "paddle.pdparams"))
    save_tensors(tmp_path / "ours.pdparams", arrays_of(source), {"arch": "MicroNet_M0", "class_names": ["a", "ä"]})
    for path in (tmp_path / "paddle.pdparams", tmp_path / "ours.pdparams", tmp_path / "ours", str(tmp_path / "paddle")):
        network = micronet()
        report = load_weights(network, path)
        assert report.summary() == f"loaded 192 of 192 tensors from {find_weights(path)}"
        assert_same(network, arrays_of(source))
    assert read_metadata(tmp_path / "paddle") == {}
    assert read_metadata(tmp_path / "ours")["class_names"] == ["a", "ä"]


def test_paddle_itself_reads_our_files(tmp_path: Path) -> None:
    source = small_network()
    save_tensors(tmp_path / "ours.pdparams", arrays_of(source), {"arch": "small"})
    loaded = paddle.load(str(tmp_path / "ours.pdparams"))
    network = small_network()
    network.set_state_dict(loaded)
    assert_same(network, arrays_of(source))


@pytest.mark.parametrize("version", ["2.6.2", "3.3.1"])
def test_files_of_either_paddle_load_in_either(version: str) -> None:
    network = small_network()
    load_weights(network, STORED / f"paddle_{version}.pdparams")
    for i, (name, tensor) in enumerate(network.state_dict().items()):
        expected = np.arange(tensor.size, dtype=np.float32).reshape(tensor.shape) + 10 * i
        np.testing.assert_array_equal(tensor.numpy(), expected, err_msg=name)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_pickle_protocol_and_both_numpys_are_read(protocol: int) -> None:
    content = {
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "empty": np.zeros((0, 3), np.float32),
        "big endian": np.array([1, 2], ">i4"),
        "flags": np.array([True, False]),
        "half": np.array(1.5, np.float16),
        "scalar": np.float32(2.5),
        "nested": {"list": [1, 2.5, "x", None], "tuple": (np.ones(2),)},
    }
    data = pickle.dumps(content, protocol)
    read, length = unpickle_arrays(data + b"rest", "test")
    assert length == len(data)
    for name in ("fortran", "empty", "big endian", "flags", "half", "scalar"):
        np.testing.assert_array_equal(read[name], content[name])
        assert read[name].dtype == content[name].dtype
    assert read["nested"]["list"] == content["nested"]["list"]
    np.testing.assert_array_equal(read["nested"]["tuple"][0], np.ones(2))
    if protocol == 2:  # names stand there without a length, so that the other numpy's can be put in
        here, there = (b"numpy._core", b"numpy.core") if b"numpy._core" in data else (b"numpy.core", b"numpy._core")
        np.testing.assert_array_equal(
            unpickle_arrays(data.replace(here, there), "test")[0]["fortran"], content["fortran"]
        )


def test_the_references_names_and_layouts_are_converted(tmp_path: Path) -> None:
    source = micronet()
    for metadata in (None, {"format": "pt"}):
        save_file(in_pytorch_form(arrays_of(source), source), tmp_path / "reference.safetensors", metadata)
        network = micronet()
        report = load_weights(network, tmp_path / "reference.safetensors")
        assert (report.loaded, report.total, report.unexpected) == (192, 192, ())
        assert_same(network, arrays_of(source))
    assert read_metadata(tmp_path / "reference.safetensors") == {"format": "pt"}


def test_data_parallel_prefixes_of_pytorch_are_dropped(tmp_path: Path) -> None:
    source = small_network()
    tensors = in_pytorch_form(arrays_of(source), source)
    save_file({f"module.{name}": array for name, array in tensors.items()}, tmp_path / "x.safetensors")
    network = small_network()
    load_weights(network, tmp_path / "x.safetensors")
    assert_same(network, arrays_of(source))


def test_linear_layers_alone_tell_their_convention_by_their_shapes(tmp_path: Path) -> None:
    source = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    arrays = arrays_of(source)
    save_file(arrays, tmp_path / "paddle.safetensors")
    save_file(in_pytorch_form(arrays, source), tmp_path / "pytorch.safetensors")
    for name in ("paddle", "pytorch"):
        network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
        load_weights(network, tmp_path / f"{name}.safetensors")
        assert_same(network, arrays)


def test_half_precision_becomes_the_networks_precision(tmp_path: Path) -> None:
    source = small_network()
    rounded = {name: array.astype(np.float16) for name, array in arrays_of(source).items()}
    save_file(rounded, tmp_path / "half.safetensors")
    network = small_network()
    load_weights(network, tmp_path / "half.safetensors")
    assert_same(network, {name: array.astype(np.float32) for name, array in rounded.items()})


def test_bfloat16_is_read_from_both_kinds_of_files(tmp_path: Path) -> None:
    values = {"weight": paddle.to_tensor([[1.0, -2.5], [0.15625, 3e38]])}
    paddle.save({name: value.astype("bfloat16") for name, value in values.items()}, str(tmp_path / "x.pdparams"))
    bits = (values["weight"].numpy().view(np.uint32) >> 16).astype(np.uint16)
    header = b'{"weight":{"dtype":"BF16","shape":[2,2],"data_offsets":[0,8]}}'
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bits.tobytes())
    for suffix in ("pdparams", "safetensors"):
        read = read_weights(tmp_path / f"x.{suffix}").tensors["weight"]
        assert read.dtype == np.float32
        np.testing.assert_allclose(read, values["weight"].numpy(), rtol=2**-7)


# ------------------------------------------------------------------------------------------------ what does not fit


def test_what_does_not_fit_is_named_on_both_sides_and_changes_nothing(tmp_path: Path) -> None:
    tensors = {
        "0.weight": np.ones((2, 4), np.float32),
        "0.bais": np.ones(3, np.float32),
        "1.weight": np.ones(3, np.int64),
    }
    save_tensors(tmp_path / "x.pdparams", tensors, {})
    network = small_network()
    before = arrays_of(network)
    with pytest.raises(Refused) as refusal:
        load_weights(network, tmp_path / "x")
    text = str(refusal.value)
    assert "x.pdparams does not fit Sequential: 0 of 6 tensors fit" in text
    for line in (
        "not in the file: 0.bias",
        "not in the file: 1._variance",
        "not in the network: 0.bais",
        "0.weight: (2, 4) in the file, (2, 3) in the network",
        "1.weight: int64 in the file, float32 in the network",
    ):
        assert f"  - {line}\n" in text + "\n"
    assert_same(network, before)


def test_weights_of_another_architecture_are_refused_even_when_not_strict(tmp_path: Path) -> None:
    save_tensors(tmp_path / "m3.pdparams", arrays_of(create_model("MicroNet_M3", num_classes=5)), {})
    for strict in (True, False):
        with pytest.raises(Refused, match=r"m3\.pdparams does not fit MicroNet: .*of 192 tensors"):
            load_weights(micronet(), tmp_path / "m3", strict=strict)


def test_a_head_of_another_class_count_is_replaced_and_said_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = micronet(1000)
    save_tensors(tmp_path / "x.pdparams", arrays_of(source), {})
    with pytest.raises(
        Refused, match=r"Only the classifier differs \(here of 5 classes\); training takes the rest"
    ) as refusal:
        load_weights(micronet(5), tmp_path / "x", replace_head=False)
    assert "classifier.2.linear.0.bias: (1000,) in the file, (5,) in the network" in str(refusal.value)
    for options in ({}, {"strict": False}):
        network = micronet(5)
        fresh = arrays_of(network)
        report = load_weights(network, tmp_path / "x", **options)
        assert report.loaded == 186 and len(report.fresh_head) == 6
        assert (
            "classifier replaced (classifier.2.linear.0.weight: (640, 1000) in the file, (640, 5) in the network): "
            "its 6 tensors keep their initial values" in report.summary()
        )
        assert capsys.readouterr().out == report.summary() + "\n"
        kept = {name: fresh[name] for name in report.fresh_head}
        assert_same(network, arrays_of(source) | kept)


def test_a_file_without_a_head_fits_when_the_head_may_be_fresh(tmp_path: Path) -> None:
    arrays = {name: array for name, array in arrays_of(micronet()).items() if not name.startswith("classifier.2.")}
    save_tensors(tmp_path / "x.pdparams", arrays, {})
    with pytest.raises(Refused, match="not in the file: classifier.2.linear.0.weight"):
        load_weights(micronet(), tmp_path / "x", replace_head=False)
    assert len(load_weights(micronet(), tmp_path / "x").fresh_head) == 6


def test_a_replaced_head_excuses_nothing_else(tmp_path: Path) -> None:
    arrays = arrays_of(micronet(1000))
    arrays.pop("features.0.stem.0.conv.0.weight")
    save_tensors(tmp_path / "x.pdparams", arrays | {"more": np.ones(1, np.float32)}, {})
    with pytest.raises(Refused) as refusal:
        load_weights(micronet(5), tmp_path / "x", replace_head=True)
    assert str(refusal.value).splitlines()[1:] == [
        "  - not in the file: features.0.stem.0.conv.0.weight",
        "  - not in the network: more",
    ]


def test_most_is_enough_when_not_strict_and_the_rest_is_told(tmp_path: Path) -> None:
    source = micronet()
    arrays = {name: array for name, array in arrays_of(source).items() if not name.startswith("features.7.")}
    save_tensors(tmp_path / "x.pdparams", arrays | {"more": np.ones(1, np.float32)}, {})
    network = micronet()
    report = load_weights(network, tmp_path / "x", strict=False)
    assert report.loaded + len(report.missing) == report.total == 192
    first, second, third = report.summary(limit=2).splitlines()
    assert first.startswith(f"loaded {report.loaded} of 192 tensors from ")
    assert second.startswith(
        "not in the file (9): features.7.layers.0.conv.0.weight, features.7.layers.0.conv.1.weight, "
    )
    assert second.endswith("and 7 more")
    assert third == "not in the network (1): more"


# ------------------------------------------------------------------------------------------------ what cannot be read


def test_a_missing_file_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"No weights at .*best_model\.pdparams. There are none in"):
        find_weights(tmp_path / "best_model")
    save_tensors(tmp_path / "best_model.pdparams", {}, {})
    with pytest.raises(Refused, match=r"No weights at .*best_modle\.pdparams. Did you mean 'best_model.pdparams'\?"):
        find_weights(tmp_path / "best_modle")
    with pytest.raises(Refused, match="is a folder; name the weights in it, for example .*/best_model"):
        find_weights(tmp_path)


def test_a_name_with_dots_may_stand_without_its_suffix(tmp_path: Path) -> None:
    save_tensors(tmp_path / "model_v1.2.pdparams", {}, {})
    assert find_weights(tmp_path / "model_v1.2") == tmp_path / "model_v1.2.pdparams"


@pytest.mark.parametrize(
    ("name", "cure"), [("x.h5", r"Readable: \.pdparams, \.safetensors, \.pth"), ("x.onnx", r"Readable: \.pdparams")]
)
def test_a_file_of_another_kind_is_refused_with_a_cure(tmp_path: Path, name: str, cure: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(Refused, match=rf"{name} cannot be read as weights: its suffix is .*{cure}"):
        read_weights(tmp_path / name)


def test_the_stored_files_are_what_they_claim() -> None:
    for version, numpy_module in (("2.6.2", "numpy.core.multiarray"), ("3.3.1", "numpy._core.multiarray")):
        data = (STORED / f"paddle_{version}.pdparams").read_bytes()
        assert numpy_module in [argument for _, argument, _ in pickletools.genops(data)]


def test_weights_of_a_run_that_diverged_are_refused_or_told(tmp_path: Path) -> None:
    arrays = arrays_of(small_network())
    arrays["0.weight"] = np.full_like(arrays["0.weight"], np.nan)
    save_file(arrays, tmp_path / "diverged.safetensors")
    network = small_network()
    before = arrays_of(network)
    with pytest.raises(
        Refused, match=r"1 tensors hold NaN or infinite numbers, 0\.weight first: .* earlier checkpoint"
    ):
        load_weights(network, tmp_path / "diverged.safetensors")
    assert_same(network, before)
    told = load_weights(network, tmp_path / "diverged.safetensors", strict=False).summary()
    assert "hold NaN or infinite numbers" in told


@pytest.mark.parametrize(
    "name, arguments, other",
    [
        ("ShuffleNetV2", {"widths": [8, 16, 32, 64, 64]}, {"activation": "swish"}),
        ("VisionTransformer", {"depth": 1, "width": 24, "num_heads": 3}, {"num_heads": 2}),
        (
            "EfficientNet",
            {
                "widths": [8, 8, 16, 32],
                "depths": [1, 1],
                "kernels": [3, 3],
                "strides": [1, 2],
                "expansions": [1, 4],
                "activation": "swish",
            },
            {"activation": "relu6"},
        ),
    ],
)
def test_weights_of_a_choice_that_no_tensor_shows_are_refused(
    tmp_path: Path, name: str, arguments: dict[str, Any], other: dict[str, Any]
) -> None:
    network = create_model(name, num_classes=3, **arguments)
    save_tensors(tmp_path / "x.pdparams", state_arrays(network), {"graph": graph_of(network)})
    load_weights(create_model(name, num_classes=3, **arguments), tmp_path / "x.pdparams")
    [(choice, value)] = other.items()
    stored = graph_of(network)[choice]
    with pytest.raises(
        Refused, match=rf"was trained with {choice}={stored!r} \(it says so\), the network has {choice}={value!r}"
    ):
        load_weights(create_model(name, num_classes=3, **{**arguments, **other}), tmp_path / "x.pdparams")
    save_tensors(tmp_path / "older.pdparams", state_arrays(network), {"graph": {}})  # says nothing of it
    load_weights(create_model(name, num_classes=3, **{**arguments, **other}), tmp_path / "older.pdparams")
