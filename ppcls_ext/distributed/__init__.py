"""Several processes: rank, sums, agreement, work of rank 0. Each is a no-op in one process.

Gloo ends every collective after 30 s, and nothing changes that; so no rank may ever be left alone in one for longer.
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from ppcls_ext.errors import FirstFailed

Result = TypeVar("Result")


def rank() -> int:
    """This process's number, from the environment that `paddle.distributed.launch` sets."""
    return int(os.environ.get("PADDLE_TRAINER_ID", "0"))


def world_size() -> int:
    """How many processes train together."""
    return int(os.environ.get("PADDLE_TRAINERS_NUM", "1"))


def start() -> None:
    """Join the other processes; see `failures.join`."""
    if world_size() > 1:
        import paddle

        # Until all are there they wait in C++, where no handler of Python's could run: SIGTERM ends them at once, and
        # the process in which Paddle serves the addresses to all with them.
        handler = signal.signal(signal.SIGTERM, signal.SIG_DFL)
        joining = [True]
        os.register_at_fork(after_in_child=lambda: joining and _end_with_parent())
        try:
            paddle.distributed.init_parallel_env()
        finally:
            joining.clear()
            signal.signal(signal.SIGTERM, handler or signal.SIG_DFL)


def _end_with_parent() -> None:
    """Let this process get SIGTERM when the one that made it ends (man prctl)."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def all_sum(values: np.ndarray) -> np.ndarray:
    """Sum of a float64 array over all ranks, the same on each. Waits for the device."""
    if world_size() == 1:
        return values
    import paddle

    tensor = paddle.to_tensor(np.asarray(values, dtype=np.float64))
    paddle.distributed.all_reduce(tensor)
    return tensor.numpy()


def sum_of_all(values: dict[str, float]) -> dict[str, float]:
    """Sums over all ranks, of dictionaries that have the same keys on each."""
    if world_size() == 1 or not values:
        return dict(values)
    names = sorted(values)
    return dict(zip(names, all_sum(np.array([values[name] for name in names])).tolist()))


def any_rank(flag: bool) -> bool:
    """True on every rank if it is true on one."""
    return bool(all_sum(np.array([float(flag)]))[0] > 0)


def merged(entries: dict[str, str]) -> dict[str, str]:
    """The entries of all ranks together, the same on each."""
    if world_size() == 1:
        return entries
    import paddle

    parts: list[dict[str, str]] = []
    paddle.distributed.all_gather_object(parts, entries)
    return {key: value for part in parts for key, value in part.items()}


def first_does(work: Callable[[], Result]) -> Result | None:
    """Rank 0 calls `work` and gets its result, however long it takes; the others wait and get None.

    The work runs in a thread while all ranks meet in short collectives, so that none runs into gloo's 30 s.
    """
    if world_size() == 1:
        return work()
    outcome: dict[str, Any] = {}

    def call() -> None:
        try:
            outcome["result"] = work()
        except BaseException as error:  # noqa: BLE001 - carried to the main thread and raised there
            outcome["error"] = error

    thread = threading.Thread(target=call)
    if rank() == 0:
        thread.start()
    while True:
        if rank() == 0:
            thread.join(timeout=0.2)
        ended = rank() == 0 and not thread.is_alive()
        done, failed = all_sum(np.array([float(ended), float("error" in outcome)]))
        if done:
            break
    if rank() == 0 and "error" in outcome:
        raise outcome["error"]
    if failed:
        raise FirstFailed("rank 0 failed; its own message says why")
    return outcome.get("result")


def equalise_statistics(tensors: dict[str, Any]) -> None:
    """Replace batch-norm statistics (`_mean`, `_variance`), which each rank keeps of its own images, by their mean."""
    if world_size() == 1:
        return
    names = sorted(name for name in tensors if name.endswith(("._mean", "._variance")))
    if not names:
        return
    flat = np.concatenate([np.asarray(tensors[name].numpy(), dtype=np.float64).ravel() for name in names])
    mean = all_sum(flat) / world_size()
    start_at = 0
    for name in names:
        shape = tensors[name].shape
        size = int(np.prod(shape))
        tensors[name].set_value(mean[start_at : start_at + size].reshape(shape).astype(np.float32))
        start_at += size
