"""Results as tables: our runs, results of other trainers, curves, transitions."""
