"""Networks by name, for notebooks and for the shell: `python -m ppcls_ext.models list [--markdown] [PATTERN]`."""

from __future__ import annotations

import argparse
from fnmatch import fnmatchcase
from typing import Any

from paddle import nn

from ppcls_ext.backbones import facts, published_names
from ppcls_ext.errors import refuse_all
from ppcls_ext.registry import BACKBONES, check_arguments

_FROM_PROGRAM = frozenset({"num_classes", "in_channels"})


def create_model(name: str, num_classes: int = 1000, in_channels: int = 3, **arguments: Any) -> nn.Layer:
    """The network `name` with fresh weights: (N, in_channels, H, W) -> logits (N, num_classes).

    `arguments` are those of its builder; a name or value that it does not take is refused.
    """
    builder = BACKBONES[name]
    converted, problems = check_arguments(builder, arguments, place=name, hidden=_FROM_PROGRAM)
    refuse_all(f"{name} cannot be built", problems)
    return builder(num_classes=num_classes, in_channels=in_channels, **converted)


def list_models(pattern: str = "*") -> list[str]:
    """Names of the published networks that match a shell pattern; upper and lower case are the same."""
    return [name for name in published_names() if fnmatchcase(name.lower(), pattern.lower())]


_COLUMNS = ("network", "parameters", "MACs", "top-1", "top-5", "input", "resize / crop", "source")


def _row(name: str) -> tuple[str, ...]:
    known = facts(name)
    accuracies = ["" if value is None else f"{value:.1f}" for value in (known.top1, known.top5)]
    sizes = (str(known.input_size), f"{known.resize} {known.interpolation} / {known.crop}")
    return (name, f"{known.params:,}", f"{known.macs / 1e6:,.1f} M", *accuracies, *sizes, known.source)


def table(names: list[str], markdown: bool = False) -> str:
    """The published facts, one line per network."""
    rows = [_COLUMNS, *(_row(name) for name in names)]
    if markdown:
        rows.insert(1, ("---",) * len(_COLUMNS))
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def main() -> None:
    """`python -m ppcls_ext.models`."""
    parser = argparse.ArgumentParser(prog="python -m ppcls_ext.models", description="Networks and what was published.")
    commands = parser.add_subparsers(required=True)
    listing = commands.add_parser("list", help="print the published networks")
    listing.add_argument("pattern", nargs="?", default="*", help="shell pattern, e.g. 'micronet*'")
    listing.add_argument("--markdown", action="store_true", help="print a Markdown table")
    arguments = parser.parse_args()
    print(table(list_models(arguments.pattern), arguments.markdown))


if __name__ == "__main__":
    main()
