"""gigatoken: the ids of the tokenizer's own library, many times as fast, in most texts of most models.

On English with byte-level BPE it is 25 times as fast. It is never trusted blindly. ``tokenizers.encoder`` tries it
before it is chosen; texts in which encoders are known to differ are left to the tokenizer's own library
(``tokenizers.unsafe_text``); and pieces of every batch are compared.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_kis.data_tools.tokenizers.base import Tokenizer
from megatron_kis.data_tools.tokenizers.huggingface import HuggingFaceTokenizer
from megatron_kis.data_tools.tokenizers.reference_encoder import (
    Batch,
    EncodersDifferError,
    ReferenceEncoder,
    name_of,
    package_version,
    with_ends,
)
from megatron_kis.data_tools.tokenizers.sentencepiece import SentencePieceTokenizer
from megatron_kis.data_tools.tokenizers.tiktoken import TiktokenTokenizer
from megatron_kis.data_tools.tokenizers.unsafe_text import UnsafeTextFinder, normalisation_probes

_CACHE_TEXT = 1 << 30  # characters after which gigatoken's caches, which only grow, are thrown away
_COMPARED = 2_000  # one character in so many is compared twice: the reference takes 2% of the time, then
_REMEDY = "--encoder reference"
_SHORTEST = 100  # characters of a compared piece
_LONGEST = 2_000


class UnsupportedError(Exception):
    """gigatoken cannot encode with this model; the message says why."""


class GigatokenEncoder:
    """Encodes with gigatoken on one thread.

    Where the model has a token that no text holds, the texts of a batch go through in one piece with the token between
    them: half the time of one call per text.
    """

    def __init__(self, tokenizer: Tokenizer, *, blanks: bool = True, joined: bool = True) -> None:
        """Loads the tokenizer's model.

        Args:
            tokenizer: the tokenizer.
            blanks: gigatoken encodes texts that hold added tokens of white space, too.
            joined: texts go through in one piece, where the model has a token to put between them.

        Raises:
            UnsupportedError: gigatoken is not installed or does not read this model.
            EncodersDifferError: gigatoken failed.
        """
        self._tokenizer = tokenizer
        self._reference = ReferenceEncoder(tokenizer)
        self._backend, joint, (self._before, self._after) = _load(tokenizer)
        framed = len(self._before) or len(self._after)
        self._joint = joint if joined and joint and not framed and _is_separable(joint.token, tokenizer) else None
        self._unsafe = UnsafeTextFinder(tokenizer, blanks=not blanks, also=[self._joint.token] if self._joint else [])
        self._encoded = 0
        if tokenizer.has_tables:
            self._unsafe.add(self._disagreed())

    @property
    def name(self) -> str:
        """The package that encodes, with its version."""
        return name_of("gigatoken")

    def encode(self, texts: list[str], *, ended: bool = False) -> Batch:
        """Returns the token ids of the texts; see ``reference_encoder.Encoder``.

        Raises:
            EncodersDifferError: a piece of them is encoded differently by the tokenizer's own library, or gigatoken
                failed.
        """
        batch = self.encode_unchecked(texts, ended=ended)
        for piece in _pieces(texts):
            found, _ = self.encode_unchecked([piece])
            expected, _ = self._reference.encode([piece])
            if not np.array_equal(found, expected):
                problem = f"{self.name} and {self._reference.name} encode this text differently: {piece[:80]!r}"
                raise EncodersDifferError(problem, remedy=_REMEDY)
        return batch

    def encode_unchecked(self, texts: list[str], *, ended: bool = False) -> Batch:
        """Returns the same as :meth:`encode`, without the comparison."""
        if not texts:
            return np.empty(0, np.uint32), np.empty(0, np.int64)
        self._encoded += sum(map(len, texts))
        if self._encoded > _CACHE_TEXT:
            self._encoded = 0
            self._backend, *_ = _load(self._tokenizer)
        left = self._unsafe.found(texts)
        own = list(texts)
        for place in left:
            own[place] = ""
        filled = list(filter(None, own)) if self._joint else []
        if self._joint and filled:
            tokens = self._ids(self._joint.between.join(filled) + self._joint.token)
            ends = np.flatnonzero(tokens == self._joint.id)
            if len(ends) != len(filled):
                problem = f"{self.name} takes {len(filled)} texts with a token between them for {len(ends)}"
                raise EncodersDifferError(problem, remedy=_REMEDY)
            lengths = np.diff(ends, prepend=-1)
            if ended and len(filled) == len(texts) and lengths.min() > 1:
                tokens[ends] = self._tokenizer.eod_id
                return tokens, lengths
            tokens = np.delete(tokens, ends)
            filled_lengths = lengths - 1
            lengths = np.zeros(len(texts), np.int64)
            lengths[np.fromiter(map(bool, own), bool, len(own))] = filled_lengths
        else:
            rows = [np.concatenate([self._before, self._ids(text), self._after]) for text in own]
            tokens = np.concatenate(rows)
            lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        if left:
            rows = np.split(tokens, np.cumsum(lengths)[:-1])
            for place, row in zip(left, self._reference.rows([texts[place] for place in left]), strict=True):
                rows[place] = row
                lengths[place] = len(row)
            tokens = np.concatenate(rows)
        return with_ends(tokens, lengths, self._tokenizer.eod_id) if ended else (tokens, lengths)

    def _disagreed(self) -> set[str]:
        """Returns the characters that gigatoken and the tokenizer's own library normalise differently."""
        probes = normalisation_probes()
        texts = list(probes)
        tokens, lengths = self.encode_unchecked(texts)
        found = np.split(tokens, np.cumsum(lengths)[:-1])
        rows = zip(found, self._reference.rows(texts), probes.values(), strict=True)
        return {character for row, expected, about in rows if not np.array_equal(row, expected) for character in about}

    def _ids(self, text: str) -> npt.NDArray[Any]:
        try:
            ids: npt.NDArray[Any] = self._backend.encode(text)
        except BaseException as error:
            if not _is_failure(error):
                raise
            raise EncodersDifferError(f"{self.name} failed ({_first_line(error)})", remedy=_REMEDY) from None
        return ids


def usable_gigatoken() -> str | None:
    """Returns the version of gigatoken; None where it is not installed."""
    try:
        import gigatoken  # noqa: F401
    except ImportError:
        return None
    return package_version("gigatoken")


def _pieces(texts: list[str]) -> list[str]:
    """Draws pieces to compare: one of any text, one of a text that is not plain ASCII; the same of the same texts."""
    size = sum(map(len, texts))
    draw = random.Random(size)  # noqa: S311 - a sample, no secret
    length = min(max(size // _COMPARED, _SHORTEST), _LONGEST)
    awkward = [text for text in texts if not text.isascii()]
    pieces = []
    for text in [draw.choice(some) for some in (texts, awkward) if some]:
        start = draw.randrange(max(1, len(text) - length + 1))
        pieces.append(text[start : start + length])
    return pieces


def _is_separable(separator: str, tokenizer: Tokenizer) -> bool:
    """Returns whether no spelling of a token can span a text and the separator after or before it."""
    starts = tuple(separator[:size] for size in range(1, len(separator)))
    ends = tuple(separator[size:] for size in range(1, len(separator)))
    spellings = {separator, *tokenizer.spellings, *tokenizer.normal_spellings}
    return not any(
        one.endswith(starts) or one.startswith(ends) or (separator in one and separator != one) for one in spellings
    )


def _is_failure(error: BaseException) -> bool:
    """Returns whether an error is gigatoken's: its panics are no ``Exception``, an interrupt is not its failure."""
    if isinstance(error, Exception):
        return not isinstance(error, MemoryError)
    return type(error).__name__ == "PanicException"


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


@dataclass(frozen=True, slots=True)
class _Joint:
    """The separator of texts that are encoded in one piece."""

    token: str
    """Spelling of the token after every text, which is in none."""
    between: str
    """Text between two texts: the token, and what the model itself puts before a text."""
    id: int
    """Id of the token."""


def _load(tokenizer: Tokenizer) -> tuple[Any, _Joint | None, tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    """Returns the model as gigatoken reads it, the separator of texts, and the tokens around each text."""
    try:
        import gigatoken
    except ImportError:
        raise UnsupportedError("gigatoken is not installed (pip install 'megatron-kis[corpus]')") from None
    try:
        with _silent_stderr():
            backend, joint = _model(gigatoken, tokenizer)
    except BaseException as error:
        if isinstance(error, UnsupportedError) or not _is_failure(error):
            raise
        raise UnsupportedError(f"gigatoken does not read this model ({_first_line(error)})") from None
    before, after = tokenizer.frame
    return backend, joint, (np.asarray(before, dtype=np.uint32), np.asarray(after, dtype=np.uint32))


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Hides the stack that Rust prints of a panic: users get the reason in one line."""
    try:
        saved = os.dup(2)
    except OSError:  # standard error is closed
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


def _model(gigatoken: Any, tokenizer: Tokenizer) -> tuple[Any, _Joint | None]:
    if isinstance(tokenizer, HuggingFaceTokenizer):
        eod = tokenizer.eod
        return gigatoken.Tokenizer.from_json(tokenizer.model).backend, _Joint(eod, eod, tokenizer.eod_id)
    if isinstance(tokenizer, SentencePieceTokenizer):
        nul = tokenizer.byte_piece(0)  # the model puts a space before a text
        joint = None if nul is None else _Joint("\0", "\0 ", nul)
        return gigatoken.Tokenizer.from_sentencepiece(tokenizer.model).backend, joint
    if isinstance(tokenizer, TiktokenTokenizer) and tokenizer.scheme:
        with tempfile.TemporaryDirectory() as folder:  # the file itself may have changed since it was read
            copy = Path(folder) / "ranks.tiktoken"
            copy.write_bytes(tokenizer.model)
            special = tokenizer.special
            model = gigatoken.Tokenizer.from_tiktoken(copy, pretokenizer=tokenizer.scheme, special_tokens=special)
        return model.backend, _Joint(tokenizer.eod, tokenizer.eod, tokenizer.eod_id)
    raise UnsupportedError(f"gigatoken does not read such a model of {tokenizer.library}")
