"""Every family through the exporter and Paddle Inference: small members; the smallest published ones are slow."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import numpy as np
import paddle
import pytest
from conftest import Run
from networks import SMALL, export_network, lively
from paddle import nn

from ppcls_ext import create_model
from ppcls_ext.backbones import facts
from ppcls_ext.export import answers
from ppcls_ext.serving.model import ServedModel, onednn_probed
from ppcls_ext.serving.probe import probe_onednn

# The published member of each family with the fewest parameters; EfficientNet's two kinds are two graphs.
SMALLEST = (
    *("MicroNet_M0", "ShuffleNetV2_x0_25", "EfficientNetB0", "EfficientNetLite0", "ResNeXt50_32x4d", "ResNet50"),
    *("RepLKNet_31B", "GroupMamba_tiny", "ResNetV2_50", "VGG16", "DenseNet121", "ViT_tiny_patch16_224"),
)


@pytest.mark.parametrize("name", SMALL)
def test_every_family_is_exported_and_served_with_the_answers_of_the_trained_network(name: str, tmp_path: Path) -> None:
    network = lively(create_model(name, num_classes=7, **SMALL[name]))
    network.eval()
    done = export_network(network, name, SMALL[name], 64, tmp_path)
    assert done.largest_difference <= 1e-5 and len(done.compared) == 2
    images = np.random.default_rng(0).normal(size=(3, 3, 64, 64)).astype(np.float32)
    with paddle.no_grad():
        expected = nn.functional.softmax(network(paddle.to_tensor(images)), axis=-1).numpy()
    assert np.ptp(expected, axis=0).max() > 1e-2  # a graph that overlooks its input would not pass
    np.testing.assert_allclose(ServedModel(done.folder).probabilities(images), expected, atol=1e-5)
    assert done.merged == (len(network.reparameterize().state_dict()) if name == "RepLKNet" else None)


def test_a_network_with_branches_is_exported_merged_and_the_log_says_so(tmp_path: Path, run_here: Run) -> None:
    network = lively(create_model("RepLKNet", num_classes=7, **SMALL["RepLKNet"]))
    network.eval()
    export_network(network, "RepLKNet", SMALL["RepLKNet"], 64, tmp_path)
    status, output, errors = run_here("tools/export_model.py", "-c", tmp_path / "config.yaml", "--no-onednn")
    assert status == 0, errors
    left = len(network.reparameterize().state_dict())
    assert f"merged parallel branches: {left} tensors are left; compared with the network before merging" in output
    assert "served without oneDNN: not tried" in output
    # two kernels and two batch norms have become one kernel
    assert (tmp_path / "inference/inference.pdiparams").stat().st_size < (tmp_path / "weights.pdparams").stat().st_size


def test_a_merge_that_changes_the_answers_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ppcls_ext.backbones.replknet import RepLKNet
    from ppcls_ext.errors import RunFailed

    network = lively(create_model("RepLKNet", num_classes=7, **SMALL["RepLKNet"]))
    merge = RepLKNet.reparameterize

    def wrong(self: RepLKNet) -> RepLKNet:
        merge(self).head.bias.set_value(self.head.bias + np.eye(7, dtype=np.float32)[0])
        return self

    monkeypatch.setattr(RepLKNet, "reparameterize", wrong)
    with pytest.raises(RunFailed, match="the static model differs from the trained one by up to 0"):
        export_network(network, "RepLKNet", SMALL["RepLKNet"], 64, tmp_path)
    assert not (tmp_path / "inference").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLEST)
def test_the_smallest_published_member_of_every_family_is_exported_and_served(name: str, tmp_path: Path) -> None:
    network = lively(create_model(name))
    network.eval()
    done = export_network(network, name, {}, facts(name).input_size, tmp_path)
    assert done.largest_difference <= 1e-4
    assert (done.merged is not None) == name.startswith("RepLKNet")


# ------------------------------------------------------------------------------------------------ oneDNN


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray, np.ndarray]:
    """An exported folder, images, and the probabilities that are expected of it."""
    folder = tmp_path_factory.mktemp("probed")
    network = lively(create_model("ShuffleNetV2", num_classes=7, **SMALL["ShuffleNetV2"]))
    network.eval()
    done = export_network(network, "ShuffleNetV2", SMALL["ShuffleNetV2"], 64, folder)
    images = np.random.default_rng(0).normal(size=(3, 3, 64, 64)).astype(np.float32)
    return done.folder, images, answers(network, images)


def test_onednn_is_tried_in_a_process_of_its_own_and_used_where_it_answers_alike(
    probed: tuple[Path, np.ndarray, np.ndarray],
) -> None:
    folder, images, expected = probed
    found = probe_onednn(folder, images, expected, np.full_like(expected, 1e-5))
    assert found.pop("paddle") == paddle.__version__
    if found["enabled"]:
        assert found.keys() == {"enabled", "operators", "largest_difference"} and found["largest_difference"] <= 1e-5
        served = ServedModel(folder, onednn=found["operators"])
        np.testing.assert_allclose(served.probabilities(images), expected, atol=1e-5)
    else:  # a build or a processor without it, or a busy one
        for reason in found["reason"].split("; "):
            assert re.match("(all|fused): (serving with it|answers with it|with it an image takes)", reason)
    assert sorted(file.name for file in folder.iterdir())[-1] == "inference.yml"  # what the probe wrote is gone
    assert ServedModel(folder).onednn is None  # not tried when this folder was exported


@pytest.mark.parametrize(
    ("status", "answered", "reason"),
    [
        (-signal.SIGSEGV, None, "serving with it ended by SIGSEGV"),
        (1, None, "serving with it ended with status 1: Error: why"),
        (0, 0.25, "answers with it differ by up to 0.25"),
        (0, np.nan, "answers with it differ by up to nan"),
        (0, np.zeros((2, 3)), "answers with it are 2 to 5 images"),
        (0, 0.0, "with it an image takes 5.0 ms, without it 4.0 ms"),
        (None, None, "serving with it did not end within 600 s"),
    ],
)
def test_a_probe_that_fails_says_why_and_leaves_onednn_off(
    status: int | None,
    answered: float | np.ndarray | None,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = np.zeros((2, 3), np.float32)

    def run(command: list[str], env: dict[str, str], **_: object) -> subprocess.CompletedProcess[str]:
        code = env["PYTHONPATH"].split(os.pathsep)[0]  # a checkout that is not installed is found from any folder
        assert Path(code, *command[2].split(".")).with_suffix(".py").is_file()
        if status is None:
            raise subprocess.TimeoutExpired(command, 600)
        if answered is not None:
            whole = answered if isinstance(answered, np.ndarray) else np.full((5, 3), answered)
            np.save(command[-1], whole.astype(np.float32))
        errors = "Traceback:\nError: why\n"
        return subprocess.CompletedProcess(command, status, stdout="a warning\n4.0 5.0\n", stderr=errors)

    monkeypatch.setattr(subprocess, "run", run)
    found = probe_onednn(tmp_path, np.zeros((2, 3, 4, 4), np.float32), expected, np.full_like(expected, 1e-5))
    assert found == {"enabled": False, "reason": f"all: {reason}", "paddle": paddle.__version__}  # no graph to fuse
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("milliseconds", "expected"),
    [
        ({"all": 3.0, "fused": 2.0}, {"enabled": True, "operators": "fused", "largest_difference": 0.0}),
        ({"all": 2.0, "fused": 3.0}, {"enabled": True, "operators": "all", "largest_difference": 0.0}),
        ({"all": 4.5, "fused": 3.0}, {"enabled": True, "operators": "fused", "largest_difference": 0.0}),
        (
            {"all": 4.5, "fused": 5.0},
            {
                "enabled": False,
                "reason": "all: with it an image takes 4.5 ms, without it 4.0 ms; "
                "fused: with it an image takes 5.0 ms, without it 4.0 ms",
            },
        ),
    ],
)
def test_of_the_operators_that_answer_alike_with_onednn_the_faster_serve(
    milliseconds: dict[str, float], expected: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = np.zeros((2, 3), np.float32)

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        np.save(command[-1], np.zeros((5, 3), np.float32))
        return subprocess.CompletedProcess(command, 0, stdout=f"4.0 {milliseconds[command[4]]}\n", stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    (tmp_path / "inference.json").touch()
    found = probe_onednn(tmp_path, np.zeros((2, 3, 4, 4), np.float32), answers, np.full_like(answers, 1e-5))
    assert found == {**expected, "paddle": paddle.__version__}


def test_what_one_version_of_paddle_was_found_to_do_says_nothing_of_another() -> None:
    found = {"enabled": True, "largest_difference": 1e-7, "paddle": paddle.__version__}
    assert onednn_probed({"OneDNN": {**found, "operators": "fused"}}) == "fused"
    assert onednn_probed({"OneDNN": found}) == "all"  # exported before there was a choice
    assert not onednn_probed({"OneDNN": {**found, "paddle": "0.1"}})
    assert not onednn_probed({"OneDNN": {**found, "enabled": False}})
    assert not onednn_probed({})  # exported before it was tried
