"""Make fixtures by running reference implementations: needs torch, torchvision and timm, in an environment of its own.

    python tests/parity/reference.py FOLDER [VARIANT ...]

FOLDER/<family>/<variant>.{json,npz} are read by tests/parity/table.py and, made small by tests/parity/fixture.py, by
the tests. The reference is built without weights; every tensor is filled from its name, as on our side.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torchvision
from fixture import crc, drawn, filled, generator
from timm.models.resnet import Bottleneck, ResNet

ODD = (161, 193)


@dataclass(frozen=True)
class Reference:
    """A published network: how to build it, where its stages end, and what keeps its numbers of a size."""

    build: Callable[[], torch.nn.Module]
    stages: tuple[str, ...]
    gains: list[tuple[str, float]] = field(default_factory=list)
    size: int = 224
    odd: tuple[int, int] | None = ODD
    trains: bool = True


def resnext(layers: list[int], groups: int, width: int, **vd: Any) -> Reference:
    return Reference(
        lambda: ResNet(Bottleneck, layers, cardinality=groups, base_width=width, **vd),
        ("maxpool", "layer1", "layer2", "layer3", "layer4"),
        [(r"bn3\.weight$", 0.2), (r"downsample\.[12]\.weight$", 0.7), (r"conv\d(\.\d)?\.weight$", 1.45)],
        trains=sum(layers) < 20,
    )


VD = {"stem_width": 32, "stem_type": "deep", "avg_down": True}
EFFICIENTNET_STAGES = ("bn1", *(f"blocks.{i}" for i in range(7)), "bn2")
EFFICIENTNET_GAINS = [
    (r"conv_(pw|dw|pwl|head|stem)\.weight$", 1.65),
    (r"conv_pwl\.weight$", 0.6061),
    (r"blocks\.0\.\d+\.conv_pw\.weight$", 0.6061),
    (r"blocks\.0\.[1-9]\d*\.bn2\.weight$", 0.25),
    (r"blocks\.[1-6]\.[1-9]\d*\.bn3\.weight$", 0.25),
]
LITE_GAINS = [
    (r"conv_(pw|dw|pwl|head|stem)\.weight$", 1.45),
    (r"blocks\.[1-6]\.[1-9]\d*\.bn3\.weight$", 0.5),
]
SHUFFLENET_STAGES = ("maxpool", "stage2", "stage3", "stage4", "conv5")
SHUFFLENET_GAINS = [(r"^(conv\d|stage\d\.\d\.branch\d)\.(0|2|3|5)\.weight$", 1.2)]
SWISH_GAINS = [(r"^(conv\d|stage\d\.\d\.branch\d)\.(0|2|3|5)\.weight$", 1.27)]


def swish() -> torch.nn.Module:
    """ShuffleNetV2 x1.0 with SiLU in place of every ReLU: PaddleClas's ShuffleNetV2_swish."""
    network = torchvision.models.shufflenet_v2_x1_0()
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, torch.nn.ReLU):
                setattr(module, name, torch.nn.SiLU())
    return network


def vit(name: str) -> Reference:
    def build() -> torch.nn.Module:
        return timm.create_model(f"vit_{name}_patch16_224")

    return Reference(build, ("blocks.0", "blocks.5", "blocks.11", "norm"), odd=None)


REFERENCES = {
    "shufflenetv2/shufflenetv2_x1_5": Reference(
        torchvision.models.shufflenet_v2_x1_5, SHUFFLENET_STAGES, SHUFFLENET_GAINS
    ),
    "shufflenetv2/shufflenetv2_swish": Reference(swish, SHUFFLENET_STAGES, SWISH_GAINS),
    "efficientnet/tf_efficientnet_b5": Reference(
        lambda: timm.create_model("tf_efficientnet_b5"), EFFICIENTNET_STAGES, EFFICIENTNET_GAINS, 456, trains=False
    ),
    "efficientnet/tf_efficientnet_lite4": Reference(
        lambda: timm.create_model("tf_efficientnet_lite4"), EFFICIENTNET_STAGES, LITE_GAINS, 300, trains=False
    ),
    "efficientnet/tv_efficientnet_b3": Reference(
        torchvision.models.efficientnet_b3,
        tuple(f"features.{i}" for i in range(9)),
        [
            (r"^features\.([1-7]\.\d+\.block\.[0123]|[08])\.0\.weight$", 1.7),
            (r"^features\.(1\.\d+\.block\.2|[2-7]\.\d+\.block\.3)\.0\.weight$", 0.6765),
            (r"^features\.([2-7]\.[1-9]\d*\.block\.3|1\.[1-9]\d*\.block\.2)\.1\.weight$", 0.25),
        ],
        300,
        trains=False,
    ),
    "resnext/resnext50_64x4d": resnext([3, 4, 6, 3], 64, 4),
    "resnext/resnext101_64x4d": resnext([3, 4, 23, 3], 64, 4),
    "resnext/resnext152_32x4d": resnext([3, 8, 36, 3], 32, 4),
    "resnext/resnext50_vd_32x4d": resnext([3, 4, 6, 3], 32, 4, **VD),
    "resnext/resnext50_vd_64x4d": resnext([3, 4, 6, 3], 64, 4, **VD),
    "resnext/resnext101_vd_32x4d": resnext([3, 4, 23, 3], 32, 4, **VD),
    "resnext/resnext101_vd_64x4d": resnext([3, 4, 23, 3], 64, 4, **VD),
    "resnext/resnext152_vd_32x4d": resnext([3, 8, 36, 3], 32, 4, **VD),
    "resnext/resnext152_vd_64x4d": resnext([3, 8, 36, 3], 64, 4, **VD),
    "vgg/vgg16_bn": Reference(
        lambda: torchvision.models.vgg16_bn(dropout=0.0),
        ("features.6", "features.13", "features.23", "features.33", "features.43"),
        [(r"features\.\d+\.weight$", 1.2), (r"classifier\.\d+\.weight$", 1.4)],
    ),
    "vit/vit_tiny_patch16_224": vit("tiny"),
    "vit/vit_small_patch16_224": vit("small"),
    "vit/vit_base_patch16_224": vit("base"),
}


def part_of(variant: str, height: int, width: int, purpose: str = "input") -> dict[str, Any]:
    key, shape = f"{purpose}:{variant}:2x3x{height}x{width}", [2, 3, height, width]
    return {"input_key": key, "shape": shape, "input_crc": crc(drawn(key, tuple(shape)))}


def evaluated(
    network: torch.nn.Module, reference: Reference, part: dict[str, Any], tag: str
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """One part's facts and arrays: logits and, for each stage, shape, moments and channel means."""
    seen: dict[str, torch.Tensor] = {}
    hooks = [
        # cloned: an in-place activation may follow
        network.get_submodule(name).register_forward_hook(lambda _, __, y, name=name: seen.update({name: y.clone()}))
        for name in reference.stages
    ]
    network.eval()
    with torch.no_grad():
        logits = network(torch.from_numpy(drawn(part["input_key"], tuple(part["shape"]))))
    for hook in hooks:
        hook.remove()
    arrays = {f"{tag}_logits": logits.numpy()}
    stages = []
    for i, name in enumerate(reference.stages):
        value = seen[name].numpy()
        tokens = value.ndim == 3
        stages.append(
            {
                "name": name,
                "shape": list(value.shape),
                "layout": "NLC" if tokens else "NCHW",
                "mean": float(value.mean()),
                "std": float(value.std()),
                "absmax": float(np.abs(value).max()),
            }
        )
        arrays[f"{tag}_s{i}_cm"] = value[0].mean(0) if tokens else value[0].reshape(value.shape[1], -1).mean(1)
    return {**part, "stages": stages}, arrays


def trained(network: torch.nn.Module, variant: str, height: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """One training step in float32 and in float64: loss, gradients, batch-norm statistics."""
    part = part_of(variant, height, height, "train")
    part["labels"] = generator(f"labels:{variant}").integers(0, 1000, 2).tolist()
    start = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    arrays: dict[str, np.ndarray] = {}
    for dtype, suffix in ((torch.float32, ""), (torch.float64, "_f64")):
        network.load_state_dict(start)
        network.to(dtype).train()
        network.zero_grad()
        images = torch.from_numpy(drawn(part["input_key"], tuple(part["shape"]))).to(dtype)
        logits = network(images)
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(part["labels"]))
        loss.backward()
        part[f"loss{suffix}"] = loss.item()
        gradients = {name: p.grad.double() for name, p in network.named_parameters() if p.grad is not None}
        arrays[f"train_grad_norm{suffix}"] = np.array([float(g.norm()) for g in gradients.values()])
        if suffix:
            continue
        part["grad_names"] = list(gradients)
        arrays["train_logits"] = logits.detach().numpy()
        arrays["train_grad_sum"] = np.array([float(g.sum()) for g in gradients.values()])
        state = network.state_dict()
        part["bn_buffers"] = [name for name in state if name.endswith(("running_mean", "running_var"))]
        buffers = [state[name].double().numpy() for name in part["bn_buffers"]]
        arrays["train_bn_norm"] = np.array([np.linalg.norm(buffer) for buffer in buffers])
        arrays["train_bn_mean"] = np.array([buffer.mean() for buffer in buffers])
        arrays["train_bn_first4"] = np.array([np.resize(buffer[:4], 4) for buffer in buffers])
    network.to(torch.float32).load_state_dict(start)
    return part, arrays


def make(folder: Path, name: str) -> None:
    """Write one fixture."""
    reference, variant = REFERENCES[name], name.partition("/")[2]
    network = reference.build()
    state = network.state_dict()
    parameters = dict(network.named_parameters())
    rows, weights = [], {}
    for key, tensor in state.items():
        array = filled(key, tuple(tensor.shape), reference.gains)
        weights[key] = torch.from_numpy(array)
        kind = "p" if key in parameters else "b"
        rows.append([key, list(tensor.shape), str(array.dtype), kind, crc(array)])
    network.load_state_dict(weights)
    facts: dict[str, Any] = {
        "variant": variant,
        "gain_rules": reference.gains,
        "torch": f"{torch.__version__}, torchvision {torchvision.__version__}, timm {timm.__version__}",
        "num_params": sum(p.numel() for p in parameters.values()),
        "state_dict": rows,
    }
    arrays: dict[str, np.ndarray] = {}
    sizes = {"eval": (reference.size, reference.size)} | ({"odd": reference.odd} if reference.odd else {})
    for tag, (height, width) in sizes.items():
        facts[tag], part_arrays = evaluated(network, reference, part_of(variant, height, width), tag)
        arrays |= part_arrays
    if reference.trains:
        facts["train"], part_arrays = trained(network, variant, min(reference.size, 224))
        arrays |= part_arrays
    path = folder / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(facts))
    np.savez_compressed(path.with_suffix(".npz"), **arrays)
    spread = float(arrays["eval_logits"].std())
    print(f"{name}: {facts['num_params']:,} parameters, logits of deviation {spread:.3g}", flush=True)


if __name__ == "__main__":
    for chosen in sys.argv[2:] or REFERENCES:
        make(Path(sys.argv[1]), chosen)
