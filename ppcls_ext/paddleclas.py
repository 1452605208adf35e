"""Our networks in an installed PaddleClas: `ppcls_ext.paddleclas.register()`, then its `build_model` finds them.

PaddleClas is not among our requirements: its pins (numpy 1.24.4, an old OpenCV) would break a fresh installation.
`requirements-paddleclas.txt` makes an environment that has both.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from importlib.util import find_spec
from types import ModuleType

import paddle

from ppcls_ext.backbones import published_names
from ppcls_ext.errors import Refused
from ppcls_ext.registry import BACKBONES

# In a checkout of PaddleClas, and in the package of PyPI.
ARCHITECTURES = ("ppcls.arch", "paddleclas.ppcls.arch")


def register(names: list[str] | None = None, replace: bool = False) -> list[str]:
    """Enter our networks among PaddleClas's, under their own names; returns the names that were entered.

    Without `names`, all published ones; those that PaddleClas has too keep PaddleClas's unless `replace` is set.
    PaddleClas's `class_num` becomes `num_classes`; `pretrained` may only be False (nothing is downloaded here). A
    GroupMamba is built with one head unless `distillation` says otherwise: PaddleClas's losses take one output.
    Raises `Refused` if there is no PaddleClas, for an unknown name, and for a name of PaddleClas's that was asked for
    without `replace`.
    """
    modules = architectures()
    if not modules:
        raise Refused(
            "PaddleClas is not installed (no module ppcls.arch or paddleclas.ppcls.arch): "
            "pip install -r requirements-paddleclas.txt, in an environment of its own"
        )
    builders = {name: builder_for(name) for name in (names if names is not None else published_names())}
    entered = []
    for name, builder in builders.items():
        taken = [module for module in modules if hasattr(module, name)]
        if taken and not replace:
            if names is not None:
                raise Refused(f"PaddleClas has a network '{name}' of its own; register(..., replace=True) replaces it")
            continue
        for module in modules:
            setattr(module, name, builder)
        entered.append(name)
    return entered


def builder_for(name: str) -> Callable[..., paddle.nn.Layer]:
    """The builder of a network, called as PaddleClas calls its own: with `class_num` and `pretrained`."""
    ours = BACKBONES[name]
    parameters = inspect.signature(ours).parameters

    def build(class_num: int = 1000, pretrained: bool = False, **arguments: object) -> paddle.nn.Layer:
        if pretrained:
            raise Refused(
                f"Arch.pretrained: nothing is downloaded for {name}; use Global.pretrained_model with a file that "
                "tools/convert_weights.py wrote"
            )
        unknown = sorted(set(arguments) - set(parameters))
        if unknown:
            raise Refused(f"{name} takes no argument {', '.join(unknown)}; it takes {', '.join(parameters)}")
        if "distillation" in parameters:
            arguments.setdefault("distillation", False)
        return ours(num_classes=class_num, **arguments)

    build.__name__ = name
    build.__doc__ = ours.__doc__
    return build


def _exists(module: str) -> bool:
    """Whether a module can be imported, its parents included."""
    parts = module.split(".")
    return all(find_spec(".".join(parts[: i + 1])) is not None for i in range(len(parts)))


def architectures() -> list[ModuleType]:
    """The modules in which PaddleClas looks for networks."""
    return [importlib.import_module(name) for name in ARCHITECTURES if _exists(name)]
