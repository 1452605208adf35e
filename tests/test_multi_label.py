"""Images with several labels: lists, metrics, and a whole run."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

import numpy as np
import paddle
import pytest
from conftest import Run, run_tool, small_config
from networks import lively

from ppcls_ext import config, create_model, engine
from ppcls_ext.data.multi_label import read_multi_label_list
from ppcls_ext.errors import Refused
from ppcls_ext.log import read_metrics
from ppcls_ext.metrics import AccuracyScore, HammingDistance, MultiLabelF1, MultiLabelMAP
from ppcls_ext.metrics.multilabel import average_precision
from ppcls_ext.report.curves import _metric_of
from ppcls_ext.trained import evaluate_trained, load_trained
from ppcls_ext.training.criteria import eval_metrics, selection_metric
from ppcls_ext.transforms import build_transforms

Write = Callable[..., Path]
RNG = np.random.default_rng(2)
LOGITS = RNG.normal(size=(40, 5)).round(1)  # rounded, so that some are equal
LABELS = (RNG.random((40, 5)) < 0.3).astype(np.uint8)


def test_metrics_are_scikit_learns() -> None:
    from sklearn import metrics

    expected = [metrics.average_precision_score(LABELS[:, c], LOGITS[:, c]) for c in range(5)]
    assert [average_precision(LOGITS[:, c], LABELS[:, c]) for c in range(5)] == pytest.approx(expected)
    assert MultiLabelMAP().of(LOGITS, LABELS) == pytest.approx([np.mean(expected)])
    answers = LOGITS > np.log(0.6 / 0.4)
    f1 = [metrics.f1_score(LABELS, answers, average=average) for average in ("macro", "micro")]
    assert MultiLabelF1(threshold=0.6).of(LOGITS, LABELS) == pytest.approx(f1)
    tensors = paddle.to_tensor(LOGITS, "float32"), paddle.to_tensor(LABELS)
    hamming = metrics.hamming_loss(LABELS, LOGITS > 0)
    assert float(HammingDistance()(*tensors)[0]) / 40 == pytest.approx(hamming, rel=1e-5)
    assert float(AccuracyScore()(*tensors)[0]) / 40 == pytest.approx(1 - hamming, rel=1e-5)
    exact = metrics.accuracy_score(LABELS, LOGITS > 0)
    assert float(AccuracyScore("sample")(*tensors)[0]) / 40 == pytest.approx(exact, rel=1e-5)


def test_a_class_without_images_is_left_out() -> None:
    labels = LABELS.copy()
    labels[:, 2] = 0
    rest = [0, 1, 3, 4]
    assert MultiLabelMAP().of(LOGITS, labels) == pytest.approx(MultiLabelMAP().of(LOGITS[:, rest], labels[:, rest]))


def test_every_mistake_of_a_list_is_told_with_its_line(tmp_path: Path) -> None:
    for name in ("a", "b c"):
        (tmp_path / f"{name}.png").touch()
    path = tmp_path / "list.txt"
    path.write_text("a.png\t0,1\nb c.png\t1, 1\n", encoding="utf-8")
    paths, labels = read_multi_label_list(str(path), str(tmp_path))
    assert paths == ["a.png", "b c.png"] and labels.tolist() == [[0, 1], [1, 1]]
    path.write_text("a.png\t0,1\na.png 0,1\na.png\t0,2\na.png\t0,1,0\n\nx.png\t0,1\n")
    with pytest.raises(Refused) as refused:
        read_multi_label_list(str(path), str(tmp_path))
    for part in (
        "list.txt:2: expected 'path\t0,1,...', got 'a.png 0,1'",
        "list.txt:3: expected a 0 or 1 for each class, got '0,2'",
        "list.txt:4: 3 labels, but an earlier line has 2",
        "list.txt:5: expected 'path",
        "list.txt:6: no file",
        "(5 problems)",
    ):
        assert part in str(refused.value)
    with pytest.raises(Refused, match="2 labels, but the network has 3"):
        read_multi_label_list(str(path), str(tmp_path), num_classes=3)


@pytest.fixture
def several(write_config: Write, pictures: Path, tmp_path: Path) -> Callable[..., Path]:
    """A configuration whose images have 4 labels: one of three classes, and 'not the first'."""

    def write(**changes: object) -> Path:
        loaders = small_config(pictures, tmp_path)["DataLoader"]
        for split, folder, images in (("Train", "train", 12), ("Eval", "val", 5)):
            rows = (
                f"class_{label}/{n}.png\t{','.join(str(int(c == label)) for c in range(3))},{int(label > 0)}"
                for label in range(3)
                for n in range(images)
            )
            (tmp_path / f"{folder}.txt").write_text("\n".join(rows) + "\n")
            given = loaders[split]["dataset"]
            given |= {"name": "MultiLabelDataset", "cls_label_path": str(tmp_path / f"{folder}.txt")}
        sections = {
            "DataLoader": loaders,
            "Loss": {"Train": [{"MultiLabelLoss": {"size_sum": True}}], "Eval": [{"MultiLabelLoss": None}]},
            "Metric": {"Train": [{"HammingDistance": None}], "Eval": [{"MultiLabelMAP": None}, {"MultiLabelF1": None}]},
        }
        return write_config(**{**sections, **changes})

    return write


@pytest.mark.parametrize("mixed", [False, True])
def test_a_run_with_several_labels_selects_by_its_metric(several: Callable[..., Path], mixed: bool) -> None:
    overrides = ["Global.epochs=3", "EMA.decay=0.5"]
    if mixed:
        overrides.append("DataLoader.Train.dataset.batch_transform_ops=[{MixupOperator: {alpha: 0.2}}]")
    loaded = config.load(several(), overrides, ["Train"])
    best = engine.train(loaded)
    records = [r for r in read_metrics(loaded.output_folder()) if r["kind"] == "eval"]
    assert best["mAP"] == max(record["mAP"] for record in records)
    assert all({"mAP", "F1", "F1_micro", "loss"} <= record.keys() for record in records)
    again = config.load(several(), [f"Global.pretrained_model={loaded.output_folder()}/best_model"], ["Eval"])
    result = evaluate_trained(again)
    assert result["mAP"] == pytest.approx(best["mAP"], abs=1e-9) and result["images"] == 15


def test_metrics_and_losses_of_one_label_are_refused_for_several(several: Callable[..., Path]) -> None:
    for override, message in (
        ("Loss.Train=[{CELoss: {}}]", "Loss.Train.0.CELoss: takes one label per image, MultiLabelDataset has several"),
        ("Metric.Eval=[{TopkAcc: {}}]", "Metric.Eval.0.TopkAcc: takes one label per image, MultiLabelDataset has"),
        ("Metric.Train=[{MultiLabelMAP: {}}]", "Metric.Train.0.MultiLabelMAP: needs a whole split; it belongs in"),
        ("Metric.Eval=[{HammingDistance: {}}]", "Metric.Eval: names no metric that can choose the best model"),
    ):
        with pytest.raises(Refused) as refused:
            config.load(several(), [override], ["Train"])
        assert message in str(refused.value)


def test_prediction_answers_with_every_label_above_the_threshold(
    several: Callable[..., Path], run_here: Run, pictures: Path, tmp_path: Path
) -> None:
    path = several()
    loaded = config.load(path, ["Global.epochs=1"], ["Train"])
    engine.train(loaded)
    weights = f"Global.pretrained_model={loaded.output_folder()}/latest"
    status, _, errors = run_here("tools/infer.py", "-c", path, "-o", weights)
    assert status == 2 and "Infer.PostProcess.name: Topk, but MultiLabelDataset has labels for MultiLabel" in errors
    asked = "Infer.PostProcess={name: MultiLabelThreshOutput, threshold: 0.3}"
    status, output, errors = run_here("tools/infer.py", "-c", path, "-o", weights, asked)
    assert status == 0, errors
    answers = ast.literal_eval(output.splitlines()[-1])
    network, *_ = load_trained(config.load(path, [weights, asked], ["Infer"]))
    pipeline = build_transforms(loaded.Infer.transforms)
    for answer in answers:
        logits = network(paddle.to_tensor(pipeline(Path(answer["file_name"]).read_bytes())[None])).numpy()[0]
        expected = {index for index in range(4) if 1 / (1 + np.exp(-logits[index])) > 0.3}
        assert set(answer["class_ids"]) == expected and min(answer["scores"], default=1) > 0.3
    status, _, errors = run_here("tools/export_model.py", "-c", path, "-o", weights)
    assert status == 2 and "Infer.PostProcess.name: Topk, but MultiLabelDataset" in errors
    folder = tmp_path / "exported"
    exported = [*("-c", path, "--no-onednn", "-o", weights, asked), f"Global.save_inference_dir={folder}"]
    status, _, errors = run_here("tools/export_model.py", *exported)
    assert status == 0, errors
    status, output, errors = run_here("deploy/predict.py", folder, pictures / "val/class_1")
    assert status == 0, errors
    served = ast.literal_eval(output.splitlines()[-1])
    assert [answer["class_ids"] for answer in served] == [answer["class_ids"] for answer in answers]
    assert [a["scores"] for a in served] == [pytest.approx(a["scores"], abs=1e-4) for a in answers]


@pytest.mark.slow
def test_two_processes_mix_each_its_own_batch_and_find_the_metrics_of_one(
    several: Callable[..., Path], tmp_path: Path
) -> None:
    mixing = "DataLoader.Train.dataset.batch_transform_ops=[{Mixup: {mode: elem, cutmix_alpha: 1.0}}]"
    path = several()
    # weights that tell images apart: fresh ones answer alike but for rounding, and their order is a matter of luck
    paddle.save(lively(create_model("MicroNet_M0", num_classes=4)).state_dict(), str(tmp_path / "start.pdparams"))
    started = [
        mixing,
        "Global.epochs=2",
        f"Global.pretrained_model={tmp_path}/start",
        "Optimizer.lr.learning_rate=1e-3",
    ]
    done = run_tool("tools/train.py", "-c", path, "-o", *started, processes=2, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    loaded = config.load(path)
    records = [record for record in read_metrics(loaded.output_folder()) if record["kind"] == "eval"]
    weights = f"Global.pretrained_model={loaded.output_folder()}/latest"
    alone = evaluate_trained(config.load(path, [weights], ["Eval"]))
    for name in ("mAP", "F1", "F1_micro", "loss"):
        assert alone[name] == pytest.approx(records[-1][name], abs=1e-5)


def test_the_first_metric_of_the_list_selects(several: Callable[..., Path]) -> None:
    for order in ("MultiLabelMAP", "AccuracyScore"), ("AccuracyScore", "MultiLabelMAP"):
        metrics = "[" + ", ".join(f"{{{name}: {{}}}}" for name in order) + "]"
        loaded = config.load(several(), [f"Metric.Eval={metrics}"])
        assert selection_metric(loaded) == eval_metrics(loaded)[0].names()[0]
    loaded = config.load(several(), ["Metric.Eval=[{HammingDistance: {}}, {MultiLabelMAP: {}}]"])
    assert selection_metric(loaded) == "mAP"  # less of the first is better


def test_the_curves_of_several_labels_show_the_metric_that_selects() -> None:
    records = [{"kind": "train", "step": 1, "epoch": 1, "lr": 0.1, "loss": 2.0}]
    assert _metric_of(records) == "top1"
    records.append({"kind": "eval", "step": 1, "epoch": 1, "mAP": 0.5, "MultiLabelLoss": 1.0, "loss": 1.0})
    assert _metric_of(records) == "mAP"


def test_a_report_is_about_one_label(several: Callable[..., Path], tmp_path: Path) -> None:
    path = several()
    engine.train(config.load(path, needs=["Train"]))
    weights = config.load(path).output_folder() / "latest"
    loaded = config.load(path, [f"Global.pretrained_model={weights}"], ["Eval"])
    with pytest.raises(Refused, match="--report: its pages are about one label per image"):
        evaluate_trained(loaded, tmp_path / "report")
    assert not (tmp_path / "report").exists()
