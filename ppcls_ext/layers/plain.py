"""Whether one operator may do the work of layers without calling them."""

from __future__ import annotations

from paddle import nn


def is_hooked(layer: nn.Layer) -> bool:
    """Whether somebody wants to see what it computes, or gave it a forward of its own."""
    return bool(layer._forward_pre_hooks or layer._forward_post_hooks or "forward" in layer.__dict__)


def is_plain(layer: nn.Layer, kind: type[nn.Layer]) -> bool:
    """Whether it is of this very class and not hooked."""
    return type(layer) is kind and not is_hooked(layer)
