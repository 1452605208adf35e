"""In which order images are visited, and which process takes which of them.

A sampler holds what the configuration says; its plans are functions of (labels, seed, epoch, rank, world size), so that
a run resumed in the middle of an epoch makes the very same plan again. A weighted, balanced or repeating sampler is
another `order`; how an order is cut into batches does not change.
"""

from __future__ import annotations

import numpy as np

from ppcls_ext.errors import Refused
from ppcls_ext.registry import SAMPLERS


@SAMPLERS.register("BatchSampler")
@SAMPLERS.register("DistributedBatchSampler")
class DistributedBatchSampler:
    """Every image once per epoch, in batches of `batch_size` per process; both names of PaddleClas mean this one."""

    def __init__(self, batch_size: int, shuffle: bool = False, drop_last: bool = False) -> None:
        if batch_size < 1:
            raise Refused(f"batch_size: expected at least 1, got {batch_size}")
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last

    def order(self, labels: np.ndarray, *, seed: int, epoch: int) -> np.ndarray:
        """The indices of one epoch, int64 (m,), the same in every process."""
        if not self.shuffle:
            return np.arange(len(labels))
        return np.random.default_rng([seed, epoch]).permutation(len(labels))

    def training_plan(
        self, labels: np.ndarray, *, seed: int, epoch: int, rank: int = 0, world_size: int = 1
    ) -> list[np.ndarray]:
        """The batches of this process; see `cut_for_training`."""
        order = self.order(labels, seed=seed, epoch=epoch)
        return cut_for_training(order, self.batch_size, self.drop_last, rank, world_size)

    def evaluation_plan(self, labels: np.ndarray, *, rank: int = 0, world_size: int = 1) -> list[np.ndarray]:
        """The batches of this process; see `cut_for_evaluation`. Neither shuffled nor shortened."""
        if self.drop_last:
            raise Refused("sampler.drop_last: an evaluation counts every image; set it to False in DataLoader.Eval")
        return cut_for_evaluation(np.arange(len(labels)), self.batch_size, rank, world_size)


def cut_for_training(
    order: np.ndarray, batch_size: int, drop_last: bool, rank: int, world_size: int
) -> list[np.ndarray]:
    """Cut `order` into global batches of world_size * batch_size; process `rank` takes its part of each.

    So two processes with b images each see, batch by batch, what one process with 2b sees. A short last batch is
    dropped, or filled up to a multiple of `world_size` from the start of the order, since all processes must take the
    same number of steps with equal shares; one process never repeats an image.
    """
    whole = batch_size * world_size
    full = len(order) // whole * whole
    if drop_last and not full:
        raise Refused(
            f"sampler.drop_last leaves nothing: {len(order)} images do not fill one batch of {batch_size} on each of "
            f"{world_size} process{'es' if world_size > 1 else ''}; lower batch_size or set drop_last to False"
        )
    batches = [order[at : at + batch_size] for at in range(rank * batch_size, full, whole)]
    if full < len(order) and not drop_last:
        share = -(-(len(order) - full) // world_size)
        last = np.concatenate([order[full:], np.resize(order, share * world_size - (len(order) - full))])
        batches.append(last[rank * share : (rank + 1) * share])
    return batches


def cut_for_evaluation(order: np.ndarray, batch_size: int, rank: int, world_size: int) -> list[np.ndarray]:
    """Every image exactly once over all processes, and the same NUMBER of batches in each, so that they keep in step.

    The images of a short last batch are spread evenly; with fewer images than processes some get an empty batch.
    """
    whole = batch_size * world_size
    full = len(order) // whole * whole
    batches = [order[at : at + batch_size] for at in range(rank * batch_size, full, whole)]
    if full < len(order):
        batches.append(np.array_split(order[full:], world_size)[rank])
    return batches
