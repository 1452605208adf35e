"""A network as a static graph in files: Paddle's own, and ONNX.

paddle2onnx 2.1 converts a graph of PaddlePaddle 3 that is traced for it. What it cannot convert ends it with a signal,
so it has a process of its own: `python -m ppcls_ext.graphs GRAPH PARAMETERS FILE`. What it cannot convert of ours:

- softplus (it takes its arguments for others): traced as relu(x) + log(1 + exp(-|x|)), which is the same number;
- the Fourier transform of large kernels (RepLKNet): where the size of the map is not known they are traced as
  convolutions. So a graph that cannot be converted at its size is tried for every size.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import paddle
from paddle import Tensor
from paddle.nn import functional

from ppcls_ext.apart import Failed, run_apart
from ppcls_ext.errors import Refused, RunFailed
from ppcls_ext.serving.model import GRAPH_FILES, ONNX_FILE, PARAMETERS_FILE

OPSET = 17
PATIENCE = 1800.0  # seconds; a conversion that takes longer is stuck


def write_graph(model: paddle.nn.Layer, image_shape: list[int | None], folder: Path) -> None:
    """`inference.json` or `inference.pdmodel`, and `inference.pdiparams`, for any batch size."""
    model.eval()
    spec = [paddle.static.InputSpec([None, *image_shape], "float32", name="x")]
    paddle.jit.save(paddle.jit.to_static(model, input_spec=spec, full_graph=True), str(folder / "inference"))


def refuse_without_onnx() -> None:
    """Raise `Refused` where `write_onnx` lacks a library."""
    missing = [name for name in ("paddle2onnx", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise Refused(
            f"{sys.executable} has no {' and no '.join(missing)}; `pip install -r requirements-onnx.txt` brings what "
            "--onnx needs"
        )
    if paddle.__version__.startswith("2."):
        raise Refused(f"--onnx: paddle2onnx 2.1 takes graphs of PaddlePaddle 3, this is {paddle.__version__}")


def write_onnx(model: paddle.nn.Layer, image_shape: list[int], folder: Path) -> None:
    """`inference.onnx`, for any batch size. Raises `RunFailed` with what paddle2onnx says it cannot convert."""
    channels = image_shape[0]
    try:
        _convert(model, image_shape, folder / ONNX_FILE)
    except Failed as error:
        try:
            _convert(model, [channels, None, None], folder / ONNX_FILE)
        except Failed:
            said = [line.strip() for line in error.output.splitlines() if line.startswith("[ERROR][Paddle2ONNX]")]
            raise RunFailed(
                f"paddle2onnx {error}; nothing was exported (without --onnx it is)" + "".join(f"\n{s}" for s in said)
            ) from error


def _convert(model: paddle.nn.Layer, image_shape: list[int | None], file: Path) -> None:
    with tempfile.TemporaryDirectory(dir=file.parent) as made, _convertible_softplus():
        source = Path(made)
        write_graph(model, image_shape, source)
        run_apart("ppcls_ext.graphs", source / GRAPH_FILES[0], source / PARAMETERS_FILE, file, patience=PATIENCE)


@contextmanager
def _convertible_softplus() -> Iterator[None]:
    def softplus(x: Tensor) -> Tensor:
        return functional.relu(x) + paddle.log1p(paddle.exp(-paddle.abs(x)))

    whole = functional.softplus
    functional.softplus = softplus
    try:
        yield
    finally:
        functional.softplus = whole


def main() -> None:
    """The other process."""
    import paddle2onnx

    graph, parameters, file = sys.argv[1:]
    paddle2onnx.export(graph, parameters, file, opset_version=OPSET, enable_optimize=False)  # it would install packages


if __name__ == "__main__":
    main()
