"""A run's folder: what a fresh run finds there, what going on says and records, and what is closed behind a refusal."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import write_pictures
from test_engine import assert_same_bits, train, weights

from ppcls_ext import config, engine
from ppcls_ext.averaging import newest
from ppcls_ext.checkpoint import save_tensors
from ppcls_ext.errors import Refused
from ppcls_ext.log import read_metrics

Write = Callable[..., Path]


def test_a_fresh_run_sets_an_earlier_one_in_its_folder_aside(write_config: Write) -> None:
    path = write_config()
    folder = train(path, "EMA.decay=0.9")
    kept = {name: weights(folder, name) for name in ("epoch_2", "latest")}
    began_with = f"Global.pretrained_model={folder}/best_model"  # which is read before it is moved
    assert train(path, "Global.epochs=1", "Global.seed=2", began_with) == folder
    assert {file.stem for file in folder.glob("*.pdstates")} == {"best_model", "epoch_1", "latest"}
    aside = folder / "earlier_1"
    for name, before in kept.items():
        assert_same_bits(weights(aside, name), before)
    assert (aside / "best_model_ema.pdparams").exists() and (aside / "latest.ema.pdparams").exists()
    assert {record["epoch"] for record in read_metrics(aside)} == {1, 2}
    assert {record["epoch"] for record in read_metrics(folder)} == {1}
    assert (aside / "config.yaml").exists() and (aside / "curves.png").exists()
    said = (
        f"holds an earlier run, which is in {aside} now; to go on with that one: -o Global.checkpoints={aside}/latest"
    )
    assert said in (folder / "train.log").read_text()
    train(path, "Global.epochs=1")
    assert {file.name for file in folder.glob("earlier_*")} == {"earlier_1", "earlier_2"}
    with pytest.raises(Refused, match="holds 1 checkpoints of whole epochs, --last asks for 2"):
        newest(folder, 2)


def test_a_run_that_was_killed_before_it_saved_is_set_aside_with_its_records(write_config: Write) -> None:
    path = write_config()
    folder = train(path, "Global.epochs=1")
    records = (folder / "metrics.jsonl").read_bytes()
    for checkpoint in folder.glob("*.pd*"):
        checkpoint.unlink()
    train(path, "Global.epochs=1")
    assert (folder / "earlier_1/metrics.jsonl").read_bytes() == records
    said = f"{folder} holds an earlier run, which is in {folder}/earlier_1 now; it had saved no checkpoint"
    assert said in (folder / "train.log").read_text()


@pytest.mark.parametrize("name", ["latest", "best_model"])
def test_a_run_stopped_at_the_last_step_of_an_epoch_records_it_once(
    write_config: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = write_config()
    whole = train(path, f"Global.output_dir={tmp_path}/whole")
    if name == "latest":
        real = engine.stop_if_asked

        def asked_at_step_5(run: engine.Run, meter: object) -> None:
            if run.position.global_step == 5:
                engine.save_and_stop(run)
            real(run, meter)

        monkeypatch.setattr(engine, "stop_if_asked", asked_at_step_5)
        with pytest.raises(engine.StoppedBySignal):
            train(path, f"Global.output_dir={tmp_path}/cut")
        monkeypatch.undo()
    else:
        train(path, f"Global.output_dir={tmp_path}/cut", "Global.epochs=1")
    cut = tmp_path / "cut" / "MicroNet_M0"
    train(path, f"Global.output_dir={tmp_path}/cut", f"Global.checkpoints={cut}/{name}", "Global.seed=")

    def told(folder: Path) -> list[tuple]:
        return [(record["kind"], record["step"], record["epoch"]) for record in read_metrics(folder)]

    assert sorted(told(cut)) == sorted(told(whole))
    if name == "latest":  # of the other the schedule was another
        told_of_epochs = [[r for r in read_metrics(run) if r["kind"] != "train"] for run in (cut, whole)]
        assert told_of_epochs[0] == told_of_epochs[1]


def test_a_run_that_goes_on_with_another_configuration_says_what_changed(write_config: Write) -> None:
    path = write_config()
    folder = train(path, "Global.epochs=1")
    resume = (f"Global.checkpoints={folder}/latest", "Global.seed=")
    train(path, *resume, "Loss.Train.0.CELoss.epsilon=0.2", "DataLoader.Train.loader.num_workers=1")
    log = (folder / "train.log").read_text()
    assert "taken up with another configuration: Global.epochs: 2, was 1; Global.seed: None, was 1; " in log
    assert "Loss.Train.0.CELoss.epsilon: 0.2, was " in log and "num_workers: 1" not in log


def test_a_set_within_an_epoch_offers_one_that_ends_an_epoch_for_other_batches(
    write_config: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pictures = tmp_path / "pictures"
    write_pictures(pictures / "train", seed=0)
    path = write_config()
    own = f"DataLoader.Train.dataset.image_root={pictures}/train"

    def asked_at_step_7(run: engine.Run, meter: object) -> None:
        if run.position.global_step == 7:
            engine.save_and_stop(run)

    monkeypatch.setattr(engine, "stop_if_asked", asked_at_step_7)
    with pytest.raises(engine.StoppedBySignal):
        train(path, own)
    folder = config.load(path).output_folder()
    with pytest.raises(Refused, match="same data: the epoch's batches are others"):  # as many, of the same size
        train(
            path, own, f"Global.checkpoints={folder}/latest", "DataLoader.Train.sampler.shuffle=False", "Global.seed="
        )
    (pictures / "train/class_1/0.png").rename(pictures / "train/class_1/other.png")
    with pytest.raises(Refused, match="same data: the epoch's batches are others"):  # as many, of the same classes
        train(path, own, f"Global.checkpoints={folder}/latest", "Global.seed=")
    with pytest.raises(Refused, match="stopped within epoch 2; .*batch_size was 8, is 4.*") as refused:
        train(path, own, f"Global.checkpoints={folder}/latest", "DataLoader.Train.sampler.batch_size=4", "Global.seed=")
    assert str(refused.value).endswith(f"previous ends epoch 1: -o Global.checkpoints={folder}/previous")
    train(path, own, f"Global.checkpoints={folder}/previous", "DataLoader.Train.sampler.batch_size=4", "Global.seed=")
    # steps are counted anew, and what was recorded of epoch 1 stays
    assert [(r["step"], r["epoch"]) for r in read_metrics(folder) if r["kind"] == "train_epoch"] == [(5, 1), (18, 2)]


def test_a_run_that_cannot_be_built_ends_its_workers_and_closes_its_log(write_config: Write) -> None:
    before = set(multiprocessing.active_children())
    with pytest.raises(Refused, match="does not fit") as refused:
        train(
            write_config(),
            "Arch.name=ShuffleNetV2_x0_25",
            f"Global.pretrained_model={other_weights(write_config)}",
            "DataLoader.Train.loader.num_workers=2",
        )
    assert refused.value and set(multiprocessing.active_children()) == before


def other_weights(write_config: Write) -> Path:
    path = write_config()
    loaded = config.load(path)
    file = path.parent / "other.pdparams"
    save_tensors(file, {"weight": np.zeros((3, 3), np.float32)}, {"arch": loaded.Arch.name})
    return file


def test_few_steps_an_epoch_are_told_with_what_is_left_out(write_config: Write) -> None:
    folder = train(
        write_config(),
        "Global.epochs=1",
        "DataLoader.Train.sampler.batch_size=16",
        "DataLoader.Train.sampler.drop_last=True",
    )
    said = "2 steps an epoch, which leave out 4 of 36 images each time: batch-norm statistics and averages"
    assert said in (folder / "train.log").read_text()
