"""Linear layers of tokens, compiled for inference: the bias is added before a result leaves the registers.

Training and graphs take Paddle's operator.
"""

from __future__ import annotations

import math

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from ppcls_ext.ops import native


# as it is, not converted for a static graph
@paddle.jit.not_to_static
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(..., in), (in, out), (out,) -> (..., out)."""
    if not native.usable_for_inference(x, weight, bias):
        return F.linear(x, weight, bias)
    inner, columns = weight.shape
    x, weight = native.ready(x), native.ready(weight)
    y = paddle.empty([*x.shape[:-1], columns], dtype="float32")
    sizes = native.sizes(math.prod(x.shape[:-1]), inner, columns)
    native.library().linear_forward(sizes, *(native.pointer(t) for t in (x, weight, bias, y)))
    return y
