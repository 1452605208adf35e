"""A batch of the training split as the network sees it, as a picture: `tools/preview.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ppcls_ext.config import Config
from ppcls_ext.data.datasets import ImageDataset
from ppcls_ext.data.loader import Batch
from ppcls_ext.errors import Refused
from ppcls_ext.registry import TRANSFORMS
from ppcls_ext.report.gallery import draw_pairs
from ppcls_ext.training.run import build_train_loader
from ppcls_ext.transforms import NormalizeImage, Pipeline, build_transforms


def preview(config: Config, path: Path, images: int, epoch: int, batch: int) -> list[str]:
    """Draw the first `images` of one training batch, above each the same image without augmentation.

    Returns their captions: file, and classes with their shares in the label.
    """
    seed = 0 if config.Global.seed is None else config.Global.seed
    with build_train_loader(config, None, seed) as loader:
        batches = len(loader.batches(epoch))
        if not 0 <= batch < batches:
            raise Refused(f"--batch {batch}: epoch {epoch} has {batches} batches, counted from 0")
        dataset = loader.dataset
        seen = next(loader.epoch(epoch, start=batch))
    ops = config.DataLoader.Train.dataset.arguments["transform_ops"]
    pipeline = build_transforms(ops, config.Arch.in_channels)
    size = seen.images.shape[2:]
    plain = build_transforms(without_augmentation(ops, size), config.Arch.in_channels)
    rows = min(images, len(seen.images))
    captions = [caption(dataset, seen, row) for row in range(rows)]
    pairs = []
    for row in range(rows):
        unchanged = plain(Path(dataset.path(int(seen.indices[row]))).read_bytes())
        pairs.append((as_pixels(unchanged, plain), as_pixels(seen.images[row], pipeline)))
    draw_pairs(path, pairs, captions, f"epoch {epoch}, batch {batch}: above without augmentation, below as trained on")
    return [f"{dataset.path(int(index))}: {text}" for index, text in zip(seen.indices, captions)]


def without_augmentation(ops: list[dict[str, Any]], size: tuple[int, int]) -> list[dict[str, Any]]:
    """The operators without the random ones, of which a crop becomes the whole image at its `size` (height, width)."""
    kept = []
    for op in ops:
        [(name, arguments)] = op.items()
        if name == "RandCropImage":
            backend = (arguments or {}).get("backend", "cv2")
            kept.append({"ResizeImage": {"size": [size[1], size[0]], "backend": backend}})
        elif not TRANSFORMS[name].random:
            kept.append(op)
    return kept


def as_pixels(image: np.ndarray, pipeline: Pipeline) -> np.ndarray:
    """A network's input (C, H, W) back to uint8 (H, W, C), whatever leaves 0 to 255 cut off."""
    pixels = image.astype(np.float64)
    for operator in reversed(pipeline.operators):
        if isinstance(operator, NormalizeImage):
            shown = pixels[: len(operator.mean)]
            mean, std = (np.array(values)[:, None, None] for values in (operator.mean, operator.std))
            pixels = (shown * std + mean) / operator.scale
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8).transpose(1, 2, 0)


def caption(dataset: ImageDataset, batch: Batch, row: int) -> str:
    """'Maize', 'Maize 0.70, Charlock 0.30' of a mixed image, or all labels of an image with several."""
    names = dataset.class_names or [f"class {index}" for index in range(dataset.num_classes)]
    if batch.targets is None and batch.labels.ndim == 1:
        return names[int(batch.labels[row])]
    target = (batch.labels if batch.targets is None else batch.targets)[row]
    largest = np.argsort(-target, kind="stable")[:3]
    if batch.targets is not None and target[largest[0]] > 0.995:
        return names[int(largest[0])]
    # what label smoothing spreads over all classes is no part of a mixture
    return ", ".join(f"{names[index]} {target[index]:.2f}" for index in largest if target[index] > target.min() + 0.005)
