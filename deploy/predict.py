"""Predict with an exported model: python deploy/predict.py inference IMAGE_OR_FOLDER [...]"""

from __future__ import annotations

import argparse

import package  # noqa: F401 - first: it finds ppcls_ext

from ppcls_ext import cli


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    cli.add_model(parser)
    parser.add_argument("images", nargs="+", help="image files, folders, or .txt lists of paths")
    parser.add_argument("--batch-size", type=cli.positive, default=10)
    cli.add_save(parser)
    arguments = parser.parse_args()
    from ppcls_ext.serving.prediction import find_images, predict_files, print_answers

    served = cli.load_model(arguments)
    batches = predict_files(
        find_images(arguments.images),
        served.pipeline,
        served.probabilities,
        arguments.batch_size,
        arguments.topk or served.topk,
        served.class_names,
        served.threshold,
    )
    return cli.EXIT_PARTLY if print_answers(batches, arguments.save) else 0


if __name__ == "__main__":
    cli.run(main)
