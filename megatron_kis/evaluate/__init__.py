"""A finished run evaluated again: a checkpoint on any questions, and the history of single facts."""
