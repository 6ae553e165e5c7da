"""General text: the stretch of a corpus that belongs to each sequence number.

The corpus is read as one stream of T tokens (documents end with the end-of-document token, as Megatron-LM's
``--append-eod`` writes them), cut into n stretches of L tokens. Sequence s reads stretch ``permutation(s mod n)`` of
epoch ``s // n``; each epoch has a permutation and a shift of the cuts of its own. Nothing is built or cached.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.indexed import IndexedReader, suffixed
from megatron_kis.data.random import key_of, permute
from megatron_kis.errors import InputError
from megatron_kis.files import read_json

CORPUS_SCHEMA = "kis.corpus/1"
_META_KEYS = ("content_fingerprint", "tokenizer_fingerprint")


class GeneralText:
    """The general text of a run, by sequence number."""

    def __init__(self, prefix: Path, *, sequence_length: int, seed: int) -> None:
        """Opens ``prefix``.bin and .idx.

        Raises:
            InputError: missing or truncated files, or fewer than two sequences of text.
        """
        self.prefix = prefix
        self.sequence_length = sequence_length
        self.meta: dict[str, Any] = read_json(suffixed(prefix, ".meta.json"), CORPUS_SCHEMA, keys=_META_KEYS)
        self._reader = IndexedReader(prefix)
        self.tokens = self._reader.tokens
        self.stretches = self.tokens // sequence_length - 2  # the cuts move by up to L, and labels look one ahead
        if self.stretches < 1:
            raise InputError(
                f"has {self.tokens} tokens, too few for sequences of {sequence_length}",
                where=str(prefix),
                remedy=f"give at least {3 * sequence_length} tokens",
            )
        self._seed = seed

    @property
    def fingerprint(self) -> str:
        """Content fingerprint of the corpus, from its metadata."""
        return str(self.meta["content_fingerprint"])

    def epochs(self, sequences: int) -> float:
        """How often a run of ``sequences`` goes through the corpus."""
        return sequences / self.stretches

    def stretch(self, sequence: int, tokens: int) -> NDArray[np.integer]:
        """The first ``tokens`` tokens (at most L + 1) of the stretch that belongs to ``sequence``."""
        epoch, place = divmod(sequence, self.stretches)
        key = key_of(self._seed, "general", epoch)
        chosen = int(permute(np.array([place], dtype=np.int64), self.stretches, key)[0])
        start = chosen * self.sequence_length + key % self.sequence_length
        return self._reader.read(start, tokens)


class ValidationText:
    """A held-out corpus as consecutive sequences, the same for every run."""

    def __init__(self, prefix: Path, *, sequence_length: int, max_tokens: int) -> None:
        """Opens ``prefix``; at most ``max_tokens`` of its first tokens are read.

        Raises:
            InputError: missing or truncated files, or less than one sequence of text.
        """
        meta = read_json(suffixed(prefix, ".meta.json"), CORPUS_SCHEMA, keys=_META_KEYS)
        self.fingerprint = str(meta["content_fingerprint"])
        self.tokenizer_fingerprint = str(meta["tokenizer_fingerprint"])
        self._reader = IndexedReader(prefix)
        self.sequence_length = sequence_length
        available = self._reader.tokens - 1
        self.sequences = min(available, max_tokens) // sequence_length
        if self.sequences < 1:
            raise InputError(
                f"has {available + 1} tokens, less than one sequence of {sequence_length}",
                where=str(prefix),
                remedy="set more text aside for validation",
            )

    def __len__(self) -> int:
        """Sequences."""
        return self.sequences

    def __getitem__(self, sequence: int) -> NDArray[np.integer]:
        """L + 1 tokens: a sequence and the label of its last token."""
        return self._reader.read(sequence * self.sequence_length, self.sequence_length + 1)
