"""An exported model over HTTP: it answers as `deploy/predict.py`, however many ask, and says why it cannot."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import pytest
from conftest import REPOSITORY, Run, answers_in, config_of, weights
from fastapi import HTTPException

from ppcls_ext import config, export
from ppcls_ext.serving import http

DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever the environment says
TELEPHONE = b"\0\0\0\x18ftypheic" + bytes(100)


@pytest.fixture(scope="module")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "inference"
    loaded = config.load(config_of(trained), [weights(trained), f"Global.save_inference_dir={folder}"])
    return export.export(loaded, probe=False).folder


class Server:
    """A real one, at a port of its own."""

    def __init__(self, *arguments: object) -> None:
        command = [sys.executable, REPOSITORY / "deploy/serve.py", *arguments, "--port", "0"]
        self.process = subprocess.Popen(
            [str(part) for part in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # a job in the background inherits Ctrl-C as ignored
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        self.said = self.process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", self.said)
        assert found, self.said + self.process.stderr.read()
        self.address = found.group()

    def ask(self, path: str, body: bytes | None = None) -> tuple[int, str]:
        """(status, text); a body makes it a POST."""
        try:
            with DIRECT.open(urllib.request.Request(self.address + path, data=body), timeout=60) as told:
                return told.status, told.read().decode("utf-8")
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode("utf-8")

    def refused(self, path: str, body: bytes) -> tuple[int, str]:
        status, text = self.ask(path, body)
        return status, json.loads(text)["detail"]

    def end(self, number: int) -> tuple[int, str]:
        """(status, what it said on stderr) after a signal."""
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors


@pytest.fixture(scope="module")
def server(exported: Path) -> Iterator[Server]:
    running = Server(exported, "--max-megabytes", 1)
    yield running
    status, errors = running.end(signal.SIGTERM)
    assert status == 143 and errors.endswith("Stopped by SIGTERM.\n")
    assert "Traceback" not in errors  # of any test's requests


def test_the_server_answers_as_the_predictor_however_many_ask(
    server: Server, exported: Path, pictures: Path, run_here: Run
) -> None:
    _, output, _ = run_here("deploy/predict.py", exported, pictures / "val", "--batch-size", 1)
    expected = answers_in(output)
    assert len(expected) == 15
    files = [one.pop("file_name") for one in expected]
    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(lambda file: server.ask("/predict", Path(file).read_bytes()), files * 4))
    assert {status for status, _ in told} == {200}
    assert [json.loads(text) for _, text in told] == expected * 4
    best = json.loads(server.ask("/predict?topk=1", Path(files[0]).read_bytes())[1])
    assert best == {name: values[:1] for name, values in expected[0].items()}


def test_what_is_served_is_told_and_a_page_tries_it(server: Server, exported: Path) -> None:
    assert server.said.startswith(f"{exported} at http://127.0.0.1:")
    told = json.loads(server.ask("/health")[1])
    names = ["class_0", "class_1", "class_2"]
    served = {"model": "MicroNet_M0", "image_shape": [3, 32, 32], "label_names": names}
    assert told == {**served, "engine": "paddle", "onednn": None}
    status, page = server.ask("/")
    assert status == 200 and "Drop photographs here" in page
    assert "http://" not in page and "https://" not in page  # it needs nothing from elsewhere


@pytest.mark.parametrize(
    "path, body, status, said",
    [
        ("/predict", b"", 422, "cannot be decoded: the file is empty (0 bytes)"),
        ("/predict", b"a text", 422, "cannot be decoded: not an image of a known format, or cut short: 6 bytes"),
        ("/predict", TELEPHONE, 422, "cannot be decoded: HEIC, which is not read here; convert it to JPEG"),
        ("/predict", bytes(1_000_001), 413, "more than 1000000 bytes (--max-megabytes)"),
    ],
)
def test_what_is_no_image_is_refused_with_the_reason(
    server: Server, path: str, body: bytes, status: int, said: str
) -> None:
    found, detail = server.refused(path, body)
    assert found == status and detail.startswith(said)


def test_a_form_is_told_what_the_body_should_be(server: Server) -> None:
    form = urllib.request.Request(
        server.address + "/predict", b"--x", {"Content-Type": "multipart/form-data; boundary=x"}
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        DIRECT.open(form, timeout=60)
    assert refused.value.code == 415 and b"curl --data-binary @photo.jpg" in refused.value.read()
    described = json.loads(server.ask("/openapi.json")[1])["paths"]["/predict"]["post"]
    assert described["requestBody"]["content"] == {"image/*": {"schema": {"type": "string", "format": "binary"}}}


def test_a_client_that_leaves_or_sends_half_a_file_disturbs_nobody(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, port = server.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as leaves:
        leaves.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nhalf")
    assert server.ask("/health")[0] == 200  # the fixture looks at what the server said at its end

    class Slow:
        headers: ClassVar[dict[str, str]] = {}

        async def stream(self) -> AsyncIterator[bytes]:
            yield b"half"
            await asyncio.sleep(60)

    monkeypatch.setattr(http, "BODY_SECONDS", 0.05)
    with pytest.raises(HTTPException) as refused:
        asyncio.run(http.body_of(Slow(), most_bytes=1000))
    assert (refused.value.status_code, refused.value.detail) == (408, "the body did not come within 0.05 s")


def test_a_mistake_of_the_request_is_named(server: Server, pictures: Path) -> None:
    status, [detail] = server.refused("/predict?topk=0", (pictures / "val/class_0/0.png").read_bytes())
    assert status == 422 and detail["loc"] == ["query", "topk"]
    assert detail["msg"] == "Input should be greater than or equal to 1"
    assert server.ask("/predict")[0] == 405  # a GET


def test_a_port_that_is_taken_and_a_model_that_cannot_answer_are_refused_before_serving(
    exported: Path, run_here: Run, tmp_path: Path
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, _, errors = run_here("deploy/serve.py", exported, "--port", port)
    assert status == 2 and f"--host 127.0.0.1 --port {port}: Address already in use; name others" in errors
    status, _, errors = run_here("deploy/serve.py", exported, "--port", 65536)
    assert status == 2 and "argument --port: expected a port from 0 to 65535, got '65536'" in errors
    status, _, errors = run_here("deploy/serve.py", tmp_path, "--port", 0)
    assert status == 2 and "is not an exported model: inference.yml is missing" in errors
    short = tmp_path / "short"
    short.mkdir()
    for file in exported.iterdir():
        text = file.read_bytes()
        (short / file.name).write_bytes(text.replace(b"    - class_0\n", b"") if file.suffix == ".yml" else text)
    status, output, errors = run_here("deploy/serve.py", short, "--port", 0)
    assert (status, output) == (2, "") and "PostProcess names 2 classes in its label_list, the model" in errors


def test_ctrl_c_ends_a_server_with_a_message(exported: Path) -> None:
    status, errors = Server(exported, "--topk", 2).end(signal.SIGINT)
    assert status == 130 and errors.endswith("Stopped by Ctrl-C.\n") and "Traceback" not in errors
