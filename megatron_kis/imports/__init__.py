"""Models of others as the start of a run: Hugging Face's Llama (``huggingface``), the start itself (``start``)."""
