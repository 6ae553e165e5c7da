"""The runs and sizes to train next."""
