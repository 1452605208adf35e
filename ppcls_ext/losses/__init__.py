"""Losses: plain functions of (logits, labels), entered in `registry.LOSSES` under PaddleClas's names.

A loss is a mean over images, so that several processes, or several parts of a batch, train like one.
`several_labels` says whether it takes images with several labels.
"""

from ppcls_ext.losses.binary import BCELoss, MultiLabelAsymmetricLoss, MultiLabelLoss
from ppcls_ext.losses.cross_entropy import CELoss, FocalLoss, SoftTargetCrossEntropy
from ppcls_ext.losses.targets import LabelCounts, count_labels

__all__ = [
    "BCELoss",
    "CELoss",
    "FocalLoss",
    "LabelCounts",
    "MultiLabelAsymmetricLoss",
    "MultiLabelLoss",
    "SoftTargetCrossEntropy",
    "count_labels",
]
