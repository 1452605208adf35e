"""Weights from files: read without running what is in them, compared with the network, and reported."""

from ppcls_ext.weights.files import Weights, find_weights, read_metadata, read_weights
from ppcls_ext.weights.graphs import graph_of
from ppcls_ext.weights.load import LoadReport, fit_weights, load_weights, state_arrays

__all__ = [
    "LoadReport", "Weights", "find_weights", "fit_weights", "graph_of", "load_weights", "read_metadata", "read_weights",
    "state_arrays",
]  # fmt: skip
