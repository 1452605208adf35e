"""An exported folder as Paddle Inference serves it.

The folder holds `inference.json` (PaddlePaddle 3) or `inference.pdmodel` (2.6), `inference.pdiparams`, and
`inference.yml`: the preprocessing, the class names, the digests of the other two, and whether oneDNN answers as the
trained network does (see `probe.py`). The network ends in a softmax, or in a sigmoid where an image has several labels.
"""

from __future__ import annotations

import hashlib
import json
import reprlib
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import yaml
from pydantic import BaseModel, Field, ValidationError

from ppcls_ext import processor
from ppcls_ext.errors import Refused, RunFailed, refuse_all
from ppcls_ext.files import file_digest, locked
from ppcls_ext.transforms import build_transforms

DESCRIPTION_FILE = "inference.yml"
PARAMETERS_FILE = "inference.pdiparams"
GRAPH_FILES = ("inference.json", "inference.pdmodel")
# What of a graph oneDNN computes: all that it can, or convolutions and linear layers with what is fused into them.
ONEDNN_OPERATORS = ("all", "fused")
NEW = "new."  # before the name of a file that an export is about to rename; Paddle goes by how names end

_PLACEMENT = "onednn_placement_pass"  # gives oneDNN what no other pass has fused for it

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


def read_description(folder: Path) -> tuple[dict[str, Any], dict[str, Path]]:
    """`inference.yml` of an exported folder, and the files that have the digests it names.

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
        if PARAMETERS_FILE not in digests or not digests & {*GRAPH_FILES} or digests - {*GRAPH_FILES, PARAMETERS_FILE}:
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
    """Paddle Inference on an exported folder, with the transforms of training. `notes` are for the user.

    `onednn` says which operators of it oneDNN computes (`ONEDNN_OPERATORS`), None if none.
    """

    def __init__(self, folder: Path, device: str = "cpu", threads: int = 1, onednn: str | None = "probed") -> None:
        """`device` is cpu or gpu; `threads` are those of the CPU's mathematics.

        `onednn`, on a CPU: "probed", what answered alike and fastest when the model was exported, by the version of
        Paddle that is here; None, or one of `ONEDNN_OPERATORS`, whatever was found.
        """
        processor.prepare_mkl()  # as the tools do that train and export; it counts before Paddle's first import
        self.folder = folder
        with locked(folder, shared=True):  # an export that would replace the files waits until they are loaded
            self._load(device, threads, onednn)
        self._input = self._predictor.get_input_handle(self._predictor.get_input_names()[0])
        self._output = self._predictor.get_output_handle(self._predictor.get_output_names()[0])
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

    def _load(self, device: str, threads: int, onednn: str | None) -> None:
        import paddle
        from paddle import inference

        self.description, files = read_description(self.folder)
        graph = next(files[name] for name in GRAPH_FILES if name in files)
        options = inference.Config(str(graph), str(files[PARAMETERS_FILE]))
        options.disable_glog_info()
        wanted = onednn_probed(self.description) if onednn == "probed" else onednn
        self.onednn = wanted if device == "cpu" else None
        if self.onednn:
            options.enable_mkldnn()
            if self.onednn == "fused":
                options.delete_pass(_PLACEMENT)
        else:
            options.disable_mkldnn()  # on by default in some versions
        if device == "gpu" and not paddle.is_compiled_with_cuda():
            raise Refused("--device gpu: this build of PaddlePaddle has no GPU support; take --device cpu")
        if device == "gpu":
            options.enable_use_gpu(256, 0)
        else:
            options.disable_gpu()
            options.set_cpu_math_library_num_threads(threads)
        self._predictor = inference.create_predictor(options)

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """float32 (N, C, H, W) -> (N, classes)."""
        if images.shape[1:] != self.image_shape:
            raise Refused(f"this model takes images of shape {self.image_shape}, got {images.shape[1:]}")
        self._input.reshape(images.shape)
        self._input.copy_from_cpu(np.ascontiguousarray(images, dtype=np.float32))
        self._predictor.run()
        answered = self._output.copy_to_cpu()
        if len(answered) != len(images):  # seen with oneDNN: the first of a batch alone
            raise RunFailed(f"{self.folder}: {len(answered)} answers to {len(images)} images; export the model again")
        if self.class_names is not None and len(self.class_names) != answered.shape[1]:
            raise Refused(
                f"{DESCRIPTION_FILE}: PostProcess names {len(self.class_names)} classes in its label_list, the model "
                f"answers with {answered.shape[1]}"
            )
        return answered
