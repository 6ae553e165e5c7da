"""The base class of the four kinds of tokenizer, and the side file that describes one.

``PATH.meta.json`` (schema ``kis.tokenizer/1``) is next to a tokenizer that was trained or copied here. It names kind,
vocab_size, eod_id and fingerprint, and what the model file itself does not hold.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from megatron_kis.common.errors import InputError, nearest
from megatron_kis.common.files import fingerprint, read_json, write_json

EOD_PIECE = "<|endoftext|>"
"""Spelling of the end-of-document token of tokenizers that are trained here."""
META_SCHEMA = "kis.tokenizer/1"
"""Schema of ``PATH.meta.json``."""
_DECIDING = ("schema", "eod", "pattern", "special_tokens")
"""Keys of ``PATH.meta.json`` that decide something; the others say how a tokenizer was made."""
ID_LIMIT = 2**31 - 1
"""Token ids are below it: a corpus has 32 bits for each, with a sign."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """The token ids of a text, and the characters that each covers."""

    tokens: list[int]
    """Token ids of the text, ``[n]``."""
    spans: list[tuple[int, int]]
    """Half-open character range of each token in the text, ``[n]``; all bytes of one character share its range."""


class Tokenizer(ABC):
    """Turns text into token ids and back."""

    library: ClassVar[str]
    """Name of the package that encodes."""

    spellings: tuple[str, ...] = ()
    """Spellings of tokens that are not found by cutting text into words: each is one token, or must not become one."""

    normal_spellings: tuple[str, ...] = ()
    """Such spellings that are searched for in the normalised text, see :meth:`normalise`."""

    has_tables: bool = False
    """Whether the model normalises texts by Unicode tables, which are not the same in all libraries."""

    remarks: tuple[str, ...] = ()
    """Remarks for the user on the tokens around documents, one line each."""

    kind: ClassVar[str]
    """Name of this kind of file in ``PATH.meta.json``."""

    file_name: ClassVar[str]
    """Name of the model file in a folder of copies."""

    frame: tuple[Sequence[int], Sequence[int]] = ((), ())
    """Token ids that the model puts before and after a document, without the end-of-document token."""

    def __init__(
        self,
        model: bytes,
        *,
        vocab_size: int,
        eod_id: int,
        side_content: Mapping[str, Any] | None = None,
        pattern: str = "",
    ) -> None:
        """Keeps what all kinds have in common; use ``tokenizers.registry.load_tokenizer``.

        Args:
            model: content of the model file.
            vocab_size: ids are below it.
            eod_id: id of the end-of-document token.
            side_content: what else decides the ids, as a file next to the model has it.
            pattern: the pattern that cuts text into words, where ``side_content`` has only a name for it.
        """
        self.model = model
        """Content of the model file."""
        self.side_content = dict(side_content or {})
        """Keys of ``PATH.meta.json`` that decide ids and the end-of-document token next to the model file; none for
        SentencePiece, whose model file holds everything."""
        self.model_sha256 = hashlib.sha256(model).hexdigest()
        """Hexadecimal SHA-256 of the model file, which older records call the fingerprint."""
        identity = {"model": self.model_sha256, **self.side_content, **({"cut": pattern} if pattern else {})}
        self.fingerprint = fingerprint(identity) if self.side_content else self.model_sha256
        """Hexadecimal fingerprint of all that decides the ids: the SHA-256 of the model file where that holds
        everything, else of the file, its end-of-document token, special tokens and pattern together."""
        self.vocab_size = vocab_size
        """Number of token ids: all are in ``[0, vocab_size)``."""
        self.eod_id = eod_id
        """Id of the end-of-document token."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Returns the token ids of a text, without an end-of-document token."""

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Returns the token ids of several texts, as :meth:`encode` for each."""
        return [self.encode(text) for text in texts]

    def encode_documents(self, texts: list[str]) -> list[list[int]]:
        """Returns the token ids of whole documents: :meth:`encode` of each in the frame that the model puts around it.

        Some ``tokenizer.json`` files begin every text with a token of their own; Megatron's tool keeps it.
        """
        return self.encode_batch(texts)

    def normalise(self, text: str) -> str:
        """Returns the text as the model cuts it into words."""
        return text

    def frame_line(self, *, ended: bool = True, sentences: bool = False) -> str:
        """Says in one line which tokens documents begin and end with.

        Args:
            ended: documents end with the end-of-document token.
            sentences: each sentence of a document is encoded by itself, within the frame of a text.
        """

        def spelled(tokens: Sequence[int]) -> str:
            return ", ".join(f"{token} ({self.piece(token)})" for token in tokens)

        before = spelled(self.frame[0])
        after = spelled(self.frame[1])
        last = spelled([*self.frame[1], *([self.eod_id] if ended else [])])
        end = f"documents end with token {last}" if last else f"no document ends with token {spelled([self.eod_id])}"
        begin = f"begin with token {before}" if before else "begin with no token of their own"
        line = f"{end}{', and' if last else '; documents'} {begin}"
        around = [f"{verb} with token {tokens}" for verb, tokens in (("begins", before), ("ends", after)) if tokens]
        return f"{line}; every sentence {' and '.join(around)}" if sentences and around else line

    def frame_record(self) -> dict[str, list[int]]:
        """Returns the token ids that the model puts around a document, for records."""
        before, after = self.frame
        return {"before": list(before), "after": list(after)}

    @abstractmethod
    def encode_with_spans(self, text: str) -> Encoding:
        """Returns the token ids of a text and the characters that each covers."""

    def encode_batch_with_spans(self, texts: list[str]) -> tuple[list[list[int]], NDArray[np.int64]]:
        """Returns the token ids of several texts and the characters that each token covers.

        Returns:
            The ids of each text, and [tokens of all texts, 2] the half-open character range of each in its text.
        """
        encodings = [self.encode_with_spans(text) for text in texts]
        spans = [span for encoding in encodings for span in encoding.spans]
        return [encoding.tokens for encoding in encodings], np.array(spans, dtype=np.int64).reshape(-1, 2)

    @abstractmethod
    def decode(self, tokens: list[int]) -> str:
        """Returns the text of token ids; the end-of-document token becomes nothing."""

    @abstractmethod
    def piece(self, token: int) -> str:
        """Returns the piece of a token id, in the model's own spelling."""


def side_file(path: Path) -> Path:
    """Returns ``PATH.meta.json`` of a model file."""
    return path.with_name(path.name + ".meta.json")


def read_meta(path: Path) -> dict[str, Any]:
    """Reads ``PATH.meta.json`` of a model file; empty where there is none.

    Raises:
        InputError: it cannot be read, has another schema, or, if it was written by hand, a key that decides nothing.
    """
    side = side_file(path)
    content = read_json(side, META_SCHEMA) if side.exists() else {}
    unknown = [key for key in content if key not in (*_DECIDING, "kind")]
    if unknown and "fingerprint" not in content:  # which every file has that is written here
        raise InputError("unknown key", where=f"{side}: {unknown[0]}", remedy=nearest(unknown[0], _DECIDING[1:]))
    return content


def write_meta(tokenizer: Tokenizer, path: Path, **more: Any) -> None:
    """Writes ``PATH.meta.json`` of a model file.

    Args:
        tokenizer: the tokenizer.
        path: its model file.
        more: how it was made.
    """
    content = {
        "schema": META_SCHEMA,
        "kind": tokenizer.kind,
        "vocab_size": tokenizer.vocab_size,
        "eod_id": tokenizer.eod_id,
        **tokenizer.side_content,
        "fingerprint": tokenizer.fingerprint,
        **more,
    }
    write_json(side_file(path), content)


def made_with(tokenizer: Tokenizer, recorded: str, eod_id: Any = None) -> bool:
    """Returns whether a recorded fingerprint is that of a tokenizer.

    Older records of ``tokenizer.json`` and tiktoken files have the model file's hash; the end-of-document token then
    has to be the same, too.

    Args:
        tokenizer: the tokenizer.
        recorded: a fingerprint of this version or an older one.
        eod_id: end-of-document token of the record, if it has one.
    """
    if recorded == tokenizer.fingerprint:
        return True
    return recorded == tokenizer.model_sha256 and eod_id in (None, tokenizer.eod_id)


def missing_bytes(tokens: Collection[bytes]) -> int:
    """Counts the bytes that are not a token; a byte-level model needs all 256."""
    return 256 - sum(bytes([value]) in tokens for value in range(256))
