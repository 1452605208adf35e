"""PyTorch's files are read without PyTorch, and nothing in them is called."""

from __future__ import annotations

import io
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paddle import nn
from torch_writer import ORDERED, Call, Name, Outside, Storages, parameter, pickled, stream_file, tensor, view, zip_file

from ppcls_ext import load_weights
from ppcls_ext.errors import Refused
from ppcls_ext.weights import read_weights

STORED = Path(__file__).parent / "weights"
FORMATS = {"zip": zip_file, "stream": stream_file}
either_format = pytest.mark.parametrize("write", FORMATS.values(), ids=FORMATS)


def read(data: bytes, folder: Path, part: str | None = None) -> dict[str, np.ndarray]:
    path = folder / "x.pth"
    path.write_bytes(data)
    return read_weights(path, part).tensors


def refused(data: bytes, folder: Path) -> str:
    with pytest.raises(Refused) as refusal:
        read(data, folder)
    assert "x.pth" in str(refusal.value)
    return str(refusal.value)


# ------------------------------------------------------------------------------------------------ what is read

PLAIN = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
# What the stored files hold: made by PyTorch 2.13 with views of one storage, every number type and a parameter.
EXPECTED = {
    "plain": PLAIN,
    "transposed": PLAIN.transpose(2, 0, 1),
    "window": PLAIN[1, 1:, ::2],
    "shared": PLAIN[0],
    "half": np.array([1.5, -2.0], np.float16),
    "double": np.array([1e300]),
    "counter": np.array(7),
    "int32": np.array([-5], np.int32),
    "int16": np.array([-5], np.int16),
    "int8": np.array([-5], np.int8),
    "uint8": np.array([250], np.uint8),
    "bool": np.array([True, False]),
    "empty": np.zeros((0, 3), np.float32),
    "parameter": np.array([[1, 2], [3, 4]], np.float32),
}


@pytest.mark.parametrize("name", ["torch_zip.pth", "torch_stream.pth"])
def test_what_pytorch_wrote_is_read(name: str) -> None:
    tensors = read_weights(STORED / name).tensors
    halves = tensors.pop("bfloat16")
    assert halves.dtype == np.float32
    np.testing.assert_allclose(halves, [[1.0, 0.15625], [-2.5, 3e38]], rtol=2**-7)
    assert tensors.keys() == EXPECTED.keys()
    for key, array in EXPECTED.items():
        np.testing.assert_array_equal(tensors[key], array, err_msg=key)
        assert tensors[key].dtype == array.dtype, key


def every_kind() -> tuple[dict[str, Any], Storages]:
    storages = Storages()
    plain = storages.add(PLAIN)
    bits = (np.array([1.0, -2.5, 0.15625, 3e38], np.float32).view(np.uint32) + 0x8000 >> 16).astype(np.uint16)
    content = {
        "plain": view(plain, (2, 3, 4), (12, 4, 1)),
        "transposed": view(plain, (4, 2, 3), (1, 12, 4)),
        "window": view(plain, (2, 2), (4, 2), 16),
        "shared": view(plain, (3, 4), (4, 1)),
        "bfloat16": view(storages.add(bits, "BFloat16Storage"), (2, 2), (1, 2)),
        "parameter": parameter(tensor(storages, EXPECTED["parameter"])),
    }
    for key, array in EXPECTED.items():
        if key not in content:
            content[key] = tensor(storages, array)
    return content, storages


@either_format
def test_the_tests_own_writer_agrees_with_pytorch(write: Any, tmp_path: Path) -> None:
    ours = read(write(*every_kind()), tmp_path)
    theirs = read_weights(STORED / "torch_zip.pth").tensors
    assert ours.keys() == theirs.keys()
    for key, array in theirs.items():
        np.testing.assert_array_equal(ours[key], array, err_msg=key)
        assert ours[key].dtype == array.dtype, key


def test_the_other_byte_order_is_read(tmp_path: Path) -> None:
    storages = Storages()
    content = {"x": tensor(storages, np.array([1.5, -2.0], np.float32))}
    storages.held["0"] = ("FloatStorage", np.array([1.5, -2.0], ">f4").tobytes())
    np.testing.assert_array_equal(read(zip_file(content, storages, "big"), tmp_path)["x"], [1.5, -2.0])
    assert "was not written on a little-endian machine" in refused(stream_file(content, storages, False), tmp_path)
    assert "its byte order is middle" in refused(zip_file(content, storages, "middle"), tmp_path)


def test_a_storage_that_is_a_view_of_another_is_read(tmp_path: Path) -> None:
    storages = Storages()
    whole = storages.add(np.arange(6, dtype=np.float32))
    part = Outside((*whole.identity, ("part", 2, 3)))
    data = stream_file({"x": view(part, (3,), (1,))}, storages)
    np.testing.assert_array_equal(read(data, tmp_path)["x"], [2, 3, 4])


@pytest.mark.parametrize("name", ["x.pth", "x.pt", "x.bin", "x.ckpt", "model_best.pth.tar"])
def test_every_suffix_of_pytorch_is_known(name: str, tmp_path: Path) -> None:
    content, storages = every_kind()
    (tmp_path / name).write_bytes(zip_file(content, storages))
    assert len(read_weights(tmp_path / name).tensors) == 15


# ------------------------------------------------------------------------------------------------ checkpoints


def linear(value: float) -> tuple[dict[str, Any], Storages]:
    storages = Storages()
    return {"weight": tensor(storages, np.full((3, 2), value, np.float32))}, storages


@either_format
@pytest.mark.parametrize("name", ["state_dict", "model", "model_state_dict", "net", "ema", "model_ema", "params"])
def test_a_network_within_a_checkpoint_is_found(write: Any, name: str, tmp_path: Path) -> None:
    content, storages = linear(1)
    rest = {"epoch": 3, "best_acc1": tensor(storages, np.array(0.5)), "args": {"lr": 0.1}, "optimizer": {"state": {}}}
    schedule = {"milestones": Call(Name("collections", "Counter"), ({3: 1},))}
    data = write({**rest, name: content, "lr_scheduler": schedule}, storages)
    assert list(read(data, tmp_path)) == ["weight"]
    assert list(read(write({**rest, name: {"state_dict": content}}, storages), tmp_path)) == ["weight"]


def test_of_several_networks_the_average_is_taken_and_said_and_another_can_be_chosen(tmp_path: Path) -> None:
    path = STORED / "torch_checkpoint.pth.tar"
    weights = read_weights(path)
    assert "module.0.weight" in weights.tensors and "n_averaged" in weights.tensors
    assert weights.notes == ("it holds several networks: 'model_ema' was taken; part='model' takes another",)
    assert "0.weight" in read_weights(path, "model").tensors
    with pytest.raises(Refused, match=r"torch_checkpoint\.pth\.tar has no part 'modle'\. Did you mean 'model'\?"):
        read_weights(path, "modle")


def test_a_checkpoint_of_pytorch_loads_into_a_network() -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1D(3))
    report = load_weights(network, STORED / "torch_checkpoint.pth.tar")
    assert (report.loaded, report.total) == (6, 6)
    expected = np.arange(6, dtype=np.float32).reshape(3, 2).T
    np.testing.assert_array_equal(network[0].weight.numpy(), expected)
    np.testing.assert_array_equal(network[1]._variance.numpy(), [50, 51, 52])


def test_a_dictionary_that_is_no_network_offers_its_parts(tmp_path: Path) -> None:
    content, storages = linear(1)
    data = zip_file({"generator": content, "critic": content}, storages)
    assert "expected a tensor under generator, got dict. Choose a part: generator, critic." in refused(data, tmp_path)
    assert list(read(data, tmp_path, "critic")) == ["weight"]
    assert "holds no tensors by name" in refused(zip_file({"epoch": 3}, storages), tmp_path)
    assert "holds one tensor, not tensors by name" in refused(zip_file(content["weight"], storages), tmp_path)
    assert "holds one list, not tensors by name" in refused(zip_file([content["weight"]], storages), tmp_path)


# ------------------------------------------------------------------------------------------------ what is refused

CURE = r"Save its tensors alone, where it was made: torch.save(model.state_dict(), path)."


@either_format
@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("argparse", "Namespace"), ("torchvision.models.resnet", "ResNet"), ("posix", "system"), ("builtins", "eval"),
        ("torch._utils", "_rebuild_qtensor"), ("torch", "load"), ("torch", "ComplexFloatStorage"), ("numpy", "load"),
    ],
)  # fmt: skip
def test_a_foreign_name_is_refused_and_not_called(write: Any, module: str, name: str, tmp_path: Path) -> None:
    marker = tmp_path / "it ran"
    call = Call(Name(module, name), (f"touch '{marker}'",))
    said = refused(write({"state_dict": {}, "args": call}, Storages()), tmp_path)
    assert f"it names {module}.{name}, which is neither a tensor nor a container. {CURE}" in said
    assert not marker.exists()


def test_a_whole_module_is_refused_with_the_cure(tmp_path: Path) -> None:
    module = Outside(("module", ORDERED, "model.py", "class Model: ..."))
    said = refused(stream_file(pickled(module), Storages()), tmp_path)
    assert f"it is a whole pickled module with its source code. {CURE}" in said


def test_older_and_other_archives_are_named(tmp_path: Path) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("sys_info"))
    assert "it is a tar archive, PyTorch's format of before 2017" in refused(data.getvalue(), tmp_path)
    assert "it is compressed with gzip; unpack it first" in refused(b"\x1f\x8b\x08" + bytes(20), tmp_path)
    content, storages = every_kind()
    script = zip_file(content, storages)
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as program:
        program.writestr("script/constants.pkl", pickled(()))
        program.writestr("script/data.pkl", pickled(()))
    assert "it is a TorchScript program" in refused((tmp_path / "script.pt").read_bytes(), tmp_path)
    assert "neither a zip archive nor begins with PyTorch's magic number" in refused(pickle.dumps({}), tmp_path)
    assert "with 0 files data.pkl" in refused(script.replace(b"data.pkl", b"data.pkX"), tmp_path)


def test_a_compressed_archive_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickled({}))
        archive.writestr("archive/data/0", bytes(10_000_000))
    assert "in it is compressed or encrypted" in refused(data.getvalue(), tmp_path)


def storage_of(length: int, kind: str = "FloatStorage") -> Outside:
    return Outside(("storage", Name("torch", kind), "0", "cpu", length))


@either_format
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (view(storage_of(4), (1 << 40,), (1,)), "that ends 1099511627772 numbers too late"),
        (view(storage_of(4), (1000, 1000), (0, 0)), r"strides (0, 0), which overlaps itself"),
        (view(storage_of(4), (2, 3), (1, 1)), r"strides (1, 1), which overlaps itself"),
        (view(storage_of(4), (2,), (-1,)), "strides holds what is no size"),
        (view(storage_of(4), (2,), (1, 1)), "a tensor of 1 sizes and 2 strides"),
        (view(storage_of(4), (2,), (1,), -1), "a tensor without a storage"),
        (view(storage_of(4), (2,), (1,), 3), "that ends 1 numbers too late"),
        (view(storage_of(4), (1,) * 33, (1,) * 33), "a tensor whose shape is no short tuple"),
        (view(storage_of(1 << 62), (2,), (1,)), "storage 0"),
        (view(storage_of(5), (5,), (1,)), "storage 0"),
        (Outside(("storage", Name("torch", "FloatStorage"), 0, "cpu", 4)), "a storage without a type or a key"),
        (Outside("0"), "something outside of it that is no storage"),
    ],
)
def test_what_a_tensor_declares_is_checked(write: Any, content: Any, reason: str, tmp_path: Path) -> None:
    storages = Storages({"0": ("FloatStorage", bytes(16))})
    assert reason in refused(write({"x": content}, storages), tmp_path)


def test_a_missing_storage_is_named(tmp_path: Path) -> None:
    content = {"x": view(storage_of(4), (4,), (1,))}
    assert "storage 0 is missing" in refused(zip_file(content, Storages()), tmp_path)
    assert "not those that its tensors need" in refused(stream_file(content, Storages()), tmp_path)


@pytest.mark.parametrize("name", ["torch_zip.pth", "torch_stream.pth"])
def test_a_file_cut_short_anywhere_is_refused(name: str, tmp_path: Path) -> None:
    whole = (STORED / name).read_bytes()
    for size in range(1, len(whole), 29):
        refused(whole[:size], tmp_path)


def test_a_flipped_byte_in_a_zip_archive_is_found(tmp_path: Path) -> None:
    whole = bytearray((STORED / "torch_zip.pth").read_bytes())
    at = whole.index(PLAIN.tobytes())
    whole[at + 5] ^= 1
    assert "in it is damaged: its checksum differs" in refused(bytes(whole), tmp_path)
