"""A rank of a CUDA job without a GPU: see README.md."""

VALIDATED = 16
"""Sequences of a rank's validation, before they are shared out to the replicas."""
