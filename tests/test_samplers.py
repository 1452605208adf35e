"""Samplers that see classes or images in other numbers than there are."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ppcls_ext.data.loader import Loader
from ppcls_ext.data.samplers import BalancedSampler, RepeatedAugSampler, WeightedSampler, number_repeats
from ppcls_ext.errors import Refused
from ppcls_ext.registry import DATASETS

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
