"""PaddleClas builds our networks after one call, and its own networks' weights load into ours.

Needs an installed PaddleClas: `make test-paddleclas` makes an environment for it.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

from ppcls_ext import create_model, load_weights
from ppcls_ext.errors import Refused
from ppcls_ext.paddleclas import architectures, builder_for, register


@pytest.fixture
def paddleclas() -> Any:
    """The module in which PaddleClas looks for networks, put back as it was afterwards."""
    modules = architectures()
    if not modules:
        pytest.skip("PaddleClas is not installed here; make test-paddleclas makes an environment that has it")
    kept = [dict(vars(module)) for module in modules]
    yield modules[0]
    for module, names in zip(modules, kept):
        vars(module).clear()
        vars(module).update(names)


def test_without_paddleclas_the_call_says_how_to_get_it() -> None:
    if architectures():
        pytest.skip("PaddleClas is installed here")
    with pytest.raises(Refused, match=r"PaddleClas is not installed .*pip install -r requirements-paddleclas\.txt"):
        register()


def test_a_builder_takes_what_paddleclas_gives_its_own() -> None:
    network = builder_for("MicroNet_M0")(class_num=7)
    assert network.num_classes == 7
    assert builder_for("GroupMamba_tiny")(class_num=2).num_classes == 2
    with pytest.raises(Refused, match=r"Arch\.pretrained: nothing is downloaded for MicroNet_M0"):
        builder_for("MicroNet_M0")(pretrained=True)
    with pytest.raises(Refused, match="MicroNet_M0 takes no argument drop; it takes num_classes, in_channels"):
        builder_for("MicroNet_M0")(drop=0.1)
    with pytest.raises(Refused, match=r"Unknown backbone 'MicroNet_M9'\. Did you mean 'MicroNet_M"):
        builder_for("MicroNet_M9")


@pytest.mark.parametrize("name", ["RepLKNet_31B", "GroupMamba_tiny"])
def test_its_build_model_finds_ours_after_one_call(paddleclas: Any, name: str) -> None:
    assert not hasattr(paddleclas, name)
    assert name in register()
    network = paddleclas.build_model({"Arch": {"name": name, "class_num": 12}, "Global": {"device": "cpu"}})
    network.eval()
    with paddle.no_grad():
        assert network(paddle.zeros([1, 3, 64, 96])).shape == [1, 12]
    network.train()
    loss = paddle.nn.functional.cross_entropy(network(paddle.ones([2, 3, 64, 64])), paddle.to_tensor([1, 3]))
    loss.backward()
    assert sum(p.grad is not None for p in network.parameters()) > 100


def test_its_own_networks_stay_unless_they_are_to_be_replaced(paddleclas: Any) -> None:
    own = paddleclas.MicroNet_M0
    assert "MicroNet_M0" not in register()
    assert paddleclas.MicroNet_M0 is own
    with pytest.raises(
        Refused,
        match=r"PaddleClas has a network 'MicroNet_M0' of its own; register\(\.\.\., replace=True\) replaces it",
    ):
        register(["MicroNet_M0"])
    assert register(["MicroNet_M0"], replace=True) == ["MicroNet_M0"]
    assert paddleclas.MicroNet_M0 is not own


NAMES = [
    *(f"MicroNet_M{i}" for i in range(4)),
    *(f"ShuffleNetV2_{size}" for size in ("x0_25", "x0_33", "x0_5", "x1_0", "x1_5", "x2_0", "swish")),
    *(f"EfficientNetB{i}" for i in range(8)),
    *(f"ResNeXt{size}" for size in ("50_32x4d", "50_64x4d", "101_32x4d", "101_64x4d", "152_32x4d", "152_64x4d")),
    *(f"ResNeXt{size}" for size in ("50_vd_32x4d", "50_vd_64x4d", "101_vd_32x4d", "101_vd_64x4d")),
    *("ResNeXt152_vd_32x4d", "ResNeXt152_vd_64x4d", "ResNet50", "VGG16", "DenseNet121"),
    "ViT_base_patch16_224",  # its ViT_small is another network: 8 blocks of 768 channels
]


@pytest.mark.parametrize("name", NAMES)
def test_the_weights_of_its_network_load_into_ours_and_give_its_answer(
    paddleclas: Any, repository: Path, name: str, tmp_path: Path
) -> None:
    worker = repository / "tests" / "workers" / "paddleclas_network.py"
    subprocess.run([sys.executable, worker, name, tmp_path], check=True)
    ours = create_model(name, num_classes=10)
    report = load_weights(ours, tmp_path / "theirs.pdparams")
    assert report.loaded == report.total
    ours.eval()
    expected = np.load(tmp_path / "logits.npy")
    with paddle.no_grad():
        logits = ours(paddle.to_tensor(np.load(tmp_path / "images.npy"))).numpy()
    print(name, "largest difference", np.abs(logits - expected).max(), "of", np.abs(expected).max())
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * max(1.0, np.abs(expected).max()))
