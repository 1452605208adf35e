"""Weights of any kind that is read -> a file of ours, after they were loaded into the network that they are for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paddle import nn
from safetensors.numpy import save

from ppcls_ext.checkpoint import save_tensors
from ppcls_ext.errors import Refused
from ppcls_ext.files import write_file
from ppcls_ext.models import create_model
from ppcls_ext.weights.files import OURS, PADDLE, SAFETENSORS, find_weights, read_metadata
from ppcls_ext.weights.graphs import graph_of
from ppcls_ext.weights.load import LoadReport, fit_weights, state_arrays


def convert(
    source: str | Path,
    out: str | Path,
    arch: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    part: str | None = None,
    force: bool = False,
) -> LoadReport:
    """Write the weights of `source` to `out`, a `.pdparams` or `.safetensors` file, in our names and Paddle's layout.

    Every tensor must fit the network `arch` with `arguments` (num_classes and in_channels among them); what `source`
    says of itself stands in for what is not given. Raises `Refused`, with nothing written.
    """
    found, target = find_weights(source), Path(out)
    if target.suffix not in (PADDLE, SAFETENSORS):
        raise Refused(f"{target}: its suffix is {target.suffix or 'missing'}; {PADDLE} or {SAFETENSORS} is written.")
    if target.exists() and not force:
        raise Refused(f"{target} is there already; --force replaces it.")
    if not target.parent.is_dir():
        raise Refused(f"{target}: there is no folder {target.parent}.")
    metadata = read_metadata(found)
    arch = arch or metadata.get("arch")
    if not isinstance(arch, str):
        raise Refused(f"{found} does not say what network it is for; name it: --arch NAME.")
    known = metadata if metadata.get("arch") == arch else {}
    stored = known.get("arguments", {})
    chosen = {name: known[name] for name in ("num_classes", "in_channels") if name in known}
    chosen |= {**(stored if isinstance(stored, Mapping) else {}), **(arguments or {})}
    for name in ("num_classes", "in_channels"):
        if name in chosen and (not isinstance(chosen[name], int) or chosen[name] < 1):
            raise Refused(f"{name}: expected a whole number from 1, got {chosen[name]!r}.")
    if "name" in chosen:
        raise Refused(f"{arch} takes no argument 'name'.")
    network = create_model(arch, **chosen)
    report = fit_weights(network, found, strict=True, part=part)
    about = about_network(network, arch, chosen, known)
    if target.suffix == PADDLE:
        save_tensors(target, state_arrays(network), about)
    else:
        write_file(target, save(state_arrays(network), {"format": "pd", OURS: json.dumps(about, ensure_ascii=False)}))
    return report


def about_network(
    network: nn.Layer, arch: str, arguments: Mapping[str, Any], known: Mapping[str, Any]
) -> dict[str, Any]:
    """The metadata of a converted file: what a training run writes, as far as it is known."""
    about = {
        "arch": arch,
        "num_classes": network.num_classes,
        "in_channels": arguments.get("in_channels", 3),
        "arguments": {name: value for name, value in arguments.items() if name not in ("num_classes", "in_channels")},
        "graph": graph_of(network),
    }
    return {**about, "class_names": known["class_names"]} if "class_names" in known else about
