"""Whether oneDNN may serve an exported model: tried in processes of their own, where a crash is an answer.

oneDNN's kernels are several times as fast as Paddle's own for most graphs on a CPU, but some graphs end in a
segmentation fault with them, some answers differ, and some take longer: operators between those that gain are slower
there, or their results are moved from one layout to another. So both of `ONEDNN_OPERATORS` are tried. The other process
is `python -m ppcls_ext.serving.probe FOLDER OPERATORS IMAGES ANSWERS`: it serves the images of one .npy file with
oneDNN, writes the answers to another, and prints what a single image takes without and with it.
"""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ppcls_ext.apart import Failed, run_apart
from ppcls_ext.serving.engines import ONEDNN_OPERATORS
from ppcls_ext.serving.model import GRAPH_FILES, ServedModel

# A probe that takes longer than this (seconds) is stuck.
PATIENCE = 600.0
TIMED_RUNS = 7


@dataclass(frozen=True)
class _Found:
    """What a process that answered alike and faster has measured."""

    largest_difference: float
    ratio: float  # of the time with oneDNN to that without


def probe_onednn(folder: Path, images: np.ndarray, expected: np.ndarray, allowed: np.ndarray) -> dict[str, Any]:
    """What `inference.yml` says under OneDNN, of the faster operators that do: {"enabled": True, "operators": "fused",
    "largest_difference": 1e-7, "paddle": "3.3.1"}.

    Or {"enabled": False, "reason": ..., "paddle": ...} where each crashed, answered otherwise than `expected` (N,
    classes) by more than `allowed`, or was not faster. The images are served together, then the first alone, then
    together again: the batch is dynamic.
    """
    import paddle

    # In the graphs of PaddlePaddle 2.6 nothing is fused for oneDNN but what it was given before.
    tried = ONEDNN_OPERATORS if (folder / GRAPH_FILES[0]).is_file() else ("all",)
    found, reasons = {}, []
    for operators in tried:
        outcome = _probe(folder, operators, images, expected, allowed)
        if isinstance(outcome, _Found):
            found[operators] = outcome
        else:
            reasons.append(f"{operators}: {outcome}")
    if not found:
        return {"enabled": False, "reason": "; ".join(reasons), "paddle": paddle.__version__}
    best = min(found, key=lambda operators: found[operators].ratio)
    difference = found[best].largest_difference
    return {"enabled": True, "operators": best, "largest_difference": difference, "paddle": paddle.__version__}


def _probe(folder: Path, operators: str, images: np.ndarray, expected: np.ndarray, allowed: np.ndarray) -> _Found | str:
    """What a process found that serves with these operators, or why it cannot serve."""
    given, answered = folder / "probe_images.npy", folder / "probe_answers.npy"
    np.save(given, images)
    try:
        said = run_apart("ppcls_ext.serving.probe", folder, operators, given, answered, patience=PATIENCE)
        answers = np.load(answered)
        plain, fast = (float(word) for word in said.splitlines()[-1].split())
    except Failed as error:
        return f"serving with it {error}"
    finally:
        given.unlink()
        answered.unlink(missing_ok=True)
    order = _order(len(images))
    if answers.shape != expected[order].shape:  # of some graphs it answers about the first image of a batch alone
        return f"answers with it are {len(answers)} to {len(order)} images"
    difference = np.abs(answers - expected[order])
    if not (difference <= allowed[order]).all():
        return f"answers with it differ by up to {difference.max():.3g}"
    if fast >= plain:
        return f"with it an image takes {fast:.1f} ms, without it {plain:.1f} ms"
    return _Found(float(difference.max()), fast / plain)


def _order(count: int) -> list[int]:
    """The images in the order in which they are served."""
    return [*range(count), 0, *range(count)]


def main() -> None:
    """The other process."""
    folder, operators, given, answered = sys.argv[1:]
    images = np.load(given)
    served = ServedModel(Path(folder), onednn=operators)
    np.save(answered, np.concatenate([served.probabilities(part) for part in (images, images[:1], images)]))
    models = (ServedModel(Path(folder), onednn=None), served)
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
