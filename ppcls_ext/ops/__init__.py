"""Operators that Paddle lacks or computes slowly: in plain Paddle, and compiled where a compiler is (`native`)."""

from ppcls_ext.ops.depthwise import depthwise_conv
from ppcls_ext.ops.large_depthwise import LargeDepthwiseConv2D, large_depthwise_conv
from ppcls_ext.ops.selective_scan import cross_scan, linear_scan, selective_scan
from ppcls_ext.ops.token_conv import token_conv

__all__ = [
    "LargeDepthwiseConv2D",
    "cross_scan",
    "depthwise_conv",
    "large_depthwise_conv",
    "linear_scan",
    "selective_scan",
    "token_conv",
]
