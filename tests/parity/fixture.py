"""What a reference implementation computed, for weights and inputs that anybody can make again from names.

A fixture stores no weights. Every tensor of the reference's state dict is drawn from a generator seeded with the CRC-32
of its name, so both sides fill their networks alike. `compact` writes the small copies that lie in this folder:

    python tests/parity/fixture.py ../shared/parity/fixtures/micronet/*.json
"""

from __future__ import annotations

import json
import math
import re
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parent
LOGIT_STEP = 10  # the small copies keep every tenth logit


@dataclass(frozen=True)
class Fixture:
    """`facts` is the JSON part of a fixture, `arrays` the numbers; `logit_step` says which logits are kept."""

    variant: str
    facts: dict[str, Any]
    arrays: dict[str, np.ndarray]
    logit_step: int = 1


def load_full(path: Path) -> Fixture:
    """A whole fixture: `<variant>.json` and `<variant>.npz` side by side."""
    with np.load(path.with_suffix(".npz")) as arrays:
        return Fixture(path.stem, json.loads(path.read_text()), {name: arrays[name] for name in arrays.files})


def load_compact(variant: str) -> Fixture:
    """The small copy of a fixture in this folder."""
    with np.load(FOLDER / f"{variant}.npz") as stored:
        arrays = {name: stored[name] for name in stored.files}
    facts = json.loads(arrays.pop("facts").tobytes())
    return Fixture(variant, facts, arrays, logit_step=LOGIT_STEP)


def compact(path: Path) -> None:
    """Write the small copy: every tenth logit, no first elements, all but the float64 gradients in float32."""
    full = load_full(path)
    arrays = {}
    for name, array in full.arrays.items():
        if name.endswith(("logits_f64", "_first")):
            continue
        if "logits" in name:
            array = array[:, ::LOGIT_STEP]
        arrays[name] = array if name.endswith("_f64") else array.astype(np.float32)
    keep = ("state_dict", "gain_rules", "num_params", "merged_num_params", "eval", "odd", "train")
    facts = json.dumps({key: full.facts[key] for key in keep if key in full.facts}, separators=(",", ":"))
    np.savez_compressed(FOLDER / f"{full.variant}.npz", facts=np.frombuffer(facts.encode(), np.uint8), **arrays)


# ------------------------------------------------------------------------------------------------ the rule


def generator(key: str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(zlib.crc32(key.encode())))


def crc(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).tobytes())


def filled(name: str, shape: tuple[int, ...], gains: list[tuple[str, float]]) -> np.ndarray:
    """The tensor `name` of a reference's state dict. The last part of the name decides how it is drawn."""
    draw = generator(name)
    gain = math.prod(factor for pattern, factor in gains if re.search(pattern, name))

    def uniform(low: float, high: float) -> np.ndarray:
        return low + (high - low) * draw.random(shape)

    match name.rpartition(".")[2]:
        case "num_batches_tracked":
            return np.zeros(shape, np.int64)
        case "running_mean" | "bias":
            values = uniform(-0.1, 0.1)
        case "running_var":
            values = uniform(0.5, 1.5)
        case "A_logs":
            values = uniform(-0.5, 0.5)
        case "Ds" | "skip_scale":
            values = uniform(0.8, 1.2)
        case "dt_projs_weight":
            values = uniform(-1.0, 1.0) * shape[-1] ** -0.5
        case "dt_projs_bias":
            step = np.exp(uniform(np.log(1e-3), np.log(1e-1)))
            values = step + np.log(-np.expm1(-step))
        case "x_proj_weight":
            values = draw.standard_normal(shape) * shape[-1] ** -0.5
        case "weight" if len(shape) <= 1:
            values = uniform(0.8, 1.2) * gain
        case "weight":
            values = draw.standard_normal(shape) * (np.sqrt(1.0 / math.prod(shape[1:])) * gain)
        case _:
            values = draw.standard_normal(shape) * 0.05
    return np.asarray(values, np.float64).astype(np.float32)


def reference_weights(fixture: Fixture) -> dict[str, np.ndarray]:
    """The reference's state dict, filled and checked: a different fill would say nothing about the network."""
    tensors = {}
    for name, shape, _, _, expected in fixture.facts["state_dict"]:
        tensors[name] = filled(name, tuple(shape), fixture.facts["gain_rules"])
        assert crc(tensors[name]) == expected, f"{name} is filled with other numbers than the reference had"
    return tensors


def drawn(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Images (N, 3, H, W) that everybody can draw again: noise, a coarse grid and an offset."""
    n, _, height, width = shape
    draw = generator(key)
    noise = draw.standard_normal((n, 3, height, width))
    grid = draw.standard_normal((n, 3, 8, 8))
    offset = draw.standard_normal((n, 3, 1, 1))
    rows, columns = np.arange(height) * 8 // height, np.arange(width) * 8 // width
    return (0.5 * noise + grid[:, :, rows][:, :, :, columns] + 0.5 * offset).astype(np.float32)


def images(part: dict[str, Any]) -> np.ndarray:
    """The input of one part ("eval", "odd", "train") of a fixture."""
    x = drawn(part["input_key"], part["shape"])
    assert crc(x) == part["input_crc"], f"the input {part['input_key']} is made of other numbers than the reference had"
    return x


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        compact(Path(argument))
