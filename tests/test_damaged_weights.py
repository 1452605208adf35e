"""Files of weights that are damaged, noise, or made to harm: refused, and nothing in them is run."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from networks import arrays_of, small_network
from safetensors.numpy import save_file

from ppcls_ext import load_weights
from ppcls_ext.checkpoint import save_tensors
from ppcls_ext.errors import Refused
from ppcls_ext.pickles.arrays import unpickle_arrays
from ppcls_ext.weights import read_weights


def test_a_flipped_byte_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "ours.pdparams"
    save_tensors(path, arrays_of(small_network()), {"arch": "small"})
    data = bytearray(path.read_bytes())
    data[data.index(b"conv" if b"conv" in data else b"weight") + 40] ^= 1
    path.write_bytes(data)
    with pytest.raises(Refused, match=r"ours\.pdparams is damaged: its SHA-256 differs"):
        load_weights(small_network(), path)


def test_a_file_of_ours_cut_short_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ours.pdparams"
    save_tensors(path, arrays_of(small_network()), {"arch": "small"})
    data = path.read_bytes()
    _, length = unpickle_arrays(data, path)
    for size in range(len(data)):
        path.write_bytes(data[:size])
        if size == length:  # what Paddle would have written: whole
            assert set(read_weights(path).tensors) == set(arrays_of(small_network()))
            continue
        with pytest.raises(Refused, match=r"ours\.pdparams (is damaged|is empty|cannot be read)"):
            read_weights(path)


@pytest.mark.parametrize("suffix", ["pdparams", "safetensors"])
@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 4096])
def test_noise_is_refused(tmp_path: Path, suffix: str, size: int) -> None:
    path = tmp_path / f"noise.{suffix}"
    path.write_bytes(np.random.default_rng(size).bytes(size))
    with pytest.raises(Refused, match=rf"noise\.{suffix} (is empty|cannot be read as)"):
        read_weights(path)


@pytest.mark.parametrize("suffix", ["pdparams", "safetensors"])
def test_damage_without_a_digest_never_ends_in_anything_but_a_refusal(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    if suffix == "pdparams":
        paddle.save(small_network().state_dict(), str(path))
    else:
        save_file(arrays_of(small_network()), path)
    whole = path.read_bytes()
    draw = np.random.default_rng(0)
    for _ in range(300):
        data = bytearray(whole)
        data[draw.integers(len(data))] ^= 1 << draw.integers(8)
        path.write_bytes(data)
        try:
            load_weights(small_network(), path)
        except Refused:
            pass  # what fits after all was a flipped number: only a digest can tell


class Attack:
    """A pickle of this runs a command when an ordinary unpickler reads it."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_runs_a_command_does_not(tmp_path: Path, protocol: int) -> None:
    path, marker = tmp_path / "attack.pdparams", tmp_path / "it ran"
    path.write_bytes(pickle.dumps({"weight": Attack(marker)}, protocol))
    with pytest.raises(Refused, match=r"attack\.pdparams cannot be read as tensors: it names (posix|nt)\.system"):
        read_weights(path)
    assert not marker.exists()


def assembled(*operations: bytes) -> bytes:
    return b"\x80\x02" + b"".join(operations) + b"."


RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n(tR"
TYPE = b"cnumpy\ndtype\n(X\x02\x00\x00\x00%sI00\nI01\ntR"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (pickle.dumps({"x": np.array([object])}), "an array of type 'O8' is no tensor"),
        (pickle.dumps({"x": np.zeros(2, [("a", "f4")])}), "an array of type 'V4' is no tensor"),
        (pickle.dumps({"x": np.array(["text"])}), "an array of type 'U4' is no tensor"),
        (assembled(RECONSTRUCT, b"(I1\n(I2\ntNI00\nU\x04abcdtb"), "an array without a type is no tensor"),
        (
            assembled(RECONSTRUCT, b"(I1\n(I2\nt", TYPE % b"f4", b"I00\nU\x04abcdtb"),
            "does not have the bytes that it needs",
        ),
        (
            assembled(RECONSTRUCT, b"(I1\n(I-1\nt", TYPE % b"f4", b"I00\nU\x00tb"),
            r"an array of shape \(-1,\) is no tensor",
        ),
        (assembled(TYPE % b"f4", b"(I3\nU\x01<N(U\x01atNI4\nI4\nI63\ntb"), "an array of a composite type is no tensor"),
        (assembled(RECONSTRUCT), "it holds an Array without content"),
        (
            assembled(b"cnumpy.core.multiarray\nscalar\n(X\x02\x00\x00\x00f4X\x04\x00\x00\x00abcdtR"),
            "an array without a type is no tensor",
        ),
        (
            assembled(b"cnumpy.core.numeric\n_frombuffer\n(U\x04abcdX\x02\x00\x00\x00f4)X\x01\x00\x00\x00CtR"),
            "an array without a type is no tensor",
        ),
        (assembled(b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x05\x00\x00\x00rot13tR"), "text in the encoding 'rot13'"),
        (assembled(b"c_codecs\nencode\n()X\x06\x00\x00\x00latin1tR"), "text in the encoding 'latin1'"),
        (assembled(b"cbuiltins\neval\n(X\x01\x00\x00\x001tR"), "it names builtins.eval"),
        (assembled(b"cnumpy\nload\n(X\x01\x00\x00\x001tR"), "it names numpy.load"),
        (
            assembled(b"})" + b"2\x86" * 60 + b"Ns"),
            "a dictionary with a key that is no text",
        ),
        (assembled(b"\x8b\x00\x00\x01\x00" + bytes(65536)), "an integer of 65536 bytes"),
        (assembled(b"}0" * 1_000_001), "it takes more than 2000000 steps"),
        (
            assembled(
                b"X\x00\x00\x10\x00" + b"x" * (1 << 20) + b"q\x00",
                b"0c_codecs\nencode\n(h\x00X\x06\x00\x00\x00latin1tR" * 20,
            ),
            "it copies more than it holds",
        ),
        (assembled(b"h\x07"), "it recalls what it has not stored"),
        (assembled(b"0"), "it takes what it has not put there"),
        (assembled(b"\x82\x01"), "byte 2 is 0x82, which no file of tensors has there"),
        (assembled(b"X\xff\xff\xff\xff"), "it ends too early: 4294967295 bytes expected, 1 there"),
        (b"\x80\x04\x8e" + (1 << 60).to_bytes(8, "little") + b"abc.", "cannot be read as tensors"),
        (b"\x80\x05\x96" + (1 << 60).to_bytes(8, "little") + b"abc.", "cannot be read as tensors"),
    ],
)
def test_crafted_pickles_are_refused(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "x.pdparams"
    path.write_bytes(data)
    with pytest.raises(Refused, match=reason):
        read_weights(path)


def test_a_container_that_holds_itself_ends() -> None:
    loop: dict[str, Any] = {"weight": np.ones(1)}
    loop["self"] = loop
    assert unpickle_arrays(pickle.dumps(loop), "test")[0]["self"] is None
    wide: Any = []
    for _ in range(40):
        wide = [wide, wide]  # 2^40 lists, if each were followed
    assert unpickle_arrays(pickle.dumps(wide), "test")[0]


def test_what_is_no_state_dict_is_refused_with_the_call_that_makes_one(tmp_path: Path) -> None:
    path = tmp_path / "x.pdparams"
    path.write_bytes(pickle.dumps({"model": {"weight": np.ones(2)}}))
    with pytest.raises(
        Refused, match=r"expected an array under 'model', got dict.*paddle\.save\(model\.state_dict\(\), path\)"
    ):
        read_weights(path)
    path.write_bytes(pickle.dumps([np.ones(2)]))
    with pytest.raises(Refused, match="holds one list, not tensors by name"):
        read_weights(path)


def test_what_follows_the_tensors_must_be_a_trailer(tmp_path: Path) -> None:
    path = tmp_path / "x.pdparams"
    path.write_bytes(pickle.dumps({"weight": np.ones(2)}) + b"leftover")
    with pytest.raises(Refused, match="8 bytes follow its tensors and are no whole trailer"):
        read_weights(path)
