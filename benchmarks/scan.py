"""The selective scan by itself, forward, ms of processor time of one thread: python benchmarks/scan.py

Compiled, in plain Paddle, and in plain Paddle one step after the other, of GroupMamba_tiny's stages.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Callable

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import paddle

from ppcls_ext.device import choose_device
from ppcls_ext.ops import native, selective_scan

SHAPES = ((4, 1, 3136, 16), (4, 1, 784, 32), (4, 1, 196, 87), (4, 1, 49, 112), (4, 16, 3136, 16))
ROUNDS = 5


def milliseconds(work: Callable[[], object]) -> float:
    """The median of a few rounds after one that does not count."""
    work()
    times = []
    for _ in range(ROUNDS):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return float(np.median(times)) * 1e3


@paddle.no_grad()
def main() -> int:
    choose_device("cpu")
    print(native.status())
    module = importlib.import_module("ppcls_ext.ops.selective_scan")
    usual = module._LOOPED
    print(
        "| groups, batch, length, channels | compiled | plain | step by step | of step by step |\n|---|---|---|---|---|"
    )
    for shape in SHAPES:
        groups, n, length, channels = shape
        sizes = [shape] * 2 + [(groups, channels)] * 2 + [(groups, n, length, 1)] * 2 + [(groups, channels)]
        arguments = [paddle.randn(size) for size in sizes]
        arguments[3] = -arguments[3].abs()
        compiled = milliseconds(lambda: selective_scan(*arguments))  # noqa: B023
        with native.plain():
            plain = milliseconds(lambda: selective_scan(*arguments))  # noqa: B023
            module._LOOPED = length
            steps = milliseconds(lambda: selective_scan(*arguments))  # noqa: B023
            module._LOOPED = usual
        print(f"| {shape} | {compiled:.2f} | {plain:.1f} | {steps:.1f} | {compiled / steps:.4f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
