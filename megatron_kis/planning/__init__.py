"""Costs of a run before it is started: parameters a rank, memory a GPU, time, GPU-hours; pure functions, no torch."""
