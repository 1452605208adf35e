"""Draw a training batch as the network sees it: python tools/preview.py -c CONFIG [--out preview.png]

Above each image the same one without augmentation; captions are the labels, with shares where images are mixed.
"""

from __future__ import annotations

from pathlib import Path

import checkout  # noqa: F401 - before all that may be missing

from ppcls_ext import cli


def main() -> None:
    parser = cli.parser(__doc__.splitlines()[0])
    out = Path("preview.png")
    parser.add_argument("--out", metavar="FILE", type=cli.output_file, default=out, help="the PNG to write")
    parser.add_argument("--images", metavar="N", type=cli.positive, default=16, help="how many of the batch (16)")
    parser.add_argument("--epoch", metavar="N", type=cli.positive, default=1, help="of which epoch (1)")
    parser.add_argument("--batch", metavar="N", type=int, default=0, help="which batch of it, from 0")
    arguments = parser.parse_args()
    arguments.override.append(["Global.eval_during_train=False", "Global.early_stopping=null"])
    config = cli.load_config(arguments, needs=["Train"])
    from ppcls_ext.preview import preview

    for line in preview(config, arguments.out, arguments.images, arguments.epoch, arguments.batch):
        print(line)
    print(f"written to {arguments.out}")


if __name__ == "__main__":
    cli.run(main)
