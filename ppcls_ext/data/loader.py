"""Batches from worker processes that cannot hang a run, and that do not depend on how many workers there are.

Paddle's own loader tells neither which file a worker failed on nor that a worker is stuck. Here each worker has its own
two pipes, so that no lock is left behind by one that was killed; it publishes in shared memory which sample it is on;
and the parent waits with a watch in its hand. Images travel through anonymous shared memory, which `/dev/shm` does not
limit.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import mmap
import multiprocessing
import multiprocessing.util
import os
import pickle
import select
import signal
import struct
import threading
import time
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import NoReturn, Protocol

import cv2
import numpy as np

from ppcls_ext.data.datasets import SampleError, place_of
from ppcls_ext.data.mixing import Mixing
from ppcls_ext.errors import Refused, RunFailed

_HEADER = struct.Struct("<Q")  # length of the message that follows
_NO_SLOT = -1  # the batch comes through the pipe
_POLL = 0.2  # seconds between two looks at the watch
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Dataset(Protocol):
    """What the loader asks of a dataset; `ppcls_ext.data.datasets.ImageDataset` has it."""

    unreadable: str
    max_unreadable: int
    num_classes: int
    first_epochs: list[int]

    def __len__(self) -> int: ...
    def load(self, index: int, epoch: int) -> tuple[np.ndarray, int | np.ndarray]: ...
    def mix(self, images: np.ndarray, indices: list[int], epoch: int) -> Mixing | None: ...
    def path(self, index: int) -> str: ...
    def origin(self, index: int) -> str: ...


@dataclass(frozen=True)
class Batch:
    """Samples of one batch; an evaluation may meet one of length 0."""

    images: np.ndarray  # float32 (n, C, H, W)
    labels: np.ndarray  # int64 (n,), or float32 (n, classes); where images were mixed, of their larger parts
    indices: np.ndarray  # int64 (n,), their places in the dataset
    wait: float  # seconds for which the consumer was kept waiting
    targets: np.ndarray | None = None  # float32 (n, classes): soft labels of mixed images


@dataclass(frozen=True)
class _Task:
    token: int  # which call of `epoch` it belongs to
    number: int
    epoch: int
    slot: int
    indices: np.ndarray


@dataclass
class _Loaded:
    images: np.ndarray | None  # None: none was readable, or they stand in the slot
    shape: tuple[int, ...]  # (n, C, H, W), () when none was readable
    labels: list[int] | list[np.ndarray]
    indices: list[int]
    skipped: dict[str, str]
    mixing: Mixing | None = None


@dataclass(frozen=True)
class _Result:
    token: int
    number: int
    slot: int
    outcome: _Loaded | Refused | RunFailed | None  # None: the task was given up


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


# ------------------------------------------------------------------------------------------------ reading samples


class _Naming:
    """Adds the sample to an error that does not name it, a defect of a transform say; the text keeps the traceback."""

    def __init__(self, dataset: Dataset, index: int) -> None:
        self.dataset, self.index = dataset, index

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception) and not isinstance(error, (Refused, RunFailed)):
            text = "".join(traceback.format_exception(kind, error, trace)).rstrip()
            raise RunFailed(f"{_place(self.dataset, self.index)}: {type(error).__name__}: {error}\n{text}") from error


def _place(dataset: Dataset, index: int) -> str:
    return place_of(dataset.path(index), dataset.origin(index))


def _read_batch(
    dataset: Dataset,
    indices: np.ndarray,
    epoch: int,
    make_room: Callable[[tuple[int, ...]], np.ndarray],
    begin: Callable[[int], bool],
) -> _Loaded | None:
    """Load the samples into the array from `make_room(shape)`; `begin(index)` may give the batch up: None.

    Raises what the dataset raises; a `SampleError` is collected instead when the dataset says skip.
    """
    images: np.ndarray | None = None
    loaded = _Loaded(None, (), [], [], {})
    for index in indices.tolist():
        if not begin(index):
            return None
        try:
            with _Naming(dataset, index):
                image, label = dataset.load(index, epoch)
        except SampleError as error:
            if dataset.unreadable != "skip":
                raise
            loaded.skipped[place_of(error.path, error.origin)] = error.reason
            continue
        if images is None:
            images = make_room((len(indices), *image.shape))
        if image.shape != images.shape[1:]:
            raise RunFailed(
                f"{_place(dataset, index)} becomes {image.shape}, but {_place(dataset, loaded.indices[0])} of the same "
                f"batch {images.shape[1:]}: transform_ops must bring all images to one size"
            )
        images[len(loaded.indices)] = image
        loaded.indices.append(index)
        loaded.labels.append(label)
    if images is not None:
        loaded.images = images[: len(loaded.indices)]
        loaded.shape = loaded.images.shape
        loaded.mixing = dataset.mix(loaded.images, loaded.indices, epoch)
    return loaded


# ------------------------------------------------------------------------------------------------ shared memory


class _Board:
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


class _Slots:
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


# ------------------------------------------------------------------------------------------------ the worker's side


def _work(
    dataset: Dataset, number: int, tasks: int, results: int, slots: _Slots | None, board: _Board, parent: int
) -> None:
    """The life of a worker: read a task, load its samples, send what became of it."""
    # Ctrl-C reaches every process of the terminal, SIGTERM every process of a launcher's group (Paddle's, Slurm's). The
    # parent alone decides what they mean: it may want another batch before it saves.
    for number_of_signal in _STOP_SIGNALS:
        signal.signal(number_of_signal, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)
    cv2.setNumThreads(0)  # the workers are the parallelism; OpenCV's own threads would fight over the cores
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    with open(tasks, "rb") as stream:
        while True:  # until the parent ends this process, or is gone
            result = _carry_out(dataset, number, pickle.load(stream), slots, board)
            message = pickle.dumps(result, protocol=5)
            _write_all(results, _HEADER.pack(len(message)))
            _write_all(results, message)


def _carry_out(dataset: Dataset, number: int, task: _Task, slots: _Slots | None, board: _Board) -> _Result:
    in_slot = False

    def make_room(shape: tuple[int, ...]) -> np.ndarray:
        nonlocal in_slot
        room = None if slots is None or task.slot == _NO_SLOT else slots.array(task.slot, shape)
        in_slot = room is not None
        return np.empty(shape, np.float32) if room is None else room

    def begin(index: int) -> bool:
        board.begin(number, index)
        return board.token == task.token

    outcome: _Loaded | Refused | RunFailed | None
    try:
        outcome = _read_batch(dataset, task.indices, task.epoch, make_room, begin)
    except SampleError as error:
        outcome = error
    except (Refused, RunFailed) as error:
        # As one of the two plain classes: what a subclass holds need not survive the way.
        outcome = Refused(str(error)) if isinstance(error, Refused) else RunFailed(str(error))
    if isinstance(outcome, _Loaded) and in_slot:
        outcome.images = None
    board.begin(number, -1)
    return _Result(task.token, task.number, task.slot, outcome)


def _leave_with(parent: int) -> None:
    """End this process once its parent is gone: also after kill -9 of the parent, and with a sample that hangs."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


# ------------------------------------------------------------------------------------------------ the parent's side


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
        self._token = 0
        self._workers: list[_Worker] = []
        # For a loader that is dropped, or a program that ends, without `close`; only in the process that made it.
        multiprocessing.util.Finalize(self, _end, args=(self._workers,), exitpriority=0)
        self._slots: _Slots | None = None
        self._board = _Board(0)
        self._free_slots: list[int] = []
        self._in_flight = 0  # tasks given to workers whose results were neither delivered nor dropped
        self._results: dict[int, _Result] = {}
        self._shapes: dict[int, tuple[int, ...]] = {}  # by the first epoch that has it

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
            self._slots = _Slots(count, num_bytes)
            self._free_slots += range(count)
        self._board = _Board(self.num_workers)
        self._results = {}
        self._in_flight = 0
        # A stop signal between the fork and the worker's own handlers would run the parent's handlers in the worker.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
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
            loaded = _read_batch(
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
            target=_work,
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
            slot = self._free_slots.pop() if self._free_slots else _NO_SLOT
            task = _Task(epoch.token, batch, epoch.number, slot, epoch.plan[batch])
            worker.unsent += pickle.dumps(task, protocol=5)
            worker.open_tasks += 1
            self._in_flight += 1
            epoch.worker_of[batch] = worker

    def _wait_for(self, batch: int, epoch: _Epoch) -> _Loaded:
        """What became of a batch."""
        if not len(epoch.plan[batch]):
            return _Loaded(None, (), [], [], {})
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
        if isinstance(loaded, _Loaded) and loaded.shape and loaded.images is None:
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

    def _drop(self, result: _Result) -> None:
        """Take back what a result held that nobody looks at."""
        self._in_flight -= 1
        if result.slot != _NO_SLOT:
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
        while len(worker.received) >= _HEADER.size:
            end = _HEADER.size + _HEADER.unpack_from(worker.received)[0]
            if len(worker.received) < end:
                return
            result = pickle.loads(memoryview(worker.received)[_HEADER.size : end])
            del worker.received[:end]
            worker.open_tasks -= 1
            if result.token == self._token:
                self._results[result.number] = result
            else:
                self._drop(result)

    # What the consumer gets ----------------------------------------------------------------------

    def _batch(self, loaded: _Loaded, planned: np.ndarray, number: int, epoch: int, asked: float) -> Batch:
        self._enter_skipped(loaded.skipped)
        images = loaded.images
        if images is None:
            if len(planned) and not self.evaluation:
                raise RunFailed(
                    f"Batch {number} of epoch {epoch}: none of its {len(planned)} images could be read:"
                    + _listing(loaded.skipped)
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
                + _listing(self.skipped)
            )

    def _sample_shape(self, epoch: int) -> tuple[int, ...]:
        """(C, H, W) of the first sample that can be read."""
        stage = max(first for first in self.dataset.first_epochs if first <= epoch)
        if stage not in self._shapes:
            unread: dict[str, str] = {}
            planned = (index for batch in self.batches(epoch) for index in batch.tolist())
            for index in itertools.chain(planned, range(len(self.dataset))):
                try:
                    with _Naming(self.dataset, index):
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
                raise RunFailed("None of the first images could be read:" + _listing(unread))
        return self._shapes[stage]

    # What went wrong -----------------------------------------------------------------------------

    def _doing(self, worker: _Worker) -> str:
        index = self._board.index(worker.number)
        return "while it had no sample in hand" if index < 0 else f"while it was on {_place(self.dataset, index)}"

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


def _listing(skipped: dict[str, str], limit: int = 10) -> str:
    lines = [f"\n  - {place}: {reason}" for place, reason in list(skipped.items())[:limit]]
    return "".join(lines) + (f"\n  - ... and {len(skipped) - limit} more" if len(skipped) > limit else "")
