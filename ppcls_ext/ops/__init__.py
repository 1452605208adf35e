"""Operators that Paddle lacks or computes slowly, in plain Paddle."""

from ppcls_ext.ops.large_depthwise import LargeDepthwiseConv2D, large_depthwise_conv

__all__ = ["LargeDepthwiseConv2D", "large_depthwise_conv"]
