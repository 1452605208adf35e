"""Weights into a network: compared name by name first, then set all at once, and told what happened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import Tensor, nn

from ppcls_ext.errors import Refused, refuse_all
from ppcls_ext.weights.files import read_weights
from ppcls_ext.weights.graphs import doubts_about_graph
from ppcls_ext.weights.names import in_our_names
from ppcls_ext.weights.pytorch import is_pytorch, to_paddle


@dataclass(frozen=True)
class LoadReport:
    """What a file gave to a network. `total` counts the network's tensors, batch-norm statistics included."""

    path: str
    loaded: int
    total: int
    missing: tuple[str, ...] = ()  # of the network, not in the file
    unexpected: tuple[str, ...] = ()  # of the file, not in the network
    mismatched: tuple[str, ...] = ()  # "name: (1000,) in the file, (12,) in the network"
    fresh_head: tuple[str, ...] = ()  # of the classifier, left at their initial values since the file's do not fit
    head_misfit: str = ""  # why: "classifier.bias: (1000,) in the file, (12,) in the network"
    notes: tuple[str, ...] = ()  # what was converted, chosen or may be wrong

    def summary(self, limit: int = 10) -> str:
        """'loaded 192 of 192 tensors from X', and what did not fit on either side, at most `limit` names each."""
        lines = [f"loaded {self.loaded} of {self.total} tensors from {self.path}", *self.notes]
        if self.fresh_head:
            kept = f"its {len(self.fresh_head)} tensors keep their initial values"
            lines.append(f"classifier replaced ({self.head_misfit}): {kept}")
        for what, names in (
            ("not in the file", self.missing),
            ("not in the network", self.unexpected),
            ("of another shape", self.mismatched),
        ):
            if names:
                rest = f", ... and {len(names) - limit} more" if len(names) > limit else ""
                lines.append(f"{what} ({len(names)}): {', '.join(names[:limit])}{rest}")
        return "\n".join(lines)


def load_weights(
    model: nn.Layer, path: str | Path, strict: bool = True, replace_head: bool = True, part: str | None = None
) -> LoadReport:
    """`fit_weights`, told on the terminal; a classifier for another number of classes is replaced, and that is told."""
    report = fit_weights(model, path, strict=strict, replace_head=replace_head, part=part)
    print(report.summary())
    return report


def fit_weights(
    model: nn.Layer, path: str | Path, strict: bool = True, replace_head: bool = False, part: str | None = None
) -> LoadReport:
    """Set the weights of `model` from a file of any kind that `read_weights` reads; a bare path means `.pdparams`.

    strict: every tensor of the network must be in the file with its shape, and nothing else may be; otherwise the file
    is refused and the network stays as it was; so is a file with NaN or infinite numbers. `replace_head` excepts the
    classifier: if the file's has another size (another number of classes) or none, all of it keeps its initial values.
    With strict=False whatever fits is loaded, and a file is refused only if that is less than half of the network's
    tensors. `part`: which network of a PyTorch checkpoint that holds several.

    PyTorch's conventions and other projects' names are recognised and converted. Raises `Refused`; prints nothing.
    """
    stored = read_weights(path, part)
    network: dict[str, Tensor] = model.state_dict()
    tensors, rule = in_our_names(stored.tensors, network)
    notes = list(stored.notes)
    if rule is not None and rule.finish is not None:
        tensors, note = rule.finish(tensors, network)
        notes.append(f"{rule.project}: {note}")
    tensors = _in_paddle_form(tensors, stored.metadata, model)
    replaceable = head_names(model, network) if replace_head or not strict else []
    if broken := [name for name in network if name in tensors and not np.isfinite(tensors[name]).all()]:
        problem = (
            f"{len(broken)} tensors hold NaN or infinite numbers, {broken[0]} first: the run that wrote them diverged"
        )
        if strict:
            raise Refused(f"{stored.path}: {problem}; take an earlier checkpoint")
        notes.append(problem)
    report = replace(_compare(network, tensors, str(stored.path), replaceable), notes=tuple(notes))
    if strict:
        _refuse_misfits(report, model, network)
    elif 2 * report.loaded < report.total or report.loaded == 0:
        raise Refused(f"{stored.path} does not fit {type(model).__name__}: {report.summary()}")
    report = replace(report, notes=(*notes, *doubts_about_graph(model, stored, rule, strict)))
    left = {*report.missing, *report.fresh_head, *(text.split(":")[0] for text in report.mismatched)}
    for name, target in network.items():
        if name not in left:
            target.set_value(_as_tensor(tensors[name], target.dtype))
    return report


def state_arrays(network: nn.Layer) -> dict[str, np.ndarray]:
    """The network's tensors as arrays by name, those in half precision as float32: what a weights file holds."""
    return {
        name: (tensor.astype("float32") if tensor.is_floating_point() else tensor).numpy()
        for name, tensor in network.state_dict().items()
    }


def head_names(model: nn.Layer, names: Mapping[str, object]) -> list[str]:
    """The tensors of the classifier that depend on the number of classes: the network's layer group "head"."""
    if not hasattr(model, "layer_groups"):
        return []
    prefixes = tuple(dict(model.layer_groups())["head"])
    return [name for name in names if name.startswith(prefixes)]


def _as_tensor(array: np.ndarray, dtype: paddle.dtype) -> Tensor:
    """A copy of what may be a view of the file's bytes, transposed, of another precision or byte order."""
    widest = np.int64 if array.dtype.kind != "f" else np.float64 if dtype == paddle.float64 else np.float32
    return paddle.to_tensor(np.array(array, dtype=widest, order="C")).astype(dtype)


def _in_paddle_form(
    tensors: dict[str, np.ndarray], metadata: Mapping[str, Any], model: nn.Layer
) -> dict[str, np.ndarray]:
    linear = {
        f"{name}.weight" if name else "weight": tuple(layer.weight.shape)
        for name, layer in model.named_sublayers(include_self=True)
        if isinstance(layer, nn.Linear)
    }
    if is_pytorch(tensors, metadata, linear):
        return to_paddle(tensors, set(linear))
    return tensors


def _compare(
    network: Mapping[str, Tensor], tensors: Mapping[str, np.ndarray], path: str, replaceable: list[str]
) -> LoadReport:
    misfits = {}
    for name, target in network.items():
        if name in tensors and (problem := _misfit(target, tensors[name])):
            misfits[name] = f"{name}: {problem}"
    missing = [name for name in network if name not in tensors]
    # the head stays fresh as a whole: half of an old classifier is of no use
    fresh = replaceable if any(name in misfits or name not in tensors for name in replaceable) else []
    left = {*misfits, *missing, *fresh}
    reasons = [misfits.get(name, f"{name}: not in the file") for name in fresh if name in misfits or name in missing]
    return LoadReport(
        path=path,
        loaded=len(network) - len(left),
        total=len(network),
        missing=tuple(name for name in missing if name not in fresh),
        unexpected=tuple(name for name in tensors if name not in network),
        mismatched=tuple(text for name, text in misfits.items() if name not in fresh),
        fresh_head=tuple(fresh),
        head_misfit=reasons[0] if reasons else "",
    )


def _misfit(target: Tensor, array: np.ndarray) -> str | None:
    if tuple(target.shape) != array.shape:
        return f"{array.shape} in the file, {tuple(target.shape)} in the network"
    if array.dtype.kind not in ("f" if target.is_floating_point() else "iub"):
        return f"{array.dtype} in the file, {str(target.dtype).removeprefix('paddle.')} in the network"
    return None


def _refuse_misfits(report: LoadReport, model: nn.Layer, network: Mapping[str, Tensor]) -> None:
    problems = [
        *(f"not in the file: {name}" for name in report.missing),
        *(f"not in the network: {name}" for name in report.unexpected),
        *report.mismatched,
    ]
    title = f"{report.path} does not fit {type(model).__name__}: {report.loaded} of {report.total} tensors fit"
    head = set(head_names(model, network))
    others = [name for name in report.missing if name not in head] + list(report.unexpected)
    others += [text for text in report.mismatched if text.split(":")[0] not in head]
    if problems and not others:
        title += (
            f". Only the classifier differs (here of {model.num_classes} classes); training takes the rest of such a "
            "file (Global.pretrained_model, load_weights)"
        )
    refuse_all(title, problems)
