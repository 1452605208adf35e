"""Operators that Paddle lacks or computes slowly, in plain Paddle."""

from ppcls_ext.ops.large_depthwise import LargeDepthwiseConv2D, large_depthwise_conv
from ppcls_ext.ops.selective_scan import linear_scan, selective_scan

__all__ = ["LargeDepthwiseConv2D", "large_depthwise_conv", "linear_scan", "selective_scan"]
