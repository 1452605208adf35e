"""A worker process of the loader, and what it shares with its parent.

Each worker has its own two pipes, so that no lock is left behind by one that was killed; it publishes in shared memory
which sample it is on. Images travel through anonymous shared memory, which `/dev/shm` does not limit.
"""

from __future__ import annotations

import math
import mmap
import os
import pickle
import signal
import struct
import threading
import time
import weakref
from dataclasses import dataclass

import cv2
import numpy as np

from ppcls_ext.data.datasets import SampleError
from ppcls_ext.data.reading import Dataset, Loaded, read_batch
from ppcls_ext.errors import Refused, RunFailed

HEADER = struct.Struct("<Q")  # length of the message that follows
NO_SLOT = -1  # the batch comes through the pipe
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Task:
    """A batch that a worker is asked for."""

    token: int  # which call of `epoch` it belongs to
    number: int
    epoch: int
    slot: int
    indices: np.ndarray


@dataclass(frozen=True)
class Result:
    """Its answer."""

    token: int
    number: int
    slot: int
    outcome: Loaded | Refused | RunFailed | None  # None: the task was given up


class Board:
    """What the workers publish: (token of the running epoch, then index and number of finished samples per worker)."""

    def __init__(self, num_workers: int) -> None:
        self._cells = np.frombuffer(mmap.mmap(-1, 8 * (1 + 2 * num_workers)), np.int64)
        self._cells[1::2] = -1

    @property
    def token(self) -> int:
        return int(self._cells[0])

    @token.setter
    def token(self, token: int) -> None:
        self._cells[0] = token

    def begin(self, worker: int, index: int) -> None:
        """Worker `worker` turns to sample `index`, -1 for none."""
        self._cells[1 + 2 * worker] = index
        self._cells[2 + 2 * worker] += 1

    def index(self, worker: int) -> int:
        return int(self._cells[1 + 2 * worker])

    def progress(self, worker: int) -> int:
        return int(self._cells[2 + 2 * worker])


class Slots:
    """Places for batches in anonymous shared memory, made before the workers are forked.

    The consumer gets the place itself, not a copy, which costs 160 us per image of 224 x 224 (2 cores, 2 workers; 10 us
    so). A place is free again when the last array that looks at it is gone; while the consumer keeps more batches than
    there are places, further ones come through the pipe.
    """

    def __init__(self, count: int, num_bytes: int) -> None:
        self.num_bytes = -(-num_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        try:
            self._memory = mmap.mmap(-1, max(1, count) * max(mmap.PAGESIZE, self.num_bytes))
        except OSError as error:
            raise RunFailed(
                f"No {count * self.num_bytes / 1e9:.1f} GB of shared memory for {count} batches on their way "
                f"({error.strerror}): lower num_workers, prefetch or batch_size"
            ) from error

    def array(self, slot: int, shape: tuple[int, ...]) -> np.ndarray | None:
        """The place as a float32 array, None if it is too small."""
        count = math.prod(shape)
        if 4 * count > self.num_bytes:
            return None
        return np.frombuffer(self._memory, np.float32, count, slot * self.num_bytes).reshape(shape)

    def lend(self, slot: int, shape: tuple[int, ...], back: list[int]) -> np.ndarray:
        """The place as an array; when it and all its views are gone, `slot` is appended to `back`."""
        images = self.array(slot, shape)
        assert images is not None and images.base is not None
        weakref.finalize(images.base, back.append, slot).atexit = False
        return images


def work(
    dataset: Dataset, number: int, tasks: int, results: int, slots: Slots | None, board: Board, parent: int
) -> None:
    """The life of a worker: read a task, load its samples, send what became of it."""
    # Ctrl-C reaches every process of the terminal, SIGTERM every process of a launcher's group (Paddle's, Slurm's). The
    # parent alone decides what they mean: it may want another batch before it saves.
    for number_of_signal in STOP_SIGNALS:
        signal.signal(number_of_signal, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    cv2.setNumThreads(0)  # the workers are the parallelism; OpenCV's own threads would fight over the cores
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    with open(tasks, "rb") as stream:
        while True:  # until the parent ends this process, or is gone
            result = _carry_out(dataset, number, pickle.load(stream), slots, board)
            message = pickle.dumps(result, protocol=5)
            _write_all(results, HEADER.pack(len(message)))
            _write_all(results, message)


def _carry_out(dataset: Dataset, number: int, task: Task, slots: Slots | None, board: Board) -> Result:
    in_slot = False

    def make_room(shape: tuple[int, ...]) -> np.ndarray:
        nonlocal in_slot
        room = None if slots is None or task.slot == NO_SLOT else slots.array(task.slot, shape)
        in_slot = room is not None
        return np.empty(shape, np.float32) if room is None else room

    def begin(index: int) -> bool:
        board.begin(number, index)
        return board.token == task.token

    outcome: Loaded | Refused | RunFailed | None
    try:
        outcome = read_batch(dataset, task.indices, task.epoch, make_room, begin)
    except SampleError as error:
        outcome = error
    except (Refused, RunFailed) as error:
        # As one of the two plain classes: what a subclass holds need not survive the way.
        outcome = Refused(str(error)) if isinstance(error, Refused) else RunFailed(str(error))
    if isinstance(outcome, Loaded) and in_slot:
        outcome.images = None
    board.begin(number, -1)
    return Result(task.token, task.number, task.slot, outcome)


def _leave_with(parent: int) -> None:
    """End this process once its parent is gone: also after kill -9 of the parent, and with a sample that hangs."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
