"""Optimizers, learning-rate schedules, gradient clipping, averaged weights."""

from ppcls_ext.optim.average import WeightAverage
from ppcls_ext.optim.clip import clip_by_global_norm
from ppcls_ext.optim.optimizers import build_optimizer, load_optimizer_state, optimizer_state
from ppcls_ext.optim.schedules import Constant, Cosine, Linear, MultiStep, Piecewise

__all__ = [
    "Constant",
    "Cosine",
    "Linear",
    "MultiStep",
    "Piecewise",
    "WeightAverage",
    "build_optimizer",
    "clip_by_global_norm",
    "load_optimizer_state",
    "optimizer_state",
]
