"""The tokenizer of a model, however it is given, and the tokens that it puts before a text."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from megatron_kis.common.errors import InputError
from megatron_kis.data_tools.tokenizers.base import Tokenizer
from megatron_kis.data_tools.tokenizers.first_tokens import FirstTokens, first_of_documents, first_of_model
from megatron_kis.data_tools.tokenizers.huggingface import HuggingFaceTokenizer
from megatron_kis.data_tools.tokenizers.registry import load_tokenizer, model_file


def tokenizer_of(given: Any) -> tuple[Tokenizer, FirstTokens]:
    """Returns a tokenizer, and the tokens before each text.

    Args:
        given: a file or folder; a ``Tokenizer`` of this package; or a fast tokenizer of transformers.

    Raises:
        InputError: it is none of these, or has no end-of-document token.
    """
    if isinstance(given, Tokenizer):
        return given, first_of_documents(given)
    if isinstance(given, str | os.PathLike):
        path = model_file(Path(given))
        tokenizer = load_tokenizer(path)
        return tokenizer, first_of_model(tokenizer, path)
    backend = getattr(given, "backend_tokenizer", None)
    if backend is None:
        problem = f"is {type(given).__name__}"
        raise InputError(problem, where="tokenizer", remedy="give its folder, or a fast tokenizer of transformers")
    return _of_transformers(given, backend)


def _of_transformers(given: Any, backend: Any) -> tuple[Tokenizer, FirstTokens]:
    end = given.eos_token or given.bos_token
    if end is None:
        raise InputError("has no eos_token", where="tokenizer", remedy="set one: it ends documents")
    model = backend.to_str().encode()
    copy = type(backend).from_buffer(model)  # padding and truncation of the given one stay as they are
    copy.no_padding()
    copy.no_truncation()
    tokenizer = HuggingFaceTokenizer(copy, model, path=Path(given.name_or_path or ".") / "tokenizer.json", eod=str(end))
    if not tokenizer.frame[0] and given.bos_token_id is not None:
        return tokenizer, FirstTokens([given.bos_token_id], "bos_token of the tokenizer")
    return tokenizer, first_of_documents(tokenizer)
