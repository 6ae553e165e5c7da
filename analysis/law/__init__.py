"""The knowledge infusion scaling law: fit, intervals, predictions and their validation."""
