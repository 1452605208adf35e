"""Pickles read without executing anything: a machine of our own, and the arrays made of what it finds."""
