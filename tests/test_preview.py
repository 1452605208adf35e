"""The picture of a batch: what it shows is what the network gets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import DECODE, NORMALIZE, Run
from PIL import Image

from ppcls_ext import preview as module
from ppcls_ext.preview import as_pixels, without_augmentation
from ppcls_ext.transforms import build_transforms

NOISE = np.random.default_rng(1).integers(0, 256, size=(12, 10, 4), dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pixels_come_back_from_what_the_network_gets(channels: int) -> None:
    normalize = {"NormalizeImage": {"mean": [0.3] * channels, "std": [0.2] * channels}}
    pipeline = build_transforms([{"DecodeImage": None}, normalize], channels)
    image = np.ascontiguousarray(NOISE[:, :, :channels])
    assert np.array_equal(as_pixels(pipeline(image), pipeline), image)


def test_without_augmentation_is_the_whole_image_in_the_size_of_the_batch() -> None:
    ops = [DECODE, {"RandCropImage": {"size": [8, 6], "backend": "pil"}}, {"RandFlipImage": None}, NORMALIZE]
    plain = build_transforms(without_augmentation([*ops, {"RandomErasing": None}], (6, 8)))
    assert not plain.random and plain.output_shape == (3, 6, 8)


@pytest.mark.parametrize("mixed", [False, True])
def test_the_tool_draws_pairs_with_their_labels(
    write_config: Callable[..., Path],
    run_here: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mixed: bool,
) -> None:
    drawn: list = []
    plainly = module.draw_pairs
    monkeypatch.setattr(module, "draw_pairs", lambda *arguments: (drawn.append(arguments), plainly(*arguments)))
    ops = [DECODE, {"ResizeImage": {"size": [32, 32]}}, NORMALIZE]
    overrides = [f"DataLoader.Train.dataset.transform_ops={ops}"]
    if mixed:
        overrides.append("DataLoader.Train.dataset.batch_transform_ops=[{MixupOperator: {alpha: 4.0}}]")
    out = tmp_path / "a/preview.png"
    arguments = ["-c", write_config(), "--out", out, "--images", 5, "--batch", 1, "-o", *overrides]
    status, output, errors = run_here("tools/preview.py", *arguments)
    assert status == 0, errors
    assert output.splitlines()[-1] == f"written to {out}" and len(output.splitlines()) >= 6
    assert Image.open(out).width > 500
    [(_, pairs, captions, _)] = drawn
    assert len(pairs) == len(captions) == 5
    if mixed:
        assert any(", class_" in caption for caption in captions)
    for (above, below), caption in zip(pairs, captions):
        assert above.shape == (32, 32, 3) and (mixed or np.array_equal(above, below))
        assert caption.startswith("class_")
    status, _, errors = run_here("tools/preview.py", "-c", write_config(), "--batch", 9)
    assert status == 2 and "--batch 9: epoch 1 has 5 batches, counted from 0" in errors
