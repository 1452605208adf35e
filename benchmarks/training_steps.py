"""Training steps of the networks of configs/plant_seedlings_*.yaml, with the compiled operators and without.

python benchmarks/training_steps.py [--size 96] [--batch 32] [NETWORK ...]

Processor time of one thread, both sides in turns, medians: for a busy machine too. 3,319 photographs make an epoch.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import paddle
import paddle.nn.functional as F

from ppcls_ext import create_model
from ppcls_ext.config.reading import read_raw
from ppcls_ext.device import choose_device
from ppcls_ext.ops import native

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
NETWORKS = ("shufflenetv2", "micronet", "efficientnet", "resnext", "replknet", "groupmamba")
IMAGES, CLASSES = 3319, 12


class Training:
    """One network and its optimizer on one batch."""

    def __init__(self, network: str, size: int, batch: int) -> None:
        arch = dict(read_raw(CONFIGS / f"plant_seedlings_{network}.yaml", [])["Arch"])
        paddle.seed(0)
        self.network = create_model(arch.pop("name"), num_classes=CLASSES, **arch)
        self.network.train()
        self.optimizer = paddle.optimizer.Momentum(1e-3, parameters=self.network.parameters())
        self.images = paddle.randn([batch, 3, size, size])
        self.labels = paddle.randint(0, CLASSES, [batch])

    def step(self) -> float:
        """Seconds of processor time."""
        start = time.process_time()
        F.cross_entropy(self.network(self.images), self.labels).backward()
        self.optimizer.step()
        self.optimizer.clear_grad()
        return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", metavar="NETWORK", default=[])
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.networks if name not in NETWORKS]:
        parser.error(f"unknown: {', '.join(unknown)}; known are {', '.join(NETWORKS)}")
    choose_device("cpu")
    print(native.status())
    print(
        f"| {arguments.size} px, batch {arguments.batch} | compiled, ms | Paddle's operators, ms | ratio "
        "| seconds an epoch, compiled |\n|---|---|---|---|---|"
    )
    for name in arguments.networks or NETWORKS:
        training = Training(name, arguments.size, arguments.batch)
        sides = (contextlib.nullcontext, native.plain)
        times: list[list[float]] = [[], []]
        for turn in range(arguments.rounds + 1):
            for side, own in zip(sides, times):
                with side():
                    seconds = training.step()
                if turn:  # the first of each fills caches
                    own.append(seconds)
        compiled, plain = (statistics.median(own) for own in times)
        epoch = compiled * IMAGES / arguments.batch
        cells = [name, f"{compiled * 1e3:.0f}", f"{plain * 1e3:.0f}", f"{compiled / plain:.2f}", f"{epoch:.0f}"]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
