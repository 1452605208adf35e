"""Every bad input gets a message that names the place, the value and the cure, and its exit status.

The rows below are the table in docs/bad_input.md; `UPDATE_DOCS=1 python -m pytest tests/test_bad_input.py` rewrites it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import Run, write_pictures
from scenes import (
    Scene,
    broken_yaml,
    damaged_export,
    edited_export,
    evaluate,
    flipped,
    half_written,
    killed_worker,
    malicious,
    one_bad_image,
    predict,
    strange_folder,
    stuck_worker,
    train,
    unreadable,
    with_a_namespace,
    with_the_other_padding,
)

PAGE = Path(__file__).resolve().parent.parent / "docs/bad_input.md"


@dataclass
class Row:
    what: str
    command: Callable[[Scene], list[object]]
    message: str
    status: int


ROWS = [
    Row(
        "configuration: a misspelt file",
        lambda s: train("configs/micronet_m33.yaml"),
        "No such configuration: configs/micronet_m33.yaml. Did you mean 'micronet_m3.yaml'?",
        2,
    ),
    Row(
        "configuration: misspelt section",
        lambda s: train(s.config(), "Globall.epochs=3"),
        "Globall: unknown section. Did you mean 'Global'?",
        2,
    ),
    Row(
        "configuration: misspelt key",
        lambda s: train(s.config(), "Global.epoch=3"),
        "Global.epoch: unknown key. Did you mean 'epochs'?",
        2,
    ),
    Row(
        "configuration: wrong type",
        lambda s: train(s.config(), "Optimizer.lr.learning_rate=fast"),
        "Optimizer.lr.learning_rate: expected float, got 'fast'",
        2,
    ),
    Row(
        "configuration: out of range",
        lambda s: train(s.config(), "Global.epochs=0"),
        "Global.epochs: expected greater than 0, got 0",
        2,
    ),
    Row(
        "configuration: an argument that the component does not take",
        lambda s: train(s.config(), "Arch.dropuot=0.1"),
        "Arch.dropuot: unknown argument. Did you mean 'dropout'?",
        2,
    ),
    Row(
        "configuration: unknown network",
        lambda s: train(s.config(), "Arch.name=MicroNet_M8"),
        "Arch.name: unknown backbone 'MicroNet_M8'. Did you mean 'MicroNet_M",
        2,
    ),
    Row(
        "configuration: unknown operator",
        lambda s: train(s.config(), "DataLoader.Train.dataset.transform_ops.1={RandCropImag: {size: 8}}"),
        "DataLoader.Train.dataset.transform_ops.1: Unknown transform 'RandCropImag'. Did you mean 'RandCropImage'?",
        2,
    ),
    Row(
        "augmentation: an unknown policy",
        lambda s: train(s.config(), "DataLoader.Train.dataset.transform_ops.2={AutoAugment: {policy: imagnet}}"),
        "transform_ops.2.AutoAugment.policy: expected one of 'imagenet', 'cifar10', got 'imagnet'",
        2,
    ),
    Row(
        "augmentation: an operator where it cannot stand",
        lambda s: train(s.config(), "DataLoader.Train.dataset.transform_ops.2={RandomErasing: {mode: pixel}}"),
        "mode: 'pixel' draws colours of mean 0 and deviation 1; move it after NormalizeImage",
        2,
    ),
    Row(
        "augmentation: an alpha below 0",
        lambda s: train(s.config(), "DataLoader.Train.dataset.batch_transform_ops=[{MixupOperator: {alpha: -1}}]"),
        "DataLoader.Train.dataset.batch_transform_ops.0.MixupOperator: alpha: expected a number above 0, got -1",
        2,
    ),
    Row(
        "augmentation: a number that is none",
        lambda s: train(s.config(), "DataLoader.Train.dataset.batch_transform_ops=[{FmixOperator: {alpha: .nan}}]"),
        "DataLoader.Train.dataset.batch_transform_ops.0.FmixOperator.alpha: expected a finite number, got nan",
        2,
    ),
    Row(
        "augmentation: sizes that grow, in an evaluation",
        lambda s: train(s.config(), "DataLoader.Eval.dataset.image_sizes={2: 64}"),
        "DataLoader.Eval.dataset.image_sizes: an evaluation has one size; it belongs in DataLoader.Train",
        2,
    ),
    Row(
        "augmentation: mixed images in an evaluation",
        lambda s: train(s.config(), "DataLoader.Eval.dataset.batch_transform_ops=[{MixupOperator: {}}]"),
        "DataLoader.Eval.dataset.batch_transform_ops: an evaluation never mixes images; it belongs in DataLoader.Train",
        2,
    ),
    Row(
        "loss: class weights for another number of classes",
        lambda s: train(s.config(), "Loss.Train.0.CELoss.class_weight=[1, 2]"),
        "Loss.Train: class_weight: 2 weights for 3 classes",
        2,
    ),
    Row(
        "loss: one for several labels, where images have one",
        lambda s: train(s.config(), "Loss.Train=[{MultiLabelLoss: {}}]"),
        "Loss.Train.0.MultiLabelLoss: takes several labels per image, ClassFolderDataset has one",
        2,
    ),
    Row(
        "configuration: missing file",
        lambda s: train(s.lists(s.good_lines()), "DataLoader.Train.dataset.cls_label_path=no.txt"),
        "DataLoader.Train.dataset.cls_label_path: no such file: no.txt",
        2,
    ),
    Row(
        "configuration: missing folder",
        lambda s: train(s.config(), "DataLoader.Train.dataset.image_root=no"),
        "DataLoader.Train.dataset.image_root: no such folder: no",
        2,
    ),
    Row("configuration: not YAML", broken_yaml, "config.yaml:3: not valid YAML", 2),
    Row(
        "configuration: an override without a value",
        lambda s: train(s.config(), "Global.epochs"),
        "-o Global.epochs: expected path.to.key=value, for example -o Global.epochs=10",
        2,
    ),
    Row(
        "configuration: statistics that do not fit the channels",
        lambda s: train(s.config(), "Arch.in_channels=1"),
        "DataLoader.Train.dataset.transform_ops.3.NormalizeImage.mean: 3 values for images with 1 channel",
        2,
    ),
    Row(
        "data: label out of range",
        lambda s: train(s.lists(s.good_lines() + "class_2/9.png 3\n")),
        "train.txt:13: label out of range (0 to 2, the network has 3 classes): 'class_2/9.png 3'",
        2,
    ),
    Row(
        "data: one path with two labels",
        lambda s: train(s.lists(s.good_lines() + "class_0/0.png 1\n")),
        "train.txt:1 and 13: 'class_0/0.png' has labels 0 and 1",
        2,
    ),
    Row("data: blank line", lambda s: train(s.lists("\n" + s.good_lines())), "train.txt:1: blank line", 2),
    Row(
        "data: malformed line",
        lambda s: train(s.lists(s.good_lines() + "class_0/5.png\n")),
        "train.txt:13: expected 'path label', got 'class_0/5.png'",
        2,
    ),
    Row(
        "data: missing image",
        lambda s: train(s.lists(s.good_lines() + "class_0/99.png 0\n")),
        "train.txt:13: no file '",
        2,
    ),
    Row(
        "data: a class folder of the evaluation split that training did not have",
        strange_folder,
        "val/clas_2: no such class in the class map. Did you mean 'class_2'?",
        2,
    ),
    Row(
        "data: unreadable image (`unreadable: error`, the default)",
        unreadable,
        "train/class_0/2.png: cannot be decoded: not an image of a known format, or cut short: 8 bytes",
        3,
    ),
    Row(
        "data: more unreadable images than `max_unreadable`",
        lambda s: unreadable(s, unreadable="skip", max_unreadable=1),
        "More than max_unreadable=1 images could not be read:",
        3,
    ),
    Row("data: a worker that is stuck", stuck_worker, "has finished no sample for 1 s while it was on", 3),
    Row("data: a worker that is killed", killed_worker, "was killed by signal 9 (SIGKILL)", 3),
    Row(
        "data: a last batch of one image, where batch norm cannot train on it",
        lambda s: train(s.config(), "DataLoader.Train.sampler.batch_size=17"),
        "a batch of an epoch would hold one image",
        2,
    ),
    Row(
        "training: a loss that is not finite",
        lambda s: train(s.config(), "Optimizer.lr={name: Constant, learning_rate: 1e30}"),
        "the loss is nan in epoch 1",
        3,
    ),
    Row(
        "checkpoint: missing",
        lambda s: train(s.config(), "Global.checkpoints=nowhere/latest"),
        "No checkpoint at nowhere/latest: latest.pdstates is missing",
        2,
    ),
    Row("checkpoint: half-written", half_written, "latest.pdparams is damaged: it is cut short", 2),
    Row(
        "checkpoint: one bit flipped",
        flipped,
        "latest.pdopt is damaged: its SHA-256 differs from the one it was written with. "
        "The newest whole checkpoint there is epoch_1",
        2,
    ),
    Row(
        "checkpoint: of another network",
        lambda s: train(s.config(), f"Global.checkpoints={s.trained}/latest", "Arch.name=MicroNet_M1"),
        "latest is a MicroNet_M0; the configuration's Arch is MicroNet_M1",
        2,
    ),
    Row("evaluation without weights", evaluate, "Global.pretrained_model: missing; name the weights", 2),
    Row(
        "prediction without weights",
        lambda s: ["tools/infer.py", "-c", s.config()],
        "Global.pretrained_model: missing; name the weights",
        2,
    ),
    Row(
        "export without weights",
        lambda s: ["tools/export_model.py", "-c", s.config()],
        "Global.pretrained_model: missing; name the weights",
        2,
    ),
    Row(
        "optimizer: unknown",
        lambda s: train(s.config(), "Optimizer.name=AdamWW"),
        "Optimizer.name: unknown optimizer 'AdamWW'. Did you mean 'AdamW'?",
        2,
    ),
    Row(
        "optimizer: an argument that it does not take",
        lambda s: train(s.config(), "Optimizer.name=Lion"),
        "Optimizer.momentum: unknown argument. Known: beta1, beta2",
        2,
    ),
    Row(
        "optimizer: two kinds of clipping",
        lambda s: train(s.config(), "Optimizer.clip_norm=1", "Optimizer.clip_adaptive=0.01"),
        "Optimizer.clip_adaptive: stands beside Optimizer.clip_norm; give one of the two",
        2,
    ),
    Row(
        "optimizer: no decay for a name that no parameter has",
        lambda s: train(s.config(), "Optimizer.no_weight_decay_name=wieght"),
        "Optimizer.no_weight_decay_name: 'wieght' is in no parameter's name. Did you mean 'weight'?",
        2,
    ),
    Row(
        "optimizer: a misspelt key of the section",
        lambda s: train(s.config(), "Optimizer.clip_adaptiv=0.1"),
        "Optimizer.clip_adaptiv: unknown argument. Did you mean 'clip_adaptive'?",
        2,
    ),
    Row(
        "schedule: a floor above its peak",
        lambda s: train(s.config(), "Optimizer.lr.eta_min=1"),
        "Optimizer.lr: eta_min: expected 0 to learning_rate (0.05), got 1.0",
        2,
    ),
    Row(
        "schedule: a plateau of what evaluations do not count",
        lambda s: train(s.config(), "Optimizer.lr={name: Plateau, learning_rate: 0.1, metric: top2}"),
        "Optimizer.lr.metric: evaluations have no 'top2'. Did you mean 'top5'?",
        2,
    ),
    Row(
        "freezing: a pattern that matches nothing",
        lambda s: train(s.config(), "Freeze.layers=[stme]"),
        "Freeze.layers: 'stme' matches no layer group and no parameter. Did you mean 'stem'?",
        2,
    ),
    Row(
        "freezing: nothing left to train",
        lambda s: train(s.config(), "Freeze.layers='*'"),
        "Freeze: nothing is left to train in epoch 1",
        2,
    ),
    Row(
        "freezing: thawing without freezing",
        lambda s: train(s.config(), "Freeze.unfreeze_every=2"),
        "Freeze.unfreeze_every: nothing is frozen; add Freeze.layers, Freeze.until or Freeze.all_but_head",
        2,
    ),
    Row(
        "teacher: without weights",
        lambda s: train(s.config(), "Distill={teacher: {name: MicroNet_M0}}"),
        "Distill.weights: missing; a teacher without trained weights teaches nothing",
        2,
    ),
    Row(
        "teacher: of another number of classes",
        lambda s: train(
            s.lists(s.good_lines()),
            "Arch.class_num=4",
            f"Distill={{teacher: {{name: MicroNet_M0}}, weights: {s.trained}/best_model}}",
        ),
        "best_model knows 3 classes, this run has 4; a teacher answers in the classes of the run",
        2,
    ),
    Row(
        "averaging: fewer checkpoints than asked for",
        lambda s: ["tools/average.py", "-c", s.config(), "--out", s.root / "mean"],
        "holds 0 checkpoints of whole epochs, --last asks for 5",
        2,
    ),
    Row(
        "range test: rates that do not rise",
        lambda s: ["tools/find_lr.py", "-c", s.config(), "--first", 1, "--last", 0.1],
        "--first and --last: expected rates with 0 < first < last, got 1 and 0.1",
        2,
    ),
    Row(
        "checkpoint: of another optimizer",
        lambda s: train(
            s.config(), f"Global.checkpoints={s.trained}/latest", "Optimizer.name=SGD", "Optimizer.momentum="
        ),
        "was trained with Momentum, the configuration's Optimizer is SGD",
        2,
    ),
    Row(
        "an output folder that cannot be written",
        lambda s: train(s.config(), f"Global.output_dir={s.config()}"),
        "config.yaml is a file, so there can be no folder",
        2,
    ),
    Row(
        "prediction: random operators",
        lambda s: [*predict(s), "-o", "Infer.transforms.1={RandCropImage: {size: 32}}"],
        "Infer.transforms: holds random operators, which prediction cannot use",
        2,
    ),
    Row(
        "prediction: an empty list of images",
        lambda s: [*predict(s), "-o", "Infer.infer_imgs=[]"],
        "Infer.infer_imgs: missing; name an image, a folder, or a list of them",
        2,
    ),
    Row(
        "weights: no such file",
        lambda s: evaluate(s, "Global.pretrained_model=no/best_model"),
        "No weights at no/best_model.pdparams",
        2,
    ),
    Row(
        "weights: of another network",
        lambda s: evaluate(s, f"Global.pretrained_model={s.trained}/best_model", "Arch.name=MicroNet_M1"),
        "best_model holds weights of MicroNet_M0; the configuration's Arch is MicroNet_M1",
        2,
    ),
    Row(
        "weights: of another number of classes",
        lambda s: evaluate(s, f"Global.pretrained_model={s.trained}/best_model", "Arch.class_num=7"),
        "(3,) in the file, (7,) in the network",
        2,
    ),
    Row("weights: a pickle that would run code", malicious, "which is neither a tensor nor a container", 2),
    Row(
        "weights: a PyTorch checkpoint with more than tensors",
        with_a_namespace,
        "it names argparse.Namespace, which is neither a tensor nor a container. Save its tensors alone",
        2,
    ),
    Row(
        "weights: of an EfficientNet with the other padding",
        with_the_other_padding,
        "was trained with padding='symmetric' (it says so), the network has padding='same'",
        2,
    ),
    Row(
        "prediction: one bad image among good ones (the others are answered)",
        one_bad_image,
        "val/class_1/0.png: cannot be decoded",
        4,
    ),
    Row("exported model: damaged", damaged_export, "inference.pdiparams is damaged", 2),
    Row(
        "exported model: threads without end",
        lambda s: ["deploy/predict.py", "--threads", "99999999999", s.root / "model", s.root / "val"],
        "argument --threads: expected at most 1024 threads, got '99999999999'",
        2,
    ),
    Row("exported model: edited", edited_export, "PostProcess.Topk.topk: Input should be greater than 0, got 0", 2),
]


@pytest.mark.parametrize("row", ROWS, ids=[row.what for row in ROWS])
def test_a_bad_input_gets_its_message_and_status(row: Row, tmp_path: Path, trained: Path, run_here: Run) -> None:
    write_pictures(tmp_path / "train", images=6)
    write_pictures(tmp_path / "val", images=3)
    status, _, errors = run_here(*row.command(Scene(tmp_path, trained)))
    assert row.message in errors
    assert status == row.status
    assert "Traceback" not in errors
    assert not (tmp_path / "hacked").exists()


def table() -> str:
    lines = ["| input | message (a part of it) | exit status |", "|---|---|---|"]
    lines += [f"| {row.what} | `{row.message.strip()}` | {row.status} |" for row in ROWS]
    return "\n".join(lines) + "\n"


def test_the_table_in_the_documentation_is_this_one() -> None:
    text = PAGE.read_text(encoding="utf-8")
    before, _, after = text.partition("<!-- table -->\n")
    if os.environ.get("UPDATE_DOCS"):
        PAGE.write_text(f"{before}<!-- table -->\n{table()}", encoding="utf-8")
    else:
        assert after == table()
