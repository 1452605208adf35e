"""Networks against PyTorch, in turns in one run: python benchmarks/networks.py [ROW ...] [--rounds 7] [--memory]

Needs PyTorch in the same environment. Each side is a process of its own, which waits while the other one computes; both
have the same threads (`--threads`, 2) and the same weights, and their logits are compared before anything is timed.
Ours is measured twice: with the compiled operators, and with Paddle's own. `--memory` prints the peak resident memory
of a training step instead, one process each.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SIZE = 224
LEAST_SECONDS = 0.5  # of a side, each time it is asked
SWITCH = {"ours": "1", "ours, not compiled": "0", "paddle, step by step": "0"}
OURS = ("ours", "ours, not compiled")


@dataclass(frozen=True)
class Row:
    """One line of the table; `wanted` is the largest ratio of our time to PyTorch's."""

    network: str
    work: str  # infer or train
    batch: int
    wanted: float | None
    other: str = "pytorch"


ROWS = {
    "replknet-infer": Row("RepLKNet_31B", "infer", 1, 0.5),
    "replknet-train": Row("RepLKNet_31B", "train", 2, 0.7),
    "groupmamba-infer-1": Row("GroupMamba_tiny", "infer", 1, 1.0),
    "groupmamba-infer-16": Row("GroupMamba_tiny", "infer", 16, 1.0),
    "groupmamba-steps": Row("GroupMamba_tiny", "infer", 1, 0.1, "paddle, step by step"),
    "groupmamba-steps-16": Row("GroupMamba_tiny", "infer", 16, 0.1, "paddle, step by step"),
    "groupmamba-steps-pytorch": Row("GroupMamba_tiny", "infer", 1, None, "pytorch, step by step"),
    "groupmamba-train": Row("GroupMamba_tiny", "train", 8, 1.0),
    "shufflenet-train": Row("ShuffleNetV2_x1_0", "train", 16, 1.0),
    "resnext-train": Row("ResNeXt50_32x4d", "train", 4, 1.0),
    "efficientnet-train": Row("EfficientNetB0", "train", 16, 1.0),
}
MEMORY = (("RepLKNet_31B", 2), ("GroupMamba_tiny", 8))


# ------------------------------------------------------------------------------------------------ one side


def arguments_of(network: str, checkpointing: bool) -> dict[str, Any]:
    """Arguments that make our network the plain one of the other side: nothing drawn at random."""
    if network == "EfficientNetB0":
        return {"padding": "symmetric", "dropout": 0.0, "drop_path": 0.0}
    if network in ("RepLKNet_31B", "GroupMamba_tiny"):
        return {"drop_path": 0.0, "gradient_checkpointing": checkpointing}
    return {}


def arrays_of(network: Any) -> dict[str, Any]:
    """Our weights under our names, those of linear layers as PyTorch has them."""
    import paddle

    linear = {f"{name}.weight" for name, layer in network.named_sublayers() if isinstance(layer, paddle.nn.Linear)}
    arrays = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    return {name: array.T if name in linear else array for name, array in arrays.items()}


def paddle_side(row: Row, weights: Path, checkpointing: bool, one_by_one: bool) -> Any:
    """A function that does the row's work once; it gives the logits, or None after a training step."""
    from ppcls_ext import cli

    cli.import_paddle()
    import numpy as np
    import paddle

    import ppcls_ext
    from ppcls_ext.device import choose_device

    choose_device("cpu")
    if one_by_one:  # the plain scan joins neighbours until so few steps are left
        importlib.import_module("ppcls_ext.ops.selective_scan")._LOOPED = 10**9
    paddle.seed(0)
    network = ppcls_ext.create_model(row.network, **arguments_of(row.network, checkpointing))
    if not weights.exists():
        np.savez(weights, **arrays_of(network))
    images = paddle.to_tensor(np.random.default_rng(0).normal(size=(row.batch, 3, SIZE, SIZE)).astype("float32"))
    labels = paddle.to_tensor(np.random.default_rng(1).integers(0, 1000, row.batch))
    if row.work == "infer":
        network.eval()

        def infer() -> Any:
            with paddle.no_grad():
                return network(images).numpy()

        return infer
    network.train()
    optimizer = paddle.optimizer.Momentum(0.01, 0.9, parameters=network.parameters())

    def step() -> None:
        logits = network(images)
        heads = logits if isinstance(logits, tuple) else (logits,)
        sum(paddle.nn.functional.cross_entropy(head, labels) for head in heads).backward()
        optimizer.step()
        optimizer.clear_grad()

    return step


def torch_side(row: Row, weights: Path) -> Any:
    import numpy as np
    import torch
    import torch_networks as there

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    scan = there.step_by_step_scan if "step by step" in row.other else there.log_step_scan
    builders = {
        "ShuffleNetV2_x1_0": there.ShuffleNetV2,
        "ResNeXt50_32x4d": there.ResNeXt50,
        "EfficientNetB0": there.EfficientNetB0,
        "RepLKNet_31B": there.replknet_31b,
        "GroupMamba_tiny": lambda: there.groupmamba_tiny(scan),
    }
    network = builders[row.network]()
    there.load(network, np.load(weights))
    images = torch.from_numpy(np.random.default_rng(0).normal(size=(row.batch, 3, SIZE, SIZE)).astype("float32"))
    labels = torch.from_numpy(np.random.default_rng(1).integers(0, 1000, row.batch))
    if row.work == "infer":
        network.eval()

        def infer() -> Any:
            with torch.inference_mode():
                return network(images).numpy()

        return infer
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9)

    def step() -> None:
        logits = network(images)
        heads = logits if isinstance(logits, tuple) else (logits,)
        sum(torch.nn.functional.cross_entropy(head, labels) for head in heads).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def serve(arguments: argparse.Namespace) -> None:
    """The child: computes for every line that it reads, and answers with the seconds of a call and a few logits.

    At least half a second, so that a side whose call is short is not timed by how it wakes up after the others.
    """
    row = Row(**json.loads(arguments.serve))
    weights = Path(arguments.weights)
    if arguments.side == "pytorch":
        work = torch_side(row, weights)
    else:
        work = paddle_side(row, weights, arguments.side.endswith("checkpointing"), "step" in arguments.side)
    for line in sys.stdin:
        answer: dict[str, Any] = {}
        if line.strip() == "memory":
            import resource

            work()
            work()
            answer["megabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        else:
            clock = time.process_time if line.strip() == "processor" else time.perf_counter
            start, calls = clock(), 0
            while calls == 0 or clock() - start < LEAST_SECONDS:
                result = work()
                calls += 1
            answer["seconds"] = (clock() - start) / calls
            answer["logits"] = None if result is None else result.ravel()[:1000].tolist()
        print("ANSWER " + json.dumps(answer), flush=True)


# ------------------------------------------------------------------------------------------------ both sides


class Side:
    """A process that computes when it is asked."""

    def __init__(self, name: str, row: Row, weights: Path, threads: int) -> None:
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "PPCLS_EXT_COMPILED": SWITCH.get(name.split(" with")[0], "1"),
            "PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")]),
        }
        command = [sys.executable, str(HERE / "networks.py"), "--serve", json.dumps(vars(row)), "--side"]
        command += ["pytorch" if name.startswith("pytorch") else name, "--weights", str(weights)]
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.process = subprocess.Popen(command, env=environment, text=True, **pipes)

    def ask(self, what: str = "clock") -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("ANSWER "):
                return json.loads(line.removeprefix("ANSWER "))
        raise SystemExit(f"a side ended with status {self.process.wait()}: {self.process.args}")

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measure(name: str, row: Row, rounds: int, threads: int, clock: str, folder: Path) -> bool:
    """Print one line of the table; True if the wanted ratio is reached."""
    weights = folder / f"{row.network}.npz"
    sides = {side: Side(side, row, weights, threads) for side in OURS}
    first = {side: process.ask() for side, process in sides.items()}  # the first writes the weights
    sides[row.other] = Side(row.other, row, weights, threads)
    first[row.other] = sides[row.other].ask()
    if row.work == "infer":
        theirs = first[row.other]["logits"]
        for side in OURS:
            worst = max(abs(a - b) for a, b in zip(first[side]["logits"], theirs))
            if worst > 1e-3 * max(map(abs, theirs)):
                raise SystemExit(f"{name}: the logits of {side} and {row.other} differ by {worst}")
    for process in sides.values():
        process.ask()
    times: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, process in sides.items():
            times[side].append(process.ask(clock)["seconds"] * 1e3)
    for process in sides.values():
        process.close()
    ours, plain, other = (statistics.median(times[side]) for side in (*OURS, row.other))
    spread = " ".join(f"{min(values):.0f}-{max(values):.0f}" for values in times.values())
    wanted = "" if row.wanted is None else f"{row.wanted:g}"
    print(
        f"| {row.network} | {row.work}, batch {row.batch} | {ours:.0f} | {plain:.0f} | {row.other} {other:.0f} "
        f"| {ours / other:.2f} | {plain / other:.2f} | {wanted} | {spread} |",
        flush=True,
    )
    return row.wanted is None or ours / other <= row.wanted


def measure_memory(threads: int, folder: Path) -> None:
    print("| network | batch | ours, MB | with gradient checkpointing | PyTorch |\n|---|---|---|---|---|")
    for network, batch in MEMORY:
        row = Row(network, "train", batch, None)
        peaks = []
        for side in ("ours", "ours with checkpointing", "pytorch"):
            process = Side(side, row, folder / f"{network}.npz", threads)
            peaks.append(f"{process.ask('memory')['megabytes']:.0f}")
            process.close()
        print(f"| {network} | {batch} | {' | '.join(peaks)} |", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}; all unless named")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--processor-time", action="store_true", help="of one thread, for a busy machine")
    parser.add_argument("--memory", action="store_true", help="peak resident memory of two training steps")
    for hidden in ("--serve", "--side", "--weights"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments)
        return 0
    unknown = [name for name in arguments.rows if name not in ROWS]
    if unknown:
        parser.error(f"unknown row {unknown[0]}; expected one of {', '.join(ROWS)}")
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        if arguments.memory:
            measure_memory(arguments.threads, Path(folder))
            return 0
        print("| network | work | ours, ms | not compiled | other side | ratio | not compiled | wanted | ranges |")
        print("|---|---|---|---|---|---|---|---|---|")
        names = arguments.rows or list(ROWS)
        clock, threads = ("processor", 1) if arguments.processor_time else ("clock", arguments.threads)
        reached = [measure(name, ROWS[name], arguments.rounds, threads, clock, Path(folder)) for name in names]
    return 0 if all(reached) else 1


if __name__ == "__main__":
    sys.exit(main())
