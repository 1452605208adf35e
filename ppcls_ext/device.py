"""The device a run uses, and its number format."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import paddle

from ppcls_ext import distributed, processor
from ppcls_ext.config import Config
from ppcls_ext.ops import native


def choose_device(wanted: str) -> str:
    """Set Paddle's device from `Global.device` (auto, cpu, gpu, gpu:N); gpu means this process's own one.

    On a CPU the compiled operators are installed, before the loader forks its workers, and freed memory is kept.
    """
    gpu_here = paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count() > 0
    kind, _, number = wanted.partition(":")
    if kind == "cpu" or not gpu_here:
        paddle.set_device("cpu")
        native.install()
        processor.keep_freed_memory()
        return "cpu"
    local = os.environ.get("FLAGS_selected_gpus", number or "0").split(",")[0]
    paddle.set_device(f"gpu:{local}")
    return f"gpu:{local}"


def device_lines(config: Config, device: str) -> Iterator[str]:
    """What runs where, and what was asked for but is not there."""
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    yield (
        f"PaddlePaddle {paddle.__version__} on {device}, {distributed.world_size()} process(es)"
        + (f", {threads} thread(s)" if device == "cpu" else "")
    )
    if device == "cpu":
        yield from [native.status(), *processor.notes()]
    yield from missing_device(config, device)
    if config.AMP.use_amp and device == "cpu":
        yield "AMP.use_amp is on, but Paddle has no half-precision kernels on a CPU: training in float32"


def missing_device(config: Config, device: str) -> Iterator[str]:
    """A line where a GPU was asked for in vain."""
    if config.Global.device.startswith("gpu") and device == "cpu":
        yield "Global.device is gpu, but this machine or this build of PaddlePaddle has none: running on the CPU"


class Precision:
    """float32, or `paddle.amp` where the device has half precision."""

    def __init__(self, config: Config, network: paddle.nn.Layer, optimizer: paddle.optimizer.Optimizer) -> None:
        amp = config.AMP
        self.enabled = amp.use_amp and paddle.get_device().startswith("gpu")
        self.options = dict(level=amp.level, dtype=amp.dtype, use_promote=amp.use_promote)
        self.in_evaluation = amp.use_fp16_test or amp.level == "O2"
        self.scaler = None
        if not self.enabled:
            return
        if amp.level == "O2":
            # Without save_dtype: with it state_dict() gives copies, into which nothing could be loaded.
            paddle.amp.decorate(network, optimizer, level="O2", dtype=amp.dtype)
        if amp.dtype == "float16":  # bfloat16 has float32's range and needs no scaling
            self.scaler = paddle.amp.GradScaler(
                init_loss_scaling=amp.scale_loss, use_dynamic_loss_scaling=amp.use_dynamic_loss_scaling
            )

    def autocast(self) -> AbstractContextManager:
        """Half precision inside, where it is enabled."""
        return paddle.amp.auto_cast(**self.options) if self.enabled else nullcontext()

    def evaluation(self) -> AbstractContextManager:
        """As `autocast` where `AMP.use_fp16_test` asks for it, and at O2, whose weights are in half precision."""
        return self.autocast() if self.in_evaluation else nullcontext()

    def backward(self, loss: paddle.Tensor) -> None:
        """Gradients of the (scaled) loss."""
        (self.scaler.scale(loss) if self.scaler else loss).backward()

    def step(self, optimizer: paddle.optimizer.Optimizer, clip: Callable[[], object] | None) -> None:
        """Clip, then step; with a scaler a step whose gradients overflowed is left out."""
        if self.scaler:
            self.scaler.unscale_(optimizer)
        if clip is not None:
            clip()
        if self.scaler:
            self.scaler.step(optimizer)
            self.scaler.update()
        else:
            optimizer.step()

    def scaler_state(self) -> dict[str, Any] | None:
        """The scaler's state in plain types, which `GradScaler.load_state_dict` takes back; None without a scaler."""
        if self.scaler is None:
            return None
        state = self.scaler.state_dict()
        return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in state.items()}
