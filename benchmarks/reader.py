"""The training reader against the loops of the tutorials, and a label list of ImageNet's size.

    python benchmarks/reader.py [IMAGES] [--rounds 5] [--limit N] [--lines 1281167]

Part 1 counts images per second of processor time, with one thread, from a file to the float32 (3, 224, 224) that a
network takes: decode, random crop, flip, normalise. Part 2 opens, checks and shuffles a generated list of 1,281,167
lines in a process of its own. IMAGES is a folder of photographs, by default ../shared/data/imagenet_samples.

The status is 1 if one of our two back ends reaches less than 0.9 of the faster plain loop, or if the list takes 10 s or
500 MB.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import PIL
from PIL import Image

from ppcls_ext import cli
from ppcls_ext.errors import Refused, RunFailed
from ppcls_ext.transforms import build_transforms

SIZE = 224
MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)
STD = np.array([0.229, 0.224, 0.225], dtype=np.float32)
DEFAULT_IMAGES = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "imagenet_samples"
LEAST_RATIO, MOST_SECONDS, MOST_MB = 0.9, 10.0, 500.0

# The plain loops get the random numbers that ours draw, made beforehand: all cut the same crops, and the plain ones pay
# nothing for drawing.
NUMBERS: dict[tuple[int, int], list[float]] = {}

# (path, epoch, index) -> float32 (3, SIZE, SIZE)
Reader = Callable[[str, int, int], np.ndarray | None]


# ------------------------------------------------------------------------------------------------ plain loops


def random_box(width: int, height: int, numbers: list[float]) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of an Inception crop: a share of 0.08 to 1 of the area, width / height 3/4 to 4/3."""
    ratio = 3 / 4 + (4 / 3 - 3 / 4) * numbers[0]
    fits = min(width / height / ratio, height / width * ratio)
    share = min(0.08, fits) + (min(1.0, fits) - min(0.08, fits)) * numbers[1]
    w = int(math.sqrt(width * height * share * ratio))
    h = int(math.sqrt(width * height * share / ratio))
    left, top = int(numbers[2] * (width - w + 1)), int(numbers[3] * (height - h + 1))
    return left, top, left + w, top + h


def plain_pillow(path: str, epoch: int, index: int) -> np.ndarray:
    numbers = NUMBERS[epoch, index]
    image = Image.open(path).convert("RGB")
    image = image.crop(random_box(*image.size, numbers)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    if numbers[4] < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = (np.asarray(image, dtype=np.float32) / 255.0 - MEAN) / STD
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def bare_pillow(path: str, epoch: int, index: int) -> None:
    """What no reader with Pillow can go below: decode, crop, resize, and nothing else."""
    image = Image.open(path).convert("RGB")
    box = random_box(*image.size, NUMBERS[epoch, index])
    image.crop(box).resize((SIZE, SIZE), Image.Resampling.BILINEAR)


def plain_opencv(path: str, epoch: int, index: int) -> np.ndarray:
    numbers = NUMBERS[epoch, index]
    image = cv2.cvtColor(cv2.imread(path), cv2.COLOR_BGR2RGB)
    left, top, right, bottom = random_box(image.shape[1], image.shape[0], numbers)
    image = cv2.resize(image[top:bottom, left:right], (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
    if numbers[4] < 0.5:
        image = cv2.flip(image, 1)
    pixels = (image.astype(np.float32) / 255.0 - MEAN) / STD
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def ours(backend: str) -> Reader:
    """What a training run does for a sample: read the file, derive its generator, call the pipeline."""
    pipeline = build_transforms(
        [
            {"DecodeImage": {"to_rgb": True, "channel_first": False, "backend": backend}},
            {"RandCropImage": {"size": SIZE, "interpolation": "bilinear", "backend": backend}},
            {"RandFlipImage": {"flip_code": 1}},
            {"NormalizeImage": {"scale": "1.0/255.0", "mean": MEAN.tolist(), "std": STD.tolist(), "order": ""}},
            {"ToCHWImage": None},
        ]
    )

    def read(path: str, epoch: int, index: int) -> np.ndarray:
        with open(path, "rb") as file:
            encoded = file.read()
        return pipeline(encoded, np.random.default_rng([0, epoch, index]))

    return read


READERS: dict[str, Reader] = {
    "plain Pillow": plain_pillow,
    "plain OpenCV": plain_opencv,
    "bare Pillow": bare_pillow,
    "ours, pil": ours("pil"),
    "ours, cv2": ours("cv2"),
}
PLAIN = ("plain Pillow", "plain OpenCV")
TWINS = {"ours, pil": "plain Pillow", "ours, cv2": "plain OpenCV"}


# ------------------------------------------------------------------------------------------------ part 1


def check_twins(files: list[str]) -> float:
    """The largest difference between ours and the plain loop of the same library; they must do the same work."""
    worst = 0.0
    for index, path in enumerate(files):
        for mine, theirs in TWINS.items():
            difference = float(np.abs(READERS[mine](path, 0, index) - READERS[theirs](path, 0, index)).max())
            if difference > 1e-4:
                raise RunFailed(f"{path}: '{mine}' and '{theirs}' differ by {difference:.3g}; they compare no more")
            worst = max(worst, difference)
    return worst


def measure(files: list[str], rounds: int) -> dict[str, list[float]]:
    """Seconds of processor time per round over all files, for each reader; the readers take turns on every file."""
    names = list(READERS)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for epoch in range(rounds):
        total = dict.fromkeys(names, 0.0)
        for index, path in enumerate(files):
            turn = index % len(names)
            for name in names[turn:] + names[:turn]:
                start = time.process_time()
                READERS[name](path, epoch, index)
                total[name] += time.process_time() - start
        for name in names:
            seconds[name].append(total[name])
    return seconds


def report_reader(files: list[str], rounds: int) -> bool:
    cv2.setNumThreads(0)  # one thread: a second of processor time is then a second of one core
    NUMBERS.update(
        {(e, i): np.random.default_rng([0, e, i]).random(5).tolist() for e in range(rounds) for i in range(len(files))}
    )
    worst = check_twins(files[:20])
    seconds = measure(files, rounds)
    per_second = {name: [len(files) / s for s in seconds[name]] for name in READERS}
    fastest = max(PLAIN, key=lambda name: statistics.median(per_second[name]))
    print(f"{len(files)} files, {rounds} rounds; OpenCV {cv2.__version__}, Pillow {PIL.__version__}, one thread")
    print(f"ours and the plain loop of the same library differ by at most {worst:.1g}\n")
    print(f"{'reader':14}{'images per CPU-second':>22}{'lowest':>8}{'highest':>9}   of {fastest}")
    for name, speeds in per_second.items():
        print(
            f"{name:14}{statistics.median(speeds):22.0f}{min(speeds):8.0f}{max(speeds):9.0f}"
            f"   {ratio(speeds, per_second[fastest]):.2f}"
        )
    reached = {name: ratio(per_second[name], per_second[fastest]) for name in TWINS}
    listed = ", ".join(f"{name} {value:.2f}" for name, value in reached.items())
    print(f"\nof the faster plain loop: {listed} (at least {LEAST_RATIO} wanted of each)")
    return min(reached.values()) >= LEAST_RATIO


def ratio(speeds: list[float], others: list[float]) -> float:
    """The median of the ratios of each round."""
    return statistics.median(a / b for a, b in zip(speeds, others))


def photographs(folder: Path, limit: int | None) -> list[str]:
    files = sorted(str(p) for p in folder.rglob("*") if p.suffix.lower() in (".jpeg", ".jpg"))[:limit]
    if not files:
        raise Refused(f"{folder}: no .jpg or .jpeg files there; name a folder of photographs")
    return files


# ------------------------------------------------------------------------------------------------ part 2


def write_list(folder: Path, lines: int, classes: int = 1000) -> Path:
    """A list like ImageNet's: `n00000123/n00000123_00000456.JPEG 123`. The files exist, so that they can be looked for.

    They are empty, and all classes are links to one folder: 1,282 files instead of 1,281,167.
    """
    per_class = math.ceil(lines / classes)
    (folder / "all").mkdir()
    for number in range(per_class):
        (folder / "all" / f"image_{number:014d}.JPEG").touch()
    for label in range(classes):
        (folder / f"n{label:08d}").symlink_to("all", target_is_directory=True)
    path = folder / "train_list.txt"
    with path.open("w", encoding="utf-8") as file:
        for line in range(lines):
            label, number = line % classes, line // classes
            file.write(f"n{label:08d}/image_{number:014d}.JPEG {label}\n")
    return path


def read_list(path: Path) -> None:
    """In a process of its own: open, check, shuffle, plan; prints seconds and the peak of resident memory as JSON."""
    from ppcls_ext.data.datasets import ImageNetDataset
    from ppcls_ext.data.samplers import DistributedBatchSampler

    start = time.perf_counter()
    dataset = ImageNetDataset(
        image_root=str(path.parent),
        cls_label_path=str(path),
        transform_ops=[{"DecodeImage": None}, {"NormalizeImage": {"order": ""}}],
        num_classes=1000,
    )
    opened = time.perf_counter() - start
    start = time.perf_counter()
    plan = DistributedBatchSampler(batch_size=256, shuffle=True).training_plan(dataset.labels, seed=0, epoch=0)
    shuffled = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # kB on Linux
    print(json.dumps({"lines": len(dataset), "batches": len(plan), "open": opened, "shuffle": shuffled, "mb": peak}))


def report_list(lines: int) -> bool:
    with tempfile.TemporaryDirectory(prefix="ppcls_ext_reader_") as folder:
        path = write_list(Path(folder), lines)
        megabytes = os.path.getsize(path) / 2**20
        child = subprocess.run(
            [sys.executable, __file__, "--read-list", str(path)], stdout=subprocess.PIPE, text=True, check=False
        )
    if child.returncode:
        raise RunFailed(f"reading the list of {lines:,} lines ended with status {child.returncode}")
    result = json.loads(child.stdout)
    seconds = result["open"] + result["shuffle"]
    print(
        f"a list of {result['lines']:,} lines ({megabytes:.0f} MB): opened and checked in {result['open']:.2f} s, "
        f"shuffled into {result['batches']:,} batches in {result['shuffle']:.2f} s,\n"
        f"peak of resident memory {result['mb']:.0f} MB (under {MOST_SECONDS:.0f} s and {MOST_MB:.0f} MB wanted)"
    )
    return seconds < MOST_SECONDS and result["mb"] < MOST_MB


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", nargs="?", type=Path, default=DEFAULT_IMAGES, help="folder of photographs")
    parser.add_argument("--rounds", type=int, default=5, help="how often all photographs are read")
    parser.add_argument("--limit", type=int, help="only the first LIMIT photographs")
    parser.add_argument("--lines", type=int, default=1_281_167, help="length of the label list")
    parser.add_argument("--read-list", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read_list:
        read_list(arguments.read_list)
        return 0
    reader_fine = report_reader(photographs(arguments.images, arguments.limit), arguments.rounds)
    print()
    list_fine = report_list(arguments.lines)
    return 0 if reader_fine and list_fine else 1


if __name__ == "__main__":
    cli.run(main)
