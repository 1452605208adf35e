"""Damaged and malicious weights: python tests/fuzz_weights.py --count 10000 [--seed 0]

Makes small files of every kind that is read, mutates them (bytes, lengths, splices, truncations, pickle operations,
with checksums and digests made right again, so that what lies behind them is reached), adds crafted attacks, and reads
each in this process, whose memory may grow by 256 MB only. Every file must be read or refused: any other exception, a
file that takes more than ten seconds, a call of `pickle.find_class`, a process or a file that is opened to be written
is a failure. Prints the counts; status 1 if anything failed.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import pickle
import resource
import signal
import struct
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from paddle import nn
from safetensors.numpy import save
from torch_writer import Call, Name, Outside, Storages, encoded, parameter, pickled, stream_file, tensor, view, zip_file

from ppcls_ext.checkpoint import MAGIC, save_tensors
from ppcls_ext.errors import Refused
from ppcls_ext.weights import fit_weights, read_weights

STORED = Path(__file__).parent / "weights"
MEMORY = 256 << 20
SECONDS = 10
# Events of Python's own audit that reading weights must never cause.
FORBIDDEN = (
    "pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "pty.spawn",
    "socket.connect", "os.remove", "os.rename", "os.chmod", "shutil.", "ctypes.",
)  # fmt: skip

Draw = np.random.Generator


# ------------------------------------------------------------------------------------------------ whole files


def small_network() -> nn.Layer:
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1D(3))


def state() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)  # the files of a seed are the same on every machine
    return {name: draw.random(value.shape, np.float32) for name, value in small_network().state_dict().items()}


def torch_content() -> tuple[dict[str, Any], Storages]:
    storages = Storages()
    content: dict[str, Any] = {}
    for name, array in state().items():
        renamed = name.replace("_mean", "running_mean").replace("_variance", "running_var")
        content[renamed] = parameter(tensor(storages, np.ascontiguousarray(array.T)))
    content["1.num_batches_tracked"] = tensor(storages, np.array(5))
    content["half"] = tensor(storages, np.arange(4, dtype=np.uint16), "BFloat16Storage")
    return {"model": content, "optimizer": {"state": {0: {"step": 3.0}}}, "epoch": 7}, storages


def with_trailer(body: bytes, metadata: bytes | None = None) -> bytes:
    about = metadata or json.dumps({"arch": "x", "sha256": hashlib.sha256(body).hexdigest()}).encode()
    return body + about + hashlib.sha256(about).digest() + struct.pack("<Q", len(about)) + MAGIC


def whole_files(folder: Path) -> list[tuple[str, bytes]]:
    """(suffix, bytes) of files that are read."""
    save_tensors(folder / "ours.pdparams", state(), {"arch": "x"})
    stored = [(path.suffix, path.read_bytes()) for path in sorted(STORED.iterdir())]
    arrays = {**state(), "half": np.ones((2, 2), np.float16), "flags": np.array([True])}
    return [
        *stored,
        (".pdparams", (folder / "ours.pdparams").read_bytes()),
        (".pdparams", pickle.dumps(state(), 2)),
        (".pdparams", pickle.dumps(state(), 5)),
        (".safetensors", save(arrays, {"format": "pt"})),
        (".pth", zip_file(*torch_content())),
        (".pth", stream_file(*torch_content())),
    ]


# ------------------------------------------------------------------------------------------------ mutations

LENGTHS = [0, 1, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1, (1 << 64) - 1]
OPERATIONS = b"(.012FIJKLMNPQRSTUVX]abcde})ghijlopqrstuBCG" + bytes(range(0x80, 0x99))


def flipped(data: bytes, other: bytes, draw: Draw) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.integers(1, 9)):
        changed[draw.integers(len(changed))] ^= 1 << draw.integers(8)
    return bytes(changed)


def cut(data: bytes, other: bytes, draw: Draw) -> bytes:
    return data[: draw.integers(len(data))]


def shortened(data: bytes, other: bytes, draw: Draw) -> bytes:
    start = draw.integers(len(data))
    return data[:start] + data[start + draw.integers(1, 64) :]


def repeated(data: bytes, other: bytes, draw: Draw) -> bytes:
    start = draw.integers(len(data))
    return data[: start + draw.integers(1, 64)] + data[start:]


def spliced(data: bytes, other: bytes, draw: Draw) -> bytes:
    return data[: draw.integers(len(data))] + other[draw.integers(len(other)) :]


def lengthened(data: bytes, other: bytes, draw: Draw) -> bytes:
    size = int(draw.choice([1, 2, 4, 8]))
    start = draw.integers(len(data))
    value = int(LENGTHS[draw.integers(len(LENGTHS))]) % (1 << 8 * size)
    return data[:start] + value.to_bytes(size, str(draw.choice(["little", "big"]))) + data[start + size :]


def operated(data: bytes, other: bytes, draw: Draw) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.integers(1, 4)):
        start = draw.integers(len(changed))
        changed[start : start + draw.integers(2)] = bytes([OPERATIONS[draw.integers(len(OPERATIONS))]])
    return bytes(changed)


def attacked(data: bytes, other: bytes, draw: Draw) -> bytes:
    start = draw.integers(len(data))
    return data[:start] + ATTACKS[draw.integers(len(ATTACKS))] + data[start:]


MUTATIONS: list[Callable[[bytes, bytes, Draw], bytes]] = [
    flipped, cut, shortened, repeated, spliced, lengthened, operated, attacked,
]  # fmt: skip


def mutated(suffix: str, data: bytes, other: bytes, draw: Draw) -> bytes:
    """A mutation of the file, or of a pickle in it with everything around it made right again."""
    change = MUTATIONS[draw.integers(len(MUTATIONS))]
    if draw.integers(2):
        if data.startswith(b"PK"):
            return rezipped(data, lambda entry: change(entry, other, draw), draw)
        if data.endswith(MAGIC):
            length = len(data) - 48 - struct.unpack("<Q", data[-16:-8])[0]
            if draw.integers(4) == 0:
                return with_trailer(data[:length], change(data[length:-48], other, draw))
            return with_trailer(change(data[:length], other, draw) or b"x")
        if suffix == ".safetensors":
            size = struct.unpack("<Q", data[:8])[0]
            header = change(data[8 : 8 + size], other, draw)
            return struct.pack("<Q", len(header)) + header + data[8 + size :]
    return change(data, other, draw)


def rezipped(data: bytes, change: Callable[[bytes], bytes], draw: Draw) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as new:
        entries = old.infolist()
        pickle_only = draw.integers(4) > 0
        chosen = entries[draw.integers(len(entries))].filename
        for entry in entries:
            content = old.read(entry)
            hit = entry.filename.endswith("data.pkl") if pickle_only else entry.filename == chosen
            new.writestr(zipfile.ZipInfo(entry.filename), change(content) if hit and content else content)
    return out.getvalue()


# ------------------------------------------------------------------------------------------------ attacks

MARKER = "ppcls_ext_fuzz_ran"


def calls() -> Iterator[bytes]:
    """Pickle operations that would run something."""
    command = f"touch {MARKER}"
    for module, name in (
        ("os", "system"), ("posix", "system"), ("builtins", "eval"), ("builtins", "exec"), ("__builtin__", "eval"),
        ("subprocess", "Popen"), ("builtins", "getattr"), ("builtins", "__import__"), ("operator", "attrgetter"),
        ("numpy", "load"), ("torch", "load"), ("torch.serialization", "load"), ("functools", "partial"),
        ("numpy.testing._private.utils", "runstring"), ("ppcls_ext.files", "write_file"), ("", ""),
        ("collections", "OrderedDict.fromkeys"), ("torch._utils", "_rebuild_tensor_v2.__globals__"),
    ):  # fmt: skip
        text = encoded(command)
        yield encoded(Call(Name(module, name), (command,)))
        yield encoded(module) + encoded(name) + b"\x93(" + text + b"t\x81"
        yield b"(" + text + b"i" + module.encode() + b"\n" + name.encode() + b"\n"
        yield b"(" + encoded(Name(module, name)) + text + b"o"


def bombs() -> Iterator[bytes]:
    """Pickle operations that would take memory or time without end."""
    yield b"Nr\xff\xff\xff\xff"  # a memo of 4 billion places
    yield b"Np4294967295\n"
    yield b"\x8b\xff\xff\xff\x7f"
    yield b"\x8b" + struct.pack("<I", 1 << 20) + bytes(1 << 20)
    for operation in b"BTX":
        yield bytes([operation]) + struct.pack("<I", 0xFFFFFFFF)
    for operation in b"\x8d\x8e\x96":
        for size in (1 << 31, 1 << 40, (1 << 63) - 1, (1 << 64) - 1):
            yield bytes([operation]) + struct.pack("<Q", size)
    yield b"\x95" + b"\xff" * 8
    yield b"I" + b"9" * 100_000 + b"\n"
    yield b"L" + b"9" * 5000 + b"L\n"
    yield b"]" * 200_000 + b"a" * 199_999
    yield b")" + b"\x85" * 200_000
    yield b"(" * 200_000
    yield b"}" * 2_100_000
    yield b")" + b"2\x86" * 60  # a tuple of 2^60 parts, and as a key
    yield b"})" + b"2\x86" * 60 + b"Ns"
    yield b"]q\x00" + b"](h\x00h\x00eq\x00" * 60
    yield b"]q\x00h\x00a"
    large = encoded("x" * 100_000)
    yield (
        b"0" * 0 + large + b"q\x00" + (b"0c_codecs\nencode\nq\x01" + b"0h\x01(h\x00" + encoded("latin1") + b"tR") * 2000
    )
    pairs = b"](" + b"".join(encoded([str(i), i]) for i in range(20_000)) + b"eq\x00"
    yield pairs + (b"0" + encoded(Name("collections", "OrderedDict")) + b"(h\x00tR") * 2000


def shapes() -> Iterator[tuple[Any, Storages]]:
    """Tensors that are larger than what holds them."""
    for length in (0, 4, 1 << 40, 1 << 62, -1):
        storage = Outside(("storage", Name("torch", "FloatStorage"), "0", "cpu", length))
        for shape, strides, start in (
            ((1 << 40,), (1,), 0), ((1000, 1000), (0, 0), 0), ((2, 2), (1, 1), 0), ((-1,), (1,), 0), ((4,), (-1,), 3),
            ((4,), (1,), 1 << 62), ((4,), (1,), -1), ((0, 1 << 62), (1, 1), 0), ((1 << 32,) * 32, (1,) * 32, 0),
            ((2,) * 64, (1,) * 64, 0), ((), (), 0), ((0,), (1 << 62,), 1 << 62), ((2,), (1 << 62,), 0),
        ):  # fmt: skip
            yield {"x": view(storage, shape, strides, start)}, Storages({"0": ("FloatStorage", bytes(16))})


def archives() -> Iterator[bytes]:
    """Zip archives that are not what they say."""
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr(zipfile.ZipInfo("a/data.pkl"), pickled({}))
        with archive.open("a/data/0", "w") as entry:
            for _ in range(64):
                entry.write(bytes(1 << 20))
    yield bomb.getvalue()
    content, storages = torch_content()
    good = zip_file(content, storages)
    central = good.rindex(b"PK\x05\x06")
    start = struct.unpack("<I", good[central + 16 : central + 20])[0]
    for offset in (20, 24, 42):  # compressed size, size, place of each entry
        for value in (0, 1, 0x7FFFFFFF, 0xFFFFFFFF):
            changed = bytearray(good)
            at = start
            while at < central:
                changed[at + offset : at + offset + 4] = struct.pack("<I", value)
                at += 46 + sum(struct.unpack("<HHH", good[at + 28 : at + 34]))
            yield bytes(changed)
    entry = good[start:central]
    yield good[:start] + entry * 200 + good[central:]  # the same bytes again and again
    many = entry * (20_000_000 // len(entry) // 8)
    yield good[:start] + many + good[central : central + 12] + struct.pack("<I", len(many)) + good[central + 16 :]


def crafted() -> Iterator[tuple[str, bytes]]:
    """(suffix, bytes) of attacks in every kind of file."""
    for attack in [*calls(), *bombs()]:
        for body in (b"\x80\x04" + attack + b".", b"\x80\x02}" + encoded("x") + attack + b"s."):
            yield ".pdparams", body
            yield ".pdparams", with_trailer(body)
            yield ".pth", body
            yield ".pth", zip_file(body, Storages())
            yield ".pth", stream_file(body, Storages())
    for content, storages in shapes():
        yield ".pth", zip_file(content, storages)
        yield ".pth", stream_file(content, storages)
    for data in archives():
        yield ".pth", data
    for trailer in (b"[" * 200_000, b'{"sha256": ' + b"9" * 100_000 + b"}", b"\xff", b'{"sha256": "x", "graph": [1]}'):
        yield ".pdparams", with_trailer(pickle.dumps(state()), trailer)
    for header in (
        b"[" * 100_000, b"{}", b'{"x":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4]}}',
        b'{"x":{"dtype":"F32","shape":[0,18446744073709551615],"data_offsets":[0,0]}}',
        b'{"x":{"dtype":"F32","shape":[0,9223372036854775807,9],"data_offsets":[0,0]}}',
        b'{"x":{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,'
        b'1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1],"data_offsets":[0,4]}}',
        b'{"__metadata__":{"ppcls_ext":"[1]"}}', b'{"__metadata__":{"ppcls_ext":"' + b"[" * 100_000 + b'"}}',
        b'{"__metadata__":{"ppcls_ext":"{\\"graph\\": 3}"}}',
    ):  # fmt: skip
        for size in (len(header), 1 << 40, (1 << 64) - 1):
            yield ".safetensors", struct.pack("<Q", size) + header + bytes(4)


ATTACKS = list(calls()) + [bomb for bomb in bombs() if len(bomb) < 10_000]


# ------------------------------------------------------------------------------------------------ reading


def files(count: int, seed: int, folder: Path) -> Iterator[tuple[str, bytes]]:
    """`count` (suffix, bytes): the crafted ones first, or where the count is small every n-th of the small ones."""
    attacks = [attack for attack in crafted() if count >= 1000 or len(attack[1]) < 20_000]
    attacks = attacks[:: max(1, 2 * len(attacks) // count)]
    yield from attacks
    draw = np.random.default_rng(seed)
    whole = whole_files(folder)
    for _ in range(count - len(attacks)):
        suffix, data = whole[draw.integers(len(whole))]
        changed = mutated(suffix, data, whole[draw.integers(len(whole))][1], draw)
        if changed and draw.integers(3) == 0:
            changed = MUTATIONS[draw.integers(len(MUTATIONS))](changed, data, draw)
        yield suffix, changed


def limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def stop(*_: object) -> None:
    raise TimeoutError(f"more than {SECONDS} s")


def fuzz(count: int, seed: int) -> tuple[Counter[str], list[str]]:
    """(how many ended how, what failed). Read and refused are no failures."""
    outcomes: Counter[str] = Counter()
    failures: list[str] = []
    happened: list[str] = []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        if watching and (writes or event.startswith(FORBIDDEN)):
            happened.append(f"{event} {arguments}")

    watching = False
    sys.addaudithook(watch)
    signal.signal(signal.SIGALRM, stop)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for i, (suffix, data) in enumerate(files(count, seed, folder)):
            if i == 0:
                limit_memory()
            path = folder / f"fuzz{suffix}"
            path.write_bytes(data)
            watching = True
            signal.alarm(SECONDS)
            try:
                read_weights(path)
                fit_weights(small_network(), path, strict=bool(i % 2), replace_head=True)
                outcome = "loaded"
            except Refused as error:
                outcome = "refused"
                if len(str(error)) > 20_000:
                    failures.append(f"file {i}: a message of {len(str(error))} characters")
            except BaseException as error:
                outcome = "failed"
                failures.append(f"file {i} ({suffix}, {len(data)} bytes): {type(error).__name__}: {str(error)[:200]}")
                if isinstance(error, KeyboardInterrupt):
                    raise
            finally:
                signal.alarm(0)
                watching = False
            outcomes[outcome] += 1
            failures += [f"file {i} ({suffix}): {event}" for event in happened]
            happened.clear()
            if Path(MARKER).exists():
                failures.append(f"file {i} ({suffix}) was executed")
                break
    return outcomes, failures


def largest_memory() -> float:
    """MB that this process has held in memory so far, at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    before = largest_memory()
    outcomes, failures = fuzz(given.count, given.seed)
    grown = largest_memory() - before
    refused, loaded = outcomes["refused"], outcomes["loaded"]
    print(f"{sum(outcomes.values())} files: {refused} refused, {loaded} loaded; memory grew by {grown:.0f} MB at most")
    for failure in failures[:20]:
        print(f"  {failure}")
    print(f"{len(failures)} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
