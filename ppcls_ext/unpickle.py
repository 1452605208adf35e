"""A pickle reader that can make arrays, numbers, strings and containers of them, and nothing else.

No function that a pickle names is called. NumPy's own reconstruction is not called either: a crafted data type can
make it read memory that it should not. What stands in for it here takes shape, plain data type and bytes, and checks
that they agree. Files of Paddle 2 and 3 and of NumPy 1 and 2 differ in module names only.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from typing import Any

import numpy as np

from ppcls_ext.errors import Refused

_PLAIN_TYPE = re.compile(r"[fiub][1248]$")


class _Type:
    """Stands in for `numpy.dtype`: a plain number type and its byte order."""

    def __init__(self, code: str, align: bool = False, copy: bool = True) -> None:
        if not isinstance(code, str) or not _PLAIN_TYPE.match(code):
            raise pickle.UnpicklingError(f"an array of type {code!r} is no tensor")
        self._code = code
        self._order = "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, order, *composite = state[:5]
        if order not in ("<", ">", "|", "=") or any(part is not None for part in composite):
            raise pickle.UnpicklingError("an array of a composite type is no tensor")
        self._order = order

    def array(self, shape: tuple[int, ...], data: bytes, fortran: bool) -> np.ndarray:
        dtype = np.dtype(self._order.replace("|", "") + self._code)
        if not isinstance(shape, tuple) or not all(isinstance(size, int) and size >= 0 for size in shape):
            raise pickle.UnpicklingError(f"an array of shape {shape!r} is no tensor")
        if not isinstance(data, (bytes, bytearray)) or len(data) != math.prod(shape) * dtype.itemsize:
            raise pickle.UnpicklingError(f"an array of shape {shape} does not have the bytes that it needs")
        return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


class _Array:
    """Stands in for an array under reconstruction: NumPy pickles an empty array first, and its state after it."""

    value: np.ndarray | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, _Type):
            raise pickle.UnpicklingError("an array without a type is no tensor")
        self.value = dtype.array(shape, data, bool(fortran))


class _ArrayClass:
    """Stands in for `numpy.ndarray`, which a pickle only names."""


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _from_buffer(data: bytes, dtype: _Type, shape: tuple[int, ...], order: str) -> np.ndarray:
    return dtype.array(shape, data, order == "F")


def _scalar(dtype: _Type, data: bytes) -> np.ndarray:
    return dtype.array((), data, False)


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"text in the encoding {encoding!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """Protocol 2 writes b"" as a call of `bytes`."""
    return b""


_STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _ArrayClass,
    ("numpy", "dtype"): _Type,
    ("collections", "OrderedDict"): dict,
    ("builtins", "tuple"): tuple,
    ("__builtin__", "tuple"): tuple,
    ("__builtin__", "bytes"): _no_bytes,
    ("_codecs", "encode"): _encode,
    **{
        (f"numpy.{core}.{module}", name): stand_in
        for core in ("core", "_core")
        for module, name, stand_in in (
            ("multiarray", "_reconstruct", _reconstruct),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _from_buffer),
        )
    },
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is neither an array nor a container")
        return _STAND_INS[module, name]


def unpickle_arrays(data: bytes, source: object) -> tuple[Any, int]:
    """(the object, how many bytes its pickle takes) from data that begins with a pickle; arrays are read-only.

    Raises `Refused`, with `source` named, for anything but arrays, numbers, strings and containers of them.
    """
    stream = io.BytesIO(data)
    try:
        content = _finished(_Unpickler(stream).load(), {})
    except (
        pickle.UnpicklingError,
        ArithmeticError,
        AttributeError,
        EOFError,
        LookupError,
        MemoryError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise Refused(f"{source} cannot be read as tensors: {error or type(error).__name__}.") from error
    return content, stream.tell()


def _finished(value: Any, done: dict[int, Any]) -> Any:
    """The same containers with arrays in place of the stand-ins; each once, however often it is referred to."""
    if isinstance(value, _Array) and value.value is not None:
        return value.value
    if value is None or isinstance(value, (str, bytes, int, float, np.ndarray)):
        return value
    if not isinstance(value, (dict, list, tuple)):
        raise pickle.UnpicklingError(f"it holds a {type(value).__name__.strip('_')}")
    if id(value) not in done:
        done[id(value)] = None  # what a container that holds itself finds
        if isinstance(value, dict):
            done[id(value)] = {_finished(key, done): _finished(item, done) for key, item in value.items()}
        else:
            done[id(value)] = type(value)(_finished(item, done) for item in value)
    return done[id(value)]
