"""Layers that two or more backbones share."""

from ppcls_ext.layers.batch_norm import BATCH_NORMS, SyncBatchNorm, convert_sync_batchnorm, momenta_restored
from ppcls_ext.layers.checkpointing import checkpointed
from ppcls_ext.layers.compiled import LayerNorm, Linear
from ppcls_ext.layers.drop_path import DropPath, drop_path_rates, require_rate
from ppcls_ext.layers.grouped_conv import DepthwiseConv2D, DirectConv2D, PointwiseConv2D
from ppcls_ext.layers.initial import fill_convolutions, fill_like_pytorch
from ppcls_ext.layers.kept import KeptWeights
from ppcls_ext.layers.normalised import Sequential, normalised
from ppcls_ext.layers.permute import PermuteChannels, shuffled
from ppcls_ext.layers.plain import is_plain
from ppcls_ext.layers.pooling import GlobalMean, MaxPool2D, global_mean
from ppcls_ext.layers.sizes import make_divisible, require_positive

__all__ = [
    "BATCH_NORMS",
    "DepthwiseConv2D",
    "DirectConv2D",
    "DropPath",
    "GlobalMean",
    "KeptWeights",
    "LayerNorm",
    "Linear",
    "MaxPool2D",
    "PermuteChannels",
    "PointwiseConv2D",
    "Sequential",
    "SyncBatchNorm",
    "checkpointed",
    "convert_sync_batchnorm",
    "drop_path_rates",
    "fill_convolutions",
    "fill_like_pytorch",
    "global_mean",
    "is_plain",
    "make_divisible",
    "momenta_restored",
    "normalised",
    "require_positive",
    "require_rate",
    "shuffled",
]
