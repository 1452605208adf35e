"""Metrics, of two kinds.

Most return sums over a batch, so that sums over batches and ranks give exact counts. A `whole` one has no such sums: it
is given every image's answers (`of`), and stands in evaluations only. `several_labels` says which labels it takes,
`selects` whether more of it is better, so that it can choose the best model.
"""

from ppcls_ext.metrics.accuracy import TopkAcc
from ppcls_ext.metrics.multilabel import AccuracyScore, HammingDistance, MultiLabelF1, MultiLabelMAP

__all__ = ["AccuracyScore", "HammingDistance", "MultiLabelF1", "MultiLabelMAP", "TopkAcc"]
