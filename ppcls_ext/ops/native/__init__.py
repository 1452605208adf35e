"""Operators in C++, compiled where the suite runs: they install themselves where a compiler is.

`install` builds the sources beside this file into a shared object for this processor, once: some ten seconds. The
file is kept in a cache folder under a name made of the sources, the compiler and the processor. Without a compiler, or
with one that fails, everything is computed by Paddle's own operators, and `status` says why. Nothing is built by an
import.

The object is plain C and is called through `ctypes`, which lets go of the interpreter's lock: it knows nothing of
Paddle's headers, so one build serves every version of it and its C++ interface cannot break. It is linked with the
OpenMP library that Paddle itself runs on: one pool of threads, which OMP_NUM_THREADS sizes.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import paddle

SOURCES = (
    "depthwise.cpp",
    "depthwise_lanes.cpp",
    "conv.cpp",
    "conv_weights.cpp",
    "tokens.cpp",
    "scan.cpp",
    "products.cpp",
    "token_products.cpp",
    "pointwise.cpp",
    "pool.cpp",
    "norm.cpp",
    "batch_norm.cpp",
    "embedding.cpp",
    "group_mamba.cpp",
)
HEADERS = ("vectors.h", "maps.h", "depthwise.h", "conv.h", "tiles.h", "steps.h")
# no fused products and sums but those that the sources ask for: see vectors.h
FLAGS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fopenmp",
    "-fPIC",
)
SWITCH = "PPCLS_EXT_COMPILED"  # 0: never; anything else, or unset: where it can be built
CACHE = "PPCLS_EXT_CACHE"  # the folder of the shared objects, ~/.cache/ppcls_ext unless set
COMPILE_SECONDS = 300
_FLOAT32 = paddle.float32


@dataclass
class _State:
    library: ctypes.CDLL | None = None
    status: str = "compiled operators: not asked for"
    tried: bool = False
    inference: bool = True  # whether what has no gradient may be used


_state = _State()


class _Failed(Exception):
    """Why there is no library."""


def install() -> bool:
    """Load the compiled operators, and build them if they are not in the cache; True if they are there.

    A second call does nothing. Processes that come at once wait for the first one's build.
    """
    if not _state.tried:
        _state.tried = True
        try:
            path, built = _shared_object()
            _state.library = ctypes.CDLL(str(path))
            _state.status = f"compiled operators: {path}" + (" (built now)" if built else "")
        except _Failed as reason:
            _state.status = f"compiled operators: left out, Paddle's own are used: {reason}"
        except OSError as error:
            _state.status = f"compiled operators: left out, Paddle's own are used: {error}"
    return _state.library is not None


def library() -> ctypes.CDLL | None:
    """The compiled operators, or None where they were not installed or cannot be used now."""
    return _state.library


def status() -> str:
    """One line for the log."""
    return _state.status


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """Paddle's own operators inside, whatever is installed."""
    kept, _state.library = _state.library, None
    try:
        yield
    finally:
        _state.library = kept


@contextlib.contextmanager
def training() -> Iterator[None]:
    """Without the operators of inference inside: for a forward pass that is repeated later for its gradients."""
    before, _state.inference = _state.inference, False
    try:
        yield
    finally:
        _state.inference = before


# as it is: the converter to a static graph would evaluate what stands behind `or`
@paddle.jit.not_to_static
def usable(*tensors: paddle.Tensor | None) -> bool:
    """Whether a compiled operator can take these: float32 on a CPU, computed now and not traced into a graph."""
    if _state.library is None or not paddle.in_dynamic_mode():
        return False
    # not x.size, which takes 5 us
    return all(x is None or (x.dtype == _FLOAT32 and x.place.is_cpu_place() and 0 not in x.shape) for x in tensors)


# as it is: see `usable`
@paddle.jit.not_to_static
def usable_for_inference(*tensors: paddle.Tensor | None) -> bool:
    """`usable`, and no gradient is wanted of any of these: for operators that have none."""
    if not _state.inference or (paddle.is_grad_enabled() and not all(x is None or x.stop_gradient for x in tensors)):
        return False
    return usable(*tensors)


def pointer(x: paddle.Tensor | None) -> ctypes.c_void_p | None:
    """The address of a tensor's values, which must lie in order; see `ready`."""
    return None if x is None else ctypes.c_void_p(x.data_ptr())


def ready(x: paddle.Tensor) -> paddle.Tensor:
    """The tensor with its values in order: itself, or a copy of a view."""
    return x if x.is_contiguous() else x.contiguous()


def empty_where(wanted: Sequence[bool], shapes: Sequence[Sequence[int]]) -> list[paddle.Tensor | None]:
    """Room for the gradients that are wanted, None for the others."""
    return [paddle.empty(shape, dtype="float32") if want else None for want, shape in zip(wanted, shapes)]


def where(wanted: Sequence[bool], results: Sequence[paddle.Tensor]) -> tuple[paddle.Tensor | None, ...]:
    """The gradients that are wanted, None for the others: Paddle refuses one of what has none."""
    return tuple(result if want else None for want, result in zip(wanted, results))


def sizes(*numbers: int) -> ctypes.Array:
    """int64 numbers for C."""
    return (ctypes.c_int64 * len(numbers))(*numbers)


# ------------------------------------------------------------------------------------------------ building


def _shared_object() -> tuple[Path, bool]:
    """(the shared object, whether it was built just now)."""
    if os.environ.get(SWITCH, "1") == "0":
        raise _Failed(f"{SWITCH}=0")
    if platform.system() != "Linux" or platform.machine() not in ("x86_64", "AMD64"):
        raise _Failed(f"they are written for Linux on x86-64, this is {platform.system()} on {platform.machine()}")
    openmp = Path(paddle.__file__).parent / "libs" / "libiomp5.so"
    if not openmp.is_file():
        raise _Failed(f"{openmp} is missing")
    compiler = shutil.which(os.environ.get("CXX") or "g++")
    if compiler is None:
        raise _Failed(f"no compiler: {os.environ.get('CXX') or 'g++'} is not in the PATH")
    here = Path(__file__).parent
    folder = Path(os.environ.get(CACHE) or Path.home() / ".cache" / "ppcls_ext")
    target = folder / f"operators-{_key(here, compiler, openmp)}.so"
    if target.is_file():
        return target, False
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # given up when the file is closed, and by a process that dies
        if target.is_file():
            return target, False
        _build(here, compiler, openmp, target)
    return target, True


def _key(here: Path, compiler: str, openmp: Path) -> str:
    """What a build depends on, in 16 digits."""
    said = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=COMPILE_SECONDS)
    parts = [said.stdout, compiler, str(openmp), paddle.__version__, *FLAGS, *_processor()]
    parts += [(here / name).read_text(encoding="utf-8") for name in (*HEADERS, *SOURCES)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _processor() -> list[str]:
    """Model and instructions of the first processor, as Linux tells them."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0].splitlines()
    return [line for line in lines if line.startswith(("vendor_id", "model name", "flags"))]


def _build(here: Path, compiler: str, openmp: Path, target: Path) -> None:
    """Compile aside and rename: a build that was cut short leaves nothing under the name."""
    with tempfile.TemporaryDirectory(dir=target.parent) as aside:
        objects = [str(Path(aside) / f"{Path(name).stem}.o") for name in SOURCES]
        commands = [[compiler, *FLAGS, "-c", str(here / name), "-o", to] for name, to in zip(SOURCES, objects)]
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            list(pool.map(_run, commands))  # raises what the first that failed has raised
        # not with -fopenmp, which would bring the compiler's own library of threads along
        whole = Path(aside) / "operators.so"
        _run([compiler, "-shared", "-o", str(whole), *objects, str(openmp)])
        os.replace(whole, target)


def _run(command: list[str]) -> None:
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise _Failed(f"{command[0]} took more than {COMPILE_SECONDS} s") from error
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if "error" in line] or result.stderr.splitlines()
        reason = f": {lines[0].strip()}" if lines else ""
        raise _Failed(f"{command[0]} failed with status {result.returncode}{reason}")
