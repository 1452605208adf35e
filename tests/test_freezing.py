"""Frozen layers: what stays, what trains, and from when on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import paddle
import pytest
from conftest import run_tool
from test_engine import assert_same_bits, train, weights

from ppcls_ext import create_model, engine
from ppcls_ext.checkpoint import load_set
from ppcls_ext.config import FreezeOptions
from ppcls_ext.errors import Refused
from ppcls_ext.optim.groups import group_of_parameters
from ppcls_ext.training.freezing import NEVER, Freezing

Write = Callable[..., Path]
SMALL = {"name": "ResNetV2", "depths": [1, 1, 1], "width": 8}


def small() -> paddle.nn.Layer:
    paddle.seed(0)
    return create_model("ResNetV2", depths=[1, 1, 1], width=8, num_classes=3)


def trains(network: paddle.nn.Layer) -> set[str]:
    return {name for name, parameter in network.named_parameters() if parameter.trainable}


def test_layers_are_named_by_group_by_pattern_or_by_the_beginning_of_a_name() -> None:
    network = small()
    groups = group_of_parameters(network)
    order = [group for group, _ in network.layer_groups()]
    everything = trains(network)

    def frozen(**options: object) -> set[str]:
        return Freezing(network, FreezeOptions(**options)).frozen_in(1)

    first = {name for name in everything if groups[name] == order[0]}
    assert frozen(layers=order[0]) == first and first
    assert frozen(until=order[1]) == {name for name in everything if groups[name] in order[:2]}
    assert frozen(layers=["*norm*"]) == {name for name in everything if "norm" in name}
    assert frozen(all_but_head=True) == {name for name in everything if groups[name] != "head"}
    some = sorted(name for name in everything if groups[name] != "head")[0].rpartition(".")[0]
    assert frozen(layers=some) == {name for name in everything if name.startswith(some + ".")}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": "stge1"}, "Freeze.layers: 'stge1' matches no layer group and no parameter. Did you mean"),
        ({"layers": "zzz*"}, "Freeze.layers: 'zzz*' matches no layer group and no parameter. Layer groups: "),
        ({"until": "hed"}, "Freeze.until: 'hed' is no layer group. Did you mean 'head'?"),
        ({"until": "head"}, "Freeze: nothing is left to train in epoch 1"),
        ({"all_but_head": True, "unfreeze": {3: "head"}}, "Freeze.unfreeze.3: head is not frozen"),
    ],
)
def test_what_freezes_nothing_or_everything_is_refused(options: dict, message: str) -> None:
    with pytest.raises(Refused) as refused:
        Freezing(small(), FreezeOptions(**options))
    assert message in str(refused.value)


def test_layers_thaw_by_epoch() -> None:
    network = small()
    order = [group for group, _ in network.layer_groups()]
    groups = group_of_parameters(network)
    everything = trains(network)
    freezing = Freezing(network, FreezeOptions(all_but_head=True, unfreeze={3: order[-2], 5: "*"}))

    def trained(epoch: int) -> set[str]:
        freezing.apply(epoch)
        return {groups[name] for name in trains(network)}

    assert [len(trained(epoch)) for epoch in (1, 2)] == [1, 1]
    assert trained(3) == trained(4) == {"head", order[-2]}
    assert trained(5) == set(order)
    stepwise = Freezing(network, FreezeOptions(all_but_head=True, unfreeze_every=2))
    for epoch, count in ((1, 1), (2, 1), (3, 2), (5, 3), (NEVER, len(order))):
        stepwise.apply(epoch)
        assert {groups[name] for name in trains(network)} == set(order[-count:])
    assert trains(network) == everything


def test_a_frozen_batch_norm_is_in_evaluation_mode_and_comes_back() -> None:
    network = small()
    freezing = Freezing(network, FreezeOptions(all_but_head=True, unfreeze={2: "*"}))
    norms = [layer for layer in network.sublayers() if isinstance(layer, paddle.nn.BatchNorm2D)]
    for epoch, training in ((1, False), (2, True)):
        network.train()
        freezing.apply(epoch)
        assert {layer.training for layer in norms} == {training}
        assert any(name.endswith("._mean") for name in freezing.frozen) == (not training)


def test_a_linear_probe_changes_the_head_and_not_one_bit_else(write_config: Write, tmp_path: Path) -> None:
    start = train(write_config(Arch=SMALL), "Global.epochs=1", f"Global.output_dir={tmp_path}/start")
    before = weights(start)
    folder = train(
        write_config(Arch=SMALL),
        f"Global.pretrained_model={start}/latest",
        "Freeze.all_but_head=True",
        "Optimizer={name: AdamW, weight_decay: 0.5, lr: {name: Constant, learning_rate: 0.01}}",
        "EMA={decay: 0.7}",
    )
    found = load_set(folder / "latest")
    for name, array in before.items():
        same = array.tobytes() == found.tensors[".pdparams"][name].tobytes()
        assert same != name.startswith("head"), name
        assert same == (array.tobytes() == found.tensors[".ema.pdparams"][name].tobytes()), name
    head = sum(array.size for name, array in before.items() if name.startswith("head"))
    log = (folder / "train.log").read_text()
    assert log.count(f"epoch 1: {head:,} of ") == 1 and "parameters train; frozen: stem" in log
    assert {key.split(":")[0].split(".")[0] for key in found.tensors[".pdopt"]} == {"head"}


def test_gradual_unfreezing_is_taken_up_exactly(
    write_config: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_config(Arch=SMALL)
    options = ["Freeze={all_but_head: true, unfreeze_every: 1}", "Global.epochs=3", "EMA={decay: 0.7}"]
    options += ["Optimizer={name: Adam, lr: {name: Constant, learning_rate: 0.01}}"]
    whole = train(path, *options, f"Global.output_dir={tmp_path}/whole")
    log = (whole / "train.log").read_text()
    assert "Freeze: the frozen layers keep random weights" in log
    assert all(f"epoch {epoch}: " in log for epoch in (1, 2, 3))

    class Cut(Exception):
        pass

    real = engine.save

    def save_then_die(run: engine.Run, name: str) -> None:
        real(run, name)
        if name == "latest" and run.position.epoch == 2:
            raise Cut

    monkeypatch.setattr(engine, "save", save_then_die)
    with pytest.raises(Cut):
        train(path, *options, f"Global.output_dir={tmp_path}/cut")
    monkeypatch.setattr(engine, "save", real)
    cut = tmp_path / "cut/ResNetV2"
    train(path, *options, f"Global.output_dir={tmp_path}/cut", f"Global.checkpoints={cut}/latest")
    a, b = load_set(whole / "latest"), load_set(cut / "latest")
    for member in a.tensors:
        assert_same_bits(a.tensors[member], b.tensors[member])


@pytest.mark.slow
def test_layers_thaw_on_two_processes_as_on_one(write_config: Write, tmp_path: Path) -> None:
    path = write_config(Arch={**SMALL, "use_sync_bn": True})
    options = ["Freeze={all_but_head: true, unfreeze_every: 1}", "Global.epochs=3", "Metric.Eval.0.TopkAcc.topk=[1]"]
    options += ["DataLoader.Train.dataset.transform_ops.1={ResizeImage: {size: [32, 32]}}"]
    found = []
    for processes in (1, 2):
        output = tmp_path / f"on{processes}"
        given = [*options, f"Global.output_dir={output}", f"DataLoader.Train.sampler.batch_size={12 // processes}"]
        done = run_tool("tools/train.py", "-c", path, "-o", *given, processes=processes, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        found.append(weights(output / "ResNetV2"))
    for name, array in found[0].items():
        np.testing.assert_allclose(array, found[1][name], atol=2e-4, err_msg=name)
