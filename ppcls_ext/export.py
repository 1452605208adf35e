"""A trained network as a static graph that is known to answer as the network does.

A network that can merge its branches (`reparameterize`) is merged first. The graph is written into a folder aside,
served there by Paddle Inference, and compared on real images with the network as it was trained, branches and all.
Only if every answer agrees do the files take their places; a model that differs is not left behind.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import yaml

from ppcls_ext.config import Config
from ppcls_ext.config.fit import answer_problems, infer_problems
from ppcls_ext.device import choose_device
from ppcls_ext.errors import Refused, RunFailed, refuse_all
from ppcls_ext.files import abandoned, file_digest, folder_problem, locked, sync_folder, write_file
from ppcls_ext.graphs import refuse_without_onnx, write_graph, write_onnx
from ppcls_ext.log import RunLog
from ppcls_ext.serving.model import (
    DESCRIPTION_FILE,
    GRAPH_FILES,
    MODEL_FILES,
    NEW,
    ONNX_FILE,
    ServedModel,
    digest_of,
    read_description,
)
from ppcls_ext.serving.prediction import find_images
from ppcls_ext.serving.probe import probe_onednn
from ppcls_ext.trained import class_names_of, load_trained, tell_of_other_preparation
from ppcls_ext.transforms import DecodeError, Pipeline, build_transforms

# Probabilities of the two sides may differ by this much: |a - b| <= ABSOLUTE + RELATIVE * |b|.
ABSOLUTE, RELATIVE = 1e-5, 1e-3
COMPARED_IMAGES = 8

ASIDE = ".new-"  # begins the name of a folder that an export writes into


class _WithProbabilities(paddle.nn.Layer):
    """The network and what the served model ends with: a softmax, or a sigmoid where an image has several labels."""

    def __init__(self, network: paddle.nn.Layer, several_labels: bool) -> None:
        super().__init__()
        self.network = network
        self.ending = paddle.nn.Sigmoid() if several_labels else paddle.nn.Softmax(axis=-1)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.ending(self.network(x))


@dataclass(frozen=True)
class Exported:
    """Where the model lies, and what the comparison found."""

    folder: Path
    loaded: str
    merged: int | None  # tensors that are left of the network after merging; None if it has nothing to merge
    compared: list[str]
    largest_difference: float
    onednn: dict[str, Any]  # of inference.yml
    onnx: dict[str, Any] | None  # of inference.yml, where it was asked for


def export(config: Config, probe: bool = True, onnx: bool = False) -> Exported:
    """Export `Global.pretrained_model` to `Global.save_inference_dir`; `probe` tries oneDNN, `onnx` adds ONNX.

    Raises `Refused` without weights, transforms or real images, `RunFailed` when the static model differs.
    """
    if onnx:
        refuse_without_onnx()
    refuse_all(
        "The configuration cannot be exported", answer_problems(config.Infer.PostProcess.name, config.DataLoader)
    )
    folder = Path(config.Global.save_inference_dir)
    if problem := folder_problem(folder):
        raise Refused(f"Global.save_inference_dir: {problem}")
    choose_device("cpu")
    network, metadata, loaded = load_trained(config)
    if not config.Infer.transforms:
        raise Refused("Infer.transforms: missing; the exported model carries its preprocessing")
    tell_of_other_preparation(config, RunLog())
    pipeline = build_transforms(config.Infer.transforms, config.Arch.in_channels)
    refuse_all("The configuration cannot be exported", infer_problems(pipeline))
    class_names = class_names_of(config, metadata, network.num_classes)
    files, images = real_images(config, pipeline)
    if list(images.shape[1:]) != config.Global.image_shape:
        raise Refused(
            f"Global.image_shape is {config.Global.image_shape}, but images are prepared as {list(images.shape[1:])} "
            "(by Infer.transforms, or without them as DataLoader.Eval does): "
            f"set -o Global.image_shape='{list(images.shape[1:])}' or change the transforms"
        )
    several_labels = config.Infer.PostProcess.name == "MultiLabelThreshOutput"
    # A layer of its own for each tracing, which replaces the layer's forward.
    expected = answers(_WithProbabilities(network, several_labels), images)
    merged = merge_branches(network)
    with folder_aside(folder) as aside:
        write_graph(_WithProbabilities(network, several_labels), config.Global.image_shape, aside)
        if onnx:
            write_onnx(_WithProbabilities(network, several_labels), config.Global.image_shape, aside)
        description = describe(config, pipeline, class_names, aside)
        write_description(aside, description)
        difference = compare(ServedModel(aside, onednn=None), images, expected, files)
        if onnx:
            description["ONNX"] = compared_onnx(aside, images, expected, files)
        if probe:
            description["OneDNN"] = probe_onednn(aside, images, expected, allowed(expected))
        write_description(aside, description)
        take_places(aside, folder)
    compared = list(dict.fromkeys(files))
    return Exported(folder, loaded, merged, compared, difference, description["OneDNN"], description.get("ONNX"))


@contextmanager
def folder_aside(folder: Path) -> Iterator[Path]:
    """A folder within `folder` to write a model into: two exports at once do not meet.

    It goes at the end, with those that killed exports left, and with `folder` and its parents if they were made for it
    and are empty.
    """
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as opened:
        with locked(folder):
            for left in filter(abandoned, folder.glob(ASIDE + "*")):
                shutil.rmtree(left, ignore_errors=True)
            aside = Path(tempfile.mkdtemp(prefix=ASIDE, dir=folder))
            opened.enter_context(locked(aside, shared=True))
        try:
            yield aside
        finally:
            shutil.rmtree(aside, ignore_errors=True)
            with suppress(OSError):  # not empty
                for place in made:
                    place.rmdir()


def answers(model: paddle.nn.Layer, images: np.ndarray) -> np.ndarray:
    """Probabilities that the network itself gives: (N, C, H, W) -> (N, classes)."""
    with paddle.no_grad():
        return model(paddle.to_tensor(images)).numpy()


def merge_branches(network: paddle.nn.Layer) -> int | None:
    """Let the network merge its branches, in place; how many tensors it then has, None if it is merged as it stands."""
    before = len(network.state_dict())
    if hasattr(network, "reparameterize"):
        network.reparameterize()
    after = len(network.state_dict())
    return after if after != before else None


def real_images(config: Config, pipeline: Pipeline) -> tuple[list[str], np.ndarray]:
    """Names and images (N, C, H, W) to compare on: of `Infer.infer_imgs`, or scikit-learn's two photographs."""
    given = config.Infer.infer_imgs
    items = [given] if isinstance(given, str) else given or []
    files = find_images(items) if items else []
    files = files[:: max(1, -(-len(files) // COMPARED_IMAGES))]  # from all over the folder, of many classes
    if not files:
        import sklearn.datasets

        files = sorted((Path(sklearn.datasets.__file__).parent / "images").glob("*.jpg"))
    images = []
    for file in files:
        try:
            images.append(pipeline(file.read_bytes()))
        except OSError as error:
            raise Refused(
                f"{file}: cannot be read: {error.strerror}; the export is compared on these images"
            ) from error
        except DecodeError as error:
            raise Refused(f"{file}: cannot be decoded: {error}; the export is compared on these images") from error
    if len(images) == 1:  # the comparison is of a batch, too
        files, images = files * 2, images * 2
    return [str(file) for file in files], np.stack(images)


def write_description(folder: Path, description: dict[str, Any]) -> None:
    write_file(folder / DESCRIPTION_FILE, yaml.safe_dump(description, sort_keys=False, allow_unicode=True))


def describe(config: Config, pipeline: Pipeline, class_names: list[str] | None, folder: Path) -> dict[str, Any]:
    """What `inference.yml` says, before oneDNN was tried."""
    names = [name for name in MODEL_FILES if (folder / name).is_file()]
    process, operators = config.Infer.PostProcess, pipeline.to_config()
    given = {"topk": 5} if process.name == "Topk" else {"threshold": 0.5}
    how = {name: process.arguments.get(name, default) for name, default in given.items()}
    return {
        "Global": {"model_name": config.Arch.name, "image_shape": config.Global.image_shape},
        "PreProcess": {"transform_ops": operators, "sha256": digest_of(operators)},
        "PostProcess": {process.name: {**how, "label_list": class_names}},
        "Digests": {name: file_digest(folder / name) for name in names},
        "OneDNN": {"enabled": False, "reason": "not tried", "paddle": paddle.__version__},
    }


def allowed(expected: np.ndarray) -> np.ndarray:
    """How far from these probabilities those of the served model may be."""
    return ABSOLUTE + RELATIVE * np.abs(expected)


def compare(served: ServedModel, images: np.ndarray, expected: np.ndarray, files: list[str]) -> float:
    """The largest difference of probabilities, over all images at once and the first alone (the batch is dynamic).

    Raises `RunFailed` when one is too large.
    """
    what = "the static model" if served.engine == "paddle" else "the ONNX model"
    largest = 0.0
    for count in (len(images), 1):
        got = served.probabilities(images[:count])
        if got.shape != expected[:count].shape:
            raise RunFailed(
                f"{what} answers about {count} images with {got.shape}, the trained one with "
                f"{expected[:count].shape}; nothing was exported"
            )
        difference = np.abs(got - expected[:count])
        wrong = ~(difference <= allowed(expected[:count]))  # not a number is wrong too
        if wrong.any():
            worst = int(wrong.any(axis=-1).argmax())
            raise RunFailed(
                f"{what} differs from the trained one by up to {difference.max():.3g} "
                f"(first on {files[worst]}; allowed: {ABSOLUTE:g} + {RELATIVE:g} x value); nothing was exported"
            )
        largest = max(largest, float(difference.max()))
    return largest


def compared_onnx(folder: Path, images: np.ndarray, expected: np.ndarray, files: list[str]) -> dict[str, Any]:
    """What `inference.yml` says of `inference.onnx`. Raises `RunFailed` where ONNX Runtime answers otherwise."""
    import onnxruntime

    difference = compare(ServedModel(folder, engine="onnx"), images, expected, files)
    return {"largest_difference": difference, "onnxruntime": onnxruntime.__version__}


def take_places(aside: Path, folder: Path) -> None:
    """Move the files into `folder`; what an older export left under the same names goes.

    They come as `new.<name>` first. The new model counts from the moment at which its description has its own name:
    `served.read_description` finds by their digests what an export that was killed right then left so.
    """
    names = [name for name in MODEL_FILES if (aside / name).is_file()]
    with locked(folder):
        with suppress(Refused):  # of no model, or of a damaged one, there is nothing to keep
            for name, file in read_description(folder)[1].items():
                os.replace(file, folder / name)  # what a killed export left undone
            sync_folder(folder)
        for name in (*names, DESCRIPTION_FILE):
            with open(aside / name, "rb") as file:
                os.fsync(file.fileno())
        for name in names:
            os.replace(aside / name, folder / (NEW + name))
        sync_folder(folder)
        os.replace(aside / DESCRIPTION_FILE, folder / DESCRIPTION_FILE)
        sync_folder(folder)
        for name in names:
            os.replace(folder / (NEW + name), folder / name)
        for name in (*GRAPH_FILES, ONNX_FILE):
            (folder / (NEW + name)).unlink(missing_ok=True)
            if name not in names:
                (folder / name).unlink(missing_ok=True)
        sync_folder(folder)
