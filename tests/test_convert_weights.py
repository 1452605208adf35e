"""tools/convert_weights.py: whatever is read, in our names, after it was loaded into the network that it is for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import Run
from torch_writer import Storages, stream_file, tensor

from ppcls_ext import create_model
from ppcls_ext.checkpoint import save_tensors
from ppcls_ext.weights import fit_weights, graph_of, read_metadata

TOOL = "tools/convert_weights.py"


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    """A checkpoint of MicroNet_M0 as PyTorch wrote them before 1.6, and its tensors in our names."""
    network = create_model("MicroNet_M0", num_classes=7)
    arrays = {name: value.numpy() for name, value in network.state_dict().items()}
    storages = Storages()
    content = {}
    for name, array in arrays.items():
        array = array.T if name.endswith("weight") and array.ndim == 2 else array
        renamed = name.replace("_mean", "running_mean").replace("_variance", "running_var")
        content[f"module.{renamed}"] = tensor(storages, np.ascontiguousarray(array))
    path = tmp_path_factory.mktemp("reference") / "micronet.pth"
    path.write_bytes(stream_file({"state_dict": content, "epoch": 3}, storages))
    return path, arrays


@pytest.mark.parametrize("suffix", ["pdparams", "safetensors"])
def test_a_checkpoint_of_pytorch_becomes_a_file_of_ours(
    suffix: str, reference: tuple[Path, dict[str, np.ndarray]], tmp_path: Path, run_here: Run
) -> None:
    source, arrays = reference
    out = tmp_path / f"m0.{suffix}"
    status, said, _ = run_here(TOOL, source, out, "--arch", "MicroNet_M0", "-o", "num_classes=7")
    assert status == 0
    assert said == f"loaded 192 of 192 tensors from {source}\nwritten: {out}\n"
    network = create_model("MicroNet_M0", num_classes=7)
    about = {"arch": "MicroNet_M0", "num_classes": 7, "in_channels": 3, "arguments": {}, "graph": graph_of(network)}
    said_of_itself = read_metadata(out)
    assert about == {name: said_of_itself[name] for name in about}
    fit_weights(network, out)
    for name, value in network.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), arrays[name], err_msg=name)
    # what says of itself what it is needs no --arch
    again = tmp_path / "again.safetensors"
    assert run_here(TOOL, out, again)[0] == 0
    assert read_metadata(again)["arch"] == "MicroNet_M0"


def test_a_choice_that_no_tensor_shows_is_kept(tmp_path: Path, run_here: Run) -> None:
    arguments = {"widths": [4, 8, 8], "depths": [1], "kernels": [3], "strides": [1], "expansions": [1]}
    network = create_model("EfficientNet", num_classes=3, padding="symmetric", **arguments)
    save_tensors(tmp_path / "x.pdparams", {name: v.numpy() for name, v in network.state_dict().items()}, {})
    options = [f"{name}={value}" for name, value in arguments.items()]
    status, _, _ = run_here(
        TOOL, tmp_path / "x.pdparams", tmp_path / "y.safetensors", "--arch", "EfficientNet",
        "-o", "num_classes=3", "padding=symmetric", *options,
    )  # fmt: skip
    assert status == 0
    assert read_metadata(tmp_path / "y.safetensors")["graph"]["padding"] == "symmetric"
    assert read_metadata(tmp_path / "y.safetensors")["arguments"] == {**arguments, "padding": "symmetric"}


def test_what_cannot_be_converted_is_refused_and_nothing_is_written(
    reference: tuple[Path, dict[str, np.ndarray]], tmp_path: Path, run_here: Run
) -> None:
    source, _ = reference
    out = tmp_path / "m0.pdparams"
    there = tmp_path / "there.pdparams"
    there.write_bytes(b"mine")
    m0 = ("--arch", "MicroNet_M0")
    for arguments, reason in (
        ((source, out), "does not say what network it is for; name it: --arch NAME"),
        ((source, out, "--arch", "MicroNet_MO"), "Unknown backbone 'MicroNet_MO'. Did you mean 'MicroNet_M"),
        ((source, out, "--arch", "MicroNet_M1"), "does not fit MicroNet"),
        ((source, out, *m0), "Only the classifier differs (here of 1000 classes)"),
        ((source, out, *m0, "-o", "num_classes=many"), "num_classes: expected a whole number from 1, got 'many'"),
        ((source, out, *m0, "-o", "num_classes"), "-o num_classes: expected KEY=VALUE"),
        ((source, out, *m0, "-o", "padding=same"), "padding"),
        ((source, out, *m0, "--part", "model"), "has no part 'model'. Known: state_dict."),
        ((source, tmp_path / "m0.onnx", *m0), ".pdparams or .safetensors is written"),
        ((source, tmp_path / "no" / "m0.pdparams", *m0), "there is no folder"),
        ((source, there, *m0), "is there already; --force replaces it"),
        ((tmp_path / "no.pth", out, *m0), "no.pth. Known: there.pdparams."),
    ):
        status, _, errors = run_here(TOOL, *arguments)
        assert (status, errors[:9]) == (2, "Refused: "), arguments
        assert reason in errors, arguments
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there.pdparams"]
    assert there.read_bytes() == b"mine"
    assert run_here(TOOL, source, there, *m0, "-o", "num_classes=7", "--force")[0] == 0
