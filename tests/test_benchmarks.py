"""The programs in benchmarks/: what they compare is the same network, and the table has no unexplained hole."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import paddle
import pytest
from conftest import run_tool
from networks import lively

from ppcls_ext import cli, create_model


def program(name: str, repository: Path) -> ModuleType:
    """A program by its file, since a module of the tests has its name."""
    found = importlib.util.spec_from_file_location(f"benchmark_{name}", repository / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module  # where its dataclasses look for their annotations
    found.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize(("name", "builder"), [("MicroNet_M0", "micronet_m0"), ("MicroNet_M3", "micronet_m3")])
def test_the_other_side_of_the_benchmark_takes_our_weights_and_gives_our_logits(
    name: str, builder: str, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    torch_networks = importlib.import_module("torch_networks")
    ours = lively(create_model(name))
    ours.eval()
    theirs = getattr(importlib.import_module("torch_micronet"), builder)()
    torch_networks.load(theirs, program("networks", repository).arrays_of(ours))
    theirs.eval()
    images = np.random.default_rng(0).normal(size=(2, 3, 224, 224)).astype(np.float32)
    with paddle.no_grad(), torch.inference_mode():
        expected, got = ours(paddle.to_tensor(images)).numpy(), theirs(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_the_latency_benchmark_says_in_a_few_words_why_a_cell_is_empty(
    repository: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def main() -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    with pytest.raises(SystemExit):
        cli.run(main)
    ending = program("latency", repository).ending
    assert ending(cli.EXIT_REFUSED, capfd.readouterr().err) == "no torch"
    assert ending(1, "Traceback\nModuleNotFoundError: No module named 'paddle2onnx'\n") == "no paddle2onnx"
    assert ending(-11, "") == "segmentation fault" and ending(3, "Stopped: why\n") == "status 3: Stopped: why"


@pytest.mark.slow
def test_the_latency_benchmark_prints_a_row_and_why_a_cell_is_empty(repository: Path) -> None:
    done = run_tool("benchmarks/latency.py", "MicroNet_M0", "--rounds", 1, "--threads", 1, cwd=repository, timeout=900)
    assert done.returncode == 0, done.stderr
    cells = done.stdout.splitlines()[-1].split(" | ")
    assert cells[0] == "| MicroNet_M0"
    assert all("(" in cell for cell in cells[1:3])
    assert all("(" in cell or cell.startswith("no ") for cell in cells[5:7])  # where a package is missing
