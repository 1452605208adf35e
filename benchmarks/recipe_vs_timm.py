"""The same training in Paddle (ours) and in PyTorch (torchvision's networks): 200 steps on the same batches.

    python benchmarks/recipe_vs_timm.py [TRAIN VALIDATION] [--network shufflenet] [--steps 200] [--threads 2]

TRAIN and VALIDATION are folders of class folders, those of dataset/plant_seedlings by default; the other network is
efficientnet. Needs torch and torchvision (what `timm` needs too) beside requirements.txt, in an environment of its own.
Both sides get the same initial weights (torchvision's random ones, read
by `load_weights`), images (our transforms draw the augmentation once, for both), learning rates, SGD with momentum and
weight decay. Dropout and drop path are off: the two libraries draw other random numbers.

Part 1: the gradients of the first step in float64, parameter by parameter, and the first 20 losses of both, in float64
and in float32. Rounding of float32 grows about threefold a step in a
network with fresh batch norms, in PyTorch alone too: its own float32 against its own float64 is the yardstick, and
float64 tells a mistake from rounding. Part 2, in float32: the losses, the validation accuracies, and images per second
of a training step, in turns, median.

The status is 1 if a gradient in float64 differs by more than 1e-6 of its largest value, if the losses in float64 differ
by more than 1e-3, if ours in float32 leave PyTorch's float64 ten times
as far as PyTorch's float32 does, or if the accuracies differ by more than three standard errors.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ppcls_ext import cli
from ppcls_ext.errors import Refused

SIZE, BATCH = 96, 32
NORMALIZE = {"NormalizeImage": {"scale": "1.0/255.0", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}}
TRAIN_OPS = [
    {"DecodeImage": {}},
    {"RandCropImage": {"size": SIZE, "scale": [0.4, 1.0]}},
    {"RandFlipImage": {"flip_code": 1}},
    NORMALIZE,
]
EVAL_OPS = [{"DecodeImage": {}}, {"ResizeImage": {"resize_short": 108}}, {"CropImage": {"size": SIZE}}, NORMALIZE]
NETWORKS = {  # --network: (torchvision's name, ours, its arguments, the highest learning rate)
    "shufflenet": ("shufflenet_v2_x0_5", "ShuffleNetV2_x0_5", {}, 0.02),
    # with 0.02 even float64 runs apart: 3.5e-4 at step 10, 0.12 at step 15
    "efficientnet": (
        *("efficientnet_b0", "EfficientNetB0"),
        {"padding": "symmetric", "dropout": 0.0, "drop_path": 0.0},
        0.001,
    ),
}
# Paddle keeps an operator's constants in float32, also for float64 tensors: these are exact in both.
MOMENTUM, DECAY, WARMUP = 0.875, 2.0**-13, 100
COMPARED_STEPS, CLOSE, CLOSE_GRADIENTS = 20, 1e-3, 1e-6


class Side(NamedTuple):
    """One framework's network and optimizer."""

    step: Callable[[np.ndarray, np.ndarray, float], float]  # images (n, 3, SIZE, SIZE), labels (n,), rate -> the loss
    predict: Callable[[np.ndarray], np.ndarray]  # images (n, 3, SIZE, SIZE) -> predicted classes (n,)
    gradients: Callable[[], list[tuple[str, np.ndarray]]]  # of the last step, as PyTorch lays them out, in its order


def rate_at(step: int, steps: int, highest: float) -> float:
    """Linear warm-up to `highest`, then half a cosine to 0; exact in float32."""
    if step < WARMUP:
        return float(np.float32(highest * (step + 1) / WARMUP))
    return float(np.float32(highest * 0.5 * (1 + np.cos(np.pi * (step - WARMUP) / max(1, steps - WARMUP)))))


def torch_side(name: str, num_classes: int, weights: Path, dtype: str) -> Side:
    """PyTorch's network, its initial weights written to `weights`, and how it takes a step."""
    import torch
    import torchvision
    from safetensors.torch import save_file

    torch.manual_seed(0)
    options = {"dropout": 0.0, "stochastic_depth_prob": 0.0} if name.startswith("efficientnet") else {}
    network = getattr(torchvision.models, name)(num_classes=num_classes, **options)
    save_file(network.state_dict(), weights, metadata={"format": "pt"})
    network.to(getattr(torch, dtype))
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.eps = float(np.float32(layer.eps))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.001, momentum=MOMENTUM, weight_decay=DECAY)

    def step(images: np.ndarray, labels: np.ndarray, rate: float) -> float:
        network.train()
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        images = images.astype(dtype)
        loss = torch.nn.functional.cross_entropy(network(torch.from_numpy(images)), torch.from_numpy(labels))
        loss.backward()
        optimizer.step()
        return loss.item()

    def predict(images: np.ndarray) -> np.ndarray:
        network.eval()
        with torch.no_grad():
            return network(torch.from_numpy(images)).argmax(1).numpy()

    def gradients() -> list[tuple[str, np.ndarray]]:
        return [(key, parameter.grad.numpy()) for key, parameter in network.named_parameters()]

    return Side(step, predict, gradients)


def paddle_side(name: str, arguments: dict[str, object], num_classes: int, weights: Path, dtype: str) -> Side:
    """Our network with the same weights, our optimizer."""
    import paddle

    from ppcls_ext import create_model, load_weights
    from ppcls_ext.config import Component
    from ppcls_ext.config.sections import OptimizerOptions
    from ppcls_ext.device import choose_device
    from ppcls_ext.optim import build_optimizer

    choose_device("cpu")  # as the tools do: with the compiled operators
    network = create_model(name, num_classes=num_classes, **arguments)
    report = load_weights(network, weights)
    assert report.loaded == report.total, report.summary()
    network.to(dtype=dtype)
    options = OptimizerOptions(
        name="Momentum",
        arguments={"momentum": MOMENTUM},
        lr=Component(name="Constant", arguments={"learning_rate": 0.001}),  # each step sets its own
        regularizer=Component(name="L2", arguments={"coeff": DECAY}),
    )
    optimizer = build_optimizer(options, network)

    def step(images: np.ndarray, labels: np.ndarray, rate: float) -> float:
        network.train()
        optimizer.set_lr(rate)
        optimizer.clear_grad()
        logits = network(paddle.to_tensor(images.astype(dtype)))
        loss = paddle.nn.functional.cross_entropy(logits, paddle.to_tensor(labels))
        loss.backward()
        optimizer.step()
        return float(loss)

    def predict(images: np.ndarray) -> np.ndarray:
        network.eval()
        with paddle.no_grad():
            return network(paddle.to_tensor(images)).argmax(1).numpy()

    def gradients() -> list[tuple[str, np.ndarray]]:
        linear = {id(layer.weight) for layer in network.sublayers() if isinstance(layer, paddle.nn.Linear)}
        return [
            (key, parameter.grad.numpy().T if id(parameter) in linear else parameter.grad.numpy())
            for key, parameter in network.named_parameters()
            if parameter.trainable  # statistics of batch norms are parameters in Paddle
        ]

    return Side(step, predict, gradients)


def gradient_difference(ours: Side, theirs: Side) -> tuple[float, str, int, int]:
    """The largest difference of a gradient as a share of its largest value, our name of it, how many gradients there
    are, and how many of them are zero but for rounding: of what the next batch norm takes away."""
    pairs = list(zip(ours.gradients(), theirs.gradients(), strict=True))
    zero = 1e-9 * max(np.abs(b).max() for _, (_, b) in pairs)
    apart = {}
    for (key, a), (other, b) in pairs:
        assert a.shape == b.shape, f"{key} {a.shape} against {other} {b.shape}: not the same parameter"
        apart[key] = float(np.abs(a - b).max() / max(zero, np.abs(b).max()))
    worst = max(apart, key=apart.__getitem__)
    return apart[worst], worst, len(pairs), sum(np.abs(b).max() < zero for _, (_, b) in pairs)


def batches(dataset: object, steps: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """`steps` shuffled, augmented batches of our dataset."""
    from ppcls_ext.data.samplers import DistributedBatchSampler

    sampler = DistributedBatchSampler(batch_size=BATCH, shuffle=True, drop_last=True)
    done = epoch = 0
    while done < steps:
        epoch += 1
        for indices in sampler.training_plan(dataset.labels, seed=0, epoch=epoch):
            if done == steps:
                return
            samples = [dataset.load(int(i), epoch) for i in indices]
            yield np.stack([image for image, _ in samples]), np.array([label for _, label in samples], np.int64)
            done += 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    photographs = Path("dataset/plant_seedlings")
    parser.add_argument("train", type=Path, nargs="?", default=photographs / "train", help="class folders to train on")
    parser.add_argument("validation", type=Path, nargs="?", default=photographs / "validation", help="to evaluate on")
    parser.add_argument("--network", choices=NETWORKS, default="shufflenet")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.steps <= COMPARED_STEPS:
        raise Refused(f"--steps: more than {COMPARED_STEPS} are needed, got {arguments.steps}")
    for package in ("torch", "torchvision"):
        if find_spec(package) is None:
            raise Refused(f"{package} is not installed; pip install torch torchvision, beside requirements.txt")
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)  # read when the libraries are imported
    cli.import_paddle()

    import torch

    from ppcls_ext.data.datasets import ClassFolderDataset

    torch.set_num_threads(arguments.threads)
    theirs, ours, options, rate = NETWORKS[arguments.network]
    train = ClassFolderDataset(str(arguments.train), transform_ops=TRAIN_OPS)
    validation = ClassFolderDataset(str(arguments.validation), transform_ops=EVAL_OPS, class_names=train.class_names)
    sides = {}
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "initial.safetensors"
        for dtype in ("float64", "float32"):
            sides["PyTorch", dtype] = torch_side(theirs, train.num_classes, weights, dtype)
            sides["ours", dtype] = paddle_side(ours, options, train.num_classes, weights, dtype)
    losses: dict[tuple[str, str], list[float]] = {side: [] for side in sides}
    seconds: dict[tuple[str, str], list[float]] = {side: [] for side in sides}
    print("step  " + "".join(f"{' '.join(side):>18}" for side in sides))
    for number, (images, labels) in enumerate(batches(train, arguments.steps)):
        turn = list(sides) if number < COMPARED_STEPS else [side for side in sides if side[1] == "float32"]
        for side in turn if number % 2 else reversed(turn):
            start = time.perf_counter()
            losses[side].append(sides[side].step(images, labels, rate_at(number, arguments.steps, rate)))
            seconds[side].append(time.perf_counter() - start)
        if not number:
            difference, name, count, zero = gradient_difference(sides["ours", "float64"], sides["PyTorch", "float64"])
            print(
                f"gradients of step 1 in float64: {count} parameters ({zero} zero), largest difference "
                f"{difference:.1e} of the largest value, in {name}"
            )
        if (number < COMPARED_STEPS and number % 5 == 4) or (number + 1) % 50 == 0 or number == 0:
            print(f"{number + 1:4}  " + "".join(f"{losses[s][-1]:18.5f}" if s in turn else " " * 18 for s in sides))
    exact = losses["PyTorch", "float64"]
    apart = {side: max(abs(a - b) for a, b in zip(losses[side], exact)) for side in sides}
    print(f"the first {COMPARED_STEPS} losses against PyTorch's in float64, largest difference:")
    print("  " + ", ".join(f"{' '.join(side)} {apart[side]:.1e}" for side in sides if apart[side]))
    curves_agree = (
        difference <= CLOSE_GRADIENTS
        and apart["ours", "float64"] <= CLOSE
        and apart["ours", "float32"] <= 10 * apart["PyTorch", "float32"]
    )

    correct = {"PyTorch": 0, "ours": 0}
    for first in range(0, len(validation), BATCH):
        samples = [validation.load(i, 0) for i in range(first, min(first + BATCH, len(validation)))]
        images, labels = np.stack([s[0] for s in samples]), np.array([s[1] for s in samples])
        for name, predict in ((side[0], sides[side].predict) for side in sides if side[1] == "float32"):
            correct[name] += int((predict(images) == labels).sum())
    count = len(validation)
    share = {name: value / count for name, value in correct.items()}
    error = max(1e-9, 3 * (2 * np.mean(list(share.values())) * (1 - np.mean(list(share.values()))) / count) ** 0.5)
    print(
        f"validation top-1 after {arguments.steps} steps: PyTorch {share['PyTorch']:.4f}, ours {share['ours']:.4f} of "
        f"{count} images (three standard errors of a difference: {error:.3f})"
    )
    speed = {side[0]: BATCH / statistics.median(seconds[side]) for side in sides if side[1] == "float32"}
    print(
        f"training images per second, {arguments.threads} threads, median: PyTorch {speed['PyTorch']:.0f}, ours "
        f"{speed['ours']:.0f}, ratio {speed['ours'] / speed['PyTorch']:.2f}"
    )
    return 0 if curves_agree and abs(share["PyTorch"] - share["ours"]) <= error else 1


if __name__ == "__main__":
    cli.run(main)
