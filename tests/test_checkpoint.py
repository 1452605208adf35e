"""Files that survive: every save is whole or not there, and damage is named."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from ppcls_ext import checkpoint
from ppcls_ext.checkpoint import load_set, read_tensors, save_set, save_tensors
from ppcls_ext.errors import Refused
from ppcls_ext.weights import read_weights


def tensors(value: float) -> dict[str, dict[str, np.ndarray]]:
    return {
        ".pdparams": {"weight": np.full((40, 3), value, np.float32)},
        ".pdopt": {"weight:velocity_0": np.full((40, 3), -value, np.float32)},
    }


def save(prefix: Path, value: float) -> None:
    save_set(
        prefix, tensors(value), {"global_step": int(value)}, {"arch": "Net"}, keep_previous=prefix.parent / "previous"
    )


def value_at(prefix: Path) -> float:
    """The one value that every member of a whole set holds."""
    found = load_set(prefix)
    values = {float(array) for part in found.tensors.values() for array in np.abs(next(iter(part.values()))).ravel()}
    assert values == {float(found.states["global_step"])}
    return values.pop()


def cut_short_at_rename(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """The `at`-th rename from now on raises KeyboardInterrupt and is not made."""
    real, calls = os.replace, iter(range(100))

    def replace(source: object, target: object) -> None:
        if next(calls) == at:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)


def flip_a_byte(path: Path, at: float = 0.5) -> None:
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 0x40
    path.write_bytes(data)


def test_a_set_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    save(tmp_path / "latest", 3)
    found = load_set(tmp_path / "latest")
    assert found.metadata["arch"] == "Net"
    assert found.states == {"global_step": 3}
    np.testing.assert_array_equal(found.tensors[".pdopt"]["weight:velocity_0"], np.full((40, 3), -3, np.float32))
    assert not list(tmp_path.glob("*.new"))


@pytest.mark.parametrize("at", range(12))
def test_a_save_cut_short_at_any_rename_leaves_the_old_set_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    latest = tmp_path / "latest"
    save(latest, 1)
    save(latest, 2)
    cut_short_at_rename(monkeypatch, at)
    try:
        save(latest, 3)
        finished = True
    except KeyboardInterrupt:
        finished = False
    monkeypatch.undo()
    assert value_at(latest) == 3 if finished else value_at(latest) in (2, 3)
    # the next save, itself cut short while it writes, must not harm what was committed
    committed = value_at(latest)
    monkeypatch.setattr(checkpoint, "sync_folder", lambda folder: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save(latest, 4)
    monkeypatch.undo()
    assert value_at(latest) == committed
    save(latest, 5)
    assert value_at(latest) == 5
    assert value_at(tmp_path / "previous") == committed


@pytest.mark.parametrize("suffix", [".pdparams", ".pdopt", ".pdstates"])
@pytest.mark.parametrize("at", [0.02, 0.5, 0.97])
def test_a_flipped_byte_is_refused_by_name_and_the_previous_checkpoint_is_offered(
    tmp_path: Path, suffix: str, at: float
) -> None:
    save(tmp_path / "latest", 1)
    save(tmp_path / "latest", 2)
    flip_a_byte(tmp_path / f"latest{suffix}", at)
    with pytest.raises(Refused) as refused:
        load_set(tmp_path / "latest")
    assert f"latest{suffix}" in str(refused.value)
    assert f"-o Global.checkpoints={tmp_path / 'previous'}" in str(refused.value)
    assert value_at(tmp_path / "previous") == 1


@pytest.mark.parametrize("suffix", [".pdparams", ".pdopt", ".pdstates"])
def test_a_half_written_file_is_refused_by_name(tmp_path: Path, suffix: str) -> None:
    save(tmp_path / "latest", 2)
    path = tmp_path / f"latest{suffix}"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(Refused, match=f"latest{suffix} is damaged: it is cut short"):
        load_set(tmp_path / "latest")


def test_members_of_two_saves_are_not_mixed(tmp_path: Path) -> None:
    save(tmp_path / "a", 1)
    save(tmp_path / "b", 2)
    os.replace(tmp_path / "b.pdopt", tmp_path / "a.pdopt")
    with pytest.raises(Refused, match="a.pdopt does not belong to a.pdstates"):
        load_set(tmp_path / "a")


def test_a_checkpoint_that_is_not_there_is_refused_and_the_newest_one_offered(tmp_path: Path) -> None:
    with pytest.raises(
        Refused, match="No checkpoint at .*epoch_9: epoch_9.pdstates is missing. There is no other whole"
    ):
        load_set(tmp_path / "epoch_9")
    save(tmp_path / "epoch_1", 1)
    save(tmp_path / "epoch_2", 2)
    with pytest.raises(Refused, match=r"The newest whole checkpoint there is epoch_2 \(step 2\)"):
        load_set(tmp_path / "epoch_9")


def test_paddle_reads_our_weights(tmp_path: Path) -> None:
    import paddle

    save_tensors(tmp_path / "w.pdparams", {"weight": np.arange(6, dtype=np.float32).reshape(2, 3)}, {"arch": "Net"})
    loaded = paddle.load(str(tmp_path / "w.pdparams"))
    np.testing.assert_array_equal(np.asarray(loaded["weight"]), np.arange(6).reshape(2, 3))
    assert read_tensors(tmp_path / "w.pdparams")[1]["arch"] == "Net"


def test_a_flipped_byte_in_the_metadata_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pdparams"
    save_tensors(path, {"weight": np.zeros(3, np.float32)}, {"class_names": ["class_1", "class_2"]})
    path.write_bytes(path.read_bytes().replace(b"class_2", b"class_9"))
    with pytest.raises(Refused, match="w.pdparams is damaged: the SHA-256 of its trailer differs"):
        read_tensors(path)


def test_weights_beside_the_states_of_other_weights_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "a", 1)
    save(tmp_path / "b", 2)
    os.replace(tmp_path / "b.pdparams", tmp_path / "a.pdparams")
    with pytest.raises(Refused, match="a.pdparams does not belong to a.pdstates"):
        checkpoint.resolve_weights(tmp_path / "a")


def test_a_checkpoint_may_be_named_by_one_of_its_files_but_not_by_its_folder(tmp_path: Path) -> None:
    save(tmp_path / "latest", 2)
    assert value_at(tmp_path / "latest.pdparams") == 2
    with pytest.raises(Refused, match=f"{tmp_path} is a folder; a checkpoint is named as {tmp_path}/latest"):
        load_set(tmp_path)


@pytest.mark.parametrize("at", range(4))
def test_a_first_save_cut_short_at_any_rename_is_found_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    cut_short_at_rename(monkeypatch, at)
    try:
        save_set(tmp_path / "epoch_1", tensors(1), {"global_step": 1}, {"arch": "Net"})
    except KeyboardInterrupt:
        assert at < 3
    monkeypatch.undo()
    for name in ("epoch_1", "epoch_1.pdparams"):
        assert checkpoint.weights_exist(tmp_path / name) == (at > 0)
        if at > 0:  # the states are in place: the set counts
            assert value_at(tmp_path / name) == 1
            assert float(read_weights(tmp_path / name).tensors["weight"][0, 0]) == 1
        else:
            with pytest.raises(Refused, match="No weights at .*/epoch_1.pdparams. There are none in"):
                read_weights(tmp_path / name)


def test_averaged_weights_are_no_checkpoint_to_go_on_from(tmp_path: Path) -> None:
    save(tmp_path / "epoch_1", 1)
    save_set(tmp_path / "best_model_ema", {".pdparams": tensors(2)[".pdparams"]}, {"global_step": 2}, {"arch": "Net"})
    with pytest.raises(Refused, match=r"The newest whole checkpoint there is epoch_1 \(step 1\)"):
        load_set(tmp_path / "latest")
