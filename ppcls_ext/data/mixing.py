"""Operators on a batch: Mixup, CutMix, FMix and mixtures of them.

An operator changes the images in place, in the process that loaded them, and says what it mixed (`Mixing`); soft labels
are made of that. It draws from one generator per batch, of (seed, epoch, indices of the samples): see `batch_rng`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np

from ppcls_ext.errors import Refused
from ppcls_ext.registry import BATCH_TRANSFORMS, check_arguments

BatchOps = list[dict[str, dict[str, Any] | None]]
Box = tuple[int, int, int, int]  # top, bottom, left, right


@dataclass(frozen=True)
class Mixing:
    """Sample i is `lam[i]` of itself and 1 - `lam[i]` of sample `partners[i]` of the same batch."""

    partners: np.ndarray  # int64 (n,)
    lam: np.ndarray  # float64 (n,)
    label_smoothing: float = 0.0

    def targets(self, labels: np.ndarray, num_classes: int) -> np.ndarray:
        """Labels (n,), or (n, classes) where an image has several -> float32 (n, classes)."""
        own = np.zeros((len(labels), num_classes))
        if labels.ndim == 1:
            own[np.arange(len(labels)), labels] = 1
        else:
            own[:] = labels
        own = (1 - self.label_smoothing) * own + self.label_smoothing / num_classes
        lam = self.lam[:, None]
        return (lam * own + (1 - lam) * own[self.partners]).astype(np.float32)

    def dominant(self, labels: np.ndarray) -> np.ndarray:
        """The labels of the larger part of each sample: what a prediction is compared with."""
        chosen = np.where(self.lam >= 0.5, np.arange(len(labels)), self.partners)
        return labels[chosen]


class BatchOperator(Protocol):
    """float32 images (n, C, H, W), changed in place -> what was mixed."""

    def __call__(self, images: np.ndarray, rng: np.random.Generator) -> Mixing: ...


def batch_rng(seed: int, epoch: int, indices: Sequence[int]) -> np.random.Generator:
    """The generator of one batch; its spawn key keeps it apart from the generators of single samples."""
    return np.random.default_rng(np.random.SeedSequence([seed, epoch, *indices], spawn_key=(1,)))


def build_batch_operator(ops: BatchOps | None) -> BatchOperator | None:
    """The operator of `batch_transform_ops`, a list of one; None for none."""
    if not ops:
        return None
    if len(ops) > 1 or len(ops[0]) != 1:
        raise Refused(
            f"batch_transform_ops: expected one operator, got {', '.join(name for op in ops for name in op)}; "
            "OpSampler chooses one of several for each batch"
        )
    [(name, arguments)] = ops[0].items()
    return _build(name, arguments or {}, f"batch_transform_ops.0.{name}")


def _build(name: str, arguments: dict[str, Any], place: str) -> BatchOperator:
    converted, problems = check_arguments(BATCH_TRANSFORMS[name], arguments, place)
    if problems:
        raise Refused("; ".join(problems))
    try:
        return BATCH_TRANSFORMS[name](**converted)
    except Refused as error:
        raise Refused(f"{place}: {error}") from error


# ------------------------------------------------------------------------------------------------ how two are mixed


def cut_box(height: int, width: int, lam: float, rng: np.random.Generator) -> Box:
    """A rectangle of 1 - lam of the area and the image's shape, its middle anywhere; edges cut it."""
    ratio = math.sqrt(1 - lam)
    h, w = int(height * ratio), int(width * ratio)
    top, left = int(rng.integers(height)) - h // 2, int(rng.integers(width)) - w // 2
    return max(top, 0), min(top + h, height), max(left, 0), min(left + w, width)


def cut_box_between(height: int, width: int, minmax: Sequence[float], rng: np.random.Generator) -> Box:
    """A rectangle whose sides are shares of the image's, each drawn between the two of `minmax`, inside the image."""

    def side(length: int) -> int:
        shortest, longest = int(length * minmax[0]), int(length * minmax[1])
        return int(rng.integers(shortest, max(longest, shortest + 1)))

    h, w = side(height), side(width)
    top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
    return top, top + h, left, left + w


def area_outside(box: Box, height: int, width: int) -> float:
    """The share of the image that a rectangle leaves."""
    top, bottom, left, right = box
    return 1 - (bottom - top) * (right - left) / (height * width)


def low_frequency_noise(height: int, width: int, decay_power: float, rng: np.random.Generator) -> np.ndarray:
    """float64 (H, W): noise whose amplitudes fall with the frequency to the power of `decay_power`."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    amplitude = np.maximum(frequency, 1 / max(height, width)) ** -decay_power
    real, imaginary = rng.standard_normal((2, *frequency.shape))
    return np.fft.irfft2(amplitude * (real + 1j * imaginary), s=(height, width))


def fmix_mask(
    height: int, width: int, lam: float, decay_power: float, max_soft: float, rng: np.random.Generator
) -> np.ndarray:
    """float32 (H, W) with mean `lam`, up to one pixel: 1 where low-frequency noise is largest, else 0.

    `max_soft` is the share of the pixels, on either side of the border, over which 1 falls to 0.
    """
    order = np.argsort(-low_frequency_noise(height, width, decay_power, rng), axis=None)
    count = height * width
    soft = int(count * min(max_soft, lam, 1 - lam))
    ones = round(lam * count)
    mask = np.zeros(count, np.float32)
    mask[order[: max(ones - soft, 0)]] = 1
    between = order[max(ones - soft, 0) : ones + soft]
    mask[between] = np.linspace(1, 0, len(between))
    return mask.reshape(height, width)


def _need_alpha(name: str, alpha: float, zero: bool = False) -> None:
    if not (alpha > 0 or (zero and alpha == 0)) or alpha == math.inf:
        raise Refused(f"{name}: expected a number {'from' if zero else 'above'} 0, got {alpha}")


# ------------------------------------------------------------------------------------------------ PaddleClas's names


@BATCH_TRANSFORMS.register("MixupOperator")
class MixupOperator:
    """Each image with one drawn from the batch, all in one share of Beta(alpha, alpha) (Zhang, arXiv 1710.09412)."""

    def __init__(self, alpha: float = 1.0) -> None:
        _need_alpha("alpha", alpha)
        self.alpha = alpha

    def __call__(self, images: np.ndarray, rng: np.random.Generator) -> Mixing:
        partners, lam = rng.permutation(len(images)), rng.beta(self.alpha, self.alpha)
        blend(images, images[partners], lam)
        return Mixing(partners, np.full(len(images), lam))


@BATCH_TRANSFORMS.register("CutmixOperator")
class CutmixOperator:
    """A rectangle of each image from one drawn from the batch, sized by Beta(alpha, alpha) (Yun, arXiv 1905.04899)."""

    def __init__(self, alpha: float = 0.2) -> None:
        _need_alpha("alpha", alpha)
        self.alpha = alpha

    def __call__(self, images: np.ndarray, rng: np.random.Generator) -> Mixing:
        height, width = images.shape[2:]
        partners, lam = rng.permutation(len(images)), rng.beta(self.alpha, self.alpha)
        box = cut_box(height, width, lam, rng)
        paste(images, images[partners], box)
        return Mixing(partners, np.full(len(images), area_outside(box, height, width)))


@BATCH_TRANSFORMS.register("FmixOperator")
class FmixOperator:
    """Parts of each image, bounded by noise of low frequency, from one drawn from the batch (Harris, arXiv 2002.12047).

    The share is of Beta(alpha, alpha), or of Beta(alpha + 1, alpha) with `reformulate`; labels are mixed as the mask's
    mean says.
    """

    def __init__(
        self, alpha: float = 1.0, decay_power: float = 3.0, max_soft: float = 0.0, reformulate: bool = False
    ) -> None:
        _need_alpha("alpha", alpha)
        if not 0 <= max_soft <= 0.5:
            raise Refused(f"max_soft: expected a share from 0 to 0.5, got {max_soft}")
        if decay_power < 0:
            raise Refused(f"decay_power: expected a number from 0, got {decay_power}")
        self.alpha, self.decay_power, self.max_soft, self.reformulate = alpha, decay_power, max_soft, reformulate

    def __call__(self, images: np.ndarray, rng: np.random.Generator) -> Mixing:
        partners = rng.permutation(len(images))
        lam = rng.beta(self.alpha + 1 if self.reformulate else self.alpha, self.alpha)
        mask = fmix_mask(*images.shape[2:], lam, self.decay_power, self.max_soft, rng)
        blend(images, images[partners], mask)
        return Mixing(partners, np.full(len(images), float(mask.mean(dtype=np.float64))))


@BATCH_TRANSFORMS.register("OpSampler")
class OpSampler:
    """One of several operators for each batch, each with its `prob`; what is left to 1 leaves the images as they are.

    The labels of all batches are smoothed as `Mixup.label_smoothing` says, whichever operator is drawn.
    """

    def __init__(
        self,
        MixupOperator: dict[str, Any] | None = None,
        CutmixOperator: dict[str, Any] | None = None,
        FmixOperator: dict[str, Any] | None = None,
        Mixup: dict[str, Any] | None = None,
    ) -> None:
        given = {
            "MixupOperator": MixupOperator,
            "CutmixOperator": CutmixOperator,
            "FmixOperator": FmixOperator,
            "Mixup": Mixup,
        }
        self.choices: list[tuple[float, BatchOperator]] = []
        for name, arguments in given.items():
            if arguments is None:
                continue
            probability = arguments.get("prob")
            if isinstance(probability, bool) or not isinstance(probability, (int, float)) or not 0 <= probability <= 1:
                raise Refused(f"{name}.prob: expected a probability, 0 to 1, got {probability!r}")
            own = {key: value for key, value in arguments.items() if key != "prob"}
            self.choices.append((probability, _build(name, own, name)))
        self.label_smoothing = (Mixup or {}).get("label_smoothing", 0.0)
        total = sum(probability for probability, _ in self.choices)
        if not self.choices or total > 1 + 1e-9:
            raise Refused(f"expected operators whose prob sum to at most 1, got {len(self.choices)} with {total:g}")

    def __call__(self, images: np.ndarray, rng: np.random.Generator) -> Mixing:
        drawn = rng.random()
        for probability, operator in self.choices:
            if drawn < probability:
                return replace(operator(images, rng), label_smoothing=self.label_smoothing)
            drawn -= probability
        return replace(unmixed(len(images)), label_smoothing=self.label_smoothing)


def unmixed(count: int) -> Mixing:
    """A batch as it was."""
    return Mixing(np.arange(count), np.ones(count))


def blend(images: np.ndarray, others: np.ndarray, share: float | np.ndarray) -> None:
    """images * share + others * (1 - share), in place; a share per pixel is (H, W)."""
    images -= others
    images *= np.float32(share)
    images += others


def paste(images: np.ndarray, others: np.ndarray, box: Box) -> None:
    """A rectangle of `others` over `images`, in place."""
    top, bottom, left, right = box
    images[..., top:bottom, left:right] = others[..., top:bottom, left:right]


# ------------------------------------------------------------------------------------------------ timm's mixture


@BATCH_TRANSFORMS.register("Mixup")
class Mixup:
    """timm's mixture of Mixup and CutMix; image i is mixed with image n - 1 - i.

    With probability `prob` something is mixed; where both alphas are above 0 it is CutMix with probability
    `switch_prob`. `mode`: one draw for the whole batch, for each pair (both of one share), or for each element. A
    rectangle that edges cut counts with the area it has, unless `correct_lam` is False. `cutmix_minmax` draws its sides
    as shares of the image's instead. `label_smoothing` belongs to the labels before they are mixed.
    """

    def __init__(
        self,
        mixup_alpha: float = 1.0,
        cutmix_alpha: float = 0.0,
        cutmix_minmax: list[float] | None = None,
        prob: float = 1.0,
        switch_prob: float = 0.5,
        mode: Literal["batch", "pair", "elem"] = "batch",
        correct_lam: bool = True,
        label_smoothing: float = 0.0,
    ) -> None:
        _need_alpha("mixup_alpha", mixup_alpha, zero=True)
        _need_alpha("cutmix_alpha", cutmix_alpha, zero=True)
        for name, value in (("prob", prob), ("switch_prob", switch_prob)):
            if not 0 <= value <= 1:
                raise Refused(f"{name}: expected a probability, 0 to 1, got {value}")
        if cutmix_minmax is not None:
            if len(cutmix_minmax) != 2 or not 0 < cutmix_minmax[0] <= cutmix_minmax[1] <= 1:
                raise Refused(f"cutmix_minmax: expected [smallest, largest] share of a side, got {cutmix_minmax}")
            cutmix_alpha = 1.0  # unused, but above 0: CutMix takes part
        if mixup_alpha == 0 and cutmix_alpha == 0:
            raise Refused("mixup_alpha: it and cutmix_alpha are 0, which mixes nothing; leave the operator out")
        if not 0 <= label_smoothing < 1:
            raise Refused(f"label_smoothing: expected 0 <= label_smoothing < 1, got {label_smoothing}")
        self.mixup_alpha, self.cutmix_alpha, self.cutmix_minmax = mixup_alpha, cutmix_alpha, cutmix_minmax
        self.prob, self.switch_prob, self.mode = prob, switch_prob, mode
        self.correct_lam, self.label_smoothing = correct_lam, label_smoothing

    def __call__(self, images: np.ndarray, rng: np.random.Generator) -> Mixing:
        count = len(images)
        partners, lam = np.arange(count)[::-1].copy(), np.ones(count)
        before = images[partners]  # a copy: the partner of each image, unmixed
        if self.mode == "batch":
            lam[:] = self._mix(images, before, rng)
        elif self.mode == "elem":
            for number in range(count):
                lam[number] = self._mix(images[number], before[number], rng)
        else:
            for number in range(count // 2):
                pair = [number, count - 1 - number]
                both = images[pair]
                lam[pair] = self._mix(both, before[pair], rng)
                images[pair] = both
        return Mixing(partners, lam, self.label_smoothing)

    def _mix(self, images: np.ndarray, others: np.ndarray, rng: np.random.Generator) -> float:
        """Mix (..., H, W) in place by one draw; the share of the images that stays."""
        if rng.random() >= self.prob:
            return 1.0
        cut = self.cutmix_alpha > 0 and (self.mixup_alpha == 0 or rng.random() < self.switch_prob)
        alpha = self.cutmix_alpha if cut else self.mixup_alpha
        lam = float(rng.beta(alpha, alpha))
        if not cut:
            blend(images, others, lam)
            return lam
        height, width = images.shape[-2:]
        if self.cutmix_minmax is not None:
            box = cut_box_between(height, width, self.cutmix_minmax, rng)
        else:
            box = cut_box(height, width, lam, rng)
        paste(images, others, box)
        exact = self.correct_lam or self.cutmix_minmax is not None
        return area_outside(box, height, width) if exact else lam


@BATCH_TRANSFORMS.register("MixupCutmixHybrid")
class MixupCutmixHybrid(Mixup):
    """`Mixup` by the name and with the defaults that PaddleClas gives it; `num_classes` has to be the data's."""

    def __init__(
        self,
        mixup_alpha: float = 1.0,
        cutmix_alpha: float = 0.0,
        cutmix_minmax: list[float] | None = None,
        prob: float = 1.0,
        switch_prob: float = 0.5,
        mode: Literal["batch", "pair", "elem"] = "batch",
        correct_lam: bool = True,
        label_smoothing: float = 0.1,
        num_classes: int | None = None,
    ) -> None:
        mixing = (mixup_alpha, cutmix_alpha, cutmix_minmax, prob, switch_prob, mode, correct_lam, label_smoothing)
        super().__init__(*mixing)
        self.num_classes = num_classes
