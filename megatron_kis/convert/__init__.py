"""Converts runs to and from other tools: Hugging Face checkpoints, tokenizers, tasks of lm-evaluation-harness."""
