"""Split a folder of class folders into label lists: python tools/split.py FOLDER --out DIR --val 0.15 --test 0.15"""

from __future__ import annotations

import argparse

import checkout  # noqa: F401 - before all that may be missing

from ppcls_ext import cli
from ppcls_ext.data.split import split_folder


def main() -> None:
    parser = argparse.ArgumentParser(description="Split FOLDER/<class>/<image> into train, val and test label lists.")
    parser.add_argument("folder", help="folder of class folders; its images are not moved")
    parser.add_argument(
        "--out", type=cli.output_folder, required=True, metavar="DIR", help="where the lists and class_map.txt go"
    )
    parser.add_argument("--val", type=float, default=0.15, help="share of the validation part (default 0.15)")
    parser.add_argument("--test", type=float, default=0.0, help="share of the test part (default 0: none)")
    parser.add_argument("--seed", type=int, default=0, help="another seed is another split (default 0)")
    parser.add_argument("--force", action="store_true", help="replace a split that stands in DIR")
    given = parser.parse_args()
    out = str(given.out)
    print(split_folder(given.folder, out, val=given.val, test=given.test, seed=given.seed, force=given.force))


if __name__ == "__main__":
    cli.run(main)
