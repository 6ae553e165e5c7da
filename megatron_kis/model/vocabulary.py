"""Padding of the vocabulary."""

VOCABULARY_MULTIPLE = 128
"""The embedding's rows are padded to a multiple of this, as Megatron-LM does, whatever the tensor-parallel size."""


def padded_vocabulary(vocabulary: int) -> int:
    """Rows of the embedding for a tokenizer of ``vocabulary`` pieces."""
    return -(-vocabulary // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
