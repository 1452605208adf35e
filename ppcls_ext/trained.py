"""A trained network put to use: evaluated, or asked about images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle.utils import unique_name

from ppcls_ext import distributed
from ppcls_ext.config import Config
from ppcls_ext.data.class_map import read_class_map
from ppcls_ext.device import choose_device, device_lines, missing_device
from ppcls_ext.distributed import failures
from ppcls_ext.engine import averages_of, evaluate
from ppcls_ext.errors import Refused
from ppcls_ext.log import RunLog, joined
from ppcls_ext.report.evaluation import Judged, write_report
from ppcls_ext.serving.prediction import find_images, predict_files, sigmoid, softmax
from ppcls_ext.training.criteria import eval_losses, eval_metrics
from ppcls_ext.training.meter import Answers
from ppcls_ext.training.run import build_eval_loader, build_network
from ppcls_ext.transforms import build_transforms
from ppcls_ext.weights import fit_weights, read_metadata

CHANNELS_FIRST = {"ToCHWImage": None}  # what every pipeline does at its end, said or not


def load_trained(config: Config) -> tuple[paddle.nn.Layer, dict[str, Any], str]:
    """(network in evaluation mode with the weights of `Global.pretrained_model`, the file's metadata, the load report).

    Without weights, or with weights that do not fit entirely, it is refused: nobody judges random weights.
    """
    path = config.Global.pretrained_model
    if path is None:
        raise Refused("Global.pretrained_model: missing; name the weights: -o Global.pretrained_model=PATH")
    metadata = read_metadata(path)
    if metadata.get("arch", config.Arch.name) != config.Arch.name:
        raise Refused(f"{path} holds weights of {metadata['arch']}; the configuration's Arch is {config.Arch.name}")
    num_classes = config.Arch.class_num or metadata.get("num_classes")
    if num_classes is None:
        raise Refused(f"Arch.class_num: missing, and {path} does not say how many classes it has")
    with unique_name.guard():
        network = build_network(config, num_classes)
    report = fit_weights(network, path, strict=True)
    network.eval()
    return network, metadata, report.summary()


def tell_of_other_preparation(config: Config, log: RunLog) -> None:
    """Warn where prediction prepares images otherwise than the evaluation by which the network was judged."""
    evaluation = config.DataLoader.Eval
    if evaluation is None or not config.Infer.transforms:
        return
    judged, own = (
        [
            operator
            for operator in build_transforms(ops, config.Arch.in_channels).to_config()
            if operator != CHANNELS_FIRST
        ]
        for ops in (evaluation.dataset.arguments["transform_ops"], config.Infer.transforms)
    )
    if own != judged:
        log.warning(
            f"Infer.transforms prepare images otherwise than DataLoader.Eval does: {own}, there {judged}; without "
            "Infer.transforms they are prepared as there"
        )


def evaluate_trained(config: Config, report: Path | None = None) -> dict[str, float]:
    """What `tools/eval.py` does: the exact result of `Global.pretrained_model` on `DataLoader.Eval`.

    With `report`, a folder, a page about every class and the surest mistakes is written there; see `write_report`.
    """
    device = choose_device(config.Global.device)
    failures.join()
    log = RunLog()
    network, metadata, loaded = load_trained(config)
    for line in [*device_lines(config, device), loaded]:
        log.info(line)
    names = metadata.get("class_names")
    with build_eval_loader(config, names, network.num_classes) as loader:
        for note in loader.dataset.notes:
            log.warning(note)
        if report is not None and loader.dataset.several_labels:
            raise Refused("--report: its pages are about one label per image, those of this split have several")
        answers = Answers(loader.dataset) if report is not None else None
        result = evaluate(network, loader, eval_losses(config), eval_metrics(config), log, answers=answers)
        skipped = distributed.merged(loader.skipped)
        if answers is not None:
            judged = judge(answers, network.num_classes)
    assert result is not None  # nobody can ask it to stop
    log.info(f"[Eval][Epoch 0][Avg]{joined(averages_of(result))}")
    for place, reason in sorted(skipped.items()):
        log.warning(f"left out: {place}: {reason}")
    if report is not None and distributed.rank() == 0:
        facts = {"network": config.Arch.name, "weights": str(config.Global.pretrained_model)}
        split = config.DataLoader.Eval.dataset.arguments
        facts["split"] = str(split.get("cls_label_path") or split["image_root"])
        facts |= {name: f"{value:.5f}" for name, value in averages_of(result).items()}
        facts |= {"images": str(result["images"]), "images that could not be read": str(len(skipped))}
        log.info(f"report: {write_report(report, f'{config.Arch.name}: evaluation', facts, judged, skipped)}")
    result["skipped"] = len(skipped)
    return result


def judge(answers: Answers, num_classes: int) -> Judged:
    """What every image of the split was taken for, on all ranks."""
    dataset, (seen, logits) = answers.dataset, answers.of_all_ranks()
    return Judged(
        files=[dataset.path(index) for index in seen.tolist()],
        labels=dataset.labels[seen],
        probabilities=softmax(logits),
        class_names=dataset.class_names or [str(number) for number in range(num_classes)],
    )


def predict(config: Config) -> Iterator[list[dict[str, Any]]]:
    """Answers about `Infer.infer_imgs`, batch by batch; see `prediction.predict_files`."""
    device = choose_device(config.Global.device)
    network, metadata, loaded = load_trained(config)
    log = RunLog()
    log.info(loaded)
    for line in missing_device(config, device):
        log.warning(line)
    tell_of_other_preparation(config, log)
    infer, arguments = config.Infer, config.Infer.PostProcess.arguments
    several = infer.PostProcess.name == "MultiLabelThreshOutput"

    @paddle.no_grad()
    def probabilities(images: np.ndarray) -> np.ndarray:
        logits = network(paddle.to_tensor(images)).astype("float32").numpy()
        return sigmoid(logits) if several else softmax(logits)

    yield from predict_files(
        find_images(infer.infer_imgs),
        build_transforms(infer.transforms, config.Arch.in_channels),
        probabilities,
        infer.batch_size,
        None if several else arguments.get("topk", 5),
        class_names_of(config, metadata, network.num_classes),
        arguments.get("threshold", 0.5) if several else 0.0,
    )


def class_names_of(config: Config, metadata: dict[str, Any], num_classes: int) -> list[str] | None:
    """The names in `Infer.PostProcess.class_id_map_file`; where it does not fit, or is not there, those of the weights.

    PaddleClas's files name ImageNet's list whatever the network: one that does not fit is told. Raises `Refused` for it
    where the weights carry no names.
    """
    own, place = metadata.get("class_names"), "Infer.PostProcess.class_id_map_file"
    file = config.Infer.PostProcess.arguments.get("class_id_map_file")
    if file is None:
        return own
    if not Path(file).is_file():
        problem = f"{place}: no such file: {file}"
    elif len(names := read_class_map(file)) == num_classes:
        return names
    else:
        problem = f"{place}: {file} names {len(names)} classes, the network has {num_classes}"
    cure = f"name another file, or take the key out: -o {place}="
    if own:
        RunLog().warning(f"{problem}; the names that the weights carry are used; {cure}")
        return own
    raise Refused(f"{problem}, and the weights carry no class map; {cure}")
