"""Writes files as PyTorch does, without PyTorch, of both formats, and whatever else a test wants to be in them.

Compared with files that PyTorch itself wrote (`tests/weights/torch_*.pth`) in tests/test_torch_files.py.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

STORAGES = {
    "f8": "DoubleStorage", "f4": "FloatStorage", "f2": "HalfStorage", "i8": "LongStorage", "i4": "IntStorage",
    "i2": "ShortStorage", "i1": "CharStorage", "u1": "ByteStorage", "b1": "BoolStorage",
}  # fmt: skip


@dataclass(frozen=True)
class Name:
    """A thing that the pickle names."""

    module: str
    name: str


@dataclass(frozen=True)
class Call:
    """A call that the pickle asks for."""

    function: Name
    arguments: tuple[Any, ...] = ()
    state: Any = None


@dataclass(frozen=True)
class Outside:
    """A reference out of the pickle."""

    identity: Any


@dataclass
class Storages:
    """The storages of a file: {key: (name of the type, bytes)}."""

    held: dict[str, tuple[str, bytes]] = field(default_factory=dict)

    def add(self, array: np.ndarray, kind: str | None = None) -> Outside:
        """A storage with the numbers of `array`; `kind` for types that NumPy lacks."""
        key = str(len(self.held))
        kind = kind or STORAGES[array.dtype.str[1:]]
        self.held[key] = (kind, array.astype(array.dtype.newbyteorder("<")).tobytes())
        return Outside(("storage", Name("torch", kind), key, "cpu", array.size))


ORDERED = Name("collections", "OrderedDict")


def view(storage: Outside, shape: Sequence[int], strides: Sequence[int], start: int = 0) -> Call:
    """A tensor that looks into a storage."""
    arguments = (storage, start, tuple(shape), tuple(strides), False, Call(ORDERED))
    return Call(Name("torch._utils", "_rebuild_tensor_v2"), arguments)


def tensor(storages: Storages, array: np.ndarray, kind: str | None = None) -> Call:
    """A contiguous tensor with a storage of its own."""
    strides = [step // array.itemsize for step in np.empty(array.shape, array.dtype).strides]
    return view(storages.add(array, kind), array.shape, strides)


def parameter(of: Call) -> Call:
    return Call(Name("torch._utils", "_rebuild_parameter"), (of, True, Call(ORDERED)))


def encoded(value: Any) -> bytes:
    """The opcodes of a value, protocol 2, nothing remembered."""
    match value:
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            size = value.bit_length() // 8 + 1
            return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            text = value.encode()
            return b"X" + struct.pack("<I", len(text)) + text
        case tuple():
            return b"(" + b"".join(map(encoded, value)) + b"t"
        case list():
            return b"](" + b"".join(map(encoded, value)) + b"e"
        case dict():
            return b"}(" + b"".join(encoded(k) + encoded(v) for k, v in value.items()) + b"u"
        case Name():
            return b"c" + value.module.encode() + b"\n" + value.name.encode() + b"\n"
        case Call():
            state = b"" if value.state is None else encoded(value.state) + b"b"
            return encoded(value.function) + encoded(value.arguments) + b"R" + state
        case Outside():
            return encoded(value.identity) + b"Q"
    raise TypeError(type(value).__name__)


def pickled(value: Any) -> bytes:
    return b"\x80\x02" + encoded(value) + b"."


def zip_file(content: Any, storages: Storages, order: str = "little", root: str = "archive") -> bytes:
    """The format since PyTorch 1.6. `content` may be the pickle itself. The same bytes at any time of the day."""

    def entry(name: str) -> zipfile.ZipInfo:
        return zipfile.ZipInfo(f"{root}/{name}")  # of 1980, and not of now

    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(entry("data.pkl"), content if isinstance(content, bytes) else pickled(content))
        archive.writestr(entry("byteorder"), order)
        for key, (_, data) in storages.held.items():
            archive.writestr(entry(f"data/{key}"), data)
        archive.writestr(entry("version"), "3\n")
    return out.getvalue()


def sizes_of(kind: str) -> int:
    return {"BFloat16Storage": 2, **{name: int(code[1]) for code, name in STORAGES.items()}}[kind]


def in_stream(value: Any) -> Any:
    """The same value with references as the stream format has them: with a place for a view."""
    match value:
        case Outside():
            return Outside((*value.identity, None)) if len(value.identity) == 5 else value
        case Call():
            return Call(value.function, in_stream(value.arguments), in_stream(value.state))
        case dict():
            return {key: in_stream(item) for key, item in value.items()}
        case list() | tuple():
            return type(value)(in_stream(item) for item in value)
    return value


def stream_file(content: Any, storages: Storages, little: bool = True) -> bytes:
    """The format before PyTorch 1.6. `content` may be the pickle itself."""
    machine = {"protocol_version": 1001, "little_endian": little, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    head = b"".join(map(pickled, (0x1950A86A20F9469CFC6C, 1001, machine)))
    body = content if isinstance(content, bytes) else pickled(in_stream(content))
    data = b"".join(struct.pack("<q", len(raw) // sizes_of(kind)) + raw for kind, raw in storages.held.values())
    return head + body + pickled(list(storages.held)) + data
