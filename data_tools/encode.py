"""Encoders: batches of documents to token ids, by the tokenizer's own library or, where it agrees, by gigatoken.

gigatoken encodes the same models ten to a hundred times as fast. It is trusted only after it gave the ids of the
tokenizer's own library for a sample of the corpus and for texts that are known to be awkward; and one document of every
batch is compared again while it works.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from data_tools.tokenizer import Tokenizer
from megatron_kis.errors import InputError

ENCODERS = ("auto", "gigatoken", "reference")

AWKWARD = (
    "",
    " ",
    "  two  spaces  ",
    "\n\n\ttabs and\r\nlines\n",
    "don't DON'T it's we'LL",
    "3.14159 1,000,000 2026-11-23 0x1F٣",
    "Grüße, Ελληνικά, Кириллица, עברית, 北京は東京です, ไทย, हिन्दी",
    "e\u0301 \u00e9 \u1e9b\u0323 \ufb01 \u2460",
    "🙂👩\u200d👩\u200d👧\ufe0f 🇩🇪 \U0001f3f4",
    "\u00a0\u2003\u200b\u3000\ufeff\u2028\x00\x1f\x7f",
    "▁ and ▁▁",
    "a" * 300 + "!?" * 100,
    "http://example.org/a_b?c=%20#d",
    "def f(x):\n        return x  # a comment\n",
)
"""Texts on which encoders of one model have been seen to differ."""

_CACHE_TEXT = 1 << 30  # characters after which gigatoken's caches, which only grow, are thrown away


Batch = tuple[npt.NDArray[Any], npt.NDArray[np.int64]]
"""Token ids of several texts one after another, ``[n]``, and how many belong to each, ``[texts]``."""


class Encoder(Protocol):
    """What turns texts into token ids."""

    @property
    def name(self) -> str:
        """The package that encodes, with its version."""

    def encode(self, texts: list[str], *, ended: bool = False) -> Batch:
        """Token ids of the texts; with ``ended``, those of each that has any end with the end-of-document token."""


class EncodersDifferError(InputError):
    """gigatoken and the tokenizer's own library gave other ids for one text."""


class ReferenceEncoder:
    """The tokenizer's own library."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Encodes with ``tokenizer``."""
        self._tokenizer = tokenizer

    @property
    def name(self) -> str:
        """The package that encodes, with its version."""
        return _version(self._tokenizer.library)

    def encode(self, texts: list[str], *, ended: bool = False) -> Batch:
        """Token ids of the texts; see :class:`Encoder`."""
        rows = self._tokenizer.encode_documents(texts)
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        tokens = np.fromiter(itertools.chain.from_iterable(rows), np.int64, int(lengths.sum()))
        return with_ends(tokens, lengths, self._tokenizer.eod_id) if ended else (tokens, lengths)


class UnsupportedError(Exception):
    """gigatoken cannot encode with this model; the message says why."""


class GigatokenEncoder:
    """Encodes with gigatoken on one thread.

    Where the model takes a special token in the text for that token, the texts of a batch go through in one piece with
    the token between them: half the time of one call a text. Texts that hold the spelling of a special token go to the
    tokenizer's own library.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Loads the tokenizer's model.

        Raises:
            UnsupportedError: gigatoken is not installed or does not read this model.
        """
        self._tokenizer = tokenizer
        self._reference = ReferenceEncoder(tokenizer)
        self._backend, self._separator, (self._before, self._after) = _load(tokenizer)
        self._spellings = tokenizer.spellings
        if self._separator and self._separator not in self._spellings:
            self._spellings += (self._separator,)
        self._encoded = 0

    @property
    def name(self) -> str:
        """The package that encodes, with its version."""
        return _version("gigatoken")

    def encode(self, texts: list[str], *, ended: bool = False) -> Batch:
        """Token ids of the texts; see :class:`Encoder`.

        Raises:
            EncodersDifferError: the first text of the batch is encoded differently by the tokenizer's own library.
        """
        tokens, lengths = self.encode_unchecked(texts, ended=ended)
        if texts and len(texts[0]) <= _CHECKED:
            expected, _ = self._reference.encode(texts[:1], ended=ended)
            if not np.array_equal(tokens[: lengths[0]], expected):
                problem = f"{self.name} and {self._reference.name} encode this text differently: {texts[0][:80]!r}"
                raise EncodersDifferError(problem, remedy="--encoder reference")
        return tokens, lengths

    def encode_unchecked(self, texts: list[str], *, ended: bool = False) -> Batch:
        """As :meth:`encode`, without the comparison."""
        if not texts:
            return np.empty(0, np.uint32), np.empty(0, np.int64)
        self._encoded += sum(map(len, texts))
        if self._encoded > _CACHE_TEXT:
            self._encoded = 0
            self._backend, *_ = _load(self._tokenizer)
        eod_id = self._tokenizer.eod_id
        joined = (self._separator or "\x00").join([*texts, ""])
        plain = not any(
            joined.count(spelling) > (len(texts) if spelling == self._separator else 0) for spelling in self._spellings
        )
        if self._separator and plain and not (len(self._before) or len(self._after)):
            tokens = self._backend.encode(joined)
            ends = np.flatnonzero(tokens == eod_id)
            lengths = np.diff(ends, prepend=-1)
            if ended and lengths.min() > 1:
                return tokens, lengths
            kept = np.ones(len(tokens), dtype=bool)
            kept[ends] = False
            tokens, lengths = tokens[kept], lengths - 1
        else:
            rows = [self._row(text, plain) for text in texts]
            tokens, lengths = np.concatenate(rows), np.fromiter(map(len, rows), np.int64, len(rows))
        return with_ends(tokens, lengths, eod_id) if ended else (tokens, lengths)

    def _row(self, text: str, plain: bool) -> npt.NDArray[Any]:
        if not plain and any(spelling in text for spelling in self._spellings):
            return self._reference.encode([text])[0]
        tokens = self._backend.encode(text)
        if len(self._before) or len(self._after):
            tokens = np.concatenate([self._before, tokens, self._after])
        row: npt.NDArray[Any] = tokens
        return row


def with_ends(tokens: npt.NDArray[Any], lengths: npt.NDArray[np.int64], eod_id: int) -> Batch:
    """Puts the end-of-document token after every text that has a token."""
    filled = lengths > 0
    return np.insert(tokens, np.cumsum(lengths)[filled], eod_id), lengths + filled


_CHECKED = 2_000  # characters of a text that is compared while encoding: the reference needs a millisecond for so many


def choose_encoder(tokenizer: Tokenizer, sample: Sequence[str], wanted: str = "auto") -> tuple[Encoder, str]:
    """Chooses gigatoken where it gives the reference's ids, else the reference.

    Args:
        tokenizer: the tokenizer.
        sample: some documents of the corpus.
        wanted: ``auto``, ``gigatoken`` or ``reference``.

    Returns:
        The encoder, and why it was chosen.

    Raises:
        InputError: gigatoken is wanted and cannot be had.
    """
    reference = ReferenceEncoder(tokenizer)
    if wanted not in ENCODERS:
        raise InputError(f"is {wanted!r}", where="encoder", remedy=f"valid: {', '.join(ENCODERS)}")
    if wanted == "reference":
        return reference, "as asked"
    try:
        fast = GigatokenEncoder(tokenizer)
        texts = [*sample, *AWKWARD, *(f"before {spelling} after" for spelling in tokenizer.spellings)]
        different = _differing(fast, reference, texts)
        if not different:
            return fast, f"its ids are those of {tokenizer.library} on {len(texts)} texts"
        why = f"gigatoken differs on {len(different)} of {len(texts)} texts, the first {different[0][:60]!r}"
    except UnsupportedError as error:
        why = str(error)
    if wanted == "gigatoken":
        raise InputError(why, where="encoder", remedy="auto or reference")
    return reference, why


def versions_of(encoder: Encoder, tokenizer: Tokenizer) -> dict[str, str]:
    """The encoder, and the version of the tokenizer's own library, which encodes what the encoder leaves to it."""
    return {"encoder": encoder.name, tokenizer.library: package_version(tokenizer.library)}


def _differing(fast: GigatokenEncoder, reference: ReferenceEncoder, texts: list[str]) -> list[str]:
    tokens, lengths = fast.encode_unchecked(texts)
    expected, expected_lengths = reference.encode(texts)
    if len(lengths) != len(expected_lengths):
        return texts
    ends, expected_ends = np.cumsum(lengths), np.cumsum(expected_lengths)
    return [
        text
        for text, end, length, expected_end, expected_length in zip(
            texts, ends, lengths, expected_ends, expected_lengths, strict=True
        )
        if not np.array_equal(tokens[end - length : end], expected[expected_end - expected_length : expected_end])
    ]


def _load(tokenizer: Tokenizer) -> tuple[Any, str | None, tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    """The model as gigatoken reads it, the special token to put between texts, and the tokens around each text."""
    from data_tools.tokenizer_huggingface import HuggingFaceTokenizer
    from data_tools.tokenizer_sentencepiece import SentencePieceTokenizer
    from data_tools.tokenizer_tiktoken import TiktokenTokenizer

    try:
        import gigatoken
    except ImportError:
        raise UnsupportedError("gigatoken is not installed (pip install 'megatron-kis[corpus]')") from None
    frame: Iterable[list[int]] = ([], [])
    separator: str | None = None
    try:
        if isinstance(tokenizer, HuggingFaceTokenizer):
            model = gigatoken.Tokenizer.from_json(tokenizer.model)
            separator, frame = tokenizer.eod, tokenizer.frame
        elif isinstance(tokenizer, TiktokenTokenizer):
            with tempfile.TemporaryDirectory() as folder:  # the file itself may have changed since it was read
                copy = Path(folder) / tokenizer.file_name
                copy.write_bytes(tokenizer.model)
                model = gigatoken.Tokenizer.from_tiktoken(
                    copy, pretokenizer=tokenizer.pattern, special_tokens=tokenizer.special
                )
            separator = tokenizer.eod
        elif isinstance(tokenizer, SentencePieceTokenizer):
            model = gigatoken.Tokenizer.from_sentencepiece(tokenizer.model)
        else:
            raise UnsupportedError(f"gigatoken does not read models of {tokenizer.library}")
    except (ValueError, RuntimeError, TypeError, OSError, NotImplementedError) as error:
        raise UnsupportedError(f"gigatoken does not read this model ({str(error).splitlines()[0]})") from None
    before, after = (np.asarray(tokens, dtype=np.uint32) for tokens in frame)
    return model.backend, separator, (before, after)


def usable_gigatoken() -> str | None:
    """Version of gigatoken; None where it is not installed."""
    try:
        import gigatoken  # noqa: F401
    except ImportError:
        return None
    return package_version("gigatoken")


def package_version(package: str) -> str:
    """Version of an installed package."""
    return _version(package).partition(" ")[2]


def _version(package: str) -> str:
    import importlib.metadata  # 50 ms, for the end of the work or while others work

    return f"{package} {importlib.metadata.version(package)}"
