"""Results as tables: runs of ours, results of other trainers, curves, transitions."""
