"""PaddleClas's configuration files train here as they are, with other paths and sizes.

`PADDLECLAS_CONFIGS=FOLDER python -m pytest tests/test_peer_configs.py -m "slow or not slow"` tries all files of FOLDER
(ppcls/configs/ImageNet of a checkout, say) for networks of ours; without it those of ../shared are tried.
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY, Run, paths_and_sizes

from ppcls_ext import config
from ppcls_ext.backbones import published_names
from ppcls_ext.errors import Refused

FOLDER = Path(os.environ.get("PADDLECLAS_CONFIGS", REPOSITORY.parent / "shared/peers/paddleclas_configs"))
SMALL = ("MicroNet_M0", "ShuffleNetV2_x0_25", "EfficientNetB0")


def name_of(path: Path) -> str:
    return (yaml.safe_load(path.read_text(encoding="utf-8")).get("Arch") or {}).get("name", "")


def files() -> list[Any]:
    """The files for our networks; all but a few small ones are slow."""
    found = [path for path in sorted(FOLDER.rglob("*.yaml")) if name_of(path) in published_names()]
    return [pytest.param(p, id=p.stem, marks=[] if p.stem in SMALL else pytest.mark.slow) for p in found] or [None]


@pytest.mark.parametrize("path", files())
def test_a_file_of_paddleclas_trains_unchanged(
    path: Path | None, request: pytest.FixtureRequest, photographs: Path, run_here: Run
) -> None:
    if path is None:
        request.getfixturevalue("shared")
    status, output, errors = run_here("tools/train.py", "-c", path, "-o", *paths_and_sizes(path, photographs))
    assert status == 0, errors
    losses = [float(loss) for loss in re.findall(r"\[Train\].*\bloss: ([\d.naif]+)", output)]
    assert losses and all(math.isfinite(loss) for loss in losses), output
    assert "[Eval][Epoch 1]" in output
    assert (photographs / "output" / name_of(path) / "latest.pdparams").is_file()


def test_what_the_files_say_is_what_is_trained(shared: Path) -> None:
    for path in sorted((shared / "peers/paddleclas_configs").glob("*.yaml")):
        raw, loaded = yaml.safe_load(path.read_text(encoding="utf-8")), config.load(path)
        assert (loaded.Arch.name, loaded.Arch.class_num) == (raw["Arch"]["name"], raw["Arch"]["class_num"])
        assert loaded.Global.epochs == raw["Global"]["epochs"]
        optimizer = raw["Optimizer"]
        assert loaded.Optimizer.name == optimizer["name"]
        assert loaded.Optimizer.lr.name == optimizer["lr"]["name"]
        assert loaded.Optimizer.regularizer.arguments["coeff"] == float(optimizer["regularizer"]["coeff"])
        dataset = raw["DataLoader"]["Train"]["dataset"]
        assert loaded.DataLoader.Train.dataset.arguments["transform_ops"] == dataset["transform_ops"]
        assert loaded.DataLoader.Train.dataset.arguments.get("batch_transform_ops") == dataset.get(
            "batch_transform_ops"
        )


def test_keys_that_some_files_have_are_understood_or_refused(shared: Path) -> None:
    file = shared / "peers/paddleclas_configs/MicroNet_M0.yaml"
    older = ["Arch.class_num=", "Global.class_num=12", "Global.image_channel=3", "Global.use_dali=False"]
    assert config.load(file, older).Arch.class_num == 12
    assert config.load(file, ["Global.class_num=1000"]).Arch.class_num == 1000
    with pytest.raises(Refused) as refused:
        config.load(file, ["Global.class_num=12", "Global.image_channel=4", "Global.use_dali=True"])
    for line in (
        "Global.class_num: 12, but Arch.class_num is 1000; give one of the two",
        "Global.image_channel: 4, but Arch.in_channels is 3",
        "Global.use_dali: expected False (images are read without DALI here), got True",
    ):
        assert line in str(refused.value)


def test_its_one_call_is_the_one_of_the_page() -> None:
    page = (REPOSITORY / "docs/paddleclas.md").read_text(encoding="utf-8")
    [example] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    compile(example, "docs/paddleclas.md", "exec")
    assert "ppcls_ext.paddleclas.register()" in example and len(example.split("\n")) <= 6
