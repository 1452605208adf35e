"""Find a learning rate: python tools/find_lr.py -c configs/photos.yaml [--first 1e-6 --last 1 --steps 100]

Trains a few steps with a rising rate, draws output/<Arch>/find_lr.png, prints a suggestion; saves no weights.
"""

from __future__ import annotations

import checkout  # noqa: F401 - before all that may be missing

from ppcls_ext import cli


def main() -> None:
    parser = cli.parser(__doc__.splitlines()[0])
    parser.add_argument("--first", type=float, default=1e-6, help="the lowest rate (default: 1e-6)")
    parser.add_argument("--last", type=float, default=1.0, help="the highest rate (default: 1)")
    parser.add_argument("--steps", type=cli.positive, default=100, help="optimizer steps at most (default: 100)")
    arguments = parser.parse_args()
    arguments.override.append(cli.TRAINING_SPLIT_ALONE)
    config = cli.load_config(arguments, needs=["Train"])
    from ppcls_ext.lr_range import find_lr

    find_lr(config, arguments.first, arguments.last, arguments.steps)


if __name__ == "__main__":
    cli.run(main)
