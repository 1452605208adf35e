"""What a step minimises: two heads, a teacher, and the pictures that it sees."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import paddle
import pytest
from conftest import small_config, write_pictures
from test_engine import train, weights

from ppcls_ext import config, create_model
from ppcls_ext.config import Component, DistillOptions
from ppcls_ext.errors import Refused
from ppcls_ext.losses import CELoss
from ppcls_ext.training.objective import Objective

Write = Callable[..., Path]
TWO_HEADS = {"name": "GroupMamba", "stem_width": 8, "channels": [32, 36], "depths": [1, 1], "mlp_ratios": [2, 2]}
STUDENT = {"name": "ResNetV2", "depths": [1, 1, 1], "width": 8}


def log_softmax(x: np.ndarray) -> np.ndarray:
    return x - x.max(-1, keepdims=True) - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True))


def scene() -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Logits of two heads and of the teacher (6, 5), soft labels (6, 5), images."""
    rng = np.random.default_rng(0)
    heads = [rng.standard_normal((6, 5)).astype(np.float32) for _ in range(3)]
    labels = rng.dirichlet(np.ones(5), 6).astype(np.float32)
    return heads, labels, rng.standard_normal((6, 3)).astype(np.float32)


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    return float(-(labels * log_softmax(logits)).sum(-1).mean())


@pytest.mark.parametrize("two", [False, True], ids=["one head", "two heads"])
@pytest.mark.parametrize("kind", ["soft", "hard", None])
def test_the_terms_are_those_of_the_papers(two: bool, kind: str | None) -> None:
    (first, second, teacher), labels, images = scene()
    seen = []

    def answer(x: paddle.Tensor) -> paddle.Tensor:
        seen.append(x)
        return paddle.to_tensor(teacher)

    network_output = tuple(map(paddle.to_tensor, (first, second))) if two else paddle.to_tensor(first)
    options = kind and DistillOptions(teacher=Component(name="x"), weights="x", kind=kind, alpha=0.3, temperature=2.5)
    objective = Objective({"CELoss": CELoss(weight=2.0)}, options, answer if kind else None)
    x = paddle.to_tensor(images)
    terms, logits = objective(lambda _: network_output, x, paddle.to_tensor(labels))
    np.testing.assert_allclose(logits.numpy(), (first + second) / 2 if two else first, rtol=1e-6)
    last = second if two else first
    if kind is None:
        assert terms.keys() == {"CELoss"} and not seen
        expected = 2 * np.mean([cross_entropy(head, labels) for head in ((first, second) if two else (first,))])
        assert float(terms["CELoss"]) == pytest.approx(expected, rel=1e-5)
        return
    assert seen[0] is x  # the teacher sees the very images, mixed or not
    assert float(terms["CELoss"]) == pytest.approx(0.7 * 2 * cross_entropy(first, labels), rel=1e-5)
    if kind == "hard":
        learned = cross_entropy(last, np.eye(5)[teacher.argmax(-1)])
    else:
        p = np.exp(log_softmax(teacher / 2.5))
        learned = 2.5**2 * (p * (log_softmax(teacher / 2.5) - log_softmax(last / 2.5))).sum(-1).mean()
    assert float(terms["Distill"]) == pytest.approx(0.3 * learned, rel=1e-5)


def test_both_heads_learn_without_a_teacher(write_config: Write) -> None:
    path = write_config(Arch=TWO_HEADS)
    start = weights(train(path, "Global.epochs=1", "Optimizer.lr={name: Constant, learning_rate: 0.0}"))
    folder = train(path, "Global.epochs=1")
    found = weights(folder)
    for name in ("head.weight", "dist_head.weight"):
        assert np.abs(found[name] - start[name]).max() > 1e-5, name
    assert "CELoss: " in (folder / "train.log").read_text()


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_a_student_learns_from_a_trained_teacher_and_is_saved_alone(
    write_config: Write, trained: Path, tmp_path: Path, kind: str
) -> None:
    teacher = f"Distill={{teacher: {{name: MicroNet_M0}}, weights: {trained}/best_model, kind: {kind}, temperature: 4}}"
    arch = TWO_HEADS if kind == "hard" else STUDENT
    folder = train(write_config(Arch=arch), "Global.epochs=1", teacher)
    log = (folder / "train.log").read_text()
    assert f"teacher ({kind}): MicroNet_M0, weights of {trained}/best_model" in log
    assert "Distill: " in log and "Eval][Epoch 1][Avg]top1: " in log
    assert not [name for name in weights(folder) if name.startswith("features.")]
    written = config.load(folder / "config.yaml")
    assert written.Distill.teacher.name == "MicroNet_M0" and written.Distill.kind == kind


def test_a_teacher_that_cannot_teach_is_refused(
    write_config: Write, pictures: Path, trained: Path, tmp_path: Path
) -> None:
    path = write_config(Arch={**STUDENT, "class_num": 3})
    with pytest.raises(Refused, match="Distill.weights: missing; a teacher without trained weights teaches nothing"):
        train(path, "Distill={teacher: {name: MicroNet_M0}}")
    with pytest.raises(Refused, match="Distill.weights: no such file: nowhere"):
        train(path, "Distill={teacher: {name: MicroNet_M0}, weights: nowhere}")
    with pytest.raises(Refused, match="Distill.teacher.name: unknown backbone 'MicroNet_M9'. Did you mean 'MicroNet_M"):
        train(path, f"Distill={{teacher: {{name: MicroNet_M9}}, weights: {trained}/best_model}}")
    with pytest.raises(Refused, match="best_model holds weights of MicroNet_M0; Distill.teacher is MicroNet_M1"):
        train(path, f"Distill={{teacher: {{name: MicroNet_M1}}, weights: {trained}/best_model}}")
    foreign = tmp_path / "foreign.pdparams"  # of five classes, and says nothing of itself
    paddle.save(create_model("ResNetV2", 5, depths=[1, 1, 1], width=8).state_dict(), str(foreign))
    with pytest.raises(Refused, match=r"Distill.weights: .* Only the classifier differs \(here of 3 classes\)"):
        train(path, f"Distill={{teacher: {{name: ResNetV2, depths: [1, 1, 1], width: 8}}, weights: {foreign}}}")
    for split in ("train", "val"):  # the teacher's third class is this run's first
        shutil.copytree(f"{pictures}/{split}", tmp_path / split)
        (tmp_path / split / "class_2").rename(tmp_path / split / "again")
    renamed = tmp_path / "renamed.yaml"
    renamed.write_text(json.dumps(small_config(tmp_path, tmp_path / "output4")))
    with pytest.raises(Refused, match="class 0 of .*best_model is 'class_0', of this run 'again'"):
        train(renamed, f"Distill={{teacher: {{name: MicroNet_M0}}, weights: {trained}/best_model}}")
    write_pictures(tmp_path / "five/train", classes=5, images=4)
    write_pictures(tmp_path / "five/val", classes=5, images=2)
    five = tmp_path / "five.yaml"
    five.write_text(json.dumps(small_config(tmp_path / "five", tmp_path / "output5")))
    with pytest.raises(Refused, match="best_model knows 3 classes, this run has 5; a teacher answers in the classes"):
        train(five, f"Distill={{teacher: {{name: MicroNet_M0}}, weights: {trained}/best_model}}")
