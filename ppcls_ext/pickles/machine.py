"""A pickle machine that builds numbers, text, bytes and containers, and calls nothing but what it was handed.

Python's own unpickler allocates what a file declares (the memo of one short opcode can take 32 GB) and hashes what it
finds. Here every length is compared with what is left of the file first, the number of steps and of bytes copied is
bounded, and keys of dictionaries are text or small numbers. What a pickle may name, and what stands in for it, the
caller says. Opcodes: CPython's Lib/pickletools.py.
"""

from __future__ import annotations

import pickle
import reprlib
import struct
from collections.abc import Callable, Mapping
from typing import Any

# A tensor takes about 40 steps in PyTorch's files and 20 in Paddle's.
MAX_STEPS = 2_000_000
_LONGEST_INTEGER = 16  # bytes; the magic number of PyTorch's older files has 10
_KEY_LIMIT = 1 << 63
_MARK = object()

Names = Mapping[tuple[str, str], Any]


class ForeignName(pickle.UnpicklingError):
    """A pickle names something for which nothing stands in."""


class Placeholder:
    """What a stand-in may return for an object that gets its content later, or that needs more than the pickle."""

    def set_state(self, state: Any) -> None:
        """What the pickle says about the object after it was made."""
        raise pickle.UnpicklingError(f"it sets the state of a {type(self).__name__.strip('_')}")


def shown(text: str) -> str:
    """A name out of a file, fit for a terminal: short, and without control characters."""
    text = text if len(text) <= 80 else text[:80] + "..."
    return text if text.isprintable() else ascii(text)


def read_pickle(
    data: bytes,
    names: Names,
    start: int = 0,
    persistent: Callable[[Any], Any] | None = None,
) -> tuple[Any, int]:
    """(the object, where its pickle ends) from the pickle that begins at `start`.

    `names`: what may be named -> what stands for it, called where the pickle calls. `persistent`: what stands for an
    object kept outside of the pickle. Bytes are views of `data`. Raises `pickle.UnpicklingError`.
    """
    try:
        return _Machine(data, names, start, persistent).run()
    except (
        ArithmeticError,
        AttributeError,
        IndexError,
        KeyError,
        RecursionError,
        TypeError,
        ValueError,
        struct.error,
    ) as error:  # fmt: skip - a stand-in may be called with anything
        raise pickle.UnpicklingError(str(error) or type(error).__name__) from error


class _Machine:
    def __init__(self, data: bytes, names: Names, start: int, persistent: Callable[[Any], Any] | None) -> None:
        self.data = data
        self.view = memoryview(data)
        self.names = names
        self.at = start
        self.persistent = persistent
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.copies_left = 8 * (len(data) - start) + (1 << 20)

    def run(self) -> tuple[Any, int]:
        for _ in range(MAX_STEPS):
            code = self.take(1)[0]
            if code == 0x2E:  # STOP
                value = self.pop()
                return value, self.at
            operation = _OPERATIONS.get(code)
            if operation is None:
                raise pickle.UnpicklingError(f"byte {self.at - 1} is {code:#04x}, which no file of tensors has there")
            operation(self)
        raise pickle.UnpicklingError(f"it takes more than {MAX_STEPS} steps")

    # ---------------------------------------------------------------------------------------- reading

    def take(self, size: int) -> memoryview:
        if size > len(self.data) - self.at:
            raise pickle.UnpicklingError(f"it ends too early: {size} bytes expected, {len(self.data) - self.at} there")
        self.at += size
        return self.view[self.at - size : self.at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def line(self) -> str:
        end = self.data.find(b"\n", self.at)
        if end < 0:
            raise pickle.UnpicklingError("it ends too early: within a line")
        text = str(self.take(end - self.at), "latin1")
        self.at += 1
        return text

    def integer(self, size: int) -> int:
        if size > _LONGEST_INTEGER:
            raise pickle.UnpicklingError(f"an integer of {size} bytes")
        return int.from_bytes(self.take(size), "little", signed=True)

    # ---------------------------------------------------------------------------------------- the stack

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise pickle.UnpicklingError("it takes what it has not put there")
        return self.stack.pop()

    def top(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise pickle.UnpicklingError("it takes what it has not put there")
        return self.stack[-1]

    def pop_to_mark(self) -> list[Any]:
        for i in range(len(self.stack) - 1, -1, -1):
            if self.stack[i] is _MARK:
                items = self.stack[i + 1 :]
                del self.stack[i:]
                return items
        raise pickle.UnpicklingError("it takes what it has not put there")

    def pop_last(self, count: int) -> None:
        items = [self.pop() for _ in range(count)]
        self.push(tuple(reversed(items)))

    def append(self, items: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, list):
            raise pickle.UnpicklingError("it appends to what is no list")
        target.extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, dict) or len(items) % 2:
            raise pickle.UnpicklingError("it sets items of what is no dictionary")
        for key, value in zip(items[::2], items[1::2]):
            target[checked_key(key)] = value

    def remember(self, index: int) -> None:
        self.memo[index] = self.top()

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise pickle.UnpicklingError("it recalls what it has not stored")
        self.push(self.memo[index])

    # ---------------------------------------------------------------------------------------- names and calls

    def named(self, module: Any, name: Any) -> Any:
        if not isinstance(module, str) or not isinstance(name, str):
            raise pickle.UnpicklingError("it names something by what is no text")
        if (module, name) not in self.names:
            raise ForeignName(f"it names {shown(f'{module}.{name}')}, which is neither a tensor nor a container")
        return self.names[module, name]

    def call(self, function: Any, arguments: Any) -> None:
        if not callable(function) or not isinstance(arguments, tuple):
            raise pickle.UnpicklingError("it calls what is no function")
        self.charge(arguments)
        self.push(function(*arguments))

    def build(self) -> None:
        state, target = self.pop(), self.top()
        if isinstance(target, dict):
            return  # attributes of an OrderedDict: PyTorch keeps versions there
        if not isinstance(target, Placeholder):
            raise pickle.UnpicklingError("it sets the state of what has none")
        if isinstance(state, tuple):
            self.charge(state)
        target.set_state(state)

    def charge(self, arguments: tuple[Any, ...]) -> None:
        """A call may copy what it is given: the same large text converted a thousand times must not."""
        self.copies_left -= sum(len(a) for a in arguments if isinstance(a, (str, memoryview, list, tuple, dict)))
        if self.copies_left < 0:
            raise pickle.UnpicklingError("it copies more than it holds")

    def stand_in(self, identity: Any) -> None:
        if self.persistent is None:
            raise pickle.UnpicklingError("it refers to an object outside of it")
        self.push(self.persistent(identity))


def checked_key(key: Any) -> Any:
    """A key whose hash costs nothing and collides with no other by design."""
    if isinstance(key, str) or key is None or (isinstance(key, int) and abs(key) < _KEY_LIMIT):
        return key
    raise pickle.UnpicklingError(f"a dictionary with a key that is no text: {reprlib.repr(key)}")


def _text_number(text: str) -> int | bool:
    if text in ("00", "01"):
        return text == "01"
    return int(text.removesuffix("L"))


def _quoted(text: str) -> str:
    """Of protocol 0, as Python 2 wrote it."""
    if len(text) < 2 or text[0] not in "'\"" or text[0] != text[-1] or "\\" in text:
        raise pickle.UnpicklingError("a text without its quotation marks, or with escapes")
    return text[1:-1]


def _stack_global(m: _Machine) -> None:
    name = m.pop()
    m.push(m.named(m.pop(), name))


def _reduce(m: _Machine) -> None:
    arguments = m.pop()
    m.call(m.pop(), arguments)


def _object(m: _Machine) -> None:
    function, *arguments = m.pop_to_mark()
    m.call(function, tuple(arguments))


def _instance(m: _Machine) -> None:
    function = m.named(m.line(), m.line())
    m.call(function, tuple(m.pop_to_mark()))


def _dictionary(m: _Machine) -> None:
    items = m.pop_to_mark()
    m.push({})
    m.set_items(items)


def _set_item(m: _Machine) -> None:
    value = m.pop()
    m.set_items([m.pop(), value])


def _discard(m: _Machine) -> None:
    if m.stack and m.stack[-1] is _MARK:
        m.stack.pop()
    else:
        m.pop()


_OPERATIONS: dict[int, Callable[[_Machine], object]] = {
    code[0]: operation
    for code, operation in {
        # protocol and frames say nothing that is needed here
        b"\x80": lambda m: m.take(1),
        b"\x95": lambda m: m.take(8),
        # numbers and constants
        b"N": lambda m: m.push(None),
        b"\x88": lambda m: m.push(True),
        b"\x89": lambda m: m.push(False),
        b"I": lambda m: m.push(_text_number(m.line())),
        b"L": lambda m: m.push(_text_number(m.line())),
        b"J": lambda m: m.push(m.integer(4)),
        b"K": lambda m: m.push(m.number(1)),
        b"M": lambda m: m.push(m.number(2)),
        b"\x8a": lambda m: m.push(m.integer(m.number(1))),
        b"\x8b": lambda m: m.push(m.integer(m.number(4))),
        b"F": lambda m: m.push(float(m.line())),
        b"G": lambda m: m.push(struct.unpack(">d", m.take(8))[0]),
        # text; Python 2 wrote bytes as text, whence latin1
        b"S": lambda m: m.push(_quoted(m.line())),
        b"T": lambda m: m.push(str(m.take(m.number(4)), "latin1")),
        b"U": lambda m: m.push(str(m.take(m.number(1)), "latin1")),
        b"V": lambda m: m.push(m.line().encode("latin1").decode("raw-unicode-escape")),
        b"X": lambda m: m.push(str(m.take(m.number(4)), "utf-8")),
        b"\x8c": lambda m: m.push(str(m.take(m.number(1)), "utf-8")),
        b"\x8d": lambda m: m.push(str(m.take(m.number(8)), "utf-8")),
        # bytes
        b"B": lambda m: m.push(m.take(m.number(4))),
        b"C": lambda m: m.push(m.take(m.number(1))),
        b"\x8e": lambda m: m.push(m.take(m.number(8))),
        b"\x96": lambda m: m.push(m.take(m.number(8))),
        # containers
        b"(": lambda m: m.push(_MARK),
        b"0": _discard,
        b"1": lambda m: m.pop_to_mark(),
        b"2": lambda m: m.push(m.top()),
        b")": lambda m: m.push(()),
        b"\x85": lambda m: m.pop_last(1),
        b"\x86": lambda m: m.pop_last(2),
        b"\x87": lambda m: m.pop_last(3),
        b"t": lambda m: m.push(tuple(m.pop_to_mark())),
        b"]": lambda m: m.push([]),
        b"l": lambda m: m.push(m.pop_to_mark()),
        b"a": lambda m: m.append([m.pop()]),
        b"e": lambda m: m.append(m.pop_to_mark()),
        b"}": lambda m: m.push({}),
        b"d": _dictionary,
        b"s": _set_item,
        b"u": lambda m: m.set_items(m.pop_to_mark()),
        # what was there before
        b"p": lambda m: m.remember(_text_number(m.line())),
        b"q": lambda m: m.remember(m.number(1)),
        b"r": lambda m: m.remember(m.number(4)),
        b"\x94": lambda m: m.remember(len(m.memo)),
        b"g": lambda m: m.recall(_text_number(m.line())),
        b"h": lambda m: m.recall(m.number(1)),
        b"j": lambda m: m.recall(m.number(4)),
        # names, calls, states
        b"c": lambda m: m.push(m.named(m.line(), m.line())),
        b"\x93": _stack_global,
        b"R": _reduce,
        b"\x81": _reduce,  # NEWOBJ
        b"o": _object,
        b"i": _instance,
        b"b": lambda m: m.build(),
        b"P": lambda m: m.stand_in(m.line()),
        b"Q": lambda m: m.stand_in(m.pop()),
    }.items()
}
