"""Batches from worker processes that cannot hang a run, and that do not depend on how many workers there are.

Paddle's own loader tells neither which file a worker failed on nor that a worker is stuck. Here the parent waits with a
watch in its hand, and every worker says which sample it is on (`ppcls_ext.data.worker`).
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
import multiprocessing
import multiprocessing.util
import os
import pickle
import select
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np

from ppcls_ext.data.datasets import SampleError, place_of
from ppcls_ext.data.reading import Dataset, Loaded, Naming, listing, place_in, read_batch
from ppcls_ext.data.worker import HEADER, NO_SLOT, STOP_SIGNALS, Board, Result, Slots, Task, work
from ppcls_ext.errors import Refused, RunFailed

_POLL = 0.2  # seconds between two looks at the watch


@dataclass(frozen=True)
class Batch:
    """Samples of one batch; an evaluation may meet one of length 0."""

    images: np.ndarray  # float32 (n, C, H, W)
    labels: np.ndarray  # int64 (n,), or float32 (n, classes); where images were mixed, of their larger parts
    indices: np.ndarray  # int64 (n,), their places in the dataset
    wait: float  # seconds for which the consumer was kept waiting
    targets: np.ndarray | None = None  # float32 (n, classes): soft labels of mixed images


@dataclass
class _Worker:
    """The parent's side of a worker."""

    number: int
    process: multiprocessing.process.BaseProcess
    tasks: int  # file descriptor, written without blocking
    results: int  # file descriptor, read without blocking
    unsent: bytearray = field(default_factory=bytearray)
    received: bytearray = field(default_factory=bytearray)
    open_tasks: int = 0
    ended: bool = False


@dataclass
class _Epoch:
    """The parent's view of a running epoch."""

    token: int
    number: int
    plan: list[np.ndarray]
    ahead: Iterator[int]  # batches that no worker has yet
    worker_of: dict[int, _Worker]


def _end(workers: list[_Worker]) -> None:
    """End the workers with SIGKILL: they have nothing to finish, and they ignore the gentler signals."""
    for worker in workers:
        worker.process.kill()
    for worker in workers:
        worker.process.join(5)
        os.close(worker.tasks)
        os.close(worker.results)
    workers.clear()


class Loader:
    """Batches of `dataset` as `batches(epoch)` plans them, in that order, the same bits for any `num_workers`.

    Workers are started once, by `start()` or with the first batch, and serve every epoch until `close()`; 0 loads in
    this process. Up to `prefetch` batches per worker are on their way. A worker that finishes no sample for `timeout`
    seconds counts as stuck. Errors end the epoch and the workers: `SampleError`, `Refused`, `RunFailed`.

    With `unreadable: skip` an image that cannot be read is left out of its batch and entered in `skipped`; a batch with
    nothing left is an error in training, and a batch of length 0 with `evaluation=True`.
    """

    def __init__(
        self,
        dataset: Dataset,
        batches: Callable[[int], list[np.ndarray]],
        num_workers: int,
        prefetch: int = 2,
        timeout: float = 120.0,
        use_shared_memory: bool = True,
        evaluation: bool = False,
    ) -> None:
        if num_workers < 0 or prefetch < 1 or not timeout > 0:
            raise Refused(
                "loader: expected num_workers >= 0, prefetch >= 1, timeout > 0, "
                f"got num_workers={num_workers}, prefetch={prefetch}, timeout={timeout}"
            )
        self.dataset = dataset
        self.batches = batches
        self.num_workers = num_workers
        self.prefetch = prefetch
        self.timeout = timeout
        self.use_shared_memory = use_shared_memory
        self.evaluation = evaluation
        self.skipped: dict[str, str] = {}  # 'list:line: path' -> reason, each file once
        self._digests: dict[int, bytes] = {}  # of the epoch that was asked for last
        self._token = 0
        self._workers: list[_Worker] = []
        # For a loader that is dropped, or a program that ends, without `close`; only in the process that made it.
        multiprocessing.util.Finalize(self, _end, args=(self._workers,), exitpriority=0)
        self._slots: Slots | None = None
        self._board = Board(0)
        self._free_slots: list[int] = []
        self._in_flight = 0  # tasks given to workers whose results were neither delivered nor dropped
        self._results: dict[int, Result] = {}
        self._shapes: dict[int, tuple[int, ...]] = {}  # by the first epoch that has it

    def digest(self, epoch: int) -> bytes:
        """SHA-256 of which images, by their names below the root and their labels, are in which batch of an epoch."""
        if epoch not in self._digests:
            digest = hashlib.sha256(self.dataset.identity)
            for batch in self.batches(epoch):
                digest.update(np.append(batch, -1).astype(np.int64).tobytes())
            self._digests = {epoch: digest.digest()}
        return self._digests[epoch]

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, from number `start` on. One epoch runs at a time; a new one ends the one before."""
        plan = self.batches(epoch)
        if not 0 <= start <= len(plan):
            raise Refused(f"Epoch {epoch} has {len(plan)} batches; it cannot begin at batch {start}")
        self._token += 1
        return self._inline(plan, epoch, start) if self.num_workers == 0 else self._parallel(plan, epoch, start)

    def start(self, epoch: int = 0) -> None:
        """Start the workers, if they do not run: best before the program holds threads or much memory."""
        if self._workers or self.num_workers == 0:
            return
        self._free_slots = []
        if self.use_shared_memory:
            count = self.num_workers * self.prefetch + 2  # the consumer holds one batch while it asks for another
            longest = max((len(batch) for batch in self.batches(epoch)), default=0)
            num_bytes = 4 * longest * max(math.prod(self._sample_shape(first)) for first in self.dataset.first_epochs)
            self._slots = Slots(count, num_bytes)
            self._free_slots += range(count)
        self._board = Board(self.num_workers)
        self._results = {}
        self._in_flight = 0
        # A stop signal between the fork and the worker's own handlers would run the parent's handlers in the worker.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            for number in range(self.num_workers):
                self._workers.append(self._fork(number))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def close(self) -> None:
        """End the workers and the running epoch, at once."""
        self._token += 1
        _end(self._workers)
        self._slots = None
        self._results = {}

    # Loading in this process ---------------------------------------------------------------------

    def _inline(self, plan: list[np.ndarray], epoch: int, start: int) -> Iterator[Batch]:
        token = self._token
        for number in range(start, len(plan)):
            asked = time.perf_counter()
            self._check_newest(token)
            loaded = read_batch(
                self.dataset, plan[number], epoch, lambda shape: np.empty(shape, np.float32), lambda index: True
            )
            assert loaded is not None
            yield self._batch(loaded, plan[number], number, epoch, asked)

    # Loading in workers --------------------------------------------------------------------------

    def _fork(self, number: int) -> _Worker:
        task_reader, task_writer = os.pipe()
        result_reader, result_writer = os.pipe()
        # fork, not spawn: the workers share the dataset's arrays instead of unpickling a copy each, need no importable
        # main module, and never touch Paddle or a device, whose state does not survive a fork.
        process = multiprocessing.get_context("fork").Process(
            target=work,
            args=(self.dataset, number, task_reader, result_writer, self._slots, self._board, os.getpid()),
            name=f"data worker {number}",
            daemon=True,
        )
        with warnings.catch_warnings():
            # Python 3.12 warns of a fork beside threads; the workers use none of what those may have locked.
            warnings.simplefilter("ignore", DeprecationWarning)
            process.start()
        # Kept open here, or inherited by the next worker, they would hide the end of this one.
        os.close(task_reader)
        os.close(result_writer)
        os.set_blocking(task_writer, False)
        os.set_blocking(result_reader, False)
        return _Worker(number, process, task_writer, result_reader)

    def _parallel(self, plan: list[np.ndarray], number: int, start: int) -> Iterator[Batch]:
        asked = time.perf_counter()
        ahead = iter([batch for batch in range(start, len(plan)) if len(plan[batch])])
        epoch = _Epoch(self._token, number, plan, ahead, {})
        self.start(number)
        self._board.token = epoch.token
        while self._results:
            self._drop(self._results.popitem()[1])
        try:
            for batch in range(start, len(plan)):
                self._check_newest(epoch.token)
                # No name for the batch here: it would keep the slot.
                yield self._batch(self._wait_for(batch, epoch), plan[batch], batch, number, asked)
                asked = time.perf_counter()
        except (Refused, RunFailed):
            self.close()
            raise
        finally:
            if epoch.token == self._token:
                self._board.token = -1  # what is still under way is given up

    def _check_newest(self, token: int) -> None:
        if token != self._token:
            raise RuntimeError("This epoch was ended, by close() or by a newer one: a loader runs one epoch at a time")

    def _send_tasks(self, epoch: _Epoch) -> None:
        """Keep `prefetch` batches per worker on their way; the next one goes to the worker with the fewest."""
        while self._in_flight < self.num_workers * self.prefetch and (batch := next(epoch.ahead, None)) is not None:
            worker = min(self._workers, key=lambda candidate: candidate.open_tasks)
            slot = self._free_slots.pop() if self._free_slots else NO_SLOT
            task = Task(epoch.token, batch, epoch.number, slot, epoch.plan[batch])
            worker.unsent += pickle.dumps(task, protocol=5)
            worker.open_tasks += 1
            self._in_flight += 1
            epoch.worker_of[batch] = worker

    def _wait_for(self, batch: int, epoch: _Epoch) -> Loaded:
        """What became of a batch."""
        if not len(epoch.plan[batch]):
            return Loaded(None, (), [], [], {})
        waits_for, progress, since = None, 0, time.monotonic()
        while batch not in self._results:
            self._send_tasks(epoch)
            self._exchange(_POLL)
            # A batch without a worker waits for what is left of an epoch that was ended early: for any with a task.
            worker = epoch.worker_of.get(batch) or max(self._workers, key=lambda candidate: candidate.open_tasks)
            seen = self._board.progress(worker.number)
            if worker is not waits_for or seen != progress:
                waits_for, progress, since = worker, seen, time.monotonic()
            elif time.monotonic() - since > self.timeout:
                self._fail_stuck(worker)
        result = self._results.pop(batch)
        loaded = result.outcome
        if isinstance(loaded, Loaded) and loaded.shape and loaded.images is None:
            assert self._slots is not None
            loaded.images = self._slots.lend(result.slot, loaded.shape, self._free_slots)
            self._in_flight -= 1
        else:
            self._drop(result)
        if isinstance(loaded, (Refused, RunFailed)):
            raise loaded
        assert loaded is not None
        # Before the consumer turns to its work, so that the workers have theirs.
        self._send_tasks(epoch)
        self._exchange(0)
        return loaded

    def _drop(self, result: Result) -> None:
        """Take back what a result held that nobody looks at."""
        self._in_flight -= 1
        if result.slot != NO_SLOT:
            self._free_slots.append(result.slot)

    def _exchange(self, timeout: float) -> None:
        """Send what waits to be sent, receive what has come; waits up to `timeout` seconds for either."""
        poll = select.poll()
        by_descriptor = {}
        for worker in self._workers:
            poll.register(worker.results, select.POLLIN)
            by_descriptor[worker.results] = worker
            if worker.unsent:
                poll.register(worker.tasks, select.POLLOUT)
                by_descriptor[worker.tasks] = worker
        for descriptor, _ in poll.poll(timeout * 1000):
            worker = by_descriptor[descriptor]
            if descriptor == worker.tasks:
                with contextlib.suppress(BrokenPipeError):  # it has died: seen at its results
                    del worker.unsent[: os.write(descriptor, worker.unsent)]
            else:
                self._receive(worker)
        for worker in self._workers:
            if worker.ended:
                self._fail_dead(worker)

    def _receive(self, worker: _Worker) -> None:
        with contextlib.suppress(BlockingIOError):
            while not worker.ended:
                piece = os.read(worker.results, 1 << 20)
                worker.received += piece
                worker.ended = not piece
        while len(worker.received) >= HEADER.size:
            end = HEADER.size + HEADER.unpack_from(worker.received)[0]
            if len(worker.received) < end:
                return
            result = pickle.loads(memoryview(worker.received)[HEADER.size : end])
            del worker.received[:end]
            worker.open_tasks -= 1
            if result.token == self._token:
                self._results[result.number] = result
            else:
                self._drop(result)

    # What the consumer gets ----------------------------------------------------------------------

    def _batch(self, loaded: Loaded, planned: np.ndarray, number: int, epoch: int, asked: float) -> Batch:
        self._enter_skipped(loaded.skipped)
        images = loaded.images
        if images is None:
            if len(planned) and not self.evaluation:
                raise RunFailed(
                    f"Batch {number} of epoch {epoch}: none of its {len(planned)} images could be read:"
                    + listing(loaded.skipped)
                )
            images = np.zeros((0, *self._sample_shape(epoch)), np.float32)
        # without samples there is nothing to tell one kind of labels by, nor anybody to ask
        labels = np.array(loaded.labels) if loaded.labels else np.zeros(0, np.int64)
        indices = np.array(loaded.indices, np.int64)
        targets = None
        if loaded.mixing is not None:
            targets = loaded.mixing.targets(labels, self.dataset.num_classes)
            labels = loaded.mixing.dominant(labels)
        return Batch(images, labels, indices, time.perf_counter() - asked, targets)

    def _enter_skipped(self, skipped: dict[str, str]) -> None:
        self.skipped.update(skipped)
        if len(self.skipped) > self.dataset.max_unreadable:
            raise RunFailed(
                f"More than max_unreadable={self.dataset.max_unreadable} images could not be read:"
                + listing(self.skipped)
            )

    def _sample_shape(self, epoch: int) -> tuple[int, ...]:
        """(C, H, W) of the first sample that can be read."""
        stage = max(first for first in self.dataset.first_epochs if first <= epoch)
        if stage not in self._shapes:
            unread: dict[str, str] = {}
            planned = (index for batch in self.batches(epoch) for index in batch.tolist())
            for index in itertools.chain(planned, range(len(self.dataset))):
                try:
                    with Naming(self.dataset, index):
                        image, _ = self.dataset.load(index, epoch)
                except SampleError as error:
                    if self.dataset.unreadable != "skip":
                        raise
                    unread[place_of(error.path, error.origin)] = error.reason
                    if len(unread) > self.dataset.max_unreadable:
                        break
                else:
                    self._shapes[stage] = image.shape
                    break
            if stage not in self._shapes:
                raise RunFailed("None of the first images could be read:" + listing(unread))
        return self._shapes[stage]

    # What went wrong -----------------------------------------------------------------------------

    def _doing(self, worker: _Worker) -> str:
        index = self._board.index(worker.number)
        return "while it had no sample in hand" if index < 0 else f"while it was on {place_in(self.dataset, index)}"

    def _fail_dead(self, worker: _Worker) -> NoReturn:
        worker.process.join(5)
        code = worker.process.exitcode
        who = f"Data worker {worker.number} (process {worker.process.pid})"
        if code is None or code >= 0:
            raise RunFailed(f"{who} ended with status {code} {self._doing(worker)}; its own words stand on stderr")
        name = signal.Signals(-code).name
        hint = ""
        if -code == signal.SIGKILL:
            hint = ". Out of memory? The kernel ends processes so; fewer num_workers, prefetch or batch_size need less"
        raise RunFailed(f"{who} was killed by signal {-code} ({name}) {self._doing(worker)}{hint}")

    def _fail_stuck(self, worker: _Worker) -> NoReturn:
        raise RunFailed(
            f"Data worker {worker.number} (process {worker.process.pid}) has finished no sample for {self.timeout:g} s "
            f"{self._doing(worker)}. Does the storage answer? If one image may take longer, raise timeout in the loader"
        )
