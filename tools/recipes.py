"""The tables of docs/imagenet_recipes.md: python tools/recipes.py [--write docs/imagenet_recipes.md]

The first is read from configs/ and from the networks' published facts, the second is arithmetic on throughputs that
others published. No network is built.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import checkout  # noqa: F401 - before all that may be missing

from ppcls_ext import cli
from ppcls_ext.errors import Refused

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
TRAINING_IMAGES = 1_281_167

# Training images per second on one RTX 3090: PyTorch 1.12, mixed precision, channels last, data in memory. From
# github.com/huggingface/pytorch-image-models, results/benchmark-train-amp-nhwc-pt112-cu113-rtx3090.csv at 5e7d47ca;
# the network's name there, its rate. Only networks that were measured at the image size of the recipe.
PUBLISHED_RATES: dict[str, tuple[str, float]] = {
    "DenseNet121": ("densenet121", 913.65),
    "EfficientNetB0": ("tf_efficientnet_b0", 1779.02),
    "EfficientNetB1": ("tf_efficientnet_b1", 1099.77),
    "EfficientNetB2": ("tf_efficientnet_b2", 848.58),
    "EfficientNetB3": ("tf_efficientnet_b3", 494.58),
    "EfficientNetB4": ("tf_efficientnet_b4", 241.83),
    "EfficientNetB5": ("tf_efficientnet_b5", 111.42),
    "EfficientNetB6": ("tf_efficientnet_b6", 62.84),
    "EfficientNetB7": ("tf_efficientnet_b7", 37.22),
    "EfficientNetLite0": ("tf_efficientnet_lite0", 2134.89),
    "EfficientNetLite1": ("tf_efficientnet_lite1", 1443.47),
    "EfficientNetLite2": ("tf_efficientnet_lite2", 1121.02),
    "ResNeXt50_32x4d": ("resnext50_32x4d", 1001.03),
    "ResNeXt101_32x4d": ("resnext101_32x4d", 609.01),
    "ResNeXt101_32x8d": ("resnext101_32x8d", 312.8),
    "ResNeXt101_64x4d": ("resnext101_64x4d", 363.79),
    "ResNet50": ("resnet50", 1218.01),
    "ResNetV2_50": ("resnetv2_50", 1288.61),
    "VGG16": ("vgg16", 546.06),
    "VGG16_bn": ("vgg16_bn", 470.3),
    "ViT_tiny_patch16_224": ("vit_tiny_patch16_224", 2299.56),
    "ViT_small_patch16_224": ("vit_small_patch16_224", 1057.92),
    "ViT_base_patch16_224": ("vit_base_patch16_224", 392.99),
}

# Operators that do not augment.
PREPARING = {"DecodeImage", "ResizeImage", "CropImage", "NormalizeImage", "ToCHWImage"}
SHORT = {"RandCropImage": "crop", "RandFlipImage": "flip", "TimmAutoAugment": "RandAugment", "RandomErasing": "erasing"}


def published_configurations() -> dict[str, Path]:
    """Network -> its configuration, in the order of the networks' names; one without is refused."""
    from ppcls_ext.backbones import published_names

    files = {path.stem.replace("_", ""): path for path in CONFIGS.glob("*.yaml")}
    found = {name: files.get(name.lower().replace("_", "")) for name in published_names()}
    missing = [name for name, path in found.items() if path is None]
    if missing:
        raise Refused(f"{CONFIGS} holds no configuration of {', '.join(missing)}")
    return {name: path for name, path in found.items() if path is not None}


def header_of(path: Path) -> dict[str, str]:
    """The header's parts by their first words, "Command" and so on; lines that go on are joined."""
    parts: dict[str, str] = {}
    word = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        named = re.match(r"# (\w+): +(.*)", line)
        if named:
            word = named[1]
            parts[word] = named[2]
        elif word:
            parts[word] += " " + line.removeprefix("#").strip()
    return parts


def gpus_of(command: str) -> int:
    """The processes that a header's command starts."""
    listed = re.search(r"--gpus ([\d,]+)", command)
    return len(listed[1].split(",")) if listed else 1


def total_batch(config: Any, command: str) -> int:
    """Images of one step of the optimizer over all processes."""
    per_process = config.DataLoader.Train.sampler.arguments["batch_size"]
    return per_process * gpus_of(command) * config.Global.update_freq


def augmentation(split: Any, epsilon: float | None) -> str:
    """The random operators of a training split, in a few words."""
    dataset = split.dataset.arguments
    words = ["each image 3 times"] if split.sampler.name == "RepeatedAugSampler" else []
    for entry in dataset["transform_ops"]:
        [(name, arguments)] = entry.items()
        if name not in PREPARING:
            strength = re.search(r"-(m\d+)", (arguments or {}).get("config_str", ""))
            words.append(SHORT.get(name, name) + (f" {strength[1]}" if strength else ""))
    for entry in dataset.get("batch_transform_ops") or []:
        [(name, given)] = entry.items()
        if name == "Mixup":
            words += [f"Mixup {given['mixup_alpha']:g}", f"CutMix {given['cutmix_alpha']:g}"]
            epsilon = given.get("label_smoothing") or epsilon
        else:
            words.append(f"{name.removesuffix('Operator')} {given['alpha']:g}")
    return ", ".join(words + ([f"smoothing {epsilon:g}"] if epsilon else []))


def recipe_row(name: str, path: Path, loaded: Any) -> str:
    """One line of the table of recipes."""
    from ppcls_ext.backbones import facts

    command, known = header_of(path)["Command"], facts(name)
    rates = loaded.Optimizer.lr.arguments
    rate = rates.get("learning_rate", rates.get("values", [None])[0])
    warmup = rates.get("warmup_epoch", 0)
    schedule = f"{rate:g} {loaded.Optimizer.lr.name}" + (f", warm-up {warmup:g}" if warmup else "")
    cells = (
        *(name, loaded.Global.epochs, total_batch(loaded, command), loaded.Optimizer.name, schedule),
        augmentation(loaded.DataLoader.Train, loaded.Loss.Train[0].arguments.get("epsilon")),
        *(known.top1, "; ".join(known.source.split("; ")[:2]), f"[{path.name}](../configs/{path.name})"),
    )
    return "| " + " | ".join(map(str, cells)) + " |"


def cost_row(name: str, epochs: int) -> str:
    """One line of the table of costs."""
    theirs, rate = PUBLISHED_RATES[name]
    seconds = TRAINING_IMAGES / rate
    days = seconds * epochs / 86_400
    cells = (name, theirs, f"{rate:,.0f}", f"{seconds / 60:,.1f}", f"{seconds / 480:,.1f}", epochs, f"{days:,.1f}")
    return "| " + " | ".join(map(str, cells)) + " |"


def tables() -> dict[str, str]:
    """Mark -> the table that stands between `<!-- mark -->` and `<!-- end of mark -->`."""
    from ppcls_ext import config

    files = published_configurations()
    loaded = {name: config.load(path) for name, path in files.items()}
    recipes = [
        "| network | epochs | total batch | optimizer | rate | augmentation | published top-1 | source | file |",
        "|---|---|---|---|---|---|---|---|---|",
        *(recipe_row(name, path, loaded[name]) for name, path in files.items()),
    ]
    costs = [
        "| network | measured as | images/s, 1 GPU | minutes an epoch, 1 GPU | minutes, 8 GPUs | epochs | GPU days |",
        "|---|---|---|---|---|---|---|",
        *(cost_row(name, loaded[name].Global.epochs) for name in files if name in PUBLISHED_RATES),
    ]
    return {"recipes": "\n".join(recipes) + "\n", "costs": "\n".join(costs) + "\n"}


def filled(page: str) -> str:
    """The page with its tables as they are now."""
    for mark, table in tables().items():
        start, end = page.index(f"<!-- {mark} -->\n"), page.index(f"<!-- end of {mark} -->")
        page = page[:start] + f"<!-- {mark} -->\n{table}" + page[end:]
    return page


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, metavar="PAGE", help="replace the tables of this page")
    arguments = parser.parse_args()
    cli.import_paddle()
    if arguments.write is None:
        print("\n".join(tables().values()), end="")
    else:
        arguments.write.write_text(filled(arguments.write.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    cli.run(main)
