"""What several test files share: where things lie, small sets of pictures, small configurations, running a tool."""

from __future__ import annotations

import ast
import json
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

REPOSITORY = Path(__file__).resolve().parent.parent
# What the compiled operators are built for, `native` unless set: x86-64-v3 has vectors of 8 floats, x86-64 of 4
MARCH = "PPCLS_TEST_MARCH"


@pytest.fixture(scope="session", autouse=True)
def compiled_operators() -> bool:
    """All tests run with the compiled operators where they can be built; `native.plain()` turns them off."""
    from ppcls_ext.ops import native

    native.FLAGS = built_for(os.environ.get(MARCH, "native"))
    installed = native.install()
    assert installed or MARCH not in os.environ, native.status()  # not skipped: they were asked for
    return installed


def built_for(march: str) -> tuple[str, ...]:
    """The compiler's options for the operators of another kind of processor."""
    from ppcls_ext.ops import native

    return tuple(f"-march={march}" if flag.startswith("-march=") else flag for flag in native.FLAGS)


@pytest.fixture
def built(compiled_operators: bool) -> None:
    """Skips, and says why, where the operators in C++ could not be built."""
    if not compiled_operators:
        from ppcls_ext.ops import native

        pytest.skip(native.status())


@pytest.fixture
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture
def shared() -> Path:
    """The material beside the checkout; tests that need it are skipped, and say so, where it is absent."""
    path = REPOSITORY.parent / "shared"
    if not path.is_dir():
        pytest.skip("needs the folder ../shared, which is not here")
    return path


def write_pictures(root: Path, classes: int = 3, images: int = 12, size: int = 40, seed: int = 0) -> Path:
    """Class folders of PNG files that differ by colour: `root/class_0/0.png` ..."""
    rng = np.random.default_rng(seed)
    colours = rng.integers(30, 225, size=(classes, 3))
    for label in range(classes):
        folder = root / f"class_{label}"
        folder.mkdir(parents=True)
        for number in range(images):
            noise = rng.integers(-30, 30, size=(size, size, 3))
            pixels = np.clip(colours[label] + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`train` (36 images) and `val` (15) of three classes."""
    root = tmp_path_factory.mktemp("pictures")
    write_pictures(root / "train", seed=0)
    write_pictures(root / "val", images=5, seed=0)
    return root


DECODE = {"DecodeImage": {"to_rgb": True}}
NORMALIZE = {"NormalizeImage": {"scale": "1.0/255.0", "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "order": ""}}
EVAL_OPS = [DECODE, {"ResizeImage": {"size": [32, 32]}}, NORMALIZE]
TRAIN_OPS = [DECODE, {"RandCropImage": {"size": 32}}, {"RandFlipImage": {"flip_code": 1}}, NORMALIZE]


def small_config(pictures: Path, output: Path, **changes: object) -> dict:
    """A run of seconds: MicroNet_M0 at 32 px. `changes` replace sections whole."""

    def split(name: str, ops: list, shuffle: bool) -> dict:
        return {
            "dataset": {"name": "ClassFolderDataset", "image_root": str(pictures / name), "transform_ops": ops},
            "sampler": {"name": "DistributedBatchSampler", "batch_size": 8, "shuffle": shuffle, "drop_last": False},
            "loader": {"num_workers": 0},
        }

    config = {
        "Global": {"epochs": 2, "output_dir": str(output), "device": "cpu", "seed": 1, "print_batch_step": 2},
        "Arch": {"name": "MicroNet_M0"},
        "Loss": {"Train": [{"CELoss": {"weight": 1.0}}], "Eval": [{"CELoss": {"weight": 1.0}}]},
        "Optimizer": {"name": "Momentum", "momentum": 0.9, "lr": {"name": "Cosine", "learning_rate": 0.05}},
        "DataLoader": {"Train": split("train", TRAIN_OPS, True), "Eval": split("val", EVAL_OPS, False)},
        "Infer": {"transforms": [*EVAL_OPS, {"ToCHWImage": None}], "infer_imgs": str(pictures / "val" / "class_1")},
        "Metric": {"Train": [{"TopkAcc": {"topk": [1, 5]}}], "Eval": [{"TopkAcc": {"topk": [1, 5]}}]},
    }
    config["Global"]["image_shape"] = [3, 32, 32]
    return {**config, **changes}


@pytest.fixture
def write_config(tmp_path: Path, pictures: Path) -> Callable[..., Path]:
    """write_config(**sections) -> the path of a small configuration; output goes to `tmp_path/output`."""

    def write(**changes: object) -> Path:
        path = tmp_path / "config.yaml"
        # JSON is YAML; PyYAML would write 1e-05, which YAML 1.1 readers take for text
        path.write_text(json.dumps(small_config(pictures, tmp_path / "output", **changes)), encoding="utf-8")
        return path

    return write


def run_tool(
    *arguments: object, processes: int = 1, cwd: Path | None = None, timeout: float = 240
) -> subprocess.CompletedProcess[str]:
    """Run a script of the repository, `tools/train.py` say, on one process or several; never raises on its status."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable]
    if processes > 1:
        log = (cwd or Path.cwd()) / "launch_log"
        command += ["-m", "paddle.distributed.launch", "--nproc_per_node", str(processes), "--log_dir", str(log)]
    command += [str(REPOSITORY / str(arguments[0])), *map(str, arguments[1:])]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=cwd, env=environment)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    """A run of two epochs: its configuration lies beside the folder `MicroNet_M0` that is returned."""
    from ppcls_ext import config, engine

    root = tmp_path_factory.mktemp("trained")
    (root / "config.yaml").write_text(json.dumps(small_config(pictures, root)), encoding="utf-8")
    engine.train(config.load(root / "config.yaml", [], ["Train"]))
    return root / "MicroNet_M0"


Run = Callable[..., tuple[int, str, str]]  # what `run_here` is


@pytest.fixture
def run_here(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """run_here("tools/eval.py", ...) -> (exit status, stdout, stderr), in this process, which has Paddle already."""

    def run(script: str, *arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        monkeypatch.syspath_prepend((REPOSITORY / script).parent)  # as the interpreter does
        capsys.readouterr()
        handler = signal.getsignal(signal.SIGTERM)
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(REPOSITORY / script), run_name="__main__")
        signal.signal(signal.SIGTERM, handler)  # a tool that ends leaves it ignored
        output, errors = capsys.readouterr()
        return int(ended.value.code or 0), output, errors

    return run


def weights(trained: Path) -> str:
    """The override that names a run's best weights."""
    return f"Global.pretrained_model={trained}/best_model"


def config_of(trained: Path) -> Path:
    """The configuration that `trained` was trained with."""
    return trained.parent / "config.yaml"


def answers_in(output: str) -> list[dict]:
    """Every answer that a prediction printed."""
    return [answer for line in output.splitlines() if line.startswith("[{") for answer in ast.literal_eval(line)]


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Four JPEG files and their label list, `list.txt`."""
    rng = np.random.default_rng(0)
    for number in range(4):
        Image.fromarray(rng.integers(0, 256, (80, 90, 3), dtype=np.uint8)).save(tmp_path / f"{number}.jpg")
    (tmp_path / "list.txt").write_text("".join(f"{number}.jpg {number}\n" for number in range(4)))
    return tmp_path


def paths_and_sizes(path: Path, data: Path) -> list[str]:
    """Overrides with which a configuration trains two steps on `photographs`: paths, sizes and the device alone."""
    from ppcls_ext.config.reading import read_raw

    raw = read_raw(path, [])
    side = 224 if raw["Arch"]["name"].startswith("ViT") else 64  # a ViT's position embeddings are for 224
    found = [f"Global.output_dir={data}/output", "Global.device=cpu", "Global.epochs=1", "Global.update_freq=1"]
    found.append(f"Global.image_shape=[3, {side}, {side}]")
    for split in ("Train", "Eval"):
        place = f"DataLoader.{split}"
        found += [f"{place}.dataset.image_root={data}", f"{place}.dataset.cls_label_path={data}/list.txt"]
        found += [f"{place}.sampler.batch_size=2", f"{place}.loader.num_workers=0"]
        for index, operator in enumerate(raw["DataLoader"][split]["dataset"]["transform_ops"]):
            [(name, given)] = operator.items()
            keys = [key for key in ("size", "resize_short") if key in (given or {})]
            found += [f"{place}.dataset.transform_ops.{index}.{name}.{key}={side}" for key in keys]
        if raw["DataLoader"][split]["sampler"]["name"] == "RepeatedAugSampler":
            found.append(f"{place}.sampler.selected_round=0")
    return found
