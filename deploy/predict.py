"""Predict with an exported model: python deploy/predict.py inference IMAGE_OR_FOLDER [...]"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

# In a checkout the `ppcls_ext` of the checkout; elsewhere there is none, and the installed one is found.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

try:
    from ppcls_ext import cli
except ModuleNotFoundError as missing:
    cure = "`pip install -r requirements.txt` brings it"
    if missing.name == "ppcls_ext":
        cure = "put the checkout's ppcls_ext folder beside deploy, or: pip install --no-deps CHECKOUT"
    print(f"Refused: {sys.executable} has no {missing.name}; {cure}", file=sys.stderr)
    sys.exit(2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="the folder that tools/export_model.py wrote")
    parser.add_argument("images", nargs="+", help="image files, folders, or .txt lists of paths")
    parser.add_argument("--batch-size", type=cli.positive, default=10)
    parser.add_argument("--topk", type=cli.positive, default=None, help="classes to name (default: as exported)")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--threads", type=cli.thread_count, default=1, help="threads of the CPU's mathematics")
    parser.add_argument("--no-onednn", action="store_true", help="serve without oneDNN even where it answers alike")
    cli.add_save(parser)
    arguments = parser.parse_args()
    from ppcls_ext.serving.model import ServedModel
    from ppcls_ext.serving.prediction import find_images, predict_files, print_answers

    served = ServedModel(arguments.model, arguments.device, arguments.threads, False if arguments.no_onednn else None)
    cli.end_by_sigterm()
    for note in served.notes:
        print(f"Warning: {note}", file=sys.stderr)
    files, topk = find_images(arguments.images), arguments.topk or served.topk
    batches = predict_files(
        files,
        served.pipeline,
        served.probabilities,
        arguments.batch_size,
        topk,
        served.class_names,
        served.threshold,
    )
    return cli.EXIT_PARTLY if print_answers(batches, arguments.save) else 0


if __name__ == "__main__":
    cli.run(main)
