"""Mixup, CutMix and FMix: shares, areas, labels, and what becomes of them in a run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from conftest import TRAIN_OPS, small_config

from ppcls_ext import config, engine
from ppcls_ext.checkpoint import load_set
from ppcls_ext.data.loader import Loader
from ppcls_ext.data.mixing import (
    CutmixOperator,
    FmixOperator,
    Mixing,
    Mixup,
    MixupCutmixHybrid,
    MixupOperator,
    OpSampler,
    batch_rng,
    build_batch_operator,
    fmix_mask,
)
from ppcls_ext.errors import Refused
from ppcls_ext.log import read_metrics
from ppcls_ext.losses import CELoss
from ppcls_ext.registry import DATASETS

Write = Callable[..., Path]
IMAGES = np.random.default_rng(1).normal(size=(8, 3, 24, 32)).astype(np.float32)
LABELS = np.array([0, 1, 2, 3, 4, 0, 1, 2])


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def mixed(operator: Any, seed: int = 0, images: np.ndarray = IMAGES) -> tuple[np.ndarray, Mixing]:
    copy = images.copy()
    return copy, operator(copy, rng(seed))


# ------------------------------------------------------------------------------------------------ labels


def test_soft_labels_have_the_mass_of_both_parts_and_sum_to_one() -> None:
    mixing = Mixing(np.array([2, 0, 1]), np.array([0.7, 0.2, 1.0]))
    expected = [[0.7, 0, 0.3, 0], [0.8, 0.2, 0, 0], [0, 0, 1, 0]]
    assert np.allclose(mixing.targets(np.array([0, 1, 2]), 4), expected)
    assert mixing.dominant(np.array([0, 1, 2])).tolist() == [0, 0, 2]
    smooth = Mixing(mixing.partners, mixing.lam, label_smoothing=0.2).targets(np.array([0, 1, 2]), 4)
    assert np.allclose(smooth, 0.8 * np.array(expected) + 0.2 / 4)
    assert smooth.dtype == np.float32 and np.allclose(smooth.sum(axis=1), 1)
    several = Mixing(mixing.partners, mixing.lam).targets(np.array([[1, 1, 0], [0, 0, 0], [0, 1, 1]], np.uint8), 3)
    assert np.allclose(several, [[0.7, 1, 0.3], [0.8, 0.8, 0], [0, 1, 1]])


def test_cross_entropy_takes_mixed_labels_as_they_are() -> None:
    # PaddleClas puts them through a softmax when label smoothing is off
    logits = np.random.default_rng(0).normal(size=(3, 4))
    targets = Mixing(np.array([2, 0, 1]), np.array([0.7, 0.2, 1.0])).targets(np.array([0, 1, 2]), 4)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    tensors = paddle.to_tensor(logits.astype(np.float32)), paddle.to_tensor(targets)
    assert float(CELoss()(*tensors)) == pytest.approx(-(targets * log_p).sum(axis=1).mean(), rel=1e-5)
    smooth = 0.9 * targets + 0.1 / 4
    assert float(CELoss(epsilon=0.1)(*tensors)) == pytest.approx(-(smooth * log_p).sum(axis=1).mean(), rel=1e-5)


def test_several_labels_of_an_image_are_smoothed_before_they_are_mixed() -> None:
    labels = np.array([[1, 0, 1, 0], [0, 0, 0, 1]], np.uint8)
    found = Mixing(np.array([1, 0]), np.array([0.75, 1.0]), label_smoothing=0.2).targets(labels, 4)
    own = labels * 0.8 + 0.2 / 4
    np.testing.assert_allclose(found, [0.75 * own[0] + 0.25 * own[1], own[1]], rtol=1e-6)


def test_a_sampler_smooths_the_labels_of_every_batch() -> None:
    operator = OpSampler(CutmixOperator={"prob": 0.4}, Mixup={"prob": 0.3, "label_smoothing": 0.2})
    drawn = [mixed(operator, seed)[1] for seed in range(60)]
    assert {mixing.label_smoothing for mixing in drawn} == {0.2}
    assert any((mixing.lam == 1).all() for mixing in drawn) and any((mixing.lam < 1).all() for mixing in drawn)


def test_paddleclas_hybrid_is_the_mixture_with_its_defaults(pictures: Path) -> None:
    assert MixupCutmixHybrid(num_classes=3).label_smoothing == 0.1
    arguments = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "mode": "elem"}
    images, mixing = mixed(MixupCutmixHybrid(**arguments, label_smoothing=0.0), 3)
    others, same = mixed(Mixup(**arguments), 3)
    assert np.array_equal(images, others) and np.array_equal(mixing.lam, same.lam)
    dataset = {"name": "ClassFolderDataset", "image_root": str(pictures / "train"), "transform_ops": TRAIN_OPS}
    build = partial(DATASETS[dataset.pop("name")], **dataset)
    build(batch_transform_ops=[{"MixupCutmixHybrid": {"num_classes": 3}}])
    with pytest.raises(Refused, match="MixupCutmixHybrid.num_classes: 1000, but the data has 3 classes"):
        build(batch_transform_ops=[{"MixupCutmixHybrid": {"num_classes": 1000}}])


# ---------------------------------------------------------------------------------------------- PaddleClas's operators


def test_mixup_is_a_weighted_mean_of_two_images() -> None:
    for seed in range(20):
        images, mixing = mixed(MixupOperator(alpha=0.2), seed)
        lam = mixing.lam[0]
        assert (mixing.lam == lam).all() and sorted(mixing.partners) == list(range(8))
        assert np.allclose(images, lam * IMAGES + (1 - lam) * IMAGES[mixing.partners], atol=1e-5)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
@pytest.mark.parametrize("operator", [MixupOperator, FmixOperator])
def test_shares_are_of_the_beta_distribution(operator: Any, alpha: float) -> None:
    small = np.zeros((2, 1, 24, 32), np.float32)
    lam = [mixed(operator(alpha=alpha), seed, small)[1].lam[0] for seed in range(1500)]
    assert np.mean(lam) == pytest.approx(1 / 2, abs=0.03)
    assert np.var(lam) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)  # of Beta(a, a)


def test_cutmix_pastes_one_rectangle_and_counts_the_area_it_has() -> None:
    own, other = np.zeros((24, 32)), np.ones((24, 32))
    for seed in range(200):
        images = np.stack([own, other])[:, None].astype(np.float32)
        mixing = CutmixOperator(alpha=1.0)(images, rng(seed))
        if mixing.partners[0] == 0:
            continue
        pasted = images[0, 0] == 1
        assert pasted.sum() == pasted.any(axis=1).sum() * pasted.any(axis=0).sum()
        assert mixing.lam[0] == pytest.approx(1 - pasted.mean(), abs=1e-12)
        assert np.array_equal(images[1, 0] == 0, pasted)


def test_fmix_takes_each_pixel_from_one_image_and_counts_them() -> None:
    for seed in range(50):
        images, mixing = mixed(FmixOperator(), seed)
        own, other = IMAGES, IMAGES[mixing.partners]
        kept = np.isclose(images, own, atol=1e-5).all(axis=1)
        assert (kept | np.isclose(images, other, atol=1e-5).all(axis=1)).all()
        moved = mixing.partners != np.arange(8)
        assert np.allclose(kept[moved].mean(axis=(1, 2)), mixing.lam[moved], atol=1e-6)


def test_fmix_masks_have_large_parts_and_a_soft_border_where_asked() -> None:
    hard = fmix_mask(64, 64, 0.3, 3.0, 0.0, rng(1))
    assert set(np.unique(hard)) == {0, 1} and hard.mean() == pytest.approx(0.3, abs=1 / 64**2)
    # neighbours differ along borders alone; independent pixels would differ with 2 x 0.3 x 0.7
    assert (hard[1:] != hard[:-1]).mean() < 0.1
    soft = fmix_mask(64, 64, 0.3, 3.0, 0.1, rng(1))
    assert soft.mean() == pytest.approx(0.3, abs=1e-3)
    assert ((soft > 0) & (soft < 1)).mean() == pytest.approx(0.2, abs=0.01)


def test_op_sampler_takes_each_operator_as_often_as_told_and_else_none() -> None:
    operator = OpSampler(MixupOperator={"alpha": 1.0, "prob": 0.3}, CutmixOperator={"alpha": 1.0, "prob": 0.5})
    counts = {"none": 0, "mixup": 0, "cutmix": 0}
    for seed in range(1500):
        images = np.arange(12, dtype=np.float32).repeat(64).reshape(12, 1, 8, 8)
        before = images.copy()
        operator(images, rng(seed))
        kind = "none" if np.array_equal(images, before) else "cutmix" if (images % 1 == 0).all() else "mixup"
        counts[kind] += 1
    assert counts["mixup"] / 1500 == pytest.approx(0.3, abs=0.04)
    assert counts["cutmix"] / 1500 == pytest.approx(0.5, abs=0.06)


# ------------------------------------------------------------------------------------------------ timm's mixture


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_mixup_in_its_modes(mode: str) -> None:
    images, mixing = mixed(Mixup(mixup_alpha=1.0, mode=mode), 3)
    assert mixing.partners.tolist() == [7, 6, 5, 4, 3, 2, 1, 0]
    lam = mixing.lam[:, None, None, None]
    assert np.allclose(images, lam * IMAGES + (1 - lam) * IMAGES[::-1], atol=1e-5)
    assert len(np.unique(mixing.lam)) == {"batch": 1, "pair": 4, "elem": 8}[mode]
    if mode == "pair":
        assert np.array_equal(mixing.lam, mixing.lam[::-1])


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_cutmix_in_its_modes_counts_areas(mode: str) -> None:
    images, mixing = mixed(Mixup(mixup_alpha=0, cutmix_alpha=1.0, mode=mode), 5)
    kept = (images == IMAGES).all(axis=1)
    assert np.allclose(kept.mean(axis=(1, 2)), mixing.lam, atol=1e-12)
    assert (kept | (images == IMAGES[::-1]).all(axis=1)).all()


def test_an_odd_batch_leaves_its_middle_image() -> None:
    for mode in ("batch", "pair", "elem"):
        images, mixing = mixed(Mixup(mode=mode), 1, IMAGES[:7])
        assert np.allclose(images[3], IMAGES[3], atol=1e-6) and mixing.partners[3] == 3


def test_probabilities_of_the_mixture() -> None:
    operator = Mixup(mixup_alpha=1.0, cutmix_alpha=1.0, prob=0.6, switch_prob=0.25, mode="elem")
    images = np.arange(2000, dtype=np.float32).repeat(16).reshape(2000, 1, 4, 4)
    before = images.copy()
    mixing = operator(images, rng(2))
    same = (images == before).all(axis=(1, 2, 3))
    whole = (images == images[:, :, :1, :1]).all(axis=(1, 2, 3)) & ~same  # one mean colour: mixup
    assert (mixing.lam == 1).mean() == pytest.approx(0.4 + 0.6 * 0.25 * 0.15, abs=0.07)  # small boxes hold no pixel
    assert whole.mean() == pytest.approx(0.6 * 0.75, abs=0.05)


def test_a_box_cut_by_an_edge_counts_less_unless_told_otherwise() -> None:
    exact = [mixed(Mixup(mixup_alpha=0, cutmix_alpha=1.0), seed)[1].lam[0] for seed in range(400)]
    drawn = [mixed(Mixup(mixup_alpha=0, cutmix_alpha=1.0, correct_lam=False), seed)[1].lam[0] for seed in range(400)]
    assert np.mean(drawn) == pytest.approx(0.5, abs=0.05)
    assert all(a >= b - 1e-9 for a, b in zip(exact, drawn)) and np.mean(exact) > np.mean(drawn) + 0.05


def test_minmax_boxes_have_sides_between_the_two_and_lie_inside() -> None:
    operator = Mixup(mixup_alpha=0, cutmix_minmax=[0.25, 0.5])
    for seed in range(100):
        images = np.stack([np.zeros((1, 40, 80)), np.ones((1, 40, 80))]).astype(np.float32)
        mixing = operator(images, rng(seed))
        rows, columns = (images[0, 0] == 1).any(axis=1).sum(), (images[0, 0] == 1).any(axis=0).sum()
        assert 10 <= rows <= 20 and 20 <= columns <= 40
        assert mixing.lam[0] == pytest.approx(1 - rows * columns / 3200)


@pytest.mark.parametrize(
    ("ops", "message"),
    [
        ([{"MixupOperator": {"alpha": 0}}], "MixupOperator: alpha: expected a number above 0, got 0"),
        ([{"CutmixOperator": {"alpha": -1}}], "CutmixOperator: alpha: expected a number above 0, got -1"),
        ([{"MixUp": None}], "unknown batch transform 'MixUp'. Did you mean 'Mixup'?"),
        ([{"Mixup": {"mixup_alpha": 0}}], "mixup_alpha: it and cutmix_alpha are 0, which mixes nothing"),
        ([{"Mixup": {"mode": "pairs"}}], "Mixup.mode: expected one of 'batch', 'pair', 'elem', got 'pairs'"),
        ([{"Mixup": {"cutmix_minmax": [0.5, 0.2]}}], "cutmix_minmax: expected [smallest, largest] share of a side"),
        ([{"FmixOperator": {"decay_power": -1}}], "FmixOperator: decay_power: expected a number from 0, got -1"),
        ([{"OpSampler": {"MixupOperator": {"alpha": 1}}}], "MixupOperator.prob: expected a probability, 0 to 1, got"),
        ([{"OpSampler": {"FmixOperator": {"prob": 0.7}, "MixupOperator": {"prob": 0.5}}}], "prob sum to at most 1"),
        ([{"OpSampler": {"MixupOperator": {"alhpa": 1, "prob": 1}}}], "unknown argument. Did you mean 'alpha'?"),
        ([{"OpSampler": {"Mixup": {"prob": 1, "switch_prob": 2}}}], "OpSampler: Mixup: switch_prob: expected a probab"),
        ([{"MixupCutmixHybrid": {"mixup_alpha": -1}}], "MixupCutmixHybrid: mixup_alpha: expected a number from 0"),
        ([{"MixupOperator": None}, {"CutmixOperator": None}], "2 operators; OpSampler chooses one of several"),
    ],
)
def test_wrong_operators_are_refused_with_their_place(
    write_config: Write, pictures: Path, tmp_path: Path, ops: list, message: str
) -> None:
    loaders = small_config(pictures, tmp_path)["DataLoader"]
    loaders["Train"]["dataset"]["batch_transform_ops"] = ops
    with pytest.raises(Refused) as refused:
        config.load(write_config(DataLoader=loaders), [], ["Train"])
    assert message in str(refused.value) and "DataLoader.Train.dataset.batch_transform_ops" in str(refused.value)


def test_evaluation_never_mixes_and_labels_are_smoothed_once(write_config: Write) -> None:
    for overrides, message in (
        (
            ["DataLoader.Eval.dataset.batch_transform_ops=[{MixupOperator: {alpha: 0.2}}]"],
            "DataLoader.Eval.dataset.batch_transform_ops: an evaluation never mixes images",
        ),
        (
            [
                "DataLoader.Train.dataset.batch_transform_ops=[{OpSampler: {Mixup: {label_smoothing: 0.1, prob: 1}}}]",
                "Loss.Train.0.CELoss.epsilon=0.1",
            ],
            "Loss.Train.0.CELoss.epsilon: 0.1 would smooth labels that Mixup.label_smoothing (0.1) has",
        ),
        (
            [
                "DataLoader.Train.dataset.batch_transform_ops=[{Mixup: {label_smoothing: 0.1}}]",
                "Loss.Train.0.CELoss.epsilon=0.1",
            ],
            "Loss.Train.0.CELoss.epsilon: 0.1 would smooth labels that Mixup.label_smoothing (0.1) has",
        ),
        (
            [
                "DataLoader.Train.dataset.batch_transform_ops=[{MixupCutmixHybrid: null}]",
                "Loss.Train.0.CELoss.epsilon=0.1",
            ],
            "Loss.Train.0.CELoss.epsilon: 0.1 would smooth labels that MixupCutmixHybrid.label_smoothing (0.1) has",
        ),
    ):
        with pytest.raises(Refused) as refused:
            config.load(write_config(), overrides, ["Train"])
        assert message in str(refused.value)


# ---------------------------------------------------------------------------------------------- in the loader, in a run

EVERYTHING = {"Mixup": {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "mode": "elem", "label_smoothing": 0.1}}


def dataset(pictures: Path, ops: list[dict] | None) -> Any:
    transforms = [{"DecodeImage": None}, {"ResizeImage": {"size": 16}}, {"NormalizeImage": None}]
    root = str(pictures / "train")
    return DATASETS["ClassFolderDataset"](root, transforms, batch_transform_ops=ops, seed=3)


def test_a_batch_is_mixed_alike_by_any_number_of_workers_and_in_a_resumed_epoch(pictures: Path) -> None:
    def plan(epoch: int) -> list[np.ndarray]:
        return np.array_split(np.random.default_rng(epoch).permutation(36), 5)

    found = []
    for workers in (0, 2):
        with Loader(dataset(pictures, [EVERYTHING]), plan, workers) as loader:
            for start in (0, 3):
                batches = list(loader.epoch(2, start))
                found.append([(b.images.tobytes(), b.targets.tobytes(), b.labels.tolist()) for b in batches])
    assert found[0] == found[2] and found[0][3:] == found[1] == found[3]
    plain = list(Loader(dataset(pictures, None), plan, 0).epoch(2))
    assert all(batch.targets is None for batch in plain)
    with Loader(dataset(pictures, [EVERYTHING]), plan, 0) as loader:
        for batch, clean in zip(loader.epoch(2), plain):
            own = batch_rng(3, 2, clean.indices.tolist())
            copy = clean.images.copy()
            mixing = build_batch_operator([EVERYTHING])(copy, own)
            assert np.array_equal(batch.images, copy)
            assert np.array_equal(batch.targets, mixing.targets(clean.labels, 3))
            assert np.array_equal(batch.labels, mixing.dominant(clean.labels))


def test_batches_of_other_samples_epochs_and_seeds_are_mixed_otherwise() -> None:
    draws = [batch_rng(*key).random() for key in ((1, 2, [3, 4]), (1, 2, [4, 3]), (1, 3, [3, 4]), (2, 2, [3, 4]))]
    draws += [batch_rng(1, 2, [3]).random(), np.random.default_rng([1, 2, 3]).random()]
    assert len(set(draws)) == 6


def test_a_run_with_mixed_images_logs_its_accuracy_and_resumes_with_the_same_bits(
    write_config: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[np.ndarray] = []
    plain = CELoss.__call__

    def recorded(self: CELoss, logits: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
        seen.append(labels.numpy())
        return plain(self, logits, labels)

    monkeypatch.setattr(CELoss, "__call__", recorded)
    path = write_config()
    overrides = [f"DataLoader.Train.dataset.batch_transform_ops=[{EVERYTHING}]", "Global.eval_during_train=False"]

    def run(name: str, *more: str) -> Path:
        loaded = config.load(path, [*overrides, f"Global.output_dir={tmp_path}/{name}", *more], ["Train"])
        engine.train(loaded)
        return loaded.output_folder()

    whole = run("whole")
    # 0.1 of every label is spread over 3 classes: the loss sees what the operator made
    assert all(labels.shape[1] == 3 and np.allclose(labels.sum(axis=1), 1) for labels in seen)
    assert np.min([labels.min() for labels in seen]) == pytest.approx(0.1 / 3)
    epochs = [record for record in read_metrics(whole) if record["kind"] == "train_epoch"]
    assert all(0 <= record["top1"] <= 1 for record in epochs) and epochs[-1]["top1"] > 0.4
    resumed = run("resumed", f"Global.checkpoints={whole}/epoch_1")
    first, second = (load_set(folder / "latest").tensors[".pdparams"] for folder in (whole, resumed))
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)


@pytest.mark.parametrize("name", ["EfficientNetB0", pytest.param("ResNeXt50_vd_32x4d", marks=pytest.mark.slow)])
def test_paddleclas_files_that_augment_or_mix_train_unchanged(
    name: str, shared: Path, pictures: Path, tmp_path: Path
) -> None:
    path = shared / "peers/paddleclas_configs" / f"{name}.yaml"
    (tmp_path / "list.txt").write_text(
        "".join(f"class_{label}/{n}.png {label}\n" for label in range(3) for n in (0, 1))
    )
    overrides = ["Global.device=cpu", "Global.epochs=1", f"Global.output_dir={tmp_path}", "Arch.class_num=3"]
    for split in ("Train", "Eval"):
        here = f"DataLoader.{split}"
        overrides += [f"{here}.dataset.image_root={pictures / 'train'}", f"{here}.sampler.batch_size=6"]
        overrides += [f"{here}.dataset.cls_label_path={tmp_path}/list.txt", f"{here}.loader.num_workers=0"]
    overrides += ["DataLoader.Train.dataset.transform_ops.1.RandCropImage.size=32", "Global.eval_during_train=False"]
    loaded = config.load(path, overrides, ["Train"])
    engine.train(loaded)
    [record] = [record for record in read_metrics(loaded.output_folder()) if record["kind"] == "train_epoch"]
    assert np.isfinite(record["loss"]) and 0 <= record["top1"] <= 1


def test_all_paddleclas_files_are_read_unchanged(shared: Path) -> None:
    files = sorted((shared / "peers/paddleclas_configs").glob("*.yaml"))
    assert len(files) >= 18
    for path in files:
        config.load(path)
