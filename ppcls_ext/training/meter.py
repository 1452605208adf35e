"""What an epoch of training has come to so far: means, times, and the first loss that is not a number."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import paddle

from ppcls_ext import distributed
from ppcls_ext.errors import RunFailed
from ppcls_ext.log import duration, joined

if TYPE_CHECKING:
    from ppcls_ext.training.run import Run


class Meter:
    """Sums of losses and correct answers of the running epoch, and the times of its steps.

    Values stay on the device until `flush`, which waits for it, and which finds a loss that is not finite.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.sums = run.position.sums
        self.pending: list[tuple[np.ndarray, dict[str, paddle.Tensor]]] = []
        self.steps = self.images = 0
        self.waited = 0.0
        self.began = time.perf_counter()

    def add(self, batch: Any, terms: dict, loss: paddle.Tensor, logits: paddle.Tensor, labels: paddle.Tensor) -> None:
        """Remember what one batch gave."""
        values = {name: term.detach() for name, term in terms.items()} | {"loss": loss.detach()}
        with paddle.no_grad():
            for metric in self.run.metrics:
                values |= dict(zip(metric.names(), metric(logits.detach(), labels)))
        self.pending.append((batch.indices, values))
        self.waited += batch.wait
        self.images += len(batch.indices)

    def flush(self) -> None:
        """Add what is pending to the sums. Raises `RunFailed` at the first loss that is not finite."""
        counted = {name for metric in self.run.metrics for name in metric.names()}
        for done, (indices, values) in enumerate(self.pending):
            numbers = {name: float(value) for name, value in values.items()}  # waits for the device
            if not math.isfinite(numbers["loss"]):
                raise RunFailed(self._not_finite(numbers["loss"], done))
            for name, number in numbers.items():
                self.sums[name] = self.sums.get(name, 0.0) + number * (1 if name in counted else len(indices))
            self.sums["images"] = self.sums.get("images", 0) + len(indices)
        self.pending.clear()

    def _not_finite(self, value: float, done: int) -> str:
        run, dataset = self.run, self.run.train_loader.dataset
        lines = [f"the loss is {value} in epoch {run.position.epoch}, near step {run.position.step}."]
        for number in range(max(0, done - 2), done + 1):
            indices, values = self.pending[number]
            names = [dataset.path(int(index)) for index in indices[:4]]
            more = f" and {len(indices) - len(names)} more" if len(indices) > len(names) else ""
            lines.append(f"  batch with loss {float(values['loss']):.5g}: {', '.join(names)}{more}")
        if run.last_saved is not None:
            lines.append(f"The last good checkpoint is untouched: -o Global.checkpoints={run.last_saved}")
        else:
            lines.append("There is no checkpoint of this run yet.")
        lines.append("Lower Optimizer.lr.learning_rate, add a warm-up (lr.warmup_epoch) or set Optimizer.clip_norm.")
        return "\n".join(lines)

    def averages(self) -> dict[str, float]:
        """Means over the images of the epoch so far, those of all ranks."""
        sums = distributed.sum_of_all(self.sums)
        images = sums.get("images", 0)
        names = [name for name in self.sums if name not in ("images", "loss")]
        order = sorted(names, key=lambda name: not name.startswith("top")) + ["loss"]
        return {name: sums[name] / images for name in order} if images else {}

    def say(self, rate: float) -> None:
        """The line that PaddleClas's users know; times are means since the last line."""
        position, options = self.run.position, self.run.config.Global
        elapsed = time.perf_counter() - self.began
        batch_cost = elapsed / self.steps
        remaining = (options.epochs - position.epoch + 1) * self.run.steps_per_epoch - position.step
        averages = self.averages()
        name = self.run.config.Optimizer.lr.name
        self.run.log.info(
            f"[Train][Epoch {position.epoch}/{options.epochs}][Iter: {position.step}/{self.run.steps_per_epoch}]"
            f"lr({name}): {rate:.8f}, {joined(averages)}, "
            f"batch_cost: {batch_cost:.5f}s, reader_cost: {self.waited / self.steps:.5f}, "
            f"ips: {self.images / elapsed:.5f} samples/s, eta: {duration(remaining * batch_cost)}"
        )
        self.run.log.record("train", position.global_step, position.epoch, {"lr": rate, **averages})
        self.steps, self.images, self.waited, self.began = 0, 0, 0.0, time.perf_counter()


class Answers:
    """Every image's logits, for metrics of the whole split: filled batch by batch, then joined over the ranks."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self.rows = np.zeros((len(dataset), dataset.num_classes + 1))  # the last column marks the images that were seen

    def add(self, indices: np.ndarray, logits: paddle.Tensor) -> None:
        """Logits (n, C) of the images `indices`."""
        self.rows[indices, :-1] = logits.astype("float32").numpy()  # waits for the device
        self.rows[indices, -1] = 1

    def of_all_ranks(self) -> tuple[np.ndarray, np.ndarray]:
        """(indices (n,), logits (n, C)) of the images that could be read."""
        rows = distributed.all_sum(self.rows)
        seen = np.flatnonzero(rows[:, -1])
        return seen, rows[seen, :-1]
