"""Which network must agree with which fixture, and how closely; a family joins with its rows here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import paddle
from parity.fixture import Fixture, reference_weights
from safetensors.numpy import save_file

from ppcls_ext import create_model, load_weights
from ppcls_ext.weights.names import in_our_names
from ppcls_ext.weights.pytorch import to_paddle


@dataclass(frozen=True)
class Case:
    """A fixture, the network that must agree with it, and how closely its logits must."""

    fixture: str  # family/variant
    model: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    logits: float = 2e-4
    stage_names: Mapping[str, str] = field(default_factory=dict)
    share_off: float = 0.02  # of the float32 gradients: those that one ReLU takes with it, on the other side of zero

    @property
    def variant(self) -> str:
        return self.fixture.partition("/")[2]


def efficientnet(reference: str, size: str) -> Case:
    """`reference`: "tf" or "timm" of timm, "tv" of torchvision. In timm's, batch norms hold their activations."""
    arguments: dict[str, Any] = {"dropout": 0.0, "drop_path": 0.0}
    if reference == "tf":
        arguments["norm_momentum"] = 0.9  # timm trains with PyTorch's, whatever the authors did
    else:
        arguments["padding"] = "symmetric"
    stages = {"bn1": "act1", "bn2": "act2", "features.0": "act1", "features.8": "act2"}
    stages |= {f"features.{i + 1}": f"blocks.{i}" for i in range(7)}
    model = "EfficientNet" + (size.upper() if size.startswith("b") else size.capitalize())
    return Case(f"efficientnet/{reference}_efficientnet_{size}", model, arguments, stage_names=stages)


def resnext(size: str) -> Case:
    return Case(f"resnext/resnext{size}", f"ResNeXt{size}")


CASES = [
    Case("micronet/micronet_m0", "MicroNet_M0", {"dropout": 0.0}),
    Case("micronet/micronet_m1", "MicroNet_M1", {"dropout": 0.0}),
    Case("micronet/micronet_m2", "MicroNet_M2", {"dropout": 0.0}),
    Case("micronet/micronet_m3", "MicroNet_M3", {"dropout": 0.0}, logits=5e-4),
    Case("shufflenetv2/shufflenetv2_x0_25", "ShuffleNetV2_x0_25", share_off=0.1),
    Case("shufflenetv2/shufflenetv2_x0_33", "ShuffleNetV2_x0_33"),
    Case("shufflenetv2/shufflenetv2_x0_5", "ShuffleNetV2_x0_5"),
    Case("shufflenetv2/shufflenetv2_x1_0", "ShuffleNetV2_x1_0"),
    Case("shufflenetv2/shufflenetv2_x1_5", "ShuffleNetV2_x1_5"),
    Case("shufflenetv2/shufflenetv2_x2_0", "ShuffleNetV2_x2_0"),
    Case("shufflenetv2/shufflenetv2_swish", "ShuffleNetV2_swish"),
    *(efficientnet("tf", size) for size in ("b0", "b1", "b2", "b3", "b4", "b5", "b6", "b7")),
    *(efficientnet("tf", size) for size in ("lite0", "lite1", "lite2", "lite3", "lite4")),
    *(efficientnet("timm", size) for size in ("b0", "lite0")),
    *(efficientnet("tv", size) for size in ("b0", "b1", "b2", "b3", "b4", "b5", "b6", "b7")),
    *(resnext(size) for size in ("50_32x4d", "50_64x4d", "101_32x4d", "101_64x4d", "101_32x8d")),
    *(resnext(size) for size in ("152_32x4d", "152_64x4d", "50_vd_32x4d", "50_vd_64x4d", "101_vd_32x4d")),
    *(resnext(size) for size in ("101_vd_64x4d", "152_vd_32x4d", "152_vd_64x4d")),
    Case("resnet/resnet50", "ResNet50"),
    Case("replknet/replknet_31b", "RepLKNet_31B", {"drop_path": 0.0}),
    Case("replknet/replknet_31l", "RepLKNet_31L", {"drop_path": 0.0}),
    Case("replknet/replknet_xl", "RepLKNet_XL", {"drop_path": 0.0}),
    Case("resnet/resnetv2_50", "ResNetV2_50", stage_names={"norm": "act"}),
    Case("vgg/vgg16", "VGG16", {"dropout": 0.0}),
    Case("vgg/vgg16_bn", "VGG16_bn", {"dropout": 0.0}),
    Case("densenet/densenet121", "DenseNet121"),
    *(Case(f"vit/vit_{size}_patch16_224", f"ViT_{size}_patch16_224") for size in ("tiny", "small", "base")),
    Case("groupmamba/groupmamba_tiny", "GroupMamba_tiny", {"drop_path": 0.0}, logits=3e-4),
    Case("groupmamba/groupmamba_small", "GroupMamba_small", {"drop_path": 0.0}, logits=3e-4),
    Case("groupmamba/groupmamba_base", "GroupMamba_base", {"drop_path": 0.0}, logits=3e-4),
]


def with_reference_weights(case: Case, expected: Fixture, folder: Path) -> paddle.nn.Layer:
    """The network of a case with its reference's weights, read from a file as the reference would have written it."""
    tensors = reference_weights(expected)
    save_file(tensors, folder / "reference.safetensors", metadata={"format": "pt"})
    network = create_model(case.model, **case.arguments)
    report = load_weights(network, folder / "reference.safetensors")
    assert report.loaded == report.total == sum(not name.endswith("num_batches_tracked") for name in tensors)
    return network


def our_names(expected: Fixture, network: paddle.nn.Layer) -> dict[str, str]:
    """The reference's name of a tensor -> ours."""
    names = [row[0] for row in expected.facts["state_dict"] if not row[0].endswith("num_batches_tracked")]
    renamed, _ = in_our_names({name: name for name in names}, network.state_dict())
    one_each = {name: next(iter(to_paddle({ours: paddle.zeros([1]).numpy()}, set()))) for ours, name in renamed.items()}
    assert set(one_each.values()) == set(network.state_dict())
    return one_each
