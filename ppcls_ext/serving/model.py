"""An exported folder as Paddle Inference or ONNX Runtime serves it.

The folder holds `inference.json` (PaddlePaddle 3) or `inference.pdmodel` (2.6), `inference.pdiparams`, where it was
asked for `inference.onnx`, and `inference.yml`: the preprocessing, the class names, the digests of the others, and
whether oneDNN answers as the trained network does (see `probe.py`). The network ends in a softmax, or in a sigmoid
where an image has several labels.
"""

from __future__ import annotations

import hashlib
import json
import reprlib
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import yaml
from pydantic import BaseModel, Field, ValidationError

from ppcls_ext import processor
from ppcls_ext.errors import Refused, RunFailed, refuse_all
from ppcls_ext.files import file_digest, locked
from ppcls_ext.serving.engines import onnx_runtime, paddle_inference
from ppcls_ext.transforms import build_transforms

DESCRIPTION_FILE = "inference.yml"
PARAMETERS_FILE = "inference.pdiparams"
GRAPH_FILES = ("inference.json", "inference.pdmodel")
ONNX_FILE = "inference.onnx"
MODEL_FILES = (*GRAPH_FILES, PARAMETERS_FILE, ONNX_FILE)
# What each engine reads.
ENGINE_FILES = {"paddle": (*GRAPH_FILES, PARAMETERS_FILE), "onnx": (ONNX_FILE,)}
NEW = "new."  # before the name of a file that an export is about to rename; Paddle goes by how names end

_Count = Annotated[int, Field(gt=0, strict=True)]


class _Global(BaseModel):
    image_shape: Annotated[list[_Count], Field(min_length=3, max_length=3)]


class _PreProcess(BaseModel):
    transform_ops: list[dict[str, dict[str, Any] | None]]
    sha256: str | None = None


class _Topk(BaseModel):
    topk: _Count
    label_list: list[str] | None


class _MultiLabel(BaseModel):
    threshold: Annotated[float, Field(ge=0, lt=1, strict=True)]
    label_list: list[str] | None


class _PostProcess(BaseModel, extra="forbid"):
    Topk: _Topk = Field(default=None)  # one of the two is there, and is no null
    MultiLabelThreshOutput: _MultiLabel = Field(default=None)


class _OneDNN(BaseModel):
    enabled: Annotated[bool, Field(strict=True)]
    operators: Literal["all", "fused"] = "all"


class _Description(BaseModel):
    """What is looked up in `inference.yml`; more may stand in it."""

    Global: _Global
    PreProcess: _PreProcess
    PostProcess: _PostProcess
    Digests: dict[str, str]
    OneDNN: _OneDNN | None = None


def read_description(folder: Path, names: Collection[str] = MODEL_FILES) -> tuple[dict[str, Any], dict[str, Path]]:
    """`inference.yml` of an exported folder, and those of the files `names` that have the digests it names.

    An export that was killed while it replaced another one leaves files as `new.<name>`: they count as `<name>`.
    """
    path = folder / DESCRIPTION_FILE
    if not path.is_file():
        raise Refused(
            f"{folder} is not an exported model: {DESCRIPTION_FILE} is missing; tools/export_model.py writes it"
        )
    try:
        description = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Refused(f"{path} is not valid YAML: {error}") from error
    sections = {"Global", "PreProcess", "PostProcess", "Digests"}
    if not isinstance(description, dict) or not sections <= description.keys() or not description["Digests"]:
        raise Refused(f"{path} is damaged: expected the sections {', '.join(sorted(sections))}; export the model again")
    _refuse_odd_values(path, description)
    files = {}
    for name, digest in description["Digests"].items():
        if name not in names:
            continue
        there = [file for file in (folder / name, folder / (NEW + name)) if file.is_file()]
        if not there:
            raise Refused(f"{folder / name} is missing")
        if (found := next((file for file in there if file_digest(file) == digest), None)) is None:
            raise Refused(
                f"{folder / name} is damaged: its SHA-256 differs from the one in {path.name}; export the model again"
            )
        files[name] = found
    return description, files


def _refuse_odd_values(path: Path, description: dict[str, Any]) -> None:
    """Every value that does not fit, at once: people edit this file."""
    problems = []
    try:
        _Description.model_validate(description)
    except ValidationError as error:
        for one in error.errors():
            place = ".".join(str(part) for part in one["loc"])
            got = "" if one["type"] == "missing" else f", got {reprlib.repr(one['input'])}"
            problems.append(f"{place}: {one['msg']}{got}")
    else:
        if len(description["PostProcess"]) != 1:
            problems.append(
                f"PostProcess: expected Topk or MultiLabelThreshOutput, got {[*description['PostProcess']]}"
            )
        digests = description["Digests"].keys()
        if PARAMETERS_FILE not in digests or not digests & {*GRAPH_FILES} or digests - {*MODEL_FILES}:
            problems.append(f"Digests: expected those of a graph and of {PARAMETERS_FILE}, got {[*digests]}")
    refuse_all(f"{path} cannot be used; mend it, or export the model again", problems)


def digest_of(operators: list[dict[str, Any]]) -> str:
    """SHA-256 of how images are prepared, as `inference.yml` writes it."""
    return hashlib.sha256(json.dumps(operators, sort_keys=True).encode("utf-8")).hexdigest()


def onednn_probed(description: dict[str, Any]) -> str | None:
    """The operators with which oneDNN was found to answer alike, by the version of Paddle that is here."""
    import paddle

    found = description.get("OneDNN") or {}
    fits = found.get("enabled", False) and found.get("paddle") == paddle.__version__
    return found.get("operators", "all") if fits else None


class ServedModel:
    """An exported folder and its engine, with the transforms of training. `notes` are for the user.

    `onednn` says which operators oneDNN computes (`ONEDNN_OPERATORS`), None if none.
    """

    def __init__(
        self,
        folder: Path,
        device: str = "cpu",
        threads: int = 1,
        onednn: str | None = "probed",
        engine: Literal["paddle", "onnx"] = "paddle",
    ) -> None:
        """`device` is cpu or gpu; `threads` are those of the CPU's mathematics.

        `onednn`, of Paddle Inference on a CPU: "probed", what answered alike and fastest when the model was exported,
        by the version of Paddle that is here; None, or one of `ONEDNN_OPERATORS`, whatever was found.
        """
        processor.prepare_mkl()  # as the tools do that train and export; it counts before Paddle's first import
        self.folder, self.engine = folder, engine
        with locked(folder, shared=True):  # an export that would replace the files waits until they are loaded
            self.description, files = read_description(folder, ENGINE_FILES[engine])
            if engine == "onnx":
                self.onednn = None
                if ONNX_FILE not in files:
                    raise Refused(f"{folder} has no {ONNX_FILE}; `tools/export_model.py --onnx` writes it")
                self._run = onnx_runtime(files[ONNX_FILE], device, threads)
            else:
                graph = next(files[name] for name in GRAPH_FILES if name in files)
                wanted = onednn_probed(self.description) if onednn == "probed" else onednn
                self.onednn = wanted if device == "cpu" else None
                self._run = paddle_inference(graph, files[PARAMETERS_FILE], device, threads, self.onednn)
        self.image_shape = tuple(self.description["Global"]["image_shape"])
        self.pipeline = build_transforms(self.description["PreProcess"]["transform_ops"], self.image_shape[0])
        [post] = self.description["PostProcess"].values()  # Topk, or MultiLabelThreshOutput
        stored = self.description["PreProcess"].get("sha256")
        self.notes = []
        if stored is not None and stored != digest_of(self.description["PreProcess"]["transform_ops"]):
            self.notes.append(
                f"{folder / DESCRIPTION_FILE}: PreProcess.transform_ops were changed after the model was compared with "
                "the trained network; where that is wanted, take PreProcess.sha256 out"
            )
        self.topk: int | None = post.get("topk")  # None: all
        self.threshold: float = post.get("threshold", 0.0)
        self.class_names: list[str] | None = post["label_list"]

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """float32 (N, C, H, W) -> (N, classes)."""
        if images.shape[1:] != self.image_shape:
            raise Refused(f"this model takes images of shape {self.image_shape}, got {images.shape[1:]}")
        answered = self._run(np.ascontiguousarray(images, dtype=np.float32))
        if len(answered) != len(images):  # seen with oneDNN: the first of a batch alone
            raise RunFailed(f"{self.folder}: {len(answered)} answers to {len(images)} images; export the model again")
        if self.class_names is not None and len(self.class_names) != answered.shape[1]:
            raise Refused(
                f"{DESCRIPTION_FILE}: PostProcess names {len(self.class_names)} classes in its label_list, the model "
                f"answers with {answered.shape[1]}"
            )
        return answered
