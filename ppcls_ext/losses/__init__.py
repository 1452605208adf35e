"""Losses: plain functions of (logits, labels), entered in `registry.LOSSES` under PaddleClas's names."""

from ppcls_ext.losses.cross_entropy import CELoss

__all__ = ["CELoss"]
