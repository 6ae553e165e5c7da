"""Sizes that depend on the vocabulary: padding, and how many logits are computed at a time; without PyTorch."""

VOCABULARY_MULTIPLE = 128
"""Multiple to which the embedding's rows are padded, as Megatron-LM does, whatever the tensor-parallel size."""


def padded_vocabulary(vocabulary: int) -> int:
    """Returns the rows of the embedding for a tokenizer of ``vocabulary`` pieces."""
    return -(-vocabulary // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


LOGITS_PER_BLOCK = 1 << 27
"""Most logits that a pass without gradients holds on a rank. A validation takes 6 bytes for each (bf16, and fp32 in
which they become losses), 0.8 GB; a probe 10 (its normaliser is a copy), 1.3 GB. With 128,000 tokens a block is a
matrix product of 1,000 rows, enough to fill a GPU."""
