"""In which order images are visited, and which process takes which of them.

A sampler holds what the configuration says; its plans are functions of (labels, seed, epoch, rank, world size), so that
a run resumed in the middle of an epoch makes the very same plan again. A weighted, balanced or repeating sampler is
another `order`; how an order is cut into batches does not change.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np

from ppcls_ext.errors import Refused
from ppcls_ext.registry import SAMPLERS


@SAMPLERS.register("BatchSampler")
@SAMPLERS.register("DistributedBatchSampler")
class DistributedBatchSampler:
    """Every image once per epoch, in batches of `batch_size` per process; both names of PaddleClas mean this one.

    `num_classes` is the data's, where it is known: classes without an image count too.
    """

    num_classes: int | None = None

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


def number_repeats(order: np.ndarray, images: int) -> np.ndarray:
    """Indices below `images`, of which some stand repeatedly: the k-th repeat of i becomes i + k * `images`.

    A dataset takes that for image i drawn anew; the same number again would be the same crop and the same flip.
    """
    by_image = np.argsort(order, kind="stable")
    ordered = order[by_image]
    first = np.flatnonzero(np.diff(ordered, prepend=-1))
    repeats = np.empty(len(order), np.int64)
    repeats[by_image] = np.arange(len(order)) - np.repeat(first, np.diff(first, append=len(order)))
    return order + repeats * images


@SAMPLERS.register("WeightedSampler")
class WeightedSampler(DistributedBatchSampler):
    """Classes are seen in other shares than they have; an epoch has `num_samples` images, by default all.

    An image of class c is drawn in proportion to `class_weight`: a list of one number per class, balanced (1 / images
    of the class: every class alike) or auto (its square root). How many of an epoch are of a class is exact, not drawn;
    a class that needs more than it has goes through all its images again, each drawn anew.
    """

    def __init__(
        self,
        batch_size: int,
        class_weight: Annotated[Literal["auto", "balanced"] | list[float], "'auto', 'balanced' or a list"] = "balanced",
        drop_last: bool = False,
        num_samples: int | None = None,
    ) -> None:
        super().__init__(batch_size, shuffle=True, drop_last=drop_last)
        if isinstance(class_weight, list) and not (all(0 <= w < np.inf for w in class_weight) and any(class_weight)):
            raise Refused(f"class_weight: expected numbers from 0, not all of them 0, got {class_weight}")
        if num_samples is not None and num_samples < 1:
            raise Refused(f"num_samples: expected at least 1, got {num_samples}")
        self.class_weight = class_weight
        self.num_samples = num_samples

    def quotas(self, labels: np.ndarray) -> np.ndarray:
        """How many images of each class an epoch has, int64 (classes,); rounded so that their sum is exact."""
        if labels.ndim != 1:
            raise Refused("DataLoader.Train.sampler: images with several labels have no one class to be weighted by")
        counts = np.bincount(labels, minlength=self.num_classes or 0)
        if isinstance(self.class_weight, list):
            if len(self.class_weight) != len(counts):
                given = f"{len(self.class_weight)} weights for {len(counts)} classes"
                raise Refused(f"DataLoader.Train.sampler.class_weight: {given}; give one for each")
            shares = counts * np.array(self.class_weight, np.float64)
        else:
            shares = counts ** (0.5 if self.class_weight == "auto" else 0.0) * (counts > 0)
        if not shares.any():
            raise Refused("DataLoader.Train.sampler.class_weight: every class that has images has weight 0")
        wanted = shares / shares.sum() * (self.num_samples or len(labels))
        quotas = np.floor(wanted).astype(np.int64)
        missing = round(wanted.sum()) - int(quotas.sum())
        quotas[np.argsort(quotas - wanted, kind="stable")[:missing]] += 1  # the largest remainders
        return quotas

    def order(self, labels: np.ndarray, *, seed: int, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([seed, epoch])
        drawn = []
        for label, quota in enumerate(self.quotas(labels).tolist()):
            own = np.flatnonzero(labels == label)
            whole = [own] * (quota // len(own)) if len(own) else []
            drawn += [*whole, rng.permutation(own)[: quota - len(whole) * len(own)]]
        return number_repeats(rng.permutation(np.concatenate(drawn)), len(labels))


@SAMPLERS.register("BalancedSampler")
class BalancedSampler(WeightedSampler):
    """Every class equally often, whatever it has."""

    def __init__(self, batch_size: int, drop_last: bool = False, num_samples: int | None = None) -> None:
        super().__init__(batch_size, "balanced", drop_last, num_samples)


@SAMPLERS.register("RepeatedAugSampler")
@SAMPLERS.register("RASampler")
class RepeatedAugSampler(DistributedBatchSampler):
    """Repeated augmentation (Hoffer et al., arXiv 1901.09335): an image stands `num_repeats` times, each drawn anew.

    An epoch stays as long as it was, rounded down to a multiple of `selected_round` (0: not at all), so it sees about
    1 / `num_repeats` of the images. On several processes the repeats of an image are on different ones.
    """

    def __init__(
        self,
        batch_size: int,
        shuffle: bool = False,
        drop_last: bool = False,
        num_repeats: int = 3,
        selected_round: int = 256,
    ) -> None:
        super().__init__(batch_size, shuffle, drop_last)
        if num_repeats < 1 or selected_round < 0:
            name, least = ("num_repeats", 1) if num_repeats < 1 else ("selected_round", 0)
            raise Refused(f"{name}: expected at least {least}, got {min(num_repeats, selected_round)}")
        self.num_repeats = num_repeats
        self.selected_round = selected_round

    def order(self, labels: np.ndarray, *, seed: int, epoch: int) -> np.ndarray:
        images = len(labels)
        selected = images // self.selected_round * self.selected_round if self.selected_round else images
        if not selected:
            raise Refused(
                f"sampler.selected_round: {images} images do not make one round of {self.selected_round}; set it to 0"
            )
        once = super().order(labels, seed=seed, epoch=epoch)
        return number_repeats(np.repeat(once, self.num_repeats)[:selected], images)

    def training_plan(
        self, labels: np.ndarray, *, seed: int, epoch: int, rank: int = 0, world_size: int = 1
    ) -> list[np.ndarray]:
        order = self.order(labels, seed=seed, epoch=epoch)
        whole = self.batch_size * world_size
        full = len(order) // whole * whole
        # deal each global batch out like cards, so that neighbours, which are repeats, go to different processes
        dealt = order[:full].reshape(-1, self.batch_size, world_size).swapaxes(1, 2).reshape(-1)
        return cut_for_training(
            np.concatenate([dealt, order[full:]]), self.batch_size, self.drop_last, rank, world_size
        )


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
