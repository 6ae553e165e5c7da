"""Costs of a run before its start: parameters per rank, memory per GPU, time, GPU-hours; pure functions, no torch."""
