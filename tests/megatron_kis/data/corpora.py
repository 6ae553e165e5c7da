"""A corpus that shows which of its tokens were read."""

from __future__ import annotations

from pathlib import Path

from megatron_kis.common.files import write_json
from megatron_kis.data_tools.storage.indexed import IndexedWriter, suffixed


def write_corpus(prefix: Path, tokens: int, *, first: int = 0) -> Path:
    """A corpus in which token i of the stream has id ``first`` + i, in documents of 10 tokens."""
    with IndexedWriter(prefix, vocab_size=max(tokens, 70_000)) as writer:
        for start in range(0, tokens, 10):
            writer.add([first + token for token in range(start, min(start + 10, tokens))])
    meta = {"schema": "kis.corpus/1", "content_fingerprint": writer.content_fingerprint, "tokenizer_fingerprint": "t"}
    write_json(suffixed(prefix, ".meta.json"), meta)
    return prefix
