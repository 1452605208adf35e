"""Predict images: python tools/infer.py -c CONFIG -o Global.pretrained_model=PATH -o Infer.infer_imgs=FILE_OR_FOLDER"""

from __future__ import annotations

import sys

from ppcls_ext import cli


def main() -> int:
    arguments = cli.parser(__doc__).parse_args()
    config = cli.load_config(arguments, needs=["Infer"])
    from ppcls_ext.trained import predict

    failures = 0
    for answers, failed in predict(config):
        if answers:
            print(answers, flush=True)
        for file, reason in failed.items():
            failures += 1
            print(f"{file}: {reason}", file=sys.stderr)
    return cli.EXIT_PARTLY if failures else 0


if __name__ == "__main__":
    cli.run(main)
