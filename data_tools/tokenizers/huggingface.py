"""Hugging Face ``tokenizer.json``: loading any, and encoding with character offsets.

The token that ends a document is not named in the file. It is the ``eod`` of ``PATH.meta.json``, else the ``eos_token``
of a ``tokenizer_config.json`` next to it, else the one of the usual names that the vocabulary has. What one of these
files names must be a token. It is part of the tokenizer's fingerprint.

As in Megatron's tool, the spelling of a special token within a text becomes that token.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_kis.common.errors import InputError
from megatron_kis.common.extras import import_extra
from megatron_kis.common.files import read_text
from megatron_kis.common.parsing import parse_json
from megatron_kis.data_tools.tokenizers.base import EOD_PIECE, META_SCHEMA, Encoding, Tokenizer, read_meta, side_file
from megatron_kis.data_tools.tokenizers.vocabulary import check_vocabulary, damage_of
from megatron_kis.data_tools.tokenizers.words import Words, words_of

_USUAL_NAMES = (EOD_PIECE, "<|end_of_text|>", "</s>", "<eos>", "<|eot|>", "<EOS>")
_ENDS_OF_TURNS = (
    "<|im_end|>",
    "<end_of_turn>",
    "<|eot_id|>",
    "<|eot|>",
    "<|end|>",
    "<|return|>",
    "<|END_OF_TURN_TOKEN|>",
)
"""Tokens that end a message of a chat, not a document."""
_WITHOUT_TABLES = ("Prepend", "Replace")
"""Types of a normaliser's steps that need no tables of Unicode."""

Normalise = Callable[[str], str]
"""A function that normalises a text before it is cut into words."""


class HuggingFaceTokenizer(Tokenizer):
    """A Hugging Face tokenizer, loaded from its ``tokenizer.json``."""

    library = "tokenizers"
    kind = "huggingface"
    file_name = "tokenizer.json"

    def __init__(
        self, tokenizer: Any, model: bytes, *, path: Path, eod: str, normalise: Normalise | None = None
    ) -> None:
        """Wraps a loaded ``tokenizers.Tokenizer``; use ``tokenizers.registry.load_tokenizer``.

        Args:
            tokenizer: the library's object.
            model: content of the file.
            path: the file.
            eod: spelling of the end-of-document token.
            normalise: what the model does to a text before it looks for tokens in it; None for nothing.

        Raises:
            InputError: it is not clear what the model puts before and after a text.
        """
        # The largest id counts, not the number of tokens: some vocabularies have holes.
        vocab_size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        super().__init__(model, vocab_size=vocab_size, eod_id=tokenizer.token_to_id(eod), side_content={"eod": eod})
        self._tokenizer = tokenizer
        self.eod = eod
        """Spelling of the end-of-document token."""
        self.frame: tuple[list[int], list[int]] = _frame(tokenizer, vocab_size, path)
        self._normalise = normalise
        self.words: Words | None = None
        """The words that make up texts, where they are cut word by word."""
        added = tokenizer.get_added_tokens_decoder().values()
        normalised = {token.content for token in added if token.normalized and normalise}
        self.spellings = tuple(token.content for token in added if token.content not in normalised)
        self.normal_spellings = tuple(normalise(content) for content in normalised) if normalise else ()
        self.remarks = (*self.remarks, *_frame_remarks(self, path))

    def normalise(self, text: str) -> str:
        """Returns the text as the model cuts it into words."""
        return self._normalise(text) if self._normalise else text

    def encode(self, text: str) -> list[int]:
        """Returns the token ids of a text, without an end-of-document token."""
        tokens: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return tokens

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Returns the token ids of several texts, as :meth:`encode` for each."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def encode_documents(self, texts: list[str]) -> list[list[int]]:
        """Returns the token ids of whole documents, with the tokens that the model puts around each."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=True)]

    def encode_with_spans(self, text: str) -> Encoding:
        """Returns the token ids of a text and the characters that each covers."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return Encoding(encoding.ids, encoding.offsets)

    def encode_batch_with_spans(self, texts: list[str]) -> tuple[list[list[int]], NDArray[np.int64]]:
        """Returns the token ids of several texts, and [tokens of all, 2] the characters that each covers."""
        if self.words is not None and texts:
            return self.words.encode(texts)
        encodings = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        spans = [span for encoding in encodings for span in encoding.offsets]
        return [encoding.ids for encoding in encodings], np.array(spans, dtype=np.int64).reshape(-1, 2)

    def decode(self, tokens: list[int]) -> str:
        """Returns the text of token ids; special tokens become nothing."""
        text: str = self._tokenizer.decode([int(token) for token in tokens], skip_special_tokens=True)
        return text

    def piece(self, token: int) -> str:
        """Returns the token's name in the vocabulary; bytes are spelled in the model's own alphabet."""
        return str(self._tokenizer.id_to_token(int(token)))


def load_huggingface(path: Path, model: bytes) -> HuggingFaceTokenizer:
    """Builds the tokenizer from the path and the content of a ``tokenizer.json``.

    Raises:
        InputError: the file is not a tokenizer, names two tokens alike, or its end-of-document token or what
            it puts around a text is not clear.
    """
    tokenizers = library()
    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(model)
    except Exception as error:  # the library raises bare exceptions
        raise InputError(f"not a tokenizer.json ({damage_of(model, error)})", where=str(path)) from None
    content = parse_json(model, where=str(path))
    check_vocabulary(content, tokenizer, where=str(path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    eod, remarks = _eod(path, tokenizer)
    loaded = HuggingFaceTokenizer(tokenizer, model, path=path, eod=eod, normalise=_normaliser(content, tokenizer))
    loaded.remarks += remarks
    loaded.words = words_of(content, tokenizer)
    loaded.has_tables = any(step["type"] not in _WITHOUT_TABLES for step in _steps(content))
    return loaded


def _eod(path: Path, tokenizer: Any) -> tuple[str, tuple[str, ...]]:
    """Returns the end-of-document token and remarks on it: what a file next to the model names, else a usual one.

    Raises:
        InputError: a file is damaged or names what is no token of the vocabulary, or there is none of a usual name.
    """
    meta = side_file(path)
    config = path.with_name("tokenizer_config.json")
    example = f'{{"schema": "{META_SCHEMA}", "eod": "..."}}'
    remedy = f"name it in {meta.name}: {example}"
    usual = next((name for name in _USUAL_NAMES if tokenizer.token_to_id(name) is not None), None)
    for side, key in ((meta, "eod"), (config, "eos_token")):
        named = read_meta(path).get(key) if side == meta else named_in_config(config, key)
        if named is None:
            continue
        if not isinstance(named, str) or tokenizer.token_to_id(named) is None:
            problem = f"{key} is {named!r}, which is not a token of {path.name}"
            raise InputError(problem, where=str(side), remedy="name one" if side == meta else remedy)
        if side == config and named in _ENDS_OF_TURNS:
            other = usual or "another token"
            remark = (
                f"{named} ends documents because {config.name} says so, but it ends the turns of a conversation;"
                f" for {other}, write {example.replace('...', usual or '...')} into {meta.name}"
            )
            return named, (remark,)
        return named, ()
    if usual is None:
        raise InputError("has no end-of-document token of a usual name", where=str(path), remedy=remedy)
    return usual, ()


def _frame_remarks(tokenizer: HuggingFaceTokenizer, path: Path) -> Iterator[str]:
    """Yields the differences between the frame of documents here and what the files lead to expect."""
    before, after = tokenizer.frame
    eod = tokenizer.eod
    if tokenizer.eod_id in after:
        yield f"{path.name} itself puts {eod} after a text: documents end with it twice"
    config = path.with_name("tokenizer_config.json")
    wanted = named_in_config(config, "add_bos_token")
    if wanted is True and not before:
        yield f"{config.name} has add_bos_token, but {path.name} puts no token before a text: documents begin with none"
    if wanted is False and before:
        yield f"{config.name} has no add_bos_token, but {path.name} puts a token before a text: documents begin with it"


def _normaliser(content: dict[str, Any], tokenizer: Any) -> Normalise | None:
    """Returns the normalisation before the search for the added tokens that are ``normalized``; None for nothing."""
    if content.get("normalizer") is None:
        return None
    steps = [_step(step) for step in _steps(content)]
    if None in steps:
        normalise: Normalise = tokenizer.normalizer.normalize_str
        return normalise
    return lambda text: reduce(lambda result, step: step(result), steps, text)  # type: ignore[misc]


def _steps(content: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the file's description of each step of its normaliser."""
    described = content.get("normalizer")
    return described.get("normalizers", [described]) if described else []


def _step(described: dict[str, Any]) -> Normalise | None:
    """Returns a step of a normaliser that Python does as the library, and many times as fast; None for any other."""
    if described["type"] == "NFC":
        slow: Normalise = library().normalizers.NFC().normalize_str
        return lambda text: text if unicodedata.is_normalized("NFC", text) else slow(text)
    if described["type"] == "Prepend":
        prefix: str = described["prepend"]
        return lambda text: text and prefix + text
    if described["type"] == "Replace" and described["pattern"].get("String"):
        old = described["pattern"]["String"]
        new = described["content"]
        return lambda text: text.replace(old, new)
    return None


def _frame(tokenizer: Any, vocab_size: int, path: Path) -> tuple[list[int], list[int]]:
    """Returns the tokens before and after a text: those that explain the empty text and one with tokens.

    Raises:
        InputError: there are none, or several, such as where the model does something else with a text.
    """
    possible: set[tuple[tuple[int, ...], tuple[int, ...]]] | None = None
    for text in _texts(tokenizer, vocab_size):
        try:
            bare = tokenizer.encode(text, add_special_tokens=False).ids
            framed = tokenizer.encode(text, add_special_tokens=True).ids
        except Exception:  # noqa: S112 - some models refuse what they have no tokens for, with bare exceptions
            continue
        ends = ((at, at + len(bare)) for at in range(len(framed) - len(bare) + 1))
        found = {(tuple(framed[:at]), tuple(framed[end:])) for at, end in ends if framed[at:end] == bare}
        possible = found if possible is None else possible & found
        if not possible or (bare and len(possible) == 1):
            break
    if possible is None or len(possible) != 1:
        remedy = "its post_processor must put the same tokens before and after every text"
        raise InputError("puts tokens around a text in a way that is not clear", where=str(path), remedy=remedy)
    [(before, after)] = possible
    return list(before), list(after)


def _texts(tokenizer: Any, vocab_size: int) -> Iterator[str]:
    """Yields the empty text, and others until one of them has tokens: not all models have one for a letter."""
    yield ""
    yield "a"
    for token in range(vocab_size):
        if (piece := tokenizer.id_to_token(token)) is not None:
            yield piece
            yield tokenizer.decode([token], skip_special_tokens=False)


def named_in_config(config: Path, key: str) -> Any:
    """Returns a value of ``tokenizer_config.json``; None where there is no file or no such key."""
    if not config.exists():
        return None
    content = parse_json(read_text(config), where=str(config))
    if not isinstance(content, dict):
        raise InputError("not a JSON object", where=str(config))
    value = content.get(key)
    return value.get("content", value) if isinstance(value, dict) else value


def library() -> Any:
    """Returns the package ``tokenizers``.

    Raises:
        InputError: it is not installed.
    """
    return import_extra("tokenizers", "for tokenizer.json")
