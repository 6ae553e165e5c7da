"""Callbacks, which do everything apart from the training steps: metrics, validation, probes, progress, trackers."""
