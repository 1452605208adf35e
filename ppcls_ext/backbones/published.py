"""What was published about a network: data beside its builder, from which tests and documentation tables are made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from ppcls_ext.errors import Refused, did_you_mean
from ppcls_ext.registry import BACKBONES

Project = Literal["paddleclas", "torchvision"]


@dataclass(frozen=True)
class Facts:
    """Published numbers of one network, with their source.

    `params` counts trainable parameters with 1000 classes and 3 channels; `macs` counts the multiply-adds of
    convolutions and linear layers for one image of `input_size`; both were counted, not taken from the publication.
    `top1` and `top5` are per cent on the ImageNet-1k validation set: resize the shorter side to `resize` (`warped`:
    both sides), cut the centre `crop`, scale to 0..1, subtract `mean`, divide by `std`. `measured_with` says whose
    resize and crop did it: PaddleClas's (OpenCV), or torchvision's (Pillow), which timm uses too; they also round
    differently.
    """

    params: int
    macs: int
    top1: float | None
    top5: float | None
    input_size: int
    resize: int
    crop: int
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    recipe: str
    source: str
    measured_with: Project = "torchvision"
    warped: bool = False


IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_FACTS: dict[str, Facts] = {}


def backbone(name: str, published: Facts) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator that registers a builder under `name`, with its facts."""

    def enter(builder: Callable[..., Any]) -> Callable[..., Any]:
        _FACTS[name] = published
        return BACKBONES.register(name)(builder)

    return enter


def facts(name: str) -> Facts:
    """The published facts of a network; an unknown name is refused."""
    if name not in _FACTS:
        raise Refused(f"No published facts of a network '{name}'. {did_you_mean(name, _FACTS)}")
    return _FACTS[name]


def published_names() -> list[str]:
    """Names of the networks that have published facts, in alphabetical order."""
    return sorted(_FACTS)
