"""Measurements, one file per question; run as ``python -m benchmarks.NAME``."""
