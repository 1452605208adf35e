"""Operators that Paddle lacks or computes slowly: in plain Paddle, and compiled where a compiler is (`native`)."""

from ppcls_ext.ops.batch_norm import batch_norm
from ppcls_ext.ops.depthwise import depthwise_conv
from ppcls_ext.ops.direct_conv import direct_conv
from ppcls_ext.ops.group_mamba import GroupMambaStage, group_mamba_network
from ppcls_ext.ops.group_products import joined_products, parted_products, weighed
from ppcls_ext.ops.large_depthwise import LargeDepthwiseConv2D, large_depthwise_conv
from ppcls_ext.ops.layer_norm import gated_norm, layer_norm
from ppcls_ext.ops.max_pool import max_pool
from ppcls_ext.ops.pointwise_conv import pointwise_conv
from ppcls_ext.ops.products import linear
from ppcls_ext.ops.selective_scan import cross_scan, linear_scan, scan_of_products, selective_scan
from ppcls_ext.ops.token_conv import token_conv

__all__ = [
    "GroupMambaStage",
    "LargeDepthwiseConv2D",
    "batch_norm",
    "cross_scan",
    "depthwise_conv",
    "direct_conv",
    "gated_norm",
    "group_mamba_network",
    "joined_products",
    "large_depthwise_conv",
    "layer_norm",
    "linear",
    "linear_scan",
    "max_pool",
    "parted_products",
    "pointwise_conv",
    "scan_of_products",
    "selective_scan",
    "token_conv",
    "weighed",
]
