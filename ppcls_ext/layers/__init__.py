"""Layers that two or more backbones share."""

from ppcls_ext.layers.permute import PermuteChannels, shuffled
from ppcls_ext.layers.sizes import make_divisible, require_positive

__all__ = ["PermuteChannels", "make_divisible", "require_positive", "shuffled"]
