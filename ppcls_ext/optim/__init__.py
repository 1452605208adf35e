"""Optimizers, learning-rate schedules, gradient clipping, averaged weights."""

from ppcls_ext.optim.average import WeightAverage
from ppcls_ext.optim.clip import clip_by_global_norm, make_clip
from ppcls_ext.optim.optimizers import build_optimizer
from ppcls_ext.optim.schedules import Schedule
from ppcls_ext.optim.state import create_states, evaluation_weights, load_optimizer_state, optimizer_state

__all__ = [
    "Schedule",
    "WeightAverage",
    "build_optimizer",
    "clip_by_global_norm",
    "create_states",
    "evaluation_weights",
    "load_optimizer_state",
    "make_clip",
    "optimizer_state",
]
