"""The analysis of a study, from runs to predictions."""
