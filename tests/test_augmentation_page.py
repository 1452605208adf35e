"""docs/augmentation.md names every component with its arguments and defaults as the code has them."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from ppcls_ext import registry
from ppcls_ext.config import import_components
from ppcls_ext.config.components import PROGRAM_ARGUMENTS


def signature(table: registry.Registry, name: str) -> str:
    """'MixupOperator(alpha=1.0)'"""
    hidden = PROGRAM_ARGUMENTS.get(table.kind, frozenset())
    parameters = [p for p in inspect.signature(table[name]).parameters.values() if p.name not in hidden]
    shown = [p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters]
    return f"{name}({', '.join(shown)})"


def test_the_page_has_every_component_as_it_is(repository: Path) -> None:
    import_components()
    page = (repository / "docs/augmentation.md").read_text(encoding="utf-8")
    told = set(re.findall(r"`(\w+\([^`]*\))`", page)) - {"path<TAB>0,1,0,1"}
    names = {text.partition("(")[0] for text in told}
    expected = set()
    for table in (registry.BATCH_TRANSFORMS, registry.LOSSES, registry.SAMPLERS, registry.METRICS, registry.TRANSFORMS):
        for name in table:
            first = table[name].__name__  # a component with two names is written out once
            if first != name or (table is registry.TRANSFORMS and not table[name].random):
                assert first != name or f"`{name}" not in page, name
                assert first == name or f"also `{name}`" in page, name
                continue
            expected.add(signature(table, name))
    assert told == expected, sorted(told ^ expected)
    assert len(names) == len(told)
