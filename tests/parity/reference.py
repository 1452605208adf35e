"""Make fixtures by running reference implementations: needs torch, torchvision and timm, in an environment of its own.

    python tests/parity/reference.py FOLDER [VARIANT ...]
    python tests/parity/reference.py --check ../shared/parity/fixtures

FOLDER/<family>/<variant>.{json,npz} are read by tests/parity/table.py and, made small by tests/parity/fixture.py, by
the tests. The reference is built without weights; every tensor is filled from its name, as on our side.

torch, torchvision and timm have no MicroNet, RepLKNet and GroupMamba: these are our own in PyTorch (benchmarks), which
know nothing of ours in Paddle. `--check` holds those against numbers that the authors' code gave, where there are any.
"""

from __future__ import annotations

import argparse
import functools
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
from fixture import Fixture, crc, drawn, filled, generator, load_full, reference_weights
from timm.models.resnet import Bottleneck, ResNet

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import torch_micronet
import torch_networks

ODD = (161, 193)


@dataclass(frozen=True)
class Reference:
    """A published network: how to build it, where its stages end, and what keeps its numbers of a size.

    `train`: how many images a training step takes, and their height and width.
    """

    build: Callable[[], torch.nn.Module]
    stages: tuple[str, ...]
    gains: list[tuple[str, float]] = field(default_factory=list)
    size: int = 224
    odd: tuple[int, int] | None = ODD
    train: tuple[int, int] = (2, 224)


SMALL_IMAGES = 4, 128  # of the training step of a large network


def resnext(layers: list[int], groups: int, width: int, **vd: Any) -> Reference:
    return Reference(
        lambda: ResNet(Bottleneck, layers, cardinality=groups, base_width=width, **vd),
        ("maxpool", "layer1", "layer2", "layer3", "layer4"),
        [(r"bn3\.weight$", 0.2), (r"downsample\.[12]\.weight$", 0.7), (r"conv\d(\.\d)?\.weight$", 1.45)],
        train=(2, 224) if sum(layers) < 20 else SMALL_IMAGES,
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
TORCHVISION_GAINS = [
    (r"^features\.([1-7]\.\d+\.block\.[0123]|[08])\.0\.weight$", 1.7),
    (r"^features\.(1\.\d+\.block\.2|[2-7]\.\d+\.block\.3)\.0\.weight$", 0.6765),
    (r"^features\.([2-7]\.[1-9]\d*\.block\.3|1\.[1-9]\d*\.block\.2)\.1\.weight$", 0.25),
]


def efficientnet(name: str, size: int) -> Reference:
    """`name`: torchvision's begin with "tv", timm's own with "timm", its copies of TensorFlow's with "tf"."""
    if name.startswith("tv_"):
        build = getattr(torchvision.models, name.removeprefix("tv_"))
        build = functools.partial(build, dropout=0.0, stochastic_depth_prob=0.0)
        stages = tuple(f"features.{i}" for i in range(9))
        return Reference(build, stages, TORCHVISION_GAINS, size, train=SMALL_IMAGES)
    gains = LITE_GAINS if "lite" in name else EFFICIENTNET_GAINS
    build = functools.partial(timm.create_model, name.removeprefix("timm_"))
    return Reference(build, EFFICIENTNET_STAGES, gains, size, train=SMALL_IMAGES)


def micronet(build: Callable[[], torch.nn.Module], blocks: int) -> Reference:
    stages = (*(f"features.{i}" for i in range(blocks + 1)), "classifier.0")
    return Reference(build, stages, [(r"\.fc\.2\.weight$", 0.5)], train=(16, 128))


def replknet(build: Callable[[], torch.nn.Module], size: int) -> Reference:
    stages = ["stem.3", *(f"{kind}.{i}" for i in range(3) for kind in ("stages", "transitions")), "stages.3", "norm"]
    gains = [
        (r"blocks\.\d+\.pw2\.conv\.weight$", 0.25),
        (r"(pw1|stem\.\d|transitions\.\d\.\d)\.conv\.weight$", 1.4),
        (r"large_kernel\..*conv\.weight$", 0.8),
        (r"^head\.weight$", 0.3),
    ]
    return Reference(build, tuple(stages), gains, size, train=SMALL_IMAGES)


def groupmamba(build: Callable[[], torch.nn.Module]) -> Reference:
    stages = ("norm1", "norm2", "norm3", "block4.2", "norm4", "head", "dist_head")
    gains = [
        (r"(attn\.proj|mlp\.fc2)\.weight$", 0.5),
        (r"patch_embed1\.conv\.\d\.weight$", 1.2),
        (r"patch_embed\d\.proj\.weight$", 1.4),
    ]
    return Reference(build, stages, gains, train=(4, 96))


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
        return timm.create_model(f"vit_{name}_patch16_224", dynamic_img_size=True, dynamic_img_pad=True)

    return Reference(build, ("blocks.0", "blocks.5", "blocks.11", "norm"))


EFFICIENTNETS = {
    **{f"tf_efficientnet_b{i}": size for i, size in enumerate((224, 240, 260, 300, 380, 456, 528, 600)) if i > 0},
    **{f"tf_efficientnet_lite{i}": size for i, size in enumerate((224, 240, 260, 280, 300)) if i > 0},
    **{f"tv_efficientnet_b{i}": size for i, size in enumerate((224, 240, 288, 300, 380, 456, 528, 600)) if i > 0},
    "timm_efficientnet_b0": 224,
    "timm_efficientnet_lite0": 224,
}

# Written here, in PyTorch.
OURS = {
    "micronet/micronet_m0": micronet(torch_micronet.micronet_m0, 7),
    "micronet/micronet_m1": micronet(torch_micronet.micronet_m1, 7),
    "micronet/micronet_m2": micronet(torch_micronet.micronet_m2, 9),
    "micronet/micronet_m3": micronet(torch_micronet.micronet_m3, 12),
    "replknet/replknet_31b": replknet(torch_networks.replknet_31b, 224),
    "replknet/replknet_31l": replknet(torch_networks.replknet_31l, 384),
    "replknet/replknet_xl": replknet(torch_networks.replknet_xl, 320),
    "groupmamba/groupmamba_tiny": groupmamba(torch_networks.groupmamba_tiny),
    "groupmamba/groupmamba_small": groupmamba(torch_networks.groupmamba_small),
    "groupmamba/groupmamba_base": groupmamba(torch_networks.groupmamba_base),
}

# Of these the authors' code gave no numbers, or none of a training step.
WITHOUT_AUTHORS = [
    "micronet/micronet_m1",
    "replknet/replknet_31l",
    "replknet/replknet_xl",
    "groupmamba/groupmamba_small",
    "groupmamba/groupmamba_base",
]

REFERENCES = {
    "shufflenetv2/shufflenetv2_x1_5": Reference(
        torchvision.models.shufflenet_v2_x1_5, SHUFFLENET_STAGES, SHUFFLENET_GAINS
    ),
    "shufflenetv2/shufflenetv2_swish": Reference(swish, SHUFFLENET_STAGES, SWISH_GAINS),
    **{f"efficientnet/{name}": efficientnet(name, size) for name, size in EFFICIENTNETS.items()},
    "resnext/resnext101_32x4d": resnext([3, 4, 23, 3], 32, 4),
    "resnext/resnext101_32x8d": resnext([3, 4, 23, 3], 32, 8),
    "resnext/resnext50_64x4d": resnext([3, 4, 6, 3], 64, 4),
    "resnext/resnext101_64x4d": resnext([3, 4, 23, 3], 64, 4),
    "resnext/resnext152_32x4d": resnext([3, 8, 36, 3], 32, 4),
    "resnext/resnext152_64x4d": resnext([3, 8, 36, 3], 64, 4),
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
    "resnet/resnetv2_50": Reference(
        lambda: timm.create_model("resnetv2_50"),
        ("stem", "stages.0", "stages.1", "stages.2", "stages.3", "norm"),
        [(r"conv3\.weight$", 0.35), (r"conv\d\.weight$", 1.2)],
        train=SMALL_IMAGES,
    ),
    **{name: OURS[name] for name in WITHOUT_AUTHORS},
}


def part_of(variant: str, n: int, height: int, width: int, purpose: str = "input") -> dict[str, Any]:
    key, shape = f"{purpose}:{variant}:{n}x3x{height}x{width}", [n, 3, height, width]
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


def training_part(variant: str, reference: Reference) -> dict[str, Any]:
    """Images and labels of a training step; a second head learns from a teacher's."""
    n, size = reference.train
    part = part_of(variant, n, size, size, "train")
    for labels in ("labels", "teacher_labels"):
        part[labels] = generator(f"{labels}:{variant}").integers(0, 1000, n).tolist()
    return part


def trained(network: torch.nn.Module, part: dict[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """One training step in float32 and in float64: loss, gradients, batch-norm statistics."""
    part = dict(part)
    start = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    arrays: dict[str, np.ndarray] = {}
    for dtype, suffix in ((torch.float32, ""), (torch.float64, "_f64")):
        network.load_state_dict(start)
        network.to(dtype).train()
        network.zero_grad()
        images = torch.from_numpy(drawn(part["input_key"], tuple(part["shape"]))).to(dtype)
        outputs = network(images)
        heads = outputs if isinstance(outputs, tuple) else (outputs,)
        losses = [
            torch.nn.functional.cross_entropy(logits, torch.tensor(part[labels]))
            for logits, labels in zip(heads, ("labels", "teacher_labels"))
        ]
        loss = sum(losses) / len(losses)
        loss.backward()
        part[f"loss{suffix}"] = loss.item()
        gradients = {name: p.grad.double() for name, p in network.named_parameters() if p.grad is not None}
        arrays[f"train_grad_norm{suffix}"] = np.array([float(g.norm()) for g in gradients.values()])
        if suffix:
            continue
        part["grad_names"] = list(gradients)
        arrays |= {name: logits.detach().numpy() for name, logits in zip(("train_logits", "train_logits_dist"), heads)}
        arrays["train_grad_sum"] = np.array([float(g.sum()) for g in gradients.values()])
        state = network.state_dict()
        part["bn_buffers"] = [name for name in state if name.endswith(("running_mean", "running_var"))]
        buffers = [state[name].double().numpy() for name in part["bn_buffers"]]
        arrays["train_bn_norm"] = np.array([np.linalg.norm(buffer) for buffer in buffers])
        arrays["train_bn_mean"] = np.array([buffer.mean() for buffer in buffers])
        arrays["train_bn_first4"] = np.array([np.resize(buffer[:4], 4) for buffer in buffers])
    network.to(torch.float32).load_state_dict(start)
    return part, arrays


def merged(network: torch.nn.Module, facts: dict[str, Any], tags: list[str]) -> tuple[int, dict[str, np.ndarray]]:
    """Parameters and logits after structural re-parameterisation, in place."""
    network.eval()
    network.merge()
    arrays = {}
    with torch.no_grad():
        for tag in tags:
            images = torch.from_numpy(drawn(facts[tag]["input_key"], tuple(facts[tag]["shape"])))
            arrays[f"merged_{tag}_logits"] = network(images).numpy()
    return sum(p.numel() for p in network.parameters()), arrays


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
        facts[tag], part_arrays = evaluated(network, reference, part_of(variant, 2, height, width), tag)
        arrays |= part_arrays
    facts["train"], part_arrays = trained(network, training_part(variant, reference))
    arrays |= part_arrays
    if hasattr(network, "merge"):
        facts["merged_num_params"], part_arrays = merged(network, facts, list(sizes))
        arrays |= part_arrays
    path = folder / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(facts))
    np.savez_compressed(path.with_suffix(".npz"), **arrays)
    spread = float(arrays["eval_logits"].std())
    print(f"{name}: {facts['num_params']:,} parameters, logits of deviation {spread:.3g}", flush=True)


def difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max())


def checked(name: str, authors: Fixture) -> str:
    """How far our own network in PyTorch is from numbers of its authors' code."""
    reference = OURS[name]
    network = reference.build()
    weights = reference_weights(authors)
    network.load_state_dict({key: torch.from_numpy(array) for key, array in weights.items()})  # every name, both ways
    expected, found = authors.arrays, []
    for tag in ("eval", "odd"):
        _, arrays = evaluated(network, reference, authors.facts[tag], tag)
        found.append(f"{tag} logits {difference(arrays[f'{tag}_logits'], expected[f'{tag}_logits']):.1e}")
    if "train" in authors.facts:
        part, arrays = trained(network, authors.facts["train"])
        norms, wanted = (
            dict(zip(facts["grad_names"], values["train_grad_norm_f64"]))
            for facts, values in ((part, arrays), (authors.facts["train"], expected))
        )
        least = 1e-3 * max(wanted.values())  # what feeds a batch norm has no gradient but noise
        counted = [name for name, norm in wanted.items() if norm > least]
        found.append(f"loss {abs(part['loss'] - authors.facts['train']['loss']):.1e}")
        found.append(f"gradients in float64 {max(abs(norms[name] / wanted[name] - 1) for name in counted):.1e}")
    tags = [tag for tag in ("eval", "odd") if f"merged_{tag}_logits" in expected]
    if tags:
        count, arrays = merged(network, authors.facts, tags)
        assert count == authors.facts["merged_num_params"]
        for key, array in arrays.items():
            found.append(f"{key.replace('_', ' ')} {difference(array, expected[key]):.1e}")
    return f"{name}, {len(weights)} tensors: {', '.join(found)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where fixtures are written, or with --check lie")
    parser.add_argument("variants", nargs="*", help="family/variant; all without any")
    parser.add_argument("--check", action="store_true", help="hold our own PyTorch networks against FOLDER's numbers")
    arguments = parser.parse_args()
    known = OURS if arguments.check else REFERENCES
    unknown = [name for name in arguments.variants if name not in known]
    if unknown:
        parser.error(f"no reference of {', '.join(unknown)}; there are {', '.join(known)}")
    if arguments.check and not arguments.folder.is_dir():
        parser.error(f"{arguments.folder}: no such folder")
    if not arguments.check:
        for name in arguments.variants or REFERENCES:
            make(arguments.folder, name)
        return
    for name in arguments.variants or OURS:
        path = arguments.folder / f"{name}.json"
        print(checked(name, load_full(path)) if path.is_file() else f"{name}: nothing to compare with", flush=True)


if __name__ == "__main__":
    main()
