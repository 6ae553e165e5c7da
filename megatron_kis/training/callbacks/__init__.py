"""What happens besides the training steps: probes, validation, progress, trackers."""
