"""Callbacks, which do all that happens besides the training steps: metrics, validation, probes, progress, trackers."""
