"""Whether one operator may do the work of layers without calling them."""

from __future__ import annotations

from paddle import nn


def is_plain(layer: nn.Layer, kind: type[nn.Layer]) -> bool:
    """Whether it is of this very class, and nobody wants to see what it computes: no hook, no forward of its own."""
    if type(layer) is not kind or layer._forward_pre_hooks or layer._forward_post_hooks:
        return False
    return "forward" not in layer.__dict__
