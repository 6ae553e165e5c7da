"""Runs for other tools: Hugging Face checkpoints (``llama``), their files (``huggingface``) and tokenizers."""
