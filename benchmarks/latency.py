"""How long one image takes: our networks in Paddle, exported, in ONNX Runtime, and the same networks in PyTorch.

    python benchmarks/latency.py [NETWORK ...] [--threads 2] [--rounds 15] [--batch 1] [--clock wall] [--json FILE]

Each network is built with fresh weights and exported (RepLKNet merged). Every engine is a process of its own, so that a
crash is an answer and thread pools do not meet; all stay alive and are asked in turns, one at a time, so that whatever
else the machine does falls on all of them. A cell is the median and, in brackets, the lowest time; ratios are those of
the medians to the fastest of the exports that answer alike. "oneDNN, fused": it computes convolutions and linear layers
alone, with what is fused into them. With `--threads 1 --clock processor` the times are those of the processor, which on
a machine that is busy otherwise are nearest to what a run takes on an idle one. The first engine's answer is what the
others are compared with; PyTorch's networks (timm, torchvision) have weights of their own. Needed for ONNX Runtime:
onnxruntime, paddle2onnx 2.1 and onnx 1.17; for PyTorch: torch, timm, torchvision. A column whose packages are missing
says so.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ppcls_ext import cli
from ppcls_ext.errors import RunFailed

SIZE = 224
# our network -> where PyTorch's lies: a name of timm, of torchvision.models, or of a file beside this one
TORCH = {
    "MicroNet_M0": "torch_micronet micronet_m0",
    "MicroNet_M3": "torch_micronet micronet_m3",
    "EfficientNetB0": "timm tf_efficientnet_b0",
    "EfficientNetLite0": "timm tf_efficientnet_lite0",
    "ShuffleNetV2_x1_0": "torchvision shufflenet_v2_x1_0",
    "ResNeXt50_32x4d": "torchvision resnext50_32x4d",
    "ResNet50": "torchvision resnet50",
    "VGG16": "torchvision vgg16",
    "DenseNet121": "torchvision densenet121",
    "ViT_small_patch16_224": "timm vit_small_patch16_224",
    "RepLKNet_31B": "torch_networks replknet_31b",
    "GroupMamba_tiny": "torch_networks groupmamba_tiny",
}
NETWORKS = (
    *("MicroNet_M0", "MicroNet_M3", "ShuffleNetV2_x1_0", "EfficientNetB0", "EfficientNetLite0", "ResNeXt50_32x4d"),
    *("RepLKNet_31B", "GroupMamba_tiny", "ResNet50", "VGG16", "DenseNet121", "ViT_small_patch16_224"),
)
EXPORTS = ("inference", "all", "fused")
ENGINES = ("dynamic", *EXPORTS, "onnx", "torch")
HEADS = ("Paddle", "Paddle Inference", "with oneDNN", "oneDNN, fused", "ONNX Runtime", "PyTorch")
# as the exporter allows: |a - b| <= 1e-5 + 1e-3 |b|
ABSOLUTE, RELATIVE = 1e-5, 1e-3


# ------------------------------------------------------------------------------------------------ one engine

Run = Callable[[np.ndarray], np.ndarray]


def seeded(name: str):
    """The network with the same fresh weights in every process, in evaluation mode, merged if it can be."""
    import paddle

    from ppcls_ext import create_model

    paddle.seed(0)
    network = create_model(name)
    network.eval()
    if hasattr(network, "reparameterize"):
        network.reparameterize()
    return network


def with_softmax(name: str):
    """What is exported: the network and its softmax."""
    import paddle

    return paddle.nn.Sequential(seeded(name), paddle.nn.Softmax(-1))


def dynamic(name: str, folder: Path, threads: int) -> Run:
    import paddle

    network = seeded(name)

    def run(images: np.ndarray) -> np.ndarray:
        with paddle.no_grad():
            return paddle.nn.functional.softmax(network(paddle.to_tensor(images)), axis=-1).numpy()

    return run


def served(folder: Path, threads: int, onednn: str | None) -> Run:
    from ppcls_ext.serving.model import ServedModel

    return ServedModel(folder, threads=threads, onednn=onednn).probabilities


def onnx(name: str, folder: Path, threads: int) -> Run:
    from ppcls_ext.serving.engines import onnx_runtime
    from ppcls_ext.serving.model import ONNX_FILE

    return onnx_runtime(folder / ONNX_FILE, "cpu", threads)


def pytorch(name: str, folder: Path, threads: int) -> Run:
    import torch

    library, their_name = TORCH[name].split()
    if library == "timm":
        import timm

        network = timm.create_model(their_name)
    elif library == "torchvision":
        from torchvision import models

        network = models.get_model(their_name)
    else:
        network = getattr(importlib.import_module(library), their_name)()
    network.eval()
    torch.set_num_threads(threads)

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return torch.softmax(network(torch.from_numpy(images)), -1).numpy()

    return run


MAKERS: dict[str, Callable[[str, Path, int], Run]] = {
    "dynamic": dynamic,
    "inference": lambda name, folder, threads: served(folder, threads, onednn=None),
    "all": lambda name, folder, threads: served(folder, threads, onednn="all"),
    "fused": lambda name, folder, threads: served(folder, threads, onednn="fused"),
    "onnx": onnx,
    "torch": pytorch,
}


def write_export(name: str, folder: Path) -> None:
    """The exported network, as tools/export_model.py writes it, without the comparison."""
    import yaml

    from ppcls_ext.files import file_digest
    from ppcls_ext.graphs import write_graph
    from ppcls_ext.serving.model import DESCRIPTION_FILE, MODEL_FILES

    write_graph(with_softmax(name), [3, SIZE, SIZE], folder)
    names = [file for file in MODEL_FILES if (folder / file).is_file()]
    description = {
        "Global": {"model_name": name, "image_shape": [3, SIZE, SIZE]},
        "PreProcess": {"transform_ops": [{"DecodeImage": {}}, {"ResizeImage": {"size": SIZE}}, {"NormalizeImage": {}}]},
        "PostProcess": {"Topk": {"topk": 5, "label_list": None}},
        "Digests": {file: file_digest(folder / file) for file in names},
    }
    (folder / DESCRIPTION_FILE).write_text(yaml.safe_dump(description), encoding="utf-8")


def write_onnx(name: str, folder: Path) -> None:
    """`inference.onnx` as tools/export_model.py --onnx writes it, without the comparison."""
    from ppcls_ext import graphs

    graphs.write_onnx(with_softmax(name), [3, SIZE, SIZE], folder)


CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


def work(step: str, name: str, folder: Path, threads: int, clock: Callable[[], float]) -> None:
    """A process of the benchmark: `export` and `convert` write files; an engine answers until its input ends.

    Every line that it reads is a request; it answers with the milliseconds of one run.
    """
    cli.import_paddle()
    if step in ("export", "convert"):
        {"export": write_export, "convert": write_onnx}[step](name, folder)
        return
    images = np.load(folder / "images.npy")
    run = MAKERS[step](name, folder, threads)
    np.save(folder / f"{step}.npy", run(images))
    print("READY", flush=True)
    for _ in sys.stdin:
        began = clock()
        run(images)
        print(f"TOOK {1e3 * (clock() - began)}", flush=True)


# ------------------------------------------------------------------------------------------------ all of them, in turns


class Engine:
    """A process that runs one network in one engine."""

    def __init__(self, engine: str, name: str, folder: Path, threads: int, clock: str) -> None:
        self.log = folder / f"{engine}.log"
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        command = [sys.executable, __file__, "--work", engine, name, "--folder", str(folder), "--threads", str(threads)]
        command += ["--clock", clock]
        with open(self.log, "w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
            )

    def line(self, word: str) -> str | None:
        """The rest of the next line that begins with `word`; None if the process has ended."""
        for line in self.process.stdout:
            if line.startswith(word):
                return line.removeprefix(word).strip()
        self.process.wait()
        return None

    def milliseconds(self) -> float | None:
        """Of one run; None if the process has ended."""
        try:
            self.process.stdin.write("run\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return None
        took = self.line("TOOK")
        return None if took is None else float(took)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()

    def why(self) -> str:
        """Why it ended: the signal, or a package that is missing, or the last line of its log."""
        return ending(self.process.returncode, self.log.read_text(encoding="utf-8", errors="replace"))


def ending(status: int, log: str) -> str:
    """A few words for a table."""
    for line in log.splitlines():
        if missing := re.search(r"No module named '([\w.]+)'|Refused: .* has no (\w+);", line):
            return f"no {missing[1] or missing[2]}"
        if "[ERROR][Paddle2ONNX] [" in line:
            return line.split("Paddle2ONNX] ")[1].strip()
    lines = [line for line in log.splitlines() if line.strip() and not line.startswith("  ")]
    if status in (-11, -6, 139, 134) or "SIGSEGV" in log or "SIGABRT" in log:
        return "segmentation fault" if status in (-11, 139) or "SIGSEGV" in log else "aborted"
    return f"status {status}: {lines[-1][:60] if lines else 'no message'}"


def prepare(step: str, name: str, folder: Path) -> str | None:
    """Run a step that writes files; what went wrong, or None."""
    command = [sys.executable, __file__, "--work", step, name, "--folder", str(folder), "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    return ending(done.returncode, done.stderr + done.stdout) if done.returncode else None


@dataclass(frozen=True)
class Timed:
    """Milliseconds of a run; `differs` is the largest difference of answers where that is more than is allowed."""

    median: float
    lowest: float
    differs: float | None = None


Result = Timed | str  # or why there is none


def measure(name: str, batch: int, threads: int, rounds: int, clock: str) -> dict[str, Result]:
    """What each engine needs for a run of one network."""
    result: dict[str, Result] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        images = np.random.default_rng(0).normal(size=(batch, 3, SIZE, SIZE)).astype(np.float32)
        np.save(folder / "images.npy", images)
        failed = prepare("export", name, folder)
        if failed:
            raise RunFailed(f"{name} cannot be exported: {failed}")
        unfit = {"onnx": prepare("convert", name, folder)}
        unfit["torch"] = None if name in TORCH else "none"
        engines: dict[str, Engine] = {}
        for engine in ENGINES:
            if unfit.get(engine):
                result[engine] = unfit[engine]
                continue
            started = Engine(engine, name, folder, threads, clock)
            if started.line("READY") is None:
                result[engine] = started.why()
                continue
            engines[engine] = started
        times: dict[str, list[float]] = {engine: [] for engine in engines}
        for turn in range(rounds + 2):
            for engine, running in list(engines.items()):
                took = running.milliseconds()
                if took is None:
                    result[engine] = running.why()
                    del engines[engine]
                elif turn >= 2:  # the first two warm up
                    times[engine].append(took)
        expected = np.load(folder / "dynamic.npy")
        for engine, running in engines.items():
            running.end()
            difference = np.abs(np.load(folder / f"{engine}.npy") - expected)
            alike = engine == "torch" or (difference <= ABSOLUTE + RELATIVE * expected).all()
            timed = times[engine]
            result[engine] = Timed(statistics.median(timed), min(timed), None if alike else float(difference.max()))
    return result


def cell(result: Result) -> str:
    if isinstance(result, str):
        return result
    text = f"{result.median:.1f} ({result.lowest:.1f})"
    return text if result.differs is None else f"{text}, differs by {result.differs:.2g}"


def row(name: str, result: dict[str, Result]) -> str:
    """A line of the table: milliseconds, and how many times as long the others take as the fastest export."""
    exports = [result[engine] for engine in EXPORTS]
    best = min(export.median for export in exports if isinstance(export, Timed) and export.differs is None)
    others = [result["dynamic"], result["onnx"], result["torch"]]
    ratios = [f"{other.median / best:.2f}" if isinstance(other, Timed) else "" for other in others]
    return f"| {' | '.join([name, *(cell(result[engine]) for engine in ENGINES), *ratios])} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), help=f"default: {' '.join(NETWORKS)}")
    parser.add_argument("--threads", type=cli.positive, default=2)
    parser.add_argument("--rounds", type=cli.positive, default=15)
    parser.add_argument("--batch", type=cli.positive, default=1)
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the medians to this file as well")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work(given.work, given.networks[0], given.folder, given.threads, CLOCKS[given.clock])
        return 0
    print(f"batch {given.batch}, {SIZE}x{SIZE}, {given.threads} thread(s), {given.clock} clock")
    print(f"median (lowest) milliseconds of {given.rounds} runs in turns\n")
    print(f"| network | {' | '.join(HEADS)} | Paddle / export | ONNX Runtime / export | PyTorch / export |")
    print("|---" * (4 + len(HEADS)) + "|")
    results = {}
    for name in given.networks:
        results[name] = measure(name, given.batch, given.threads, given.rounds, given.clock)
        print(row(name, results[name]), flush=True)
    if given.json:
        given.json.write_text(json.dumps(results, indent=1, default=asdict) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    cli.run(main)
