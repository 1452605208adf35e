"""PyTorch's files -> what they hold, read without PyTorch and without calling what they name.

Two formats: since 1.6 a zip archive, uncompressed, with the pickle `data.pkl` and a file for each storage; before it a
stream of pickles (magic number, protocol, machine, the object, the keys of its storages) and the storages after them.
The facts are those of torch/serialization.py and torch/_utils.py. What a file declares is compared with its size before
anything is allocated, and a tensor may not be larger than the storage that it looks into.
"""

from __future__ import annotations

import io
import math
import pickle
import reprlib
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ppcls_ext.errors import Refused
from ppcls_ext.pickles.arrays import MAX_DIMENSIONS, NAMES, Array
from ppcls_ext.pickles.machine import ForeignName, Placeholder, checked_key, read_pickle, shown

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_BFLOAT16 = "bfloat16"
# PyTorch's name of a number type: its storage's name, NumPy's code
_NUMBERS = {
    "float64": ("Double", "f8"), "float32": ("Float", "f4"), "float16": ("Half", "f2"), _BFLOAT16: ("BFloat16", "u2"),
    "int64": ("Long", "i8"), "int32": ("Int", "i4"), "int16": ("Short", "i2"), "int8": ("Char", "i1"),
    "uint8": ("Byte", "u1"), "bool": ("Bool", "b1"), "uint16": (None, "u2"), "uint32": (None, "u4"),
    "uint64": (None, "u8"),
}  # fmt: skip
_UNTYPED = "uint8"  # a storage without a type counts bytes
_MAX_ENTRIES = 200_000  # of a zip archive: Python keeps about 500 bytes for each
_LARGEST = 1 << 56  # numbers; NumPy counts bytes in 63 bits, of empty arrays too
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_CURE = "Save its tensors alone, where it was made: torch.save(model.state_dict(), path)"


# ------------------------------------------------------------------------------------------------ stand-ins


@dataclass(frozen=True)
class NumberType:
    """Stands in for `torch.float32` and for `torch.FloatStorage`."""

    name: str

    def size(self) -> int:
        return np.dtype(_NUMBERS[self.name][1]).itemsize


@dataclass(frozen=True)
class _Storage:
    """Numbers in a row, known by a key; of a view, `start` is where it begins in the storage with that key."""

    key: str
    numbers: NumberType
    length: int
    start: int = 0


class StoredTensor(Placeholder):
    """A tensor before its numbers were read: a window of a storage, in numbers."""

    def __init__(self, storage: _Storage, start: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
        self.storage, self.start, self.shape, self.strides = storage, start, shape, strides


class _Marker:
    """Stands in for a class that is only named."""


def _sizes(value: Any, what: str) -> tuple[int, ...]:
    if not isinstance(value, tuple) or len(value) > MAX_DIMENSIONS:
        raise pickle.UnpicklingError(f"a tensor whose {what} is no short tuple")
    if not all(isinstance(size, int) and not isinstance(size, bool) and 0 <= size < 1 << 63 for size in value):
        raise pickle.UnpicklingError(f"a tensor whose {what} holds what is no size")
    return value


def _tensor(
    storage: Any, start: Any, shape: Any, strides: Any, gradient: Any = False, hooks: Any = None, marks: Any = None
) -> StoredTensor:
    """`_rebuild_tensor` and `_v2`; gradient and hooks say nothing here."""
    if marks:
        raise pickle.UnpicklingError("a tensor that is marked as conjugate or negative")
    if not isinstance(storage, _Storage) or not isinstance(start, int) or start < 0:
        raise pickle.UnpicklingError("a tensor without a storage")
    shape, strides = _sizes(shape, "shape"), _sizes(strides, "strides")
    if len(shape) != len(strides):
        raise pickle.UnpicklingError(f"a tensor of {len(shape)} sizes and {len(strides)} strides")
    if math.prod(max(size, 1) for size in shape) >= _LARGEST:
        raise pickle.UnpicklingError(f"a tensor of shape {shape}, larger than any memory")
    if 0 not in shape:
        end = start + sum((size - 1) * stride for size, stride in zip(shape, strides)) + 1
        if end > storage.length:
            raise pickle.UnpicklingError(f"a tensor of shape {shape} that ends {end - storage.length} numbers too late")
        reach = 0
        for stride, size in sorted((stride, size) for stride, size in zip(strides, shape) if size > 1):
            if stride <= reach:
                raise pickle.UnpicklingError(
                    f"a tensor of shape {shape} and strides {strides}, which overlaps itself: save its .clone()"
                )
            reach += (size - 1) * stride
    return StoredTensor(storage, start, shape, strides)


def _tensor_of_type(
    storage: Any, start: Any, shape: Any, strides: Any, gradient: Any, hooks: Any, numbers: Any, marks: Any = None
) -> StoredTensor:
    """`_rebuild_tensor_v3`: the storage counts bytes, the type stands beside it."""
    if not isinstance(storage, _Storage) or not isinstance(numbers, NumberType):
        raise pickle.UnpicklingError("a tensor without a storage or a type")
    size = numbers.size()
    typed = _Storage(storage.key, numbers, storage.length * storage.numbers.size() // size)
    return _tensor(typed, start, shape, strides, gradient, hooks, marks)


def _first(tensor: Any, *_: Any) -> StoredTensor:
    """A parameter is its tensor; whether it needs a gradient, its hooks and attributes say nothing here."""
    if not isinstance(tensor, StoredTensor):
        raise pickle.UnpicklingError("a parameter without a tensor")
    return tensor


def _of_class(function: Any, kind: Any, arguments: Any, state: Any = None) -> StoredTensor:
    if function not in (_tensor, _tensor_of_type, _first) or not isinstance(arguments, tuple):
        raise pickle.UnpicklingError("a tensor of an unknown kind")
    return function(*arguments)


def _size(values: Any = ()) -> tuple[int, ...]:
    return _sizes(values, "size")


def _device(*parts: Any) -> str:
    return ":".join(str(part) for part in parts if isinstance(part, (str, int)))


def _counter(counts: Any = None) -> dict[Any, Any]:
    """`collections.Counter`, where schedules keep their milestones."""
    return {checked_key(key): count for key, count in counts.items()} if isinstance(counts, dict) else {}


_NAMES: dict[tuple[str, str], Any] = {
    **NAMES,
    ("collections", "Counter"): _counter,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor_of_type,
    ("torch._utils", "_rebuild_parameter"): _first,
    ("torch._utils", "_rebuild_parameter_with_state"): _first,
    ("torch._tensor", "_rebuild_from_type_v2"): _of_class,
    ("torch", "Tensor"): _Marker,
    ("torch.nn.parameter", "Parameter"): _Marker,
    ("torch.nn.parameter", "Buffer"): _Marker,
    ("torch", "Size"): _size,
    ("torch", "device"): _device,
    ("torch.storage", "UntypedStorage"): NumberType(_UNTYPED),
    **{("torch", name): NumberType(name) for name in _NUMBERS},
    **{("torch", f"{storage}Storage"): NumberType(name) for name, (storage, _) in _NUMBERS.items() if storage},
}


def _storage(identity: Any) -> _Storage:
    """What stands outside of a pickle: ("storage", type, key, device, length[, view])."""
    if isinstance(identity, tuple) and identity and identity[0] == "module":
        raise ForeignName("it is a whole pickled module with its source code")
    if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != "storage":
        raise pickle.UnpicklingError("it refers to something outside of it that is no storage")
    _, numbers, key, _, length, *view = identity
    if not isinstance(numbers, NumberType) or not isinstance(key, str):
        raise pickle.UnpicklingError("a storage without a type or a key")
    (length,) = _sizes((length,), "storage")
    if not view or view[0] is None:
        return _Storage(key, numbers, length)
    if not isinstance(view[0], tuple) or len(view[0]) != 3:
        raise pickle.UnpicklingError("a storage that is a view, but not of what")
    _, start, view_length = view[0]
    start, view_length = _sizes((start, view_length), "storage")
    if start + view_length > length:
        raise pickle.UnpicklingError("a view that is larger than its storage")
    return _Storage(key, numbers, view_length, start)


# ------------------------------------------------------------------------------------------------ the two formats


class TorchFile:
    """A file of PyTorch's: `content` as it was saved, with `StoredTensor`s in it, of which `array` reads one.

    Raises `Refused`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._order = "<"
        self._numbers: dict[tuple[str, str], np.ndarray] = {}
        self._data = path.read_bytes()
        if self._data.startswith(b"PK"):
            self.content, self._bytes_of = self._open_archive()
        elif self._data[257:262] == b"ustar":
            raise self._refusal(
                "it is a tar archive, PyTorch's format of before 2017. Load it there with an old PyTorch and save again"
            )
        elif self._data.startswith(b"\x1f\x8b"):
            raise self._refusal("it is compressed with gzip; unpack it first")
        else:
            self.content, self._bytes_of = self._open_stream()

    def array(self, tensor: StoredTensor | Array) -> np.ndarray:
        """The numbers of a tensor, as a view of its storage; bfloat16 becomes float32."""
        if isinstance(tensor, Array):
            return tensor.finished()
        numbers = self._storage_numbers(tensor.storage)[tensor.storage.start + tensor.start :]
        if 0 in tensor.shape:
            numbers, strides = numbers[:0], (0,) * len(tensor.shape)
        else:
            strides = tuple(stride * numbers.itemsize for stride in tensor.strides)
        return np.lib.stride_tricks.as_strided(numbers, tensor.shape, strides, writeable=False)

    def _refusal(self, reason: object) -> Refused:
        return Refused(f"{self.path} cannot be read as PyTorch's weights: {reason}.")

    def _storage_numbers(self, storage: _Storage) -> np.ndarray:
        name = storage.numbers.name
        if (storage.key, name) not in self._numbers:
            data = self._bytes_of(storage.key)
            size = storage.numbers.size()
            if (storage.start + storage.length) * size > len(data):
                raise self._refusal(
                    f"storage {shown(storage.key)} holds {len(data)} bytes, {storage.length} numbers of {name} expected"
                )
            code = self._order + _NUMBERS[name][1]
            numbers = np.frombuffer(data, code, len(data) // size)
            if name == _BFLOAT16:
                numbers = (numbers.astype(np.uint32) << 16).view(np.float32)
            self._numbers[storage.key, name] = numbers
        return self._numbers[storage.key, name]

    def _pickle(self, data: bytes, start: int = 0, storage: Callable[[Any], _Storage] = _storage) -> tuple[Any, int]:
        try:
            return read_pickle(data, _NAMES, start, storage)
        except ForeignName as error:
            raise self._refusal(f"{error}. {_CURE}") from error
        except pickle.UnpicklingError as error:
            raise self._refusal(error) from error

    # ---------------------------------------------------------------------------------------- zip

    def _open_archive(self) -> tuple[Any, Callable[[str], memoryview]]:
        entries = self._entries()
        pickles = [name for name in entries if name == "data.pkl" or name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise self._refusal(f"it is a zip archive with {len(pickles)} files data.pkl, not with one")
        root = pickles[0].removesuffix("data.pkl")
        if root + "byteorder" in entries:
            order = bytes(self._entry(entries[root + "byteorder"]))
            if order not in (b"little", b"big"):
                raise self._refusal(f"its byte order is {shown(str(order, 'latin1'))}")
            self._order = "<" if order == b"little" else ">"

        def bytes_of(key: str) -> memoryview:
            if f"{root}data/{key}" not in entries:
                raise self._refusal(f"storage {shown(key)} is missing")
            return self._entry(entries[f"{root}data/{key}"])

        content, _ = self._pickle(bytes(self._entry(entries[pickles[0]])))
        return content, bytes_of

    def _entries(self) -> dict[str, zipfile.ZipInfo]:
        """The files of the archive: stored as they are, and together not larger than it."""
        if self._data.count(b"PK\x01\x02") > _MAX_ENTRIES:
            raise self._refusal(f"it is a zip archive of more than {_MAX_ENTRIES} files")
        try:
            with zipfile.ZipFile(io.BytesIO(self._data)) as archive:
                entries = {entry.filename: entry for entry in archive.infolist()}
        except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, struct.error) as error:
            raise self._refusal(f"its zip archive is cut short or damaged ({shown(str(error))})") from error
        if any(name.rpartition("/")[2] == "constants.pkl" for name in entries):
            raise self._refusal(f"it is a TorchScript program. {_CURE}")
        for entry in entries.values():
            stored = entry.compress_type == zipfile.ZIP_STORED and entry.file_size == entry.compress_size
            if not stored or entry.flag_bits & 1:
                raise self._refusal(f"{shown(entry.filename)} in it is compressed or encrypted, as PyTorch never does")
        declared = sum(entry.file_size for entry in entries.values())
        if declared > len(self._data):
            raise self._refusal(f"its entries claim {declared} bytes, the file has {len(self._data)}")
        return entries

    def _entry(self, entry: zipfile.ZipInfo) -> memoryview:
        """The bytes of a file in the archive, where they lie; its own header says how long it is itself."""
        at = entry.header_offset
        header = self._data[at : at + _LOCAL_HEADER.size] if at >= 0 else b""
        if len(header) == _LOCAL_HEADER.size:
            signature, name_length, extra_length = _LOCAL_HEADER.unpack(header)
            at += _LOCAL_HEADER.size + name_length + extra_length
            data = memoryview(self._data)[at : at + entry.file_size]
            if signature == b"PK\x03\x04" and len(data) == entry.file_size and zlib.crc32(data) == entry.CRC:
                return data
        raise self._refusal(f"{shown(entry.filename)} in it is damaged: its checksum differs")

    # ---------------------------------------------------------------------------------------- stream

    def _open_stream(self) -> tuple[Any, Callable[[str], memoryview]]:
        magic, at = self._pickle(self._data)
        if magic != _MAGIC:
            raise self._refusal("it is neither a zip archive nor begins with PyTorch's magic number")
        protocol, at = self._pickle(self._data, at)
        if protocol != _PROTOCOL:
            raise self._refusal(f"its protocol is {reprlib.repr(protocol)}, not {_PROTOCOL}")
        machine, at = self._pickle(self._data, at)
        if not isinstance(machine, dict) or machine.get("little_endian") is not True:
            raise self._refusal("it was not written on a little-endian machine")
        lengths: dict[str, tuple[int, NumberType]] = {}

        def storage(identity: Any) -> _Storage:
            found = _storage(identity)
            whole = identity[4], found.numbers
            if lengths.setdefault(found.key, whole) != whole:
                raise pickle.UnpicklingError(f"storage {shown(found.key)} is said to be of two kinds")
            return found

        content, at = self._pickle(self._data, at, storage)
        keys, at = self._pickle(self._data, at)
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or set(keys) != set(lengths):
            raise self._refusal("the storages in it are not those that its tensors need")
        storages: dict[str, memoryview] = {}
        for key in keys:
            length, numbers = lengths[key]
            if self._data[at : at + 8] != struct.pack("<q", length):
                raise self._refusal(
                    f"it is cut short or damaged: storage {shown(key)} has another length than declared"
                )
            storages[key] = memoryview(self._data)[at + 8 : at + 8 + length * numbers.size()]
            at += 8 + length * numbers.size()
        if at != len(self._data):
            raise self._refusal(f"it is cut short or damaged: {at} bytes expected, {len(self._data)} there")
        return content, storages.__getitem__
