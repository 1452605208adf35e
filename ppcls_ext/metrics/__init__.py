"""Metrics: each returns sums over a batch, so that sums over batches and ranks give exact counts."""

from ppcls_ext.metrics.accuracy import TopkAcc

__all__ = ["TopkAcc"]
