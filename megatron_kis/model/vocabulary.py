"""Sizes that go by the vocabulary: padding, and how many logits are made at a time. Nothing here needs PyTorch."""

VOCABULARY_MULTIPLE = 128
"""The embedding's rows are padded to a multiple of this, as Megatron-LM does, whatever the tensor-parallel size."""


def padded_vocabulary(vocabulary: int) -> int:
    """Rows of the embedding for a tokenizer of ``vocabulary`` pieces."""
    return -(-vocabulary // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


LOGITS_PER_BLOCK = 1 << 27
"""Logits that a pass without gradients (validation, probe) holds at most on a rank: 0.5 GB in fp32, 0.8 GB with those
in bf16 that they are made from. With 128,000 tokens that is a matrix product of 1,000 rows, enough to fill a GPU."""
