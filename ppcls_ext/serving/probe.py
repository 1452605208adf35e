"""Whether oneDNN may serve an exported model: tried in a process of its own, where a crash is an answer.

oneDNN's kernels are several times as fast as Paddle's own for most graphs on a CPU, but some graphs end in a
segmentation fault with them, some answers differ, and some take longer. The other process is
`python -m ppcls_ext.serving.probe FOLDER IMAGES ANSWERS`: it serves the images of one .npy file with oneDNN, writes the
answers to another, and prints what a single image takes without and with it.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

# A probe that takes longer than this (seconds) is stuck.
PATIENCE = 600.0
TIMED_RUNS = 7


def probe_onednn(folder: Path, images: np.ndarray, expected: np.ndarray, allowed: np.ndarray) -> dict[str, Any]:
    """What `inference.yml` says under OneDNN: {"enabled": True, "largest_difference": 1e-7, "paddle": "3.3.1"}.

    Or {"enabled": False, "reason": ..., "paddle": ...} where it crashed, an answer differed from `expected` (N,
    classes) by more than `allowed`, or it was not faster. The images are served together, then the first alone, then
    together again: the batch is dynamic.
    """
    import paddle

    given, answered = folder / "probe_images.npy", folder / "probe_answers.npy"
    np.save(given, images)
    command = [sys.executable, "-m", "ppcls_ext.serving.probe", str(folder), str(given), str(answered)]
    package = Path(__file__).resolve().parents[1]  # it need not be installed
    path = os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=PATIENCE, env=environment
        )
        if done.returncode:
            return _off(f"serving with it {_ending(done.returncode)}", paddle.__version__)
        answers = np.load(answered)
        plain, fast = (float(word) for word in done.stdout.splitlines()[-1].split())
    except subprocess.TimeoutExpired:
        return _off(f"serving with it did not end within {PATIENCE:g} s", paddle.__version__)
    finally:
        given.unlink()
        answered.unlink(missing_ok=True)
    order = _order(len(images))
    if answers.shape != expected[order].shape:  # of some graphs it answers about the first image of a batch alone
        return _off(f"answers with it are {len(answers)} to {len(order)} images", paddle.__version__)
    difference = np.abs(answers - expected[order])
    if not (difference <= allowed[order]).all():
        return _off(f"answers with it differ by up to {difference.max():.3g}", paddle.__version__)
    if fast >= plain:
        return _off(f"with it an image takes {fast:.1f} ms, without it {plain:.1f} ms", paddle.__version__)
    return {"enabled": True, "largest_difference": float(difference.max()), "paddle": paddle.__version__}


def _off(reason: str, version: str) -> dict[str, Any]:
    return {"enabled": False, "reason": reason, "paddle": version}


def _ending(status: int) -> str:
    return f"ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"


def _order(count: int) -> list[int]:
    """The images in the order in which they are served."""
    return [*range(count), 0, *range(count)]


def main() -> None:
    """The other process."""
    from ppcls_ext.serving.model import ServedModel

    folder, given, answered = map(Path, sys.argv[1:])
    images = np.load(given)
    served = ServedModel(folder, onednn=True)
    np.save(answered, np.concatenate([served.probabilities(part) for part in (images, images[:1], images)]))
    models = (ServedModel(folder, onednn=False), served)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(TIMED_RUNS):  # in turns, so that what else the machine does falls on both
        for model, own in zip(models, times):
            began = time.perf_counter()
            model.probabilities(images[:1])
            own.append(1e3 * (time.perf_counter() - began))
    # the first run of each prepares the kernels
    print(*(statistics.median(own[1:]) for own in times))


if __name__ == "__main__":
    main()
