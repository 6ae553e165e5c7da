"""What happens besides the training steps: metrics, validation, probes, progress, trackers."""
