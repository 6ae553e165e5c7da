"""Checkpoints on disk: folders that are whole or absent, sharded tensors, initial weights."""
