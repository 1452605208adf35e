"""ONNX beside Paddle's graph: compared with the trained network, and served without Paddle."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest
from conftest import REPOSITORY, Run, answers_in, config_of, run_tool, weights
from networks import SMALL, export_network, lively
from paddle import nn

from ppcls_ext import create_model, graphs
from ppcls_ext.apart import Failed
from ppcls_ext.errors import Refused, RunFailed
from ppcls_ext.serving.model import ServedModel


def refusal() -> str | None:
    """Why nothing can be converted here."""
    try:
        graphs.refuse_without_onnx()
    except Refused as error:
        return str(error)
    return None


REFUSAL = refusal()
converts = pytest.mark.skipif(REFUSAL is not None, reason=str(REFUSAL))


@pytest.fixture(scope="module")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both graphs."""
    folder = tmp_path_factory.mktemp("onnx") / "inference"
    options = (weights(trained), f"Global.save_inference_dir={folder}")
    done = run_tool("tools/export_model.py", "--onnx", "--no-onednn", "-c", config_of(trained), "-o", *options)
    assert done.returncode == 0, done.stderr
    import onnxruntime

    assert f"ONNX Runtime {onnxruntime.__version__}: its largest difference is " in done.stdout
    assert {path.name for path in folder.iterdir()} == {
        *("inference.json", "inference.pdiparams", "inference.onnx", "inference.yml")
    }
    return folder


@converts
@pytest.mark.parametrize("name", SMALL)
def test_every_family_answers_in_onnx_runtime_as_the_trained_network(name: str, tmp_path: Path) -> None:
    network = lively(create_model(name, num_classes=7, **SMALL[name]))
    network.eval()
    done = export_network(network, name, SMALL[name], 64, tmp_path, onnx=True)
    assert done.onnx["largest_difference"] <= 1e-5
    images = np.random.default_rng(0).normal(size=(3, 3, 64, 64)).astype(np.float32)
    with paddle.no_grad():
        expected = nn.functional.softmax(network(paddle.to_tensor(images)), axis=-1).numpy()
    assert np.ptp(expected, axis=0).max() > 1e-2  # a graph that overlooks its input would not pass
    served = ServedModel(done.folder, engine="onnx")
    for count in (3, 1):  # the batch is dynamic
        np.testing.assert_allclose(served.probabilities(images[:count]), expected[:count], atol=1e-5)


@converts
def test_onnx_is_served_without_paddle_and_without_its_files(
    exported: Path, pictures: Path, run_here: Run, tmp_path: Path
) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    for name in ("inference.onnx", "inference.yml"):
        shutil.copy(exported / name, alone)
    script = (
        "import runpy, sys; sys.modules['paddle'] = None; sys.argv[:] = sys.argv[1:]; "
        "sys.path.insert(0, sys.argv[0].rpartition('/')[0]); runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", script, REPOSITORY / "deploy/predict.py", alone, pictures / "val"]
    done = subprocess.run([*map(str, command), "--engine", "onnx"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    status, output, _ = run_here("deploy/predict.py", exported, pictures / "val")
    assert status == 0
    for got, expected in zip(answers_in(done.stdout), answers_in(output), strict=True):
        assert got["file_name"] == expected["file_name"] and got["class_ids"] == expected["class_ids"]
        np.testing.assert_allclose(got["scores"], expected["scores"], atol=2e-5)
    status, _, errors = run_here("deploy/predict.py", alone, pictures / "val")
    assert status == 2 and f"{alone}/inference.json is missing" in errors
    (alone / "inference.onnx").write_bytes(b"other")
    status, _, errors = run_here("deploy/predict.py", alone, pictures / "val", "--engine", "onnx")
    assert status == 2 and "inference.onnx is damaged: its SHA-256 differs" in errors


@converts
def test_an_export_without_onnx_takes_the_older_one_away(exported: Path, trained: Path, run_here: Run) -> None:
    folder = exported.parent / "again"
    shutil.copytree(exported, folder)
    options = (weights(trained), f"Global.save_inference_dir={folder}")
    status, _, errors = run_here("tools/export_model.py", "--no-onednn", "-c", config_of(trained), "-o", *options)
    assert status == 0, errors
    assert not (folder / "inference.onnx").exists()
    with pytest.raises(Refused, match=r"has no inference\.onnx; `tools/export_model.py --onnx` writes it"):
        ServedModel(folder, engine="onnx")


@converts
def test_an_onnx_model_that_differs_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ppcls_ext import export

    network = lively(create_model("ShuffleNetV2", num_classes=7, **SMALL["ShuffleNetV2"]))
    network.eval()

    def other(model: nn.Layer, image_shape: list[int], folder: Path) -> None:
        graphs.write_onnx(nn.Sequential(model, nn.Sigmoid()), image_shape, folder)

    monkeypatch.setattr(export, "write_onnx", other)
    with pytest.raises(RunFailed, match="the ONNX model differs from the trained one by up to 0"):
        export_network(network, "ShuffleNetV2", SMALL["ShuffleNetV2"], 64, tmp_path, onnx=True)
    assert not (tmp_path / "inference").exists()


def test_what_cannot_be_converted_is_told_in_the_words_of_paddle2onnx(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def aborts(*_: object, **__: object) -> str:
        raise Failed("ended by SIGABRT", "a line\n[ERROR][Paddle2ONNX] [OP: pd_op.fft] There is none.\n")

    monkeypatch.setattr(graphs, "run_apart", aborts)
    softplus = nn.functional.softplus
    with pytest.raises(RunFailed) as failed:
        graphs.write_onnx(nn.Conv2D(3, 1, 1), [3, 8, 8], tmp_path)
    assert str(failed.value) == (
        "paddle2onnx ended by SIGABRT; nothing was exported (without --onnx it is)\n"
        "[ERROR][Paddle2ONNX] [OP: pd_op.fft] There is none."
    )
    assert list(tmp_path.iterdir()) == [] and nn.functional.softplus is softplus


def test_what_onnx_lacks_is_refused_before_work(
    trained: Path, run_here: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "find_spec", lambda name: None)
    options = (weights(trained), f"Global.save_inference_dir={tmp_path}/inference")
    status, _, errors = run_here("tools/export_model.py", "--onnx", "-c", config_of(trained), "-o", *options)
    assert status == 2 and "has no paddle2onnx and no onnxruntime; `pip install -r requirements-onnx.txt`" in errors
    assert not (tmp_path / "inference").exists()


@converts
def test_an_engine_that_is_not_there_is_refused(
    exported: Path, pictures: Path, run_here: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("deploy/predict.py", exported, pictures / "val", "--engine", "onnx")
    status, _, errors = run_here(*command, "--device", "gpu")
    assert status == 2 and "--device gpu: --engine onnx serves on the CPU; take --device cpu or --engine pad" in errors
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    status, _, errors = run_here(*command)
    assert status == 2 and "has no onnxruntime, which --engine onnx needs: pip install onnxruntime" in errors


@converts
def test_the_description_tells_of_onnx(exported: Path) -> None:
    import onnxruntime

    description = ServedModel(exported, engine="onnx").description
    assert description["ONNX"]["onnxruntime"] == onnxruntime.__version__
    assert description["ONNX"]["largest_difference"] <= 1e-5
    assert json.dumps(description["Digests"]).count("inference.onnx") == 1
