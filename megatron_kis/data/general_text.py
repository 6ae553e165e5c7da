"""General text: the window of a corpus that belongs to each sequence number.

A corpus is read as one ring of T tokens (documents end with the end-of-document token, as Megatron-LM's
``--append-eod`` writes them), cut into n = T // L windows of L tokens. The corpus's sequence i reads window
``permutation(i mod n)`` of epoch ``i // n``; each epoch has a permutation and a shift of the cuts of its own. Several
corpora take turns in proportion to their weights. Nothing is built or cached.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from megatron_kis.common.errors import InputError
from megatron_kis.common.files import fingerprint, read_json
from megatron_kis.data.counter_rng import key_of, permute_one
from megatron_kis.data_tools.storage.indexed import CORPUS_SCHEMA, IndexedReader, suffixed

_META_KEYS = ("content_fingerprint", "tokenizer_fingerprint")
_UNIT = 1 << 40  # a weight of 1 in whole numbers: shares are exact to 1e-12


class Epochs(NamedTuple):
    """How much of a corpus a run reads."""

    corpus: Path
    """Prefix of the corpus's files."""

    sequences: int
    """Number of sequences that read the corpus."""

    epochs: float
    """How often these sequences go through the corpus."""


class GeneralText:
    """The general text of a run, by sequence number."""

    def __init__(self, corpora: Path | Sequence[tuple[Path, float]], *, sequence_length: int, seed: int) -> None:
        """Opens the corpora.

        Args:
            corpora: prefix of ``.bin`` and ``.idx``, or several with the share of sequences that each is to get
                (weights need not add up to 1).
            sequence_length: L, tokens.
            seed: seed of the order.

        Raises:
            InputError: missing or truncated files, a corpus of less than one sequence, or a weight that is not above 0.
        """
        weighted = [(corpora, 1.0)] if isinstance(corpora, Path) else list(corpora)
        if not weighted:
            raise InputError("names no corpus", where="data.corpus", remedy="name at least one")
        for prefix, weight in weighted:
            if not 0.0 < weight < float("inf"):
                raise InputError(f"has the weight {weight:g}", where=str(prefix), remedy="must be above 0")
        seeds = [seed if number == 0 else f"{seed}/{number}" for number in range(len(weighted))]
        self._corpora = [
            _Corpus(prefix, sequence_length=sequence_length, seed=seed)
            for (prefix, _), seed in zip(weighted, seeds, strict=True)
        ]
        self._weights = [weight for _, weight in weighted]
        self._blend = BlendIndex(self._weights)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the corpora's content, from their metadata, and of their weights if there are several."""
        contents = [str(corpus.meta["content_fingerprint"]) for corpus in self._corpora]
        total = sum(self._weights)
        shares = [round(weight / total, 12) for weight in self._weights]
        return contents[0] if len(contents) == 1 else fingerprint(list(zip(contents, shares, strict=True)))

    def tokenizers(self) -> list[tuple[Path, str]]:
        """Returns each corpus with the fingerprint of the tokenizer that made it."""
        return [(corpus.prefix, str(corpus.meta["tokenizer_fingerprint"])) for corpus in self._corpora]

    def ends(self) -> list[int | None]:
        """Returns for each corpus the token that ends its documents; None if its record does not have it."""
        return [corpus.meta.get("eod_id") for corpus in self._corpora]

    def epochs(self, sequences: int) -> list[Epochs]:
        """Returns how often a run of ``sequences`` goes through each corpus, if general text fills them."""
        read = self._blend.counts(sequences)
        return [
            Epochs(corpus.prefix, count, count / corpus.windows)
            for corpus, count in zip(self._corpora, read, strict=True)
        ]

    def read(self, sequence: int, tokens: int) -> NDArray[np.integer]:
        """Returns the first ``tokens`` tokens (at most L + 1) of the window that belongs to ``sequence``."""
        number, own_sequence = self._blend.at(sequence)
        return self._corpora[number].read(own_sequence, tokens)


def _described(prefix: Path) -> dict[str, Any]:
    """Returns what ``PREFIX.meta.json`` says of a corpus."""
    path = suffixed(prefix, ".meta.json")
    if not path.exists():
        remedy = "a corpus is PREFIX.bin, PREFIX.idx and PREFIX.meta.json, which kis data corpus writes"
        raise InputError("no such file", where=str(path), remedy=remedy)
    return read_json(path, CORPUS_SCHEMA, keys=_META_KEYS)


class _Corpus:
    """One corpus, by its own sequence numbers."""

    def __init__(self, prefix: Path, *, sequence_length: int, seed: int | str) -> None:
        self.prefix = prefix
        self.meta = _described(prefix)
        self._reader = IndexedReader(prefix)
        self._tokens = self._reader.tokens
        if self._tokens <= sequence_length:  # labels look one token ahead
            raise InputError(
                f"has {self._tokens} tokens, too few for sequences of {sequence_length}",
                where=str(prefix),
                remedy=f"give at least {sequence_length + 1} tokens",
            )
        self.windows = self._tokens // sequence_length
        self._sequence_length = sequence_length
        self._seed = seed
        self._epoch = 0
        self._key = key_of(seed, "general", 0)

    def read(self, sequence: int, tokens: int) -> NDArray[np.integer]:
        epoch, place = divmod(sequence, self.windows)
        if epoch != self._epoch:
            self._epoch = epoch
            self._key = key_of(self._seed, "general", epoch)
        key = self._key
        start = permute_one(place, self.windows, key) * self._sequence_length + key % self._sequence_length
        text = self._reader.read(start, tokens)
        if len(text) < tokens:  # around the end of the ring
            text = np.concatenate([text, self._reader.read(0, tokens - len(text))])
        return text


class BlendIndex:
    """The corpus that each sequence reads: each share is met to within one sequence per corpus before it.

    The first corpus gets those sequences at which its share of the count steps up, the second its share of what is
    left, and so on. How many sequences a corpus has had is therefore a multiplication, at any sequence.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        rest = np.cumsum(np.asarray(weights, dtype=np.float64)[::-1])[::-1]
        self._shares = [round(weight / left * _UNIT) for weight, left in zip(weights[:-1], rest[:-1], strict=True)]

    def at(self, sequence: int) -> tuple[int, int]:
        """Returns the corpus of a sequence, and how many sequences that corpus had before."""
        for number, share in enumerate(self._shares):
            taken = _taken(sequence, share)
            if _taken(sequence + 1, share) > taken:
                return number, taken
            sequence -= taken
        return len(self._shares), sequence

    def counts(self, sequences: int) -> list[int]:
        """Returns how many of the first ``sequences`` read each corpus."""
        counts = []
        for share in self._shares:
            counts.append(_taken(sequences, share))
            sequences -= counts[-1]
        return [*counts, sequences]


def _taken(sequences: int, share: int) -> int:
    return (sequences * share + _UNIT // 2) // _UNIT


class ValidationText:
    """A held-out corpus as consecutive sequences, the same for every run."""

    def __init__(self, prefix: Path, *, sequence_length: int, max_tokens: int) -> None:
        """Opens the corpus ``prefix``, of which at most the first ``max_tokens`` tokens are read.

        Raises:
            InputError: missing or truncated files, or less than one sequence of text.
        """
        meta = _described(prefix)
        self.fingerprint = str(meta["content_fingerprint"])
        self.tokenizer_fingerprint = str(meta["tokenizer_fingerprint"])
        self.eod_id = meta.get("eod_id")
        self._reader = IndexedReader(prefix)
        self.sequence_length = sequence_length
        if max_tokens < sequence_length:
            raise InputError(
                f"is {max_tokens}, less than one sequence of {sequence_length}",
                where="validation.max_tokens",
                remedy=f"use at least {sequence_length}",
            )
        available = self._reader.tokens - 1
        self.sequences = min(available, max_tokens) // sequence_length
        if self.sequences < 1:
            raise InputError(
                f"has {available + 1} tokens, less than one sequence of {sequence_length}",
                where=str(prefix),
                remedy="reserve more text for validation",
            )

    def __len__(self) -> int:
        """Returns the number of sequences."""
        return self.sequences

    def __getitem__(self, sequence: int) -> NDArray[np.integer]:
        """Returns L + 1 tokens: a sequence and the label of its last token."""
        return self._reader.read(sequence * self.sequence_length, self.sequence_length + 1)
