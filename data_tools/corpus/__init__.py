"""General text to a tokenized corpus in Megatron's format."""
