"""What a process asks of its processor and its memory before it computes on a CPU; no Paddle.

Two settings, neither of which changes a result beyond rounding, and neither of which overrides a user's own:

- On AMD processors the MKL inside Paddle takes its slow path unless `MKL_DEBUG_CPU_TYPE` names one that the processor
  has; with it a matrix product is 2 to 5 times as fast. It must be set before Paddle is imported, and never where the
  instructions are missing.
- Paddle gives the memory of large results back to the system, which clears it page by page when the next one is
  written. Kept in the process it is there at once: an addition of 6 MB takes a fifth of the time, a training step of
  ShuffleNetV2 about 15 % less; the peak of a process was up to 5 % higher.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import MutableMapping
from pathlib import Path

MKL_VARIABLE = "MKL_DEBUG_CPU_TYPE"
KEEP_VARIABLE = "PPCLS_EXT_KEEP_MEMORY"  # 0: freed memory goes back to the system, as without this suite
AVX2 = {"avx2", "fma"}
AVX512 = {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"}
# <malloc.h>
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4

_notes: list[str] = []


def notes() -> list[str]:
    """What was set in this process, a line for the log each."""
    return list(_notes)


def mkl_setting(cpuinfo: str) -> str | None:
    """The value of MKL_DEBUG_CPU_TYPE for the text of /proc/cpuinfo: "7" (AVX-512), "5" (AVX2), or None for none.

    AMD alone, and only what every processor has.
    """
    fields = [line.partition(":")[::2] for line in cpuinfo.splitlines()]
    vendors = {value.strip() for name, value in fields if name.strip() == "vendor_id"}
    instructions = [set(value.split()) for name, value in fields if name.strip() == "flags"]
    if vendors != {"AuthenticAMD"} or not instructions:
        return None
    common = set.intersection(*instructions)
    if common >= AVX2 | AVX512:
        return "7"
    return "5" if common >= AVX2 else None


def prepare_mkl(environment: MutableMapping[str, str] = os.environ, cpuinfo: Path = Path("/proc/cpuinfo")) -> None:
    """Set MKL_DEBUG_CPU_TYPE where it helps; to be called before Paddle is imported."""
    if MKL_VARIABLE in environment or not cpuinfo.is_file():
        return
    setting = mkl_setting(cpuinfo.read_text(encoding="utf-8", errors="replace"))
    if setting is not None:
        environment[MKL_VARIABLE] = setting
        instructions = "AVX-512" if setting == "7" else "AVX2"
        _notes.append(f"AMD processor: {MKL_VARIABLE}={setting}, so that Paddle's matrix products use {instructions}")


def keep_freed_memory() -> bool:
    """Let glibc's malloc keep what is freed, for the whole process; True if it does now.

    Left alone without glibc, and where the user has set malloc's own variables.
    """
    own = [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD"))]
    if os.environ.get(KEEP_VARIABLE, "1") == "0" or own or "CS_GNU_LIBC_VERSION" not in os.confstr_names:
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))
