"""Which tokens precede a statement that a model is asked about."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megatron_kis.data_tools.tokenizers.base import Tokenizer
from megatron_kis.data_tools.tokenizers.huggingface import named_in_config


@dataclass(frozen=True)
class FirstTokens:
    """Tokens before each statement, and the rule that chose them."""

    tokens: list[int]
    """Token ids, at least one."""

    rule: str
    """Where they are from, for records."""


def first_of_documents(tokenizer: Tokenizer) -> FirstTokens:
    """Returns what precedes a document of a corpus that this project tokenized.

    It is what the tokenizer puts before every text; else the end-of-document token of the document before.
    """
    before = list(tokenizer.frame[0])
    return FirstTokens(before, "what the tokenizer puts before a document") if before else _eod(tokenizer)


def first_of_model(tokenizer: Tokenizer, path: Path) -> FirstTokens:
    """Returns what precedes a text for a model of another library, as in lm-evaluation-harness.

    It is what the tokenizer puts before every text; else the ``bos_token`` of ``tokenizer_config.json``; else the
    end-of-document token.

    Args:
        tokenizer: the tokenizer of the model.
        path: its file.
    """
    if not tokenizer.frame[0]:
        bos = named_in_config(path.with_name("tokenizer_config.json"), "bos_token")
        if isinstance(bos, str):
            found = next((token for token in range(tokenizer.vocab_size) if tokenizer.piece(token) == bos), None)
            if found is not None:
                return FirstTokens([found], "bos_token of tokenizer_config.json")
    return first_of_documents(tokenizer)


def _eod(tokenizer: Tokenizer) -> FirstTokens:
    return FirstTokens([tokenizer.eod_id], "eod")
