"""The loader: the same batches for any number of workers, and no way to hang."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from ppcls_ext.data.datasets import ImageNetDataset, SampleError
from ppcls_ext.data.loader import Batch, Loader
from ppcls_ext.data.samplers import DistributedBatchSampler
from ppcls_ext.errors import Refused, RunFailed

ROOT = Path(__file__).resolve().parents[1]


class Noise:
    """40 samples of noise; `act(index)` is called before each is made, in the process that makes it."""

    def __init__(self, act: Callable[[int], object] = lambda index: None, unreadable: str = "error") -> None:
        self.act = act
        self.unreadable = unreadable
        self.max_unreadable = 5
        self.first_epochs = [0]
        self.labels = np.arange(40, dtype=np.int32) % 7

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> str:
        return f"images/{index}.png"

    def origin(self, index: int) -> str:
        return f"list.txt:{index + 1}"

    def load(self, index: int, epoch: int) -> tuple[np.ndarray, int]:
        self.act(index)
        size = (3, 4, 9) if index == 39 else (3, 4, 5)
        image = np.random.default_rng([0, epoch, index]).random(size, np.float32)
        return image, int(self.labels[index])

    def mix(self, images: np.ndarray, indices: list[int], epoch: int) -> None:
        return None

    def refuse(self, *indices: int) -> Noise:
        """The same samples, of which some cannot be read."""

        def act(index: int) -> None:
            if index in indices:
                raise SampleError(self.path(index), self.origin(index), "cannot be decoded")

        return Noise(act, self.unreadable)


def plan(epoch: int) -> list[np.ndarray]:
    return DistributedBatchSampler(4, shuffle=True).training_plan(np.zeros(39), seed=1, epoch=epoch)


def in_order(epoch: int) -> list[np.ndarray]:
    return DistributedBatchSampler(4).training_plan(np.zeros(39), seed=1, epoch=epoch)


def bits(batches: list[Batch]) -> list[tuple[bytes, tuple[int, ...], list[int], list[int]]]:
    return [(b.images.tobytes(), b.images.shape, b.labels.tolist(), b.indices.tolist()) for b in batches]


def is_gone(pid: int) -> bool:
    """The process has ended; one that nobody has waited for yet counts as ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


# ------------------------------------------------------------------------------------------------ what arrives


def test_a_batch_holds_its_samples_in_the_order_of_the_plan():
    batches = list(Loader(Noise(), in_order, 0).epoch(3))
    assert [len(batch.images) for batch in batches] == [4] * 9 + [3]
    second = batches[1]
    assert second.indices.tolist() == [4, 5, 6, 7] and second.labels.tolist() == [4, 5, 6, 0]
    assert second.indices.dtype == second.labels.dtype == np.int64 and second.images.dtype == np.float32
    assert np.array_equal(second.images[1], Noise().load(5, 3)[0])


@pytest.mark.parametrize("use_shared_memory", [True, False])
def test_workers_give_the_same_bits_as_none(use_shared_memory):
    expected = [bits(list(Loader(Noise(), plan, 0).epoch(epoch))) for epoch in (1, 2)]
    with Loader(Noise(), plan, 2, use_shared_memory=use_shared_memory) as loader:
        loader.start()
        workers = [worker.process.pid for worker in loader._workers]
        assert [bits(list(loader.epoch(epoch))) for epoch in (1, 2)] == expected
        assert [worker.process.pid for worker in loader._workers] == workers  # one start serves every epoch
    assert all(is_gone(pid) for pid in workers)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_resumed_in_its_middle_gives_the_batches_that_remained(workers):
    with Loader(Noise(), plan, workers) as loader:
        whole = bits(list(loader.epoch(5)))
        assert bits(list(loader.epoch(5, start=4))) == whole[4:]
        assert bits(list(loader.epoch(5, start=10))) == []
        with pytest.raises(Refused, match="Epoch 5 has 10 batches; it cannot begin at batch 11"):
            loader.epoch(5, start=11)


def test_nothing_of_an_epoch_left_early_enters_the_next():
    slow = Noise(lambda index: time.sleep(0.01))
    expected = bits(list(Loader(Noise(), plan, 0).epoch(2)))
    with Loader(slow, plan, 2, prefetch=3) as loader:
        for _ in range(3):
            left = loader.epoch(1)
            next(left)
            assert bits(list(loader.epoch(2))) == expected
            with pytest.raises(RuntimeError, match="by a newer one: a loader runs one epoch at a time"):
                next(left)


def test_batches_that_outgrow_the_shared_memory_arrive_all_the_same():
    def growing(epoch: int) -> list[np.ndarray]:
        return [np.arange(2 + 10 * epoch), np.array([39])]  # 39 is larger than the first sample

    with Loader(Noise(), growing, 2) as loader:
        for epoch in (0, 2):
            assert bits(list(loader.epoch(epoch))) == bits(list(Loader(Noise(), growing, 0).epoch(epoch)))


def test_a_batch_stays_as_it_is_while_later_ones_arrive_and_after_the_end():
    with Loader(Noise(), plan, 2) as loader:
        kept = list(loader.epoch(0))
        view = kept[0].images[1:, 0]
        expected = view.tobytes()
        list(loader.epoch(1))
    assert bits(kept) == bits(list(Loader(Noise(), plan, 0).epoch(0)))
    del kept
    assert view.tobytes() == expected


def test_shared_memory_is_used_again_when_a_batch_is_let_go():
    with Loader(Noise(), plan, 2, prefetch=2) as loader:
        for batch in loader.epoch(0):
            first = batch.images[0]  # holds the place as long as it lives
        assert len(loader._free_slots) == 5
        del batch, first
        assert sorted(loader._free_slots) == list(range(6))


def test_large_batches_pass_through_the_pipe_while_tasks_wait():
    class Large(Noise):
        def load(self, index: int, epoch: int) -> tuple[np.ndarray, int]:
            return np.full((3, 300, 300), index, np.float32), 0

    batches = [np.tile(np.arange(10), 3)] * 6
    with Loader(Large(), lambda epoch: batches, 2, prefetch=3, use_shared_memory=False) as loader:
        for batch in loader.epoch(0):
            time.sleep(0.05)  # the workers fill their pipes meanwhile
            assert batch.images[:, 0, 0, 0].tolist() == batches[0].tolist()


@pytest.mark.parametrize("workers", [0, 1])
def test_the_wait_for_a_batch_is_measured(workers):
    with Loader(Noise(lambda index: time.sleep(0.02)), in_order, workers) as loader:
        waits = []
        for batch in loader.epoch(0):
            waits.append(batch.wait)
            time.sleep(0.3 if len(waits) < 3 else 0)
    if workers == 0:
        assert min(waits[:9]) > 0.075
    else:
        assert waits[0] > 0.075 and max(waits[1:3]) < waits[0]  # loaded while the consumer was busy


@pytest.mark.parametrize("workers", [0, 1])
def test_an_empty_share_of_an_evaluation_is_a_batch_of_length_0(workers):
    shares = [np.array([3, 4]), np.array([], np.int64)]
    with Loader(Noise(), lambda epoch: shares, workers, evaluation=True) as loader:
        assert [batch.images.shape for batch in loader.epoch(0)] == [(2, 3, 4, 5), (0, 3, 4, 5)]
    with Loader(Noise(), lambda epoch: shares[1:], workers, evaluation=True) as loader:
        assert [batch.images.shape for batch in loader.epoch(0)] == [(0, 3, 4, 5)]


def test_files_are_read_alike_with_and_without_workers(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(9):
        assert cv2.imwrite(str(tmp_path / f"{i}.png"), rng.integers(0, 255, (8, 8, 3), np.uint8))
    (tmp_path / "list.txt").write_text("".join(f"{i}.png {i % 2}\n" for i in range(9)))
    ops = [{"DecodeImage": None}, {"RandFlipImage": {"flip_code": 1}}, {"ToCHWImage": None}]
    dataset = ImageNetDataset(str(tmp_path), str(tmp_path / "list.txt"), ops, seed=4)
    (tmp_path / "5.png").write_bytes(b"")

    def first_four(epoch: int) -> list[np.ndarray]:
        return [np.array([0, 1]), np.array([8, 3])]

    with Loader(dataset, first_four, 2) as loader:
        assert bits(list(loader.epoch(1))) == bits(list(Loader(dataset, first_four, 0).epoch(1)))
    with Loader(dataset, lambda epoch: [np.array([0, 5])], 1) as loader:
        with pytest.raises(SampleError, match=r"list.txt:6: .*5.png: cannot be decoded"):
            list(loader.epoch(0))


# ------------------------------------------------------------------------------------------------ unreadable images


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_ends_the_run_at_its_batch_with_file_and_line(workers):
    with Loader(Noise().refuse(9), in_order, workers) as loader:
        batches = loader.epoch(0)
        assert [next(batches).indices[0] for _ in range(2)] == [0, 4]
        with pytest.raises(SampleError) as caught:
            next(batches)
        assert str(caught.value).startswith(
            "list.txt:10: images/9.png: cannot be decoded; replace or remove the file, or leave "
        )
        assert isinstance(caught.value, RunFailed) and caught.value.path == "images/9.png"
        assert loader._workers == []


@pytest.mark.parametrize("workers", [0, 2])
def test_skipped_images_are_left_out_counted_and_listed_once(workers):
    with Loader(Noise(unreadable="skip").refuse(0, 9, 10), in_order, workers) as loader:
        for epoch in (0, 1):
            batches = list(loader.epoch(epoch))
            assert [len(batch.images) for batch in batches] == [3, 4, 2, 4, 4, 4, 4, 4, 4, 3]
            assert batches[2].indices.tolist() == [8, 11] and batches[2].labels.tolist() == [1, 4]
            assert np.array_equal(batches[2].images[1], Noise().load(11, epoch)[0])
        assert loader.skipped == {
            "list.txt:1: images/0.png": "cannot be decoded",
            "list.txt:10: images/9.png": "cannot be decoded",
            "list.txt:11: images/10.png": "cannot be decoded",
        }


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_unreadable_images_end_the_run_and_are_listed(workers):
    with Loader(Noise(unreadable="skip").refuse(2, 5, 8, 11, 14, 17), in_order, workers) as loader:
        with pytest.raises(RunFailed) as caught:
            list(loader.epoch(0))
    message = str(caught.value)
    assert message.startswith("More than max_unreadable=5 images could not be read:\n")
    assert message.count("cannot be decoded") == 6 and "  - list.txt:3: images/2.png: cannot be decoded" in message


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_with_nothing_left_is_an_error_in_training_and_empty_in_an_evaluation(workers):
    dataset = Noise(unreadable="skip").refuse(4, 5, 6, 7)
    with Loader(dataset, in_order, workers) as loader:
        with pytest.raises(RunFailed, match="Batch 1 of epoch 0: none of its 4 images could be read:\n  - list.txt:5"):
            list(loader.epoch(0))
    with Loader(dataset, in_order, workers, evaluation=True) as loader:
        assert [batch.images.shape for batch in loader.epoch(0)][:3] == [(4, 3, 4, 5), (0, 3, 4, 5), (4, 3, 4, 5)]


def test_when_none_of_the_first_images_can_be_read_the_run_ends():
    with Loader(Noise(unreadable="skip").refuse(*range(40)), in_order, 1) as loader:
        with pytest.raises(RunFailed, match="None of the first images could be read:\n  - list.txt:1: images/0.png"):
            loader.start()


@pytest.mark.parametrize("workers", [0, 1])
def test_images_of_different_sizes_in_one_batch_are_refused_with_both_names(workers):
    with Loader(Noise(), lambda epoch: [np.array([3, 39])], workers) as loader:
        with pytest.raises(RunFailed) as caught:
            list(loader.epoch(0))
    assert str(caught.value) == (
        "list.txt:40: images/39.png becomes (3, 4, 9), but list.txt:4: images/3.png of the same batch (3, 4, 5): "
        "transform_ops must bring all images to one size"
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_a_defect_of_a_transform_arrives_with_file_line_and_traceback(workers):
    with Loader(Noise(lambda index: [][index] if index == 6 else None), in_order, workers) as loader:
        with pytest.raises(RunFailed) as caught:
            list(loader.epoch(0))
    message = str(caught.value)
    assert message.startswith("list.txt:7: images/6.png: IndexError: list index out of range\nTraceback")
    assert "self.act(index)" in message


# ---------------------------------------------------------------------------------------------- dead and stuck workers


def test_a_killed_worker_ends_the_run_with_signal_and_sample():
    with Loader(Noise(lambda index: time.sleep(30) if index == 9 else None), in_order, 2) as loader:
        batches = loader.epoch(0)
        for _ in range(2):
            next(batches)
        assert wait_until(lambda: 9 in [loader._board.index(i) for i in range(2)])
        workers = [worker.process.pid for worker in loader._workers]
        (victim,) = [worker.process.pid for worker in loader._workers if loader._board.index(worker.number) == 9]
        os.kill(victim, signal.SIGKILL)
        began = time.monotonic()
        with pytest.raises(RunFailed) as caught:
            list(batches)
        assert time.monotonic() - began < 1.5
        assert all(is_gone(pid) for pid in workers)
    assert f"(process {victim}) was killed by signal 9 (SIGKILL) while it was on list.txt:10: images/9.png" in str(
        caught.value
    )
    assert "Out of memory? The kernel ends processes so" in str(caught.value)


def test_a_worker_that_ends_by_itself_is_named():
    with Loader(Noise(lambda index: os._exit(7) if index == 9 else None), in_order, 2) as loader:
        with pytest.raises(RunFailed, match="ended with status 7 while it was on list.txt:10: images/9.png"):
            list(loader.epoch(0))


@pytest.mark.parametrize("stop", ["sleep", "SIGSTOP"])
def test_a_stuck_worker_ends_the_run_after_the_timeout(stop):
    def act(index: int) -> None:
        if index == 9:
            time.sleep(60) if stop == "sleep" else os.kill(os.getpid(), signal.SIGSTOP)

    with Loader(Noise(act), in_order, 2, timeout=1.0) as loader:
        loader.start()
        workers = [worker.process.pid for worker in loader._workers]
        began = time.monotonic()
        with pytest.raises(RunFailed) as caught:
            list(loader.epoch(0))
        assert 0.9 < time.monotonic() - began < 4.5
        assert all(is_gone(pid) for pid in workers)
    assert "has finished no sample for 1 s while it was on list.txt:10: images/9.png. Does the storage" in str(
        caught.value
    )


def test_a_slow_worker_that_goes_on_is_not_stuck():
    with Loader(Noise(lambda index: time.sleep(0.15)), lambda epoch: [np.arange(8)], 1, timeout=0.5) as loader:
        assert len(list(loader.epoch(0))) == 1


PARENT = """
import sys, time
sys.path.insert(0, {root!r})
from tests.test_loader import Loader, Noise, in_order
stuck = lambda index: time.sleep(600) if index == 9 else None
loader = Loader(Noise(stuck), in_order, 2)
batches = loader.epoch(0)
next(batches)
print(*[worker.process.pid for worker in loader._workers], flush=True)
{then}
"""


def run_parent(then: str) -> tuple[subprocess.Popen[str], list[int]]:
    code = PARENT.format(root=str(ROOT), then=then)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    return process, [int(pid) for pid in process.stdout.readline().split()]


def test_workers_leave_when_their_parent_was_killed():
    process, workers = run_parent("time.sleep(600)")
    assert len(workers) == 2 and not any(is_gone(pid) for pid in workers)
    process.kill()
    process.wait()
    assert wait_until(lambda: all(is_gone(pid) for pid in workers), 5)
    assert process.stdout is not None
    process.stdout.close()


def test_a_program_that_forgets_to_close_ends_all_the_same():
    process, workers = run_parent("")
    assert process.wait(timeout=20) == 0
    assert wait_until(lambda: all(is_gone(pid) for pid in workers), 5)
    assert process.stdout is not None
    process.stdout.close()


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_what_stops_the_parent_does_not_stop_the_workers(stop):
    with Loader(Noise(), in_order, 2) as loader:
        batches = loader.epoch(0)
        next(batches)
        for worker in loader._workers:
            assert worker.process.pid is not None
            os.kill(worker.process.pid, stop)
        assert len(list(batches)) == 9


def test_a_loader_that_is_dropped_takes_its_workers_with_it():
    loader = Loader(Noise(), in_order, 2)
    list(loader.epoch(0))
    workers = [worker.process.pid for worker in loader._workers]
    del loader
    gc.collect()
    assert all(is_gone(pid) for pid in workers)


def test_a_loader_may_be_closed_twice_and_started_again():
    loader = Loader(Noise(), in_order, 1)
    for _ in range(2):
        assert len(list(loader.epoch(0))) == 10
        loader.close()
        loader.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_close_ends_the_running_epoch(workers):
    loader = Loader(Noise(), in_order, workers)
    batches = loader.epoch(0)
    next(batches)
    loader.close()
    with pytest.raises(RuntimeError, match="This epoch was ended, by close"):
        next(batches)


def test_options_that_cannot_be_are_refused():
    with pytest.raises(Refused, match="got num_workers=-1, prefetch=2, timeout=120.0"):
        Loader(Noise(), in_order, -1)
