"""PaddleClas-shaped YAML -> one validated, frozen `Config`.

`load` reads a file (and the one file that its `base:` names), applies the overrides, and compares the whole with the
sections and with the signatures of the registered components. Nothing is built here; every mistake of the
configuration is reported in one message.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ppcls_ext.config.components import build
from ppcls_ext.config.reading import read_raw
from ppcls_ext.config.sections import Component, Config, DistillOptions, FreezeOptions, OptimizerOptions, Split
from ppcls_ext.config.writing import differences, to_yaml
from ppcls_ext.errors import refuse_all

__all__ = [
    "Component",
    "Config",
    "DistillOptions",
    "FreezeOptions",
    "OptimizerOptions",
    "Split",
    "build",
    "differences",
    "import_components",
    "load",
    "to_yaml",
]


def load(path: str | Path, overrides: Iterable[str] = (), needs: Iterable[str] = ()) -> Config:
    """Read, override and validate a configuration.

    `needs` names the parts whose presence and files matter to the tool at hand: "Train", "Eval", "Infer". All mistakes
    are raised together as one `Refused`.
    """
    import_components()
    from ppcls_ext.config.checking import Check

    check = Check(needs)
    config = check.whole(read_raw(Path(path), overrides))
    refuse_all(f"The configuration {path} cannot be used", check.problems)
    return config


def import_components() -> None:
    """Import the modules whose components register themselves."""
    import ppcls_ext.backbones
    import ppcls_ext.data.datasets
    import ppcls_ext.data.mixing
    import ppcls_ext.data.multi_label
    import ppcls_ext.data.samplers
    import ppcls_ext.losses
    import ppcls_ext.metrics
    import ppcls_ext.optim
    import ppcls_ext.transforms  # noqa: F401
