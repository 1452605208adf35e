"""Pickles of arrays, numbers, strings and containers of them, and of nothing else.

No function that a pickle names is called (`machine.py` reads it). NumPy's own reconstruction is not called either: a
crafted data type can make it read memory that it should not. What stands in for it here takes shape, plain data type
and bytes, and checks that they agree. Files of Paddle 2 and 3 and of NumPy 1 and 2 differ in module names only.
"""

from __future__ import annotations

import math
import pickle
import re
import reprlib
from typing import Any

import numpy as np

from ppcls_ext.errors import Refused
from ppcls_ext.pickles.machine import Placeholder, checked_key, read_pickle

MAX_DIMENSIONS = 32
_PLAIN_TYPE = re.compile(r"[fiub][1248]$")


class _Type(Placeholder):
    """Stands in for `numpy.dtype`: a plain number type and its byte order."""

    def __init__(self, code: str, align: bool = False, copy: bool = True) -> None:
        if not isinstance(code, str) or not _PLAIN_TYPE.match(code):
            raise pickle.UnpicklingError(f"an array of type {reprlib.repr(code)} is no tensor")
        self._code = code
        self._order = "="

    def set_state(self, state: Any) -> None:
        _, order, *composite = state[:5]
        if order not in ("<", ">", "|", "=") or any(part is not None for part in composite):
            raise pickle.UnpicklingError("an array of a composite type is no tensor")
        self._order = order

    def array(self, shape: Any, data: Any, fortran: bool) -> np.ndarray:
        dtype = np.dtype(self._order.replace("|", "") + self._code)
        sizes = shape if isinstance(shape, tuple) and len(shape) <= MAX_DIMENSIONS else (None,)
        if not all(isinstance(size, int) and size >= 0 for size in sizes):
            raise pickle.UnpicklingError(f"an array of shape {reprlib.repr(shape)} is no tensor")
        if isinstance(data, str):
            data = data.encode("latin1")  # bytes, as Python 2 wrote them
        if not isinstance(data, (bytes, memoryview)) or len(data) != math.prod(shape) * dtype.itemsize:
            raise pickle.UnpicklingError(f"an array of shape {shape} does not have the bytes that it needs")
        return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


class Array(Placeholder):
    """Stands in for an array under reconstruction: NumPy pickles an empty array first, and its state after it."""

    value: np.ndarray | None = None

    def finished(self) -> np.ndarray:
        if self.value is None:
            raise pickle.UnpicklingError("it holds an Array without content")
        return self.value

    def set_state(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        self.value = _typed(dtype).array(shape, data, bool(fortran))


def _typed(dtype: Any) -> _Type:
    if not isinstance(dtype, _Type):
        raise pickle.UnpicklingError("an array without a type is no tensor")
    return dtype


class _ArrayClass:
    """Stands in for `numpy.ndarray`, which a pickle only names."""


def _reconstruct(*_: object) -> Array:
    return Array()


def _from_buffer(data: bytes, dtype: Any, shape: tuple[int, ...], order: str) -> np.ndarray:
    return _typed(dtype).array(shape, data, order == "F")


def _scalar(dtype: Any, data: bytes) -> np.ndarray:
    return _typed(dtype).array((), data, False)


def _encode(text: Any, encoding: Any) -> bytes:
    if encoding != "latin1" or not isinstance(text, str):
        raise pickle.UnpicklingError(f"text in the encoding {reprlib.repr(encoding)}")
    return text.encode("latin1")


def _dictionary(pairs: Any = ()) -> dict[Any, Any]:
    """`OrderedDict`: its pairs come after it, or, from Python 2, with it."""
    return {checked_key(key): value for key, value in (pairs.items() if isinstance(pairs, dict) else pairs)}


def _no_bytes() -> bytes:
    """Protocol 2 writes b"" as a call of `bytes`."""
    return b""


# What a pickle of arrays may name, and what stands in for it.
NAMES: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _ArrayClass,
    ("numpy", "dtype"): _Type,
    ("collections", "OrderedDict"): _dictionary,
    ("_codecs", "encode"): _encode,
    **{(builtins, "tuple"): tuple for builtins in ("builtins", "__builtin__")},
    **{(builtins, "bytes"): _no_bytes for builtins in ("builtins", "__builtin__")},
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


def unpickle_arrays(data: bytes, source: object) -> tuple[Any, int]:
    """(the object, how many bytes its pickle takes) from data that begins with a pickle; arrays are read-only.

    Raises `Refused`, with `source` named, for anything but arrays, numbers, strings and containers of them.
    """
    try:
        content, end = read_pickle(data, NAMES)
        return _finished(content, {}), end
    except (pickle.UnpicklingError, RecursionError) as error:
        raise Refused(f"{source} cannot be read as tensors: {error}.") from error


def _finished(value: Any, done: dict[int, Any]) -> Any:
    """The same containers with arrays in place of the stand-ins; each once, however often it is referred to."""
    if isinstance(value, Array):
        return value.finished()
    if value is None or isinstance(value, (str, bytes, memoryview, int, float, np.ndarray)):
        return value
    if not isinstance(value, (dict, list, tuple)):
        raise pickle.UnpicklingError(f"it holds a {getattr(value, '__name__', type(value).__name__).strip('_')}")
    if id(value) not in done:
        done[id(value)] = None  # what a container that holds itself finds
        if isinstance(value, dict):
            done[id(value)] = {key: _finished(item, done) for key, item in value.items()}
        else:
            done[id(value)] = type(value)(_finished(item, done) for item in value)
    return done[id(value)]
