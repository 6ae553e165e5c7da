"""Sizes that go by the vocabulary: padding, and how many logits are made at a time. Nothing here needs PyTorch."""

VOCABULARY_MULTIPLE = 128
"""The embedding's rows are padded to a multiple of this, as Megatron-LM does, whatever the tensor-parallel size."""


def padded_vocabulary(vocabulary: int) -> int:
    """Rows of the embedding for a tokenizer of ``vocabulary`` pieces."""
    return -(-vocabulary // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


LOGITS_PER_BLOCK = 1 << 27
"""Logits that a pass without gradients holds at most on a rank. A validation takes 6 bytes for each (bf16, and fp32 in
which they become losses), 0.8 GB; a probe 10 (its normaliser is a copy), 1.3 GB. With 128,000 tokens a block is a
matrix product of 1,000 rows, enough to fill a GPU."""
