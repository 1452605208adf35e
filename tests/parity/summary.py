"""The table of families in README.md: published facts beside each builder, differences of docs/networks.md.

python tests/parity/summary.py [--write]
"""

from __future__ import annotations

import argparse
from fnmatch import fnmatchcase
from pathlib import Path

from ppcls_ext.models import facts, list_models

REPOSITORY = Path(__file__).resolve().parents[2]
START, END = "<!-- families -->", "<!-- end of families -->"
FAMILIES = {  # family: (paper, patterns of its networks)
    "MicroNet": ("2108.05894", ["MicroNet_*"]),
    "ShuffleNetV2": ("1807.11164", ["ShuffleNetV2_*"]),
    "EfficientNet": ("1905.11946", ["EfficientNetB*"]),
    "EfficientNet-Lite": ("1905.11946", ["EfficientNetLite*"]),
    "ResNeXt": ("1611.05431", ["ResNeXt*"]),
    "RepLKNet": ("2203.06717", ["RepLKNet_*"]),
    "GroupMamba": ("2407.13772", ["GroupMamba_*"]),
    "ResNet": ("1512.03385", ["ResNet50", "ResNetV2_50"]),
    "VGG": ("1409.1556", ["VGG16*"]),
    "DenseNet": ("1608.06993", ["DenseNet*"]),
    "ViT": ("2010.11929", ["ViT_*"]),
}


def measured() -> dict[str, list[float]]:
    """Differences of logits by network, as docs/networks.md has them; one list for each network, merged ones too."""
    differences: dict[str, list[float]] = {}
    for line in (REPOSITORY / "docs" / "networks.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 10 and cells[2].replace(",", "").isdigit():
            name = cells[0].removesuffix(", merged")
            differences.setdefault(name, []).extend(float(cell) for cell in cells[3:5] if cell != "-")
    return differences


def span(values: list[float], form: str) -> str:
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"


def table() -> str:
    """The table, between its marks."""
    differences = measured()
    lines = [
        "| family | networks | million parameters | published top-1 | logits differ from the reference by |",
        "|---|---|---|---|---|",
    ]
    for family, (paper, patterns) in FAMILIES.items():
        names = [name for name in list_models() if any(fnmatchcase(name, pattern) for pattern in patterns)]
        compared = [name for name in names if name in differences]
        worst = max(max(differences[name]) for name in compared)
        count = f"all {len(names)}" if len(compared) == len(names) else f"{len(compared)} of {len(names)}"
        shown = ", ".join(f"`{name}`" for name in names[:2]) + (" ..." if len(names) > 2 else "")
        parameters = span([facts(name).params / 1e6 for name in names], ".1f")
        accuracies = span([facts(name).top1 for name in names if facts(name).top1 is not None], ".1f")
        link = f"[{family}](https://arxiv.org/abs/{paper})"
        lines.append(
            f"| {link} | {len(names)}: {shown} | {parameters} | {accuracies} | {worst:.1e}, {count} compared |"
        )
    return "\n".join([START, *lines, END])


def page(text: str) -> str:
    """README.md with the table of today."""
    return text[: text.index(START)] + table() + text[text.index(END) + len(END) :]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the table into README.md")
    if parser.parse_args().write:
        path = REPOSITORY / "README.md"
        path.write_text(page(path.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(table())
