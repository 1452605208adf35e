"""A plugin of pytest: the compiled operators get copies of their tensors between pages that nobody may touch.

python -m pytest -p guarded_memory tests/test_native_maps.py, with tests/ in PYTHONPATH. GUARDED=end (the default) puts
the end of each tensor at such a page, GUARDED=begin its beginning: a read or a write beyond it ends the process. It
stands in for `native.pointer` and for the lists of addresses of `KeptWeights`.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import Any

import paddle
import pytest
from paddle import nn

from ppcls_ext.layers import KeptWeights
from ppcls_ext.ops import native

READ_AND_WRITE, NOTHING, PRIVATE_ANONYMOUS = 3, 0, 0x22

_c = ctypes.CDLL(None)
_c.mmap.restype = ctypes.c_void_p
_c.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_c.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_c.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]

_copies: list[tuple[paddle.Tensor, int, int, int, int]] = []  # tensor, bytes, address, pages' address and length
_calls = 0
_library, _addresses = native.library, KeptWeights.addresses


def guarded_pointer(x: paddle.Tensor | None) -> ctypes.c_void_p | None:
    """The address of a copy of the tensor's values between two forbidden pages."""
    if x is None:
        return None
    size = x.numpy().nbytes
    whole = (-(-size // mmap.PAGESIZE) + 2) * mmap.PAGESIZE
    pages = _c.mmap(None, whole, READ_AND_WRITE, PRIVATE_ANONYMOUS, -1, 0)
    last = pages + whole - mmap.PAGESIZE
    for page in (pages, last):
        if _c.mprotect(page, mmap.PAGESIZE, NOTHING):
            raise OSError("mprotect failed")
    address = last - size if os.environ.get("GUARDED", "end") == "end" else pages + mmap.PAGESIZE
    ctypes.memmove(address, x.data_ptr(), size)
    _copies.append((x, size, address, pages, whole))
    return ctypes.c_void_p(address)


class GuardedLibrary:
    """The library, whose calls bring back what they wrote."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library

    def __getattr__(self, name: str) -> Any:
        if name.endswith("_room"):  # computes with sizes alone
            return getattr(self.library, name)

        def call(*arguments: object) -> None:
            global _calls
            _calls += 1
            getattr(self.library, name)(*arguments)
            for x, size, address, pages, whole in _copies:
                ctypes.memmove(x.data_ptr(), address, size)
                _c.munmap(pages, whole)
            _copies.clear()

        return call


def guarded_addresses(kept: KeptWeights, layer: nn.Layer) -> ctypes.Array | None:
    found = _addresses(kept, layer)
    for i, tensor in enumerate(kept._known if found else ()):
        found[i] = guarded_pointer(tensor)
    return found


def guarded_library() -> GuardedLibrary | None:
    found = _library()
    return None if found is None else GuardedLibrary(found)


def pytest_configure(config: pytest.Config) -> None:
    native.pointer, native.library = guarded_pointer, guarded_library
    KeptWeights.addresses = guarded_addresses


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(f"{_calls} calls between forbidden pages")
