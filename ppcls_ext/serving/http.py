"""An exported model behind HTTP: a photograph goes in, the answer of `deploy/predict.py` comes out.

POST /predict   the bytes of one image file -> {"class_ids": [...], "scores": [...], "label_names": [...]}
GET  /health    what is served
GET  /          a page to try photographs on

What cannot be answered is {"detail": why}: 408 for a file that does not come, 413 for a longer one than is admitted,
415 for a form, 422 for what is no image or another mistake of the request, 500 where the model fails. Many may ask at
once: images are prepared side by side, the model answers one after another.
"""

from __future__ import annotations

import os
import socket
from asyncio import get_running_loop
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from typing import Annotated, Any

import numpy as np
import uvicorn
from anyio import CapacityLimiter, fail_after, to_thread
from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.requests import ClientDisconnect

from ppcls_ext.errors import Refused, RunFailed
from ppcls_ext.serving.model import ServedModel
from ppcls_ext.serving.prediction import answer
from ppcls_ext.transforms import DecodeError

MOST_AT_ONCE = 64  # connections; more are answered with 503
IMAGE = {"image/*": {"schema": {"type": "string", "format": "binary"}}}  # what OpenAPI says of the body
BODY_SECONDS = 60  # for a request's body to come; who sends half of one would keep a connection for good
LAST_SECONDS = 10  # for what was asked before the server is to end


def application(model: ServedModel, topk: int | None, most_bytes: int) -> FastAPI:
    """The model as an ASGI application; `topk` classes are named where a request does not say how many (None: all).

    The model has to answer once before: raises `Refused` or `RunFailed` where it cannot.
    """
    app = FastAPI(title="ppcls_ext", docs_url=None, redoc_url=None)
    hands = CapacityLimiter(len(os.sched_getaffinity(0)))  # a decoded image may take half a gigabyte
    # Paddle's predictor takes one call at a time, and keeps threads of its own for every thread that calls it.
    predictor = ThreadPoolExecutor(max_workers=1)
    predictor.submit(model.probabilities, np.zeros((1, *model.image_shape), np.float32)).result()

    @app.post("/predict", openapi_extra={"requestBody": {"required": True, "content": IMAGE}})
    async def predict(request: Request, topk: Annotated[int | None, Query(ge=1)] = topk) -> dict[str, Any]:
        encoded = await body_of(request, most_bytes)
        try:
            image = await to_thread.run_sync(model.pipeline, encoded, limiter=hands)
        except DecodeError as error:
            raise HTTPException(422, f"cannot be decoded: {error}") from error
        [row] = await get_running_loop().run_in_executor(predictor, model.probabilities, image[None])
        answered = answer(row, "", topk, model.class_names, model.threshold)
        return {name: value for name, value in answered.items() if name != "file_name"}

    @app.get("/health")
    async def health() -> dict[str, Any]:
        name, names = model.description["Global"]["model_name"], model.class_names
        return {
            "model": name,
            "image_shape": model.image_shape,
            "label_names": names,
            "engine": model.engine,
            "onednn": model.onednn,
        }

    @app.get("/", response_class=HTMLResponse)
    async def page() -> str:
        return files("ppcls_ext.serving").joinpath("page.html").read_text(encoding="utf-8")

    @app.exception_handler(Refused)
    @app.exception_handler(RunFailed)
    async def failed(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, status_code=500)

    return app


async def body_of(request: Request, most_bytes: int) -> bytes:
    """The request's body; one that is too long, or takes longer than `BODY_SECONDS`, is not read to the end."""
    if request.headers.get("content-type", "").startswith("multipart/"):
        raise HTTPException(
            415, "a form; the body is the image file itself: curl --data-binary @photo.jpg ADDRESS/predict"
        )
    received = bytearray()
    try:
        with fail_after(BODY_SECONDS):
            async for part in request.stream():
                received += part
                if len(received) > most_bytes:
                    raise HTTPException(413, f"more than {most_bytes} bytes (--max-megabytes)")
    except TimeoutError as error:
        raise HTTPException(408, f"the body did not come within {BODY_SECONDS} s") from error
    except ClientDisconnect as error:  # nobody reads this answer
        raise HTTPException(400, "the connection was closed before the end of the body") from error
    return bytes(received)


def bind(host: str, port: int) -> socket.socket:
    """A socket that does not listen yet; port 0 takes a free one. Raises `Refused` where none can be."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        bound = socket.socket(family)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        raise Refused(f"--host {host} --port {port}: {error.strerror}; name others") from error
    return bound


def serve(app: FastAPI, bound: socket.socket) -> None:
    """Answer until Ctrl-C or SIGTERM; what was asked before is answered."""
    options = uvicorn.Config(
        app, log_level="warning", limit_concurrency=MOST_AT_ONCE, timeout_graceful_shutdown=LAST_SECONDS
    )
    uvicorn.Server(options).run(sockets=[bound])
