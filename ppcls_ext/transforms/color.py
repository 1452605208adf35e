"""NormalizeImage and ToCHWImage: from 8-bit pixels to the float32 (C, H, W) that a network takes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import cv2
import numpy as np

from ppcls_ext.errors import Refused
from ppcls_ext.registry import TRANSFORMS
from ppcls_ext.transforms.flow import Flow

IMAGENET_MEAN = [0.485, 0.456, 0.406]
IMAGENET_STD = [0.229, 0.224, 0.225]

Order = Annotated[Literal["", "hwc", "chw"] | None, "one of '', 'hwc' (both: H, W, C), 'chw'"]


@TRANSFORMS.register("NormalizeImage")
@dataclass
class NormalizeImage:
    """uint8 -> (pixel * scale - mean) / std, in float32, or float16 with `output_fp16`.

    By default scale is 1/255, and mean and std are ImageNet's for RGB. `order` 'chw' says that the channels come first
    here, '' or 'hwc' that they come last, None that they come as the operators before left them
    (last, for a call outside a pipeline). `channel_num` may exceed the channels of
    the image: 4 adds a channel of zeros to RGB, for networks with four input channels.
    """

    scale: float | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    order: Order = None
    output_fp16: bool = False
    channel_num: int | None = None

    random: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self.scale = 1.0 / 255.0 if self.scale is None else self.scale
        self.mean = list(IMAGENET_MEAN if self.mean is None else self.mean)
        self.std = list(IMAGENET_STD if self.std is None else self.std)
        self.channel_num = len(self.mean) if self.channel_num is None else self.channel_num
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise Refused(f"scale: expected a positive number, got {self.scale}")
        if len(self.mean) != len(self.std):
            raise Refused(f"std: {_count(len(self.std), 'value')} for {_count(len(self.mean), 'value')} of mean")
        if not all(map(math.isfinite, self.mean)):
            raise Refused(f"mean: expected finite numbers, got {self.mean}")
        if not all(math.isfinite(s) and s > 0 for s in self.std):
            raise Refused(f"std: expected positive numbers, got {self.std}")
        if self.channel_num < len(self.mean):
            raise Refused(f"channel_num: {self.channel_num}, but mean has {_count(len(self.mean), 'value')}")
        # A pixel is one of 256 values: with the results tabulated, the float32 formula is evaluated 256 times per
        # channel instead of once per pixel, and gives the same bits.
        levels = np.arange(256, dtype=np.float32)[:, None] * np.float32(self.scale)
        table = (levels - np.float32(self.mean)) / np.float32(self.std)  # (256, channels)
        self._planes = [np.ascontiguousarray(plane)[None] for plane in table.T]

    @property
    def pads(self) -> bool:
        """Whether it adds channels of zeros."""
        return self.channel_num > len(self.mean)

    def flow(self, before: Flow) -> Flow:
        before.need_decoded()
        if before.normalized:
            raise Refused("stands twice; join the two into one")
        before.need_order(self.order)
        if len(self.mean) != before.channels:
            raise Refused(
                f"mean: {_count(len(self.mean), 'value')} for images with {_count(before.channels, 'channel')}; "
                f"give mean and std {_count(before.channels, 'value')} each"
            )
        return replace(before, channels=self.channel_num, normalized=True)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        if self.order == "chw":
            return self._looked_up(image)
        return np.ascontiguousarray(self.to_chw(image).transpose(1, 2, 0))

    def to_chw(self, image: np.ndarray) -> np.ndarray:
        """uint8 (H, W, C) -> normalised (C, H, W), in one go."""
        return self._looked_up([image[:, :, 0]] if image.shape[2] == 1 else cv2.split(image))

    def _looked_up(self, planes: np.ndarray | list[np.ndarray]) -> np.ndarray:
        if planes[0].dtype != np.uint8 or len(planes) != len(self._planes):
            raise ValueError(
                f"NormalizeImage: expected uint8 images of {len(self._planes)} channels, "
                f"got {planes[0].dtype} of {len(planes)}"
            )
        result = np.empty((self.channel_num, *planes[0].shape), np.float32)
        for plane, table, target in zip(planes, self._planes, result):
            cv2.LUT(plane, table, target)
        result[len(planes) :] = 0
        return result.astype(np.float16) if self.output_fp16 else result


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


@TRANSFORMS.register("ToCHWImage")
@dataclass
class ToCHWImage:
    """(H, W, C) -> (C, H, W)."""

    random: ClassVar[bool] = False

    def flow(self, before: Flow) -> Flow:
        before.need_decoded()
        if before.layout == "chw":
            raise Refused("the image is (C, H, W) already; remove it (or DecodeImage.channel_first)")
        return replace(before, layout="chw")

    def __call__(self, image: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(image.transpose(2, 0, 1))
