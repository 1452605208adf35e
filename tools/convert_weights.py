"""Convert weights: python tools/convert_weights.py resnext50_32x4d.pth resnext50.pdparams --arch ResNeXt50_32x4d

Reads .pth, .pt, .bin, .ckpt, .safetensors and .pdparams without running what is in them, checks that every tensor fits
the network, and writes .pdparams or .safetensors.
"""

from __future__ import annotations

import argparse

import checkout  # noqa: F401 - before all that may be missing

from ppcls_ext import cli
from ppcls_ext.errors import Refused


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="weights of PyTorch, timm, torchvision, PaddleClas, or our own")
    parser.add_argument("out", type=cli.output_file, help="file to write: .pdparams or .safetensors")
    parser.add_argument("--arch", metavar="NAME", help="the network; python -m ppcls_ext.models list shows them")
    parser.add_argument(
        "-o",
        "--override",
        action="append",
        default=[],
        nargs="+",
        metavar="KEY=VALUE",
        help="an argument of the network, e.g. -o num_classes=12 -o padding=symmetric; repeatable",
    )
    parser.add_argument("--part", metavar="NAME", help="which network of a checkpoint with several, e.g. model_ema")
    parser.add_argument("--force", action="store_true", help="replace OUT if it is there")
    given = parser.parse_args()
    cli.import_paddle()
    from ppcls_ext.config.reading import read_yaml
    from ppcls_ext.weights.convert import convert

    arguments = {}
    for text in [text for group in given.override for text in group]:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise Refused(f"-o {text}: expected KEY=VALUE")
        arguments[name.removeprefix("Arch.")] = read_yaml(value, f"-o {text}")
    report = convert(given.source, given.out, given.arch, arguments, part=given.part, force=given.force)
    print(report.summary())
    print(f"written: {given.out}")


if __name__ == "__main__":
    cli.run(main)
