"""What a study found: its analysis from runs to predictions."""
