"""Runs for other tools: Llama checkpoints (``huggingface``, ``llama``, ``tokenizer``), tasks of lm-eval."""
