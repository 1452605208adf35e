"""What computes an exported graph: Paddle Inference or ONNX Runtime. Each takes and gives a NumPy array."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import numpy as np

from ppcls_ext.errors import Refused

Run = Callable[[np.ndarray], np.ndarray]  # float32 (N, C, H, W) -> (N, classes)

# What of a graph oneDNN computes: all that it can, or convolutions and linear layers with what is fused into them.
ONEDNN_OPERATORS = ("all", "fused")
_PLACEMENT = "onednn_placement_pass"  # gives oneDNN what no other pass has fused for it


def paddle_inference(graph: Path, parameters: Path, device: str, threads: int, onednn: str | None) -> Run:
    """Paddle Inference on `device` (cpu or gpu); `onednn` is one of `ONEDNN_OPERATORS`, or None."""
    import paddle
    from paddle import inference

    options = inference.Config(str(graph), str(parameters))
    options.disable_glog_info()
    if onednn:
        options.enable_mkldnn()
        if onednn == "fused":
            options.delete_pass(_PLACEMENT)
    else:
        options.disable_mkldnn()  # on by default in some versions
    if device == "gpu" and not paddle.is_compiled_with_cuda():
        raise Refused("--device gpu: this build of PaddlePaddle has no GPU support; take --device cpu")
    if device == "gpu":
        options.enable_use_gpu(256, 0)
    else:
        options.disable_gpu()
        options.set_cpu_math_library_num_threads(threads)
    predictor = inference.create_predictor(options)
    given = predictor.get_input_handle(predictor.get_input_names()[0])
    answered = predictor.get_output_handle(predictor.get_output_names()[0])

    quiet: AbstractContextManager[None] = _said_to_stderr()  # the first run chooses kernels, and oneDNN's talk of it

    def run(images: np.ndarray) -> np.ndarray:
        nonlocal quiet
        given.reshape(images.shape)
        given.copy_from_cpu(images)
        with quiet:
            predictor.run()
        quiet = nullcontext()
        return answered.copy_to_cpu()

    return run


@contextmanager
def _said_to_stderr() -> Iterator[None]:
    """Let what C++ writes to stdout, where the answers go, reach stderr."""
    try:
        stdout = os.dup(1)
    except OSError:  # closed by who called
        yield
        return
    sys.stdout.flush()
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)


def onnx_runtime(file: Path, device: str, threads: int) -> Run:
    """ONNX Runtime, on the CPU. It needs no Paddle."""
    if device != "cpu":
        raise Refused(f"--device {device}: --engine onnx serves on the CPU; take --device cpu or --engine paddle")
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        cure = "pip install onnxruntime"
        raise Refused(f"{sys.executable} has no onnxruntime, which --engine onnx needs: {cure}") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    [given] = session.get_inputs()
    return lambda images: session.run(None, {given.name: images})[0]
