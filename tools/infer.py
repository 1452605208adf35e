"""Predict images: python tools/infer.py -c CONFIG -o Global.pretrained_model=PATH -o Infer.infer_imgs=FILE_OR_FOLDER"""

from __future__ import annotations

import checkout  # noqa: F401 - before all that may be missing

from ppcls_ext import cli


def main() -> int:
    parser = cli.parser(__doc__)
    cli.add_save(parser)
    arguments = parser.parse_args()
    config = cli.load_config(arguments, needs=["Infer"])
    from ppcls_ext.serving.prediction import print_answers
    from ppcls_ext.trained import predict

    return cli.EXIT_PARTLY if print_answers(predict(config), arguments.save) else 0


if __name__ == "__main__":
    cli.run(main)
