"""Networks by name, for notebooks and for the shell.

python -m ppcls_ext.models list [--markdown] [PATTERN]   what was published
python -m ppcls_ext.models checks [PATTERN]              the command that checks each published top-1
python -m ppcls_ext.models evaluation NAME > NAME.yaml   the configuration that such a command needs
"""

from __future__ import annotations

import argparse
from fnmatch import fnmatchcase
from typing import Any

import yaml
from paddle import nn

from ppcls_ext.backbones import facts, published_names
from ppcls_ext.errors import Refused, refuse_all
from ppcls_ext.registry import BACKBONES, check_arguments

_FROM_PROGRAM = frozenset({"num_classes", "in_channels"})
# What timm and torchvision call an argument, and what does it here.
_ELSEWHERE = {
    "features_only": "not an argument here: network.forward_stages(x) gives the maps of every resolution",
    "pretrained": "not an argument here: load_weights(network, path) reads weights",
    "in_chans": "called in_channels here",
    "drop_rate": "called dropout here, of networks that have it",
    "drop_path_rate": "called drop_path here, of networks that have it",
}


def create_model(name: str, num_classes: int = 1000, in_channels: int = 3, **arguments: Any) -> nn.Layer:
    """The network `name` with fresh weights: (N, in_channels, H, W) -> logits (N, num_classes).

    `arguments` are those of its builder; a name or value that it does not take is refused.
    """
    builder = BACKBONES[name]
    foreign = [f"{name}.{key}: {cure}" for key, cure in _ELSEWHERE.items() if key in arguments]
    if num_classes == 0:
        foreign.append(
            "num_classes: expected a whole number above 0, got 0; forward_features(x) leaves the classifier out"
        )
    refuse_all(f"{name} cannot be built", foreign)
    converted, problems = check_arguments(builder, arguments, place=name, hidden=_FROM_PROGRAM, also=_FROM_PROGRAM)
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


def evaluation(name: str) -> str:
    """A configuration (YAML) that evaluates weights of the network `name` as its published top-1 was measured."""
    known = facts(name)
    backend = {"paddleclas": "cv2", "torchvision": "pil"}[known.measured_with]
    resize = {"size": known.resize} if known.warped else {"resize_short": known.resize}
    how = {"interpolation": known.interpolation, "backend": backend, "rounding": known.measured_with}
    operators = [
        {"DecodeImage": {"to_rgb": True, "backend": backend}},
        {"ResizeImage": {**resize, **how}},
        {"CropImage": {"size": known.crop, "rounding": known.measured_with}},
        {"NormalizeImage": {"mean": list(known.mean), "std": list(known.std)}},
    ]
    data = "./dataset/ILSVRC2012/"
    dataset = {"name": "ImageNetDataset", "image_root": data, "cls_label_path": f"{data}val_list.txt"}
    sections = {
        "Global": {"device": "auto", "image_shape": [3, known.crop, known.crop]},
        "Arch": {"name": name, "class_num": 1000},
        "Loss": {"Eval": [{"CELoss": {"weight": 1.0}}]},
        "DataLoader": {
            "Eval": {
                "dataset": {**dataset, "transform_ops": operators},
                "sampler": {"name": "DistributedBatchSampler", "batch_size": 64, "shuffle": False, "drop_last": False},
                "loader": {"num_workers": 2},
            }
        },
        "Metric": {"Eval": [{"TopkAcc": {"topk": [1, 5]}}]},
    }
    header = f"# {name} on ImageNet-1k, prepared as its published top-1 of {known.top1} was measured: {known.source}\n"
    return f"{header}# {check(name)}\n{yaml.safe_dump(sections, sort_keys=False)}"


def check(name: str) -> str:
    """The command that evaluates somebody's weights with `evaluation(name)`."""
    return f"python tools/eval.py -c {name}.yaml -o Global.pretrained_model=FILE"


def checks(names: list[str]) -> str:
    """A Markdown table of published top-1 and of the command that checks it."""
    lines = ["| network | published top-1 | checked by |", "|---|---|---|"]
    for name in names:
        commands = f"`python -m ppcls_ext.models evaluation {name} > {name}.yaml; {check(name)}`"
        lines.append(f"| {name} | {facts(name).top1} | {commands} |")
    return "\n".join(lines)


def main() -> None:
    """`python -m ppcls_ext.models`."""
    parser = argparse.ArgumentParser(prog="python -m ppcls_ext.models", description="Networks and what was published.")
    commands = parser.add_subparsers(required=True, dest="command")
    listing = commands.add_parser("list", help="print the published networks")
    listing.add_argument("pattern", nargs="?", default="*", help="shell pattern, e.g. 'micronet*'")
    listing.add_argument("--markdown", action="store_true", help="print a Markdown table")
    checking = commands.add_parser("checks", help="print the command that checks each published top-1")
    checking.add_argument("pattern", nargs="?", default="*", help="shell pattern, e.g. 'micronet*'")
    evaluating = commands.add_parser("evaluation", help="print the configuration that evaluates a network's weights")
    evaluating.add_argument("name", help="a name that `list` prints")
    arguments = parser.parse_args()
    if arguments.command == "list":
        print(table(list_models(arguments.pattern), arguments.markdown))
    elif arguments.command == "checks":
        print(checks(list_models(arguments.pattern)))
    else:
        try:
            print(evaluation(arguments.name), end="")
        except Refused as error:
            parser.error(str(error))


if __name__ == "__main__":
    main()
