"""What the operators have in common: the error an image can cause, and what is known of images before one is seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BeforeValidator

from ppcls_ext.errors import Refused


class DecodeError(ValueError):
    """A file that cannot become a network's input: no image, no whole one, of an unknown kind, or of an unfit size."""


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


# PaddleClas compares the name without regard to case.
Backend = Annotated[Literal["cv2", "pil"], "one of 'cv2', 'pil'", BeforeValidator(_lower)]


def check_backend(backend: str) -> None:
    """Refuse what is neither of the two back ends."""
    if backend not in ("cv2", "pil"):
        raise Refused(f"backend: expected one of 'cv2', 'pil', got {backend!r}")


def need_probability(argument: str, value: float) -> None:
    """Refuse what is no probability."""
    if not 0 <= value <= 1:
        raise Refused(f"{argument}: expected a probability, 0 to 1, got {value}")


@dataclass(frozen=True)
class Flow:
    """What every image has in common at one place between two operators.

    Each operator's `flow(before)` returns what follows it, or raises `Refused` when it cannot stand there; so a
    configuration is checked without an image. A size is None where it depends on the image.
    """

    channels: int
    layout: Literal["encoded", "hwc", "chw"] = "encoded"
    normalized: bool = False
    width: int | None = None
    height: int | None = None
    short_side: int | None = None

    def need_decoded(self) -> None:
        """Refuse a place before DecodeImage."""
        if self.layout == "encoded":
            raise Refused("stands before DecodeImage; DecodeImage has to be the first operator")

    def need_pixels(self) -> None:
        """Refuse a place where the image is not 8-bit (H, W, C)."""
        self.need_decoded()
        if self.normalized:
            raise Refused("stands after NormalizeImage, but works on 8-bit pixels; move it before NormalizeImage")
        if self.layout == "chw":
            raise Refused(
                "needs (H, W, C), but the image is (C, H, W) here; move it before ToCHWImage, "
                "and leave DecodeImage.channel_first False"
            )

    def need_order(self, order: str | None) -> None:
        """Refuse an `order` argument ('chw'; '' and 'hwc' mean the other) that is not the image's here."""
        if order is not None and (order == "chw") != (self.layout == "chw"):
            here, right = ("(C, H, W)", "chw") if self.layout == "chw" else ("(H, W, C)", "''")
            raise Refused(f"order: '{order}', but the image is {here} here; write order: {right}")
