"""Average checkpoints: python tools/average.py -c CONFIG --out output/MicroNet_M0/mean [--last 5 | PREFIX PREFIX ...]

The mean's batch-norm statistics are measured on the training split; of one PREFIX, only they change. The result is for
tools/eval.py, infer and export.
"""

from __future__ import annotations

import checkout  # noqa: F401 - before all that may be missing

from ppcls_ext import cli


def main() -> None:
    parser = cli.parser(__doc__.splitlines()[0])
    parser.add_argument("checkpoints", nargs="*", metavar="PREFIX", help="weights to average, without suffix")
    parser.add_argument("--last", type=cli.positive, default=5, help="or the newest epoch_N of the run (default: 5)")
    parser.add_argument("--out", type=cli.output_file, required=True, metavar="PREFIX", help="where to write the mean")
    parser.add_argument("--batches", type=cli.positive, help="batches for the statistics (default: the whole split)")
    arguments = parser.parse_args()
    arguments.override.append(cli.TRAINING_SPLIT_ALONE)
    config = cli.load_config(arguments, needs=["Train"])
    from ppcls_ext.averaging import average

    average(config, arguments.checkpoints, arguments.last, arguments.out, arguments.batches)


if __name__ == "__main__":
    cli.run(main)
