"""Four kinds of tokenizer behind one interface: SentencePiece, Hugging Face's ``tokenizer.json``, tiktoken, tekken.

The kind follows from the file's name and content (``data_tools.tokenizers.kinds``). ``PATH.meta.json`` (schema
``kis.tokenizer/1``) is next to a tokenizer that was trained or copied here; it names kind, vocab_size, eod_id,
fingerprint, and what the model file itself does not hold.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from megatron_kis.common.errors import InputError
from megatron_kis.common.files import fingerprint, steadily, write_bytes, write_json

EOD_PIECE = "<|endoftext|>"
META_SCHEMA = "kis.tokenizer/1"
_RARE = ("\U00010348", "\U0001f9ff")  # characters of no vocabulary: they have bytes, or nothing of their own
MODEL_KINDS = ("unigram", "bpe", "byte-bpe")
"""What can be trained: SentencePiece models (the first two), and byte-level BPE as ``tokenizer.json``."""
SMALLEST_VOCABULARY, LARGEST_VOCABULARY = 300, 1_000_000
"""Pieces: 256 bytes, the special ones and the letters; more than a million are a mistake."""
SMALLEST_COVERAGE = 0.98
"""SentencePiece refuses a smaller one."""
CHARACTER_COVERAGE = 0.9995
"""Share of characters that get a piece of their own; SentencePiece's default."""


@dataclass(frozen=True, slots=True)
class Training:
    """What a tokenizer is trained with; see :func:`train_tokenizer`."""

    vocab_size: int
    kind: str
    seed: int = 0
    character_coverage: float = CHARACTER_COVERAGE
    option: Callable[[str], str] = str
    """What the user calls an argument."""

    def check(self) -> None:
        """Checks what can be before the text is read.

        Raises:
            InputError: a value is out of its range.
        """
        ranges = {
            "vocab_size": (SMALLEST_VOCABULARY, LARGEST_VOCABULARY),
            "character_coverage": (SMALLEST_COVERAGE, 1),
        }
        for name, (least, most) in ranges.items():
            if not least <= (value := getattr(self, name)) <= most:
                problem, remedy = f"is {value}", f"from {least} to {most}"
                raise InputError(problem, where=self.option(name), remedy=remedy)
        if self.kind not in MODEL_KINDS:
            remedy = f"valid: {', '.join(MODEL_KINDS)}"
            raise InputError(f"is {self.kind!r}", where=self.option("model"), remedy=remedy)


@dataclass(frozen=True, slots=True)
class Encoding:
    """Token ids of a text, and the characters each covers."""

    tokens: list[int]
    """Token ids, ``[n]``."""
    spans: list[tuple[int, int]]
    """Half-open character range of each token in the text, ``[n]``; all bytes of one character share its range."""


class Tokenizer(ABC):
    """Text to token ids and back."""

    library: ClassVar[str]
    """Package that does the encoding."""

    spellings: tuple[str, ...] = ()
    """Spellings that are not cut into tokens like other text: they are a token, or must not become one."""

    normal_spellings: tuple[str, ...] = ()
    """As ``spellings``, but looked for in what :meth:`normalise` makes of a text."""

    has_tables: bool = False
    """The model normalises texts by Unicode tables, which are not the same in all libraries."""

    remarks: tuple[str, ...] = ()
    """What a user should know of the tokens around documents, one line each."""

    kind: ClassVar[str]
    """What ``PATH.meta.json`` calls this kind of file."""

    file_name: ClassVar[str]
    """Name of the model file in a folder of copies."""

    frame: tuple[Sequence[int], Sequence[int]] = ((), ())
    """Tokens that the model puts before and after a document, besides the end-of-document token."""

    def __init__(
        self, model: bytes, *, vocab_size: int, eod_id: int, beside: Mapping[str, Any] | None = None, cut: str = ""
    ) -> None:
        """Keeps what all kinds have in common; use :func:`load_tokenizer`.

        Args:
            model: content of the model file.
            vocab_size: ids are below it.
            eod_id: the token that ends documents.
            beside: what else decides the ids, and is in a file next to the model.
            cut: how text is cut into words, where ``beside`` has only a name for it.
        """
        self.model = model
        """Content of the model file."""
        self.beside = dict(beside or {})
        """What else decides ids and the ends of documents, as ``PATH.meta.json`` names it; nothing for SentencePiece,
        whose file says all."""
        self.model_sha256 = hashlib.sha256(model).hexdigest()
        """Hexadecimal SHA-256 of the model file, which is what older records call the fingerprint."""
        whole = {"model": self.model_sha256, **self.beside, **({"cut": cut} if cut else {})}
        self.fingerprint = fingerprint(whole) if self.beside else self.model_sha256
        """Hexadecimal fingerprint of all that decides what this tokenizer does: that of the model file, where it holds
        everything, else of the file, its end-of-document token, special tokens and pattern together."""
        self.vocab_size = vocab_size
        """Ids lie in ``[0, vocab_size)``."""
        self.eod_id = eod_id
        """The token that ends every document."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without an end-of-document token."""

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Token ids of several texts, as :meth:`encode` of each."""
        return [self.encode(text) for text in texts]

    def encode_documents(self, texts: list[str]) -> list[list[int]]:
        """Token ids of whole documents: :meth:`encode` of each within the frame that the model puts around a text.

        Some ``tokenizer.json`` files begin every text with a token of their own; Megatron's tool keeps it.
        """
        return self.encode_batch(texts)

    def normalise(self, text: str) -> str:
        """The text as the model cuts it."""
        return text

    def frame_line(self, *, ended: bool = True, sentences: bool = False) -> str:
        """Which tokens documents begin and end with, in one line to read.

        Args:
            ended: documents end with the end-of-document token.
            sentences: each sentence of a document is encoded by itself, within the frame of a text.
        """
        eod = f"{self.eod_id} ({self.piece(self.eod_id)})"
        before, after = (", ".join(f"{token} ({self.piece(token)})" for token in tokens) for tokens in self.frame)
        last = ", ".join(filter(None, (after, eod if ended else "")))
        end = f"documents end with token {last}" if last else f"no document ends with token {eod}"
        begin = f"begin with token {before}" if before else "begin with no token of their own"
        line = f"{end}{', and' if last else '; documents'} {begin}"
        around = [f"{verb} with token {tokens}" for verb, tokens in (("begins", before), ("ends", after)) if tokens]
        return f"{line}; every sentence {' and '.join(around)}" if sentences and around else line

    def frame_record(self) -> dict[str, list[int]]:
        """The token ids that the model puts around a document, for records."""
        before, after = self.frame
        return {"before": list(before), "after": list(after)}

    @abstractmethod
    def encode_with_spans(self, text: str) -> Encoding:
        """Token ids and the characters that each covers."""

    def encode_batch_with_spans(self, texts: list[str]) -> tuple[list[list[int]], NDArray[np.int64]]:
        """Token ids of several texts, and what :meth:`encode_with_spans` says of each.

        Returns:
            The ids of each text, and [tokens of all texts, 2] the characters that each token covers in its text.
        """
        encodings = [self.encode_with_spans(text) for text in texts]
        spans = [span for encoding in encodings for span in encoding.spans]
        return [encoding.tokens for encoding in encodings], np.array(spans, dtype=np.int64).reshape(-1, 2)

    @abstractmethod
    def decode(self, tokens: list[int]) -> str:
        """The text of token ids; the end-of-document token becomes nothing."""

    @abstractmethod
    def piece(self, token: int) -> str:
        """The piece of a token id, in the model's own spelling."""


def load_tokenizer(path: Path) -> Tokenizer:
    """Loads a tokenizer.

    Raises:
        InputError: the file is missing, unreadable, not a tokenizer, or has no end-of-document token.
    """
    path = model_file(path)
    tokenizer = _loaded(path)
    try:
        alike = tokenizer.encode(_RARE[0]) == tokenizer.encode(_RARE[1])
    except Exception as error:  # tokenizers raises bare exceptions
        problem = f"refuses text that it has no tokens for ({error})"
        raise InputError(problem, where=str(path), remedy="give the model an unk_token of its vocabulary") from None
    if alike:
        lost = (
            "the vocabulary lacks characters and has no bytes for them: they are lost, and texts in some scripts alike"
        )
        tokenizer.remarks += (lost,)
    return tokenizer


def _loaded(path: Path) -> Tokenizer:
    from megatron_kis.data_tools.tokenizers.kinds import kind_of_file

    kind = kind_of_file(path, read_model(path))
    if kind == "huggingface":
        from megatron_kis.data_tools.tokenizers.huggingface import load_huggingface

        return load_huggingface(path)
    if kind == "tekken":
        from megatron_kis.data_tools.tokenizers.tekken import load_tekken

        return load_tekken(path)
    if kind == "tiktoken":
        from megatron_kis.data_tools.tokenizers.tiktoken import load_tiktoken

        return load_tiktoken(path)
    from megatron_kis.data_tools.tokenizers.sentencepiece import load_sentencepiece

    return load_sentencepiece(path)


def model_file(path: Path) -> Path:
    """The model file of a tokenizer: where a folder is given, the one in it, else the path.

    Raises:
        InputError: the folder has no tokenizer, or only files that do not say how text is cut.
    """
    from megatron_kis.data_tools.tokenizers.kinds import file_in_folder

    return file_in_folder(path) if path.is_dir() else path


def write_copy(tokenizer: Tokenizer, folder: Path) -> Path:
    """Writes a tokenizer with everything that belongs to it into a folder, under a name of its kind.

    Returns:
        The model file: ``load_tokenizer`` of it gives a tokenizer of the same fingerprint, wherever the folder goes.
    """
    path = folder / tokenizer.file_name
    side_file(path).unlink(missing_ok=True)  # one of an earlier model may name another token
    write_bytes(path, tokenizer.model)
    write_meta(tokenizer, path)
    copy = load_tokenizer(path)
    assert copy.fingerprint == tokenizer.fingerprint
    return path


def side_file(path: Path) -> Path:
    """``PATH.meta.json`` of a model file."""
    return path.with_name(path.name + ".meta.json")


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
        **tokenizer.beside,
        "fingerprint": tokenizer.fingerprint,
        **more,
    }
    write_json(side_file(path), content)


def train_tokenizer(
    texts: Iterable[str],
    output: Path,
    *,
    vocab_size: int,
    kind: str = "unigram",
    names: Iterable[str] = (),
    seed: int = 0,
    character_coverage: float = CHARACTER_COVERAGE,
) -> Tokenizer:
    """Trains a tokenizer and writes ``output`` and ``output.meta.json``.

    Args:
        texts: documents of general text.
        output: path of the model file; ``.json`` for ``byte-bpe``, and for no other kind.
        vocab_size: number of pieces, from 300 to a million.
        kind: one of ``MODEL_KINDS``.
        names: names of studied facts, added once each as lines of their own. Give the names of all groups alike, so
            that no group's names are cut into fewer tokens than another's.
        seed: seed of the sample of more than 100 MB of text.
        character_coverage: share of characters that get a piece of their own, from 0.98 to 1; the rest become bytes
            (SentencePiece).

    Raises:
        InputError: the vocabulary is too small or too large for the text, or the text is empty.
    """
    from megatron_kis.data_tools.tokenizers.training import train

    training = Training(vocab_size, kind, seed, character_coverage)
    return train(texts, output, training, names=names)


def read_model(path: Path) -> bytes:
    """Content of a tokenizer file.

    Raises:
        InputError: it cannot be read.
    """
    return steadily(path.read_bytes, path)
