"""Losses against their formulas in numpy, their class weights, and what fits which data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import paddle
import pytest

from ppcls_ext import config, engine
from ppcls_ext.errors import Refused
from ppcls_ext.log import read_metrics
from ppcls_ext.losses import (
    BCELoss,
    CELoss,
    FocalLoss,
    MultiLabelAsymmetricLoss,
    MultiLabelLoss,
    SoftTargetCrossEntropy,
    count_labels,
)
from ppcls_ext.losses.targets import ClassWeights

Write = Callable[..., Path]
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(6, 4)).astype(np.float32)
LABELS = np.array([0, 1, 2, 3, 0, 0])
SOFT = RNG.dirichlet(np.ones(4), size=6).astype(np.float32)
SEVERAL = (RNG.random((6, 4)) < 0.4).astype(np.float32)
P = 1 / (1 + np.exp(-LOGITS.astype(np.float64)))
LOG_P = LOGITS - np.log(np.exp(LOGITS.astype(np.float64)).sum(axis=1, keepdims=True))
ONE_HOT = np.eye(4)[LABELS]


def value(loss: Callable, labels: np.ndarray, logits: np.ndarray = LOGITS) -> float:
    return float(loss(paddle.to_tensor(logits), paddle.to_tensor(labels)))


def bce(target: np.ndarray) -> np.ndarray:
    return -(target * np.log(P) + (1 - target) * np.log(1 - P))


def test_cross_entropy_of_hard_smoothed_and_soft_labels() -> None:
    hard = -LOG_P[np.arange(6), LABELS].mean()
    smoothed = -((0.9 * ONE_HOT + 0.1 / 4) * LOG_P).sum(axis=1).mean()
    soft = -(SOFT * LOG_P).sum(axis=1).mean()
    for loss, labels, expected in (
        (CELoss(), LABELS, hard),
        (CELoss(weight=2.5), LABELS, 2.5 * hard),  # one loss with a weight is weighted
        (CELoss(epsilon=0.1), LABELS, smoothed),
        (CELoss(), SOFT, soft),
        (SoftTargetCrossEntropy(weight=3), SOFT, 3 * soft),
        (CELoss(epsilon=0.1), ONE_HOT.astype(np.float32), smoothed),
    ):
        assert value(loss, labels) == pytest.approx(expected, rel=1e-5)


def test_class_weights_are_scikit_learns_and_keep_the_mean() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    labels = np.repeat([0, 1, 2, 3], [70, 20, 9, 1])
    counts = count_labels(labels, 4)
    balanced = ClassWeights("balanced", counts).values
    assert np.allclose(balanced, compute_class_weight("balanced", classes=np.arange(4), y=labels))
    auto = ClassWeights("auto", counts).values
    assert np.allclose(auto / auto[0], np.sqrt(balanced / balanced[0]))
    for weights in (balanced, auto):
        assert weights[labels].mean() == pytest.approx(1, rel=1e-6)
    assert ClassWeights("balanced", count_labels(labels, 5)).values[4] == 0


def test_weighted_cross_entropy_multiplies_the_term_of_each_class() -> None:
    weights = np.array([1, 2, 0.5, 0])
    own = -(LOG_P[np.arange(6), LABELS] * weights[LABELS]).mean()
    soft = -(SOFT * weights * LOG_P).sum(axis=1).mean()
    loss = CELoss(class_weight=weights.tolist(), counts=count_labels(LABELS, 4))
    assert value(loss, LABELS) == pytest.approx(own, rel=1e-5)
    assert value(loss, SOFT) == pytest.approx(soft, rel=1e-5)


def test_focal_loss_weighs_down_what_is_known() -> None:
    p = np.exp(LOG_P[np.arange(6), LABELS])
    assert value(FocalLoss(gamma=2), LABELS) == pytest.approx(-((1 - p) ** 2 * np.log(p)).mean(), rel=1e-4)
    assert value(FocalLoss(gamma=0), LABELS) == pytest.approx(value(CELoss(), LABELS), rel=1e-5)
    soft = -(SOFT * (1 - np.exp(LOG_P)) ** 1.5 * LOG_P).sum(axis=1).mean()
    assert value(FocalLoss(gamma=1.5), SOFT) == pytest.approx(soft, rel=1e-4)


def test_binary_cross_entropy_as_resnet_strikes_back_trains() -> None:
    assert value(BCELoss(), LABELS) == pytest.approx(bce(ONE_HOT).mean(), rel=1e-5)
    assert value(BCELoss(epsilon=0.1), LABELS) == pytest.approx(bce(ONE_HOT).mean(), rel=1e-5)  # 0.925 and 0.025
    assert value(BCELoss(), SOFT) == pytest.approx(bce((SOFT > 0.2) * 1.0).mean(), rel=1e-5)
    unthresholded = BCELoss(target_threshold=None, sum_classes=True, weight=0.5)
    assert value(unthresholded, SOFT) == pytest.approx(0.5 * bce(SOFT).sum(axis=1).mean(), rel=1e-5)
    positive = (bce(SEVERAL) * np.where(SEVERAL > 0, 3, 1)).mean()
    assert value(BCELoss(pos_weight=3), SEVERAL) == pytest.approx(positive, rel=1e-5)


def test_multi_label_loss_and_its_ratio_weights() -> None:
    assert value(MultiLabelLoss(), SEVERAL) == pytest.approx(bce(SEVERAL).mean(), rel=1e-5)
    assert value(MultiLabelLoss(size_sum=True), SEVERAL) == pytest.approx(bce(SEVERAL).sum(axis=1).mean(), rel=1e-5)
    ratio = SEVERAL.mean(axis=0)
    weights = np.exp(np.where(SEVERAL > 0, 1 - ratio, ratio))
    loss = MultiLabelLoss(weight_ratio=True, counts=count_labels(SEVERAL.astype(np.uint8), 4))
    assert value(loss, SEVERAL) == pytest.approx((weights * bce(SEVERAL)).mean(), rel=1e-5)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_asymmetric_loss_is_the_papers(reduction: str) -> None:
    shifted = np.maximum(P - 0.05, 0)
    terms = np.where(SEVERAL > 0, -((1 - P) ** 1) * np.log(P), -(shifted**4) * np.log(1 - shifted))
    expected = terms.sum(axis=1).mean() if reduction == "sum" else terms.mean()
    assert value(MultiLabelAsymmetricLoss(reduction=reduction), SEVERAL) == pytest.approx(expected, rel=1e-4)
    plain = MultiLabelAsymmetricLoss(gamma_pos=0, gamma_neg=0, clip=0, reduction="mean")
    assert value(plain, SEVERAL) == pytest.approx(bce(SEVERAL).mean(), rel=1e-4)


@pytest.mark.parametrize("disabled", [True, False])
def test_the_factor_of_the_asymmetric_loss_has_a_slope_unless_told_otherwise(disabled: bool) -> None:
    loss = MultiLabelAsymmetricLoss(gamma_pos=2, clip=0, disable_focal_loss_grad=disabled)
    x = paddle.to_tensor([[0.3]], stop_gradient=False)
    loss(x, paddle.to_tensor([[1.0]])).backward()
    p = 1 / (1 + np.exp(-0.3))
    # d/dp of -(1 - p)^2 log p, without or with the factor's own part; dp/dx = p (1 - p)
    slope = -((1 - p) ** 2) / p + (0 if disabled else 2 * (1 - p) * np.log(p))
    assert x.grad.item() == pytest.approx(slope * p * (1 - p), rel=1e-4)


@pytest.mark.parametrize(
    "loss",
    [
        CELoss(epsilon=0.1),
        FocalLoss(gamma=0.5),
        BCELoss(),
        MultiLabelLoss(),
        MultiLabelAsymmetricLoss(gamma_pos=0.5, disable_focal_loss_grad=False),
    ],
)
def test_extreme_logits_give_finite_losses_and_slopes(loss: Callable) -> None:
    x = paddle.to_tensor([[200.0, -200.0, 0.0], [-200.0, 200.0, 0.0]], stop_gradient=False)
    out = loss(x, paddle.to_tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]))
    out.backward()
    assert np.isfinite(float(out)) and np.isfinite(x.grad.numpy()).all()


def test_a_batch_in_two_parts_has_the_mean_of_their_losses() -> None:
    for loss in (
        CELoss(class_weight=[1, 2, 3, 4]),
        FocalLoss(),
        BCELoss(),
        MultiLabelLoss(),
        MultiLabelAsymmetricLoss(),
    ):
        whole = value(loss, SEVERAL)
        parts = [value(loss, SEVERAL[part], LOGITS[part]) for part in (slice(0, 3), slice(3, 6))]
        assert np.mean(parts) == pytest.approx(whole, rel=1e-5)


def test_several_losses_are_added_with_their_weights_and_an_imbalance_is_weighed(
    write_config: Write, tmp_path: Path
) -> None:
    losses = [{"CELoss": {"weight": 0.5, "class_weight": "balanced"}}, {"FocalLoss": {"weight": 2.0}}]
    loaded = config.load(write_config(Loss={"Train": losses, "Eval": losses[1:]}), ["Global.epochs=1"], ["Train"])
    engine.train(loaded)
    [record] = [r for r in read_metrics(loaded.output_folder()) if r["kind"] == "train_epoch"]
    assert record["loss"] == pytest.approx(record["CELoss"] + record["FocalLoss"], rel=1e-5)
    assert "class_weight: balanced" in (loaded.output_folder() / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("Loss.Train.0.CELoss.class_weight=[1, 2]", "Loss.Train: class_weight: 2 weights for 3 classes"),
        ("Loss.Train.0.CELoss.class_weight=[1, -2, 1]", "CELoss: class_weight: expected numbers from 0, not all of"),
        ("Loss.Train.0.CELoss.class_weight=equal", "CELoss.class_weight: expected 'auto', 'balanced' or a list"),
        ("Loss.Eval.0.CELoss.class_weight=auto", "Loss.Eval.0.CELoss.class_weight: an evaluation counts every image"),
        ("Loss.Train=[{FocalLoss: {gamma: -1}}]", "Loss.Train.0.FocalLoss: gamma: expected a number from 0, got -1"),
        ("Loss.Train=[{MultiLabelLoss: {}}]", "Loss.Train.0.MultiLabelLoss: takes several labels per image, Class"),
        ("Metric.Eval=[{MultiLabelMAP: {}}]", "Metric.Eval.0.MultiLabelMAP: takes several labels per image, Class"),
        ("Loss.Train=[{BCELoss: {target_threshold: 1}}]", "target_threshold: expected 0 <= target_threshold < 1, got"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(write_config: Write, override: str, message: str) -> None:
    with pytest.raises(Refused) as refused:
        engine.train(config.load(write_config(), [override], ["Train"]))
    assert message in str(refused.value)
