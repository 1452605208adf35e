"""Evaluate a network: python tools/eval.py -c CONFIG -o Global.pretrained_model=output/MicroNet_M0/best_model

The last line is the result as JSON, with exact counts; on several processes every image counts once. --report FOLDER
writes report.html, with every class, what is taken for what, and the surest mistakes, and answers.csv.
"""

from __future__ import annotations

import json

import checkout  # noqa: F401 - before all that may be missing

from ppcls_ext import cli, distributed


def main() -> int:
    parser = cli.parser(__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE", type=cli.output_file, help="write the result to this file as well")
    parser.add_argument(
        "--report",
        metavar="FOLDER",
        type=cli.output_folder,
        help="write a page there: every class, the confusions, the mistakes",
    )
    arguments = parser.parse_args()
    config = cli.load_config(arguments, needs=["Eval"])
    from ppcls_ext.files import write_file
    from ppcls_ext.trained import evaluate_trained

    result = evaluate_trained(config, arguments.report)
    if distributed.rank() == 0:
        text = json.dumps({"arch": config.Arch.name, "weights": config.Global.pretrained_model, **result})
        if arguments.json:
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            write_file(arguments.json, text + "\n")
        print(text)
    return cli.EXIT_PARTLY if result["skipped"] else 0


if __name__ == "__main__":
    cli.run(main)
