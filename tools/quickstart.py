"""The main job on scikit-learn's digits: split, train, evaluate, predict, export, serve. `make quickstart` runs it.

Every step is one of the tools, with the command that a user would type; they can be repeated one by one.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import checkout  # noqa: F401 - before all that may be missing
import numpy as np
from PIL import Image

from ppcls_ext import cli
from ppcls_ext.errors import RunFailed

FOLDER = Path("quickstart")
CONFIG = "configs/quickstart.yaml"
RUN = FOLDER / "output/MicroNet_M0"
WEIGHTS = f"Global.pretrained_model={RUN}/best_model_ema"
EXPECTED = 0.97


def write_digits(folder: Path) -> int:
    """scikit-learn's 8x8 digits, enlarged to 32x32, as `folder/<digit>/<number>.png`; returns how many.

    Enlarged, since crops of an 8x8 image come in steps of an eighth of it: no augmentation worth the name.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    for number, (pixels, digit) in enumerate(zip(digits.images, digits.target)):
        (folder / str(digit)).mkdir(parents=True, exist_ok=True)
        image = Image.fromarray((pixels * 255 / 16).astype(np.uint8)).resize((32, 32), Image.Resampling.BICUBIC)
        image.save(folder / str(digit) / f"{number:04d}.png")
    return len(digits.target)


def step(title: str, *command: object) -> None:
    """Show and run one command; a failure ends the quick start."""
    words = [str(word) for word in command]
    # Operators this small gain nothing from a second thread, and lose much on a machine that is busy otherwise.
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    print(f"\n=== {title}\n$ python {shlex.join(words)}", flush=True)
    status = subprocess.run([sys.executable, *words], env=environment).returncode
    if status:
        raise RunFailed(f"{title}: exit status {status}")


def main() -> int:
    began = time.monotonic()
    print(f"=== Write {write_digits(FOLDER / 'digits')} images of ten digits to {FOLDER / 'digits'}")
    step(
        "Split: 70 % to train on, 15 % to choose the best epoch by, 15 % held back for the test",
        *("tools/split.py", FOLDER / "digits", "--out", FOLDER / "split", "--val", 0.15, "--test", 0.15, "--force"),
    )
    step("Train", "tools/train.py", "-c", CONFIG)
    test_list = f"DataLoader.Eval.dataset.cls_label_path={FOLDER}/split/test_list.txt"
    result_file, report = FOLDER / "test.json", FOLDER / "report"
    step(
        "Evaluate the best averaged weights on the test split",
        *("tools/eval.py", "-c", CONFIG, "-o", WEIGHTS, test_list, "--json", result_file, "--report", report),
    )
    images = sorted((FOLDER / "digits/3").glob("*.png"))[:3]
    chosen = f"Infer.infer_imgs={[str(path) for path in images]}"
    step("Predict three images of a 3", "tools/infer.py", "-c", CONFIG, "-o", WEIGHTS, chosen)
    step("Export, and compare with the trained network", "tools/export_model.py", "-c", CONFIG, "-o", WEIGHTS, chosen)
    step("Serve the exported model", "deploy/predict.py", FOLDER / "inference", *images)

    result = json.loads(result_file.read_text(encoding="utf-8"))
    print(f"\nTest top-1: {result['top1']:.4f} ({result['top1_correct']} of {result['images']} images)")
    for what, where in (
        ("curves", RUN / "curves.png"),
        ("log", RUN / "train.log"),
        ("weights", f"{RUN}/best_model_ema.pdparams"),
        ("test result", result_file),
        ("its report", report / "report.html"),
        ("exported model", FOLDER / "inference"),
        ("VisualDL", f"visualdl --logdir {RUN}/vdl"),
    ):
        print(f"  {what + ':':16}{where}")
    print(f"{time.monotonic() - began:.0f} s in all")
    if result["top1"] < EXPECTED:
        raise RunFailed(f"test top-1 {result['top1']:.4f} is below the expected {EXPECTED}")
    return 0


if __name__ == "__main__":
    cli.run(main)
