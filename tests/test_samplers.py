"""In which order images are seen, by which process, and how often."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ppcls_ext.data.loader import Loader
from ppcls_ext.data.samplers import (
    BalancedSampler,
    DistributedBatchSampler,
    RepeatedAugSampler,
    WeightedSampler,
    cut_for_evaluation,
    cut_for_training,
    number_repeats,
)
from ppcls_ext.errors import Refused
from ppcls_ext.registry import DATASETS, SAMPLERS

LABELS = np.repeat([0, 1, 2], [60, 30, 10])
CROP = [{"DecodeImage": None}, {"RandCropImage": {"size": 16}}, {"NormalizeImage": None}]


def seen(sampler: WeightedSampler, labels: np.ndarray = LABELS, epoch: int = 1) -> np.ndarray:
    return np.concatenate(sampler.training_plan(labels, seed=5, epoch=epoch))


def test_a_repeat_is_numbered_by_how_often_the_image_came_before() -> None:
    assert number_repeats(np.array([3, 1, 3, 3, 0, 1]), 10).tolist() == [3, 1, 13, 23, 0, 11]
    assert number_repeats(np.array([2, 0, 1]), 3).tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ("balanced", [34, 33, 33]),
        ([1, 1, 1], [60, 30, 10]),
        ([1, 2, 6], [33, 33, 33]),
        ("auto", [47, 34, 19]),  # 100 in proportion to sqrt(60), sqrt(30), sqrt(10): 47.3, 33.4, 19.3
        ([0, 0, 1], [0, 0, 100]),
    ],
)
def test_the_numbers_of_an_epoch_are_exact(weights: str | list[float], expected: list[int]) -> None:
    drawn = seen(WeightedSampler(8, weights))
    counts = np.bincount(LABELS[drawn % 100], minlength=3)
    assert counts.sum() == len(drawn) == 100
    assert np.abs(counts - expected).max() <= 1
    # within a class every image is seen as often as any other, up to one
    for label in np.flatnonzero(counts):
        times = Counter((drawn % 100)[LABELS[drawn % 100] == label].tolist())
        assert max(times.values()) - min(times.get(i, 0) for i in np.flatnonzero(LABELS == label)) <= 1
    assert len(set(drawn.tolist())) == 100  # a repeat has a number of its own


def test_an_epoch_is_as_long_as_asked_and_another_one_is_other() -> None:
    assert len(seen(BalancedSampler(8, num_samples=31))) == 31
    assert np.bincount(LABELS[seen(BalancedSampler(8, num_samples=31)) % 100]).tolist() == [11, 10, 10]
    first, again, other = (seen(BalancedSampler(8), epoch=epoch) for epoch in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


@pytest.mark.parametrize("sampler", [BalancedSampler(4), RepeatedAugSampler(4, shuffle=True, selected_round=0)])
def test_two_processes_see_together_what_one_of_the_double_batch_sees(sampler: WeightedSampler) -> None:
    ranks = [sampler.training_plan(LABELS, seed=1, epoch=2, rank=rank, world_size=2) for rank in (0, 1)]
    double = type(sampler)(8) if isinstance(sampler, BalancedSampler) else RepeatedAugSampler(8, True, selected_round=0)
    for a, b, whole in zip(*ranks, double.training_plan(LABELS, seed=1, epoch=2)):
        assert len(a) == len(b) and sorted([*a, *b]) == sorted(whole)


def test_repeated_augmentation_repeats_images_on_different_processes() -> None:
    sampler = RepeatedAugSampler(4, shuffle=True, num_repeats=3, selected_round=0)
    plans = [sampler.training_plan(np.zeros(96, int), seed=1, epoch=1, rank=rank, world_size=3) for rank in range(3)]
    together = np.concatenate([np.concatenate(plan) for plan in plans])
    assert len(together) == 96  # an epoch is as long as it was
    assert Counter(Counter((together % 96).tolist()).values()) == {3: 32}
    for plan in plans:
        own = np.concatenate(plan) % 96
        assert len(set(own.tolist())) == len(own)  # no process has an image twice
    assert len(np.concatenate(RepeatedAugSampler(4, selected_round=64).training_plan(LABELS, seed=1, epoch=1))) == 64


def test_a_repeated_image_is_drawn_anew_and_the_same_by_any_number_of_workers(pictures: Path) -> None:
    dataset = DATASETS["ClassFolderDataset"](str(pictures / "train"), CROP, seed=3)
    first, second, again = (dataset.load(index, 1)[0] for index in (5, 5 + 36, 5))
    assert np.array_equal(first, again) and not np.array_equal(first, second)
    assert dataset.path(5) == dataset.path(41) and dataset.load(41, 1)[1] == dataset.load(5, 1)[1]

    def plan(epoch: int) -> list[np.ndarray]:
        return RepeatedAugSampler(6, selected_round=0).training_plan(dataset.labels, seed=1, epoch=epoch)

    bits = []
    for workers in (0, 2):
        with Loader(dataset, plan, workers) as loader:
            bits.append([(batch.images.tobytes(), batch.labels.tolist()) for batch in loader.epoch(1)])
    assert bits[0] == bits[1]


@pytest.mark.parametrize("workers", [0, 2])
def test_images_grow_with_the_epochs(pictures: Path, workers: int) -> None:
    dataset = DATASETS["ClassFolderDataset"](
        str(pictures / "train"), CROP, image_sizes={3: 24, 5: [40, 32]}, batch_transform_ops=[{"MixupOperator": None}]
    )
    with Loader(dataset, lambda epoch: np.array_split(np.arange(36), 6), workers) as loader:
        shapes = [{batch.images.shape[1:] for batch in loader.epoch(epoch)} for epoch in (1, 2, 3, 4, 5, 9)]
    assert shapes == [{(3, 16, 16)}] * 2 + [{(3, 24, 24)}] * 2 + [{(3, 32, 40)}] * 2


def test_a_weight_for_a_class_without_images_is_taken() -> None:
    sampler = WeightedSampler(8, [1, 1, 1, 5])
    sampler.num_classes = 4
    assert sampler.quotas(LABELS).tolist() == [*WeightedSampler(8, [1, 1, 1]).quotas(LABELS), 0]


def test_what_cannot_be_is_refused(pictures: Path) -> None:
    for make, message in (
        (lambda: seen(WeightedSampler(8, [1, 2])), "sampler.class_weight: 2 weights for 3 classes"),
        (lambda: WeightedSampler(8, [0, 0]), "class_weight: expected numbers from 0, not all of them 0"),
        (lambda: seen(BalancedSampler(8), np.zeros((4, 2))), "images with several labels have no one class"),
        (lambda: seen(RepeatedAugSampler(8)), "100 images do not make one round of 256; set it to 0"),
        (lambda: RepeatedAugSampler(8, num_repeats=0), "num_repeats: expected at least 1, got 0"),
        (
            lambda: DATASETS["ClassFolderDataset"](str(pictures / "train"), CROP, image_sizes={0: 8}),
            "image_sizes: epochs are counted from 1, got 0",
        ),
        (
            lambda: DATASETS["ClassFolderDataset"](str(pictures / "train"), CROP[:1], image_sizes={2: 8}),
            "image_sizes: says how large RandCropImage cuts, but transform_ops has none",
        ),
    ):
        with pytest.raises(Refused, match=message):
            make()


def test_the_order_depends_on_seed_and_epoch_alone():
    sampler, labels = SAMPLERS["DistributedBatchSampler"](4, shuffle=True), np.zeros(50, np.int32)
    first = np.concatenate(sampler.training_plan(labels, seed=3, epoch=1))
    assert first.tolist() == np.random.default_rng([3, 1]).permutation(50).tolist()
    assert first.tolist() == np.concatenate(sampler.training_plan(labels, seed=3, epoch=1)).tolist()
    assert first.tolist() != np.concatenate(sampler.training_plan(labels, seed=3, epoch=2)).tolist()
    unshuffled = SAMPLERS["BatchSampler"](4).training_plan(labels, seed=3, epoch=1)
    assert np.concatenate(unshuffled).tolist() == list(range(50))


@pytest.mark.parametrize("images", [1, 5, 6, 7, 11, 12, 24, 25])
@pytest.mark.parametrize("drop_last", [False, True])
def test_two_processes_see_batch_by_batch_what_one_with_twice_the_batch_sees(images, drop_last):
    order = np.random.default_rng(0).permutation(images)
    if drop_last and images < 6:
        with pytest.raises(Refused, match="drop_last leaves nothing"):
            cut_for_training(order, 3, drop_last, 0, 2)
        return
    one = cut_for_training(order, 6, drop_last, 0, 1)
    two = [cut_for_training(order, 3, drop_last, rank, 2) for rank in range(2)]
    assert len(one) == len(two[0]) == len(two[1])
    for whole, left, right in zip(one, *two):
        both = np.concatenate([left, right])
        assert len(left) == len(right) > 0
        assert both[: len(whole)].tolist() == whole.tolist()
        assert len(both) - len(whole) < 2 and both[len(whole) :].tolist() == order[: len(both) - len(whole)].tolist()
    seen = np.concatenate(one).tolist()
    assert len(seen) == len(set(seen)) == (images // 6 * 6 if drop_last else images)


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("images", [1, 2, 7, 12, 31])
def test_an_evaluation_counts_every_image_once_and_keeps_all_processes_in_step(images, world):
    plans = [cut_for_evaluation(np.arange(images), 3, rank, world) for rank in range(world)]
    assert len({len(plan) for plan in plans}) == 1
    in_order = np.concatenate([plan[number] for number in range(len(plans[0])) for plan in plans])
    assert in_order.tolist() == list(range(images))


def test_a_plain_sampler_refuses_what_cannot_be():
    with pytest.raises(Refused, match="batch_size: expected at least 1, got 0"):
        DistributedBatchSampler(0)
    with pytest.raises(Refused, match="an evaluation counts every image; set it to False in DataLoader.Eval"):
        DistributedBatchSampler(4, drop_last=True).evaluation_plan(np.zeros(9, np.int32))
