"""The interface of an encoder, and the one that is right by definition: the tokenizer's own library."""

from __future__ import annotations

import importlib.metadata
import itertools
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from megatron_kis.common.errors import InputError
from megatron_kis.data_tools.tokenizers.base import Tokenizer

Batch = tuple[npt.NDArray[Any], npt.NDArray[np.int64]]
"""Token ids of several texts one after another, ``[n]``, and the number of each text's tokens, ``[texts]``."""


class Encoder(Protocol):
    """Turns texts into token ids."""

    @property
    def name(self) -> str:
        """The package that encodes, with its version."""

    def encode(self, texts: list[str], *, ended: bool = False) -> Batch:
        """Returns the token ids of the texts; ``ended`` puts the end-of-document token after each that has any."""


class EncodersDifferError(InputError):
    """gigatoken gave other ids for a text than the tokenizer's own library, or failed."""


class ReferenceEncoder:
    """The tokenizer's own library."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Prepares to encode with ``tokenizer``."""
        self._tokenizer = tokenizer

    @property
    def name(self) -> str:
        """The package that encodes, with its version."""
        return name_of(self._tokenizer.library)

    def rows(self, texts: list[str]) -> list[npt.NDArray[np.int64]]:
        """Returns the token ids of each text."""
        return [np.asarray(row, dtype=np.int64) for row in self._tokenizer.encode_documents(texts)]

    def encode(self, texts: list[str], *, ended: bool = False) -> Batch:
        """Returns the token ids of the texts; see :class:`Encoder`."""
        rows = self._tokenizer.encode_documents(texts)
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        tokens = np.fromiter(itertools.chain.from_iterable(rows), np.int64, int(lengths.sum()))
        return with_ends(tokens, lengths, self._tokenizer.eod_id) if ended else (tokens, lengths)


def with_ends(tokens: npt.NDArray[Any], lengths: npt.NDArray[np.int64], eod_id: int) -> Batch:
    """Puts the end-of-document token after every text that has a token."""
    filled = lengths > 0
    return np.insert(tokens, np.cumsum(lengths)[filled], eod_id), lengths + filled


def versions_of(encoder: Encoder, tokenizer: Tokenizer) -> dict[str, str]:
    """Returns the encoder and the version of the tokenizer's own library, which encodes what is left to it."""
    return {"encoder": encoder.name, tokenizer.library: package_version(tokenizer.library)}


def package_version(package: str) -> str:
    """Returns the version of an installed package."""
    return importlib.metadata.version(package)


def name_of(package: str) -> str:
    """Returns the name of an installed package with its version."""
    return f"{package} {package_version(package)}"
