"""Weights from files: read without running what is in them, compared with the network, and reported."""

from ppcls_ext.weights.files import find_weights, read_metadata, read_tensors
from ppcls_ext.weights.load import LoadReport, load_weights, state_arrays

__all__ = ["LoadReport", "find_weights", "load_weights", "read_metadata", "read_tensors", "state_arrays"]
