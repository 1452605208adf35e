"""What is set before Paddle computes on a CPU: for AMD processors alone, never over a user's own value."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ppcls_ext import processor

BASE = "fpu sse4_2 avx avx2 fma"
WIDE = f"{BASE} avx512f avx512dq avx512cd avx512bw avx512vl"


def cpuinfo(vendor: str, *flags: str) -> str:
    blocks = [f"processor\t: {i}\nvendor_id\t: {vendor}\nflags\t\t: {own}\n" for i, own in enumerate(flags)]
    return "\n".join(blocks)


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        (cpuinfo("AuthenticAMD", WIDE, WIDE), "7"),
        (cpuinfo("AuthenticAMD", BASE), "5"),
        (cpuinfo("AuthenticAMD", WIDE, BASE), "5"),  # only what every processor has
        (cpuinfo("AuthenticAMD", WIDE.replace("avx512vl", "")), "5"),
        (cpuinfo("AuthenticAMD", "fpu sse4_2 avx"), None),
        (cpuinfo("AuthenticAMD", "fpu avx2"), None),
        (cpuinfo("GenuineIntel", WIDE), None),
        (cpuinfo("HygonGenuine", BASE), None),
        ("processor\t: 0\nFeatures\t: fp asimd\n", None),
        ("", None),
    ],
)
def test_mkl_is_told_of_amd_processors_what_they_have(text: str, setting: str | None) -> None:
    assert processor.mkl_setting(text) == setting


def test_a_users_own_value_stays_and_the_log_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "_notes", [])
    file = tmp_path / "cpuinfo"
    file.write_text(cpuinfo("AuthenticAMD", WIDE))
    own = {processor.MKL_VARIABLE: "5"}
    processor.prepare_mkl(own, file)
    assert own == {processor.MKL_VARIABLE: "5"} and processor.notes() == []
    empty: dict[str, str] = {}
    processor.prepare_mkl(empty, tmp_path / "no such file")
    assert empty == {}
    processor.prepare_mkl(empty, file)
    processor.prepare_mkl(empty, file)
    assert empty == {processor.MKL_VARIABLE: "7"}
    assert processor.notes() == ["AMD processor: MKL_DEBUG_CPU_TYPE=7, so that Paddle's matrix products use AVX-512"]


FAULTS = """
import resource, sys
import numpy as np
from ppcls_ext import processor
print(processor.keep_freed_memory())
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(1 << 24, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(min(faults() for _ in range(3)))
"""


@pytest.mark.parametrize(
    ("environment", "kept"), [({}, True), ({"PPCLS_EXT_KEEP_MEMORY": "0"}, False), ({"MALLOC_ARENA_MAX": "2"}, False)]
)
def test_freed_memory_is_kept_unless_the_user_says_otherwise(environment: dict[str, str], kept: bool) -> None:
    variables = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], capture_output=True, text=True, env={**variables, **environment}, check=True
    )
    said, faults = done.stdout.split()
    if said == "False" and kept:
        pytest.skip("malloc is not glibc's here")
    assert (said == "True") == kept
    assert not kept or int(faults) < 100  # of 4096 pages
