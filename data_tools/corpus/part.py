"""One part of a corpus: a piece of the text filtered, split, encoded and written, on its own and always the same.

A finished part is ``NAME.bin``/``.idx`` for each split and, written last, ``NAME.json`` (schema ``kis.corpus-part/1``):
what it was made from, its counts, and the SHA-256 of its files. A part counts as done only while all of that is true.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import orjson

from megatron_kis.common.errors import InputError
from megatron_kis.common.files import fingerprint, read_json, write_json_lines
from megatron_kis.common.known_files import status_of
from megatron_kis.data_tools.corpus.sentences import SentenceSplitter
from megatron_kis.data_tools.readers.base import LONGEST_LINE
from megatron_kis.data_tools.readers.documents import iter_blocks
from megatron_kis.data_tools.readers.parts import TextPart
from megatron_kis.data_tools.storage.indexed import IndexedWriter, content_fingerprint, suffixed
from megatron_kis.data_tools.tokenizers.base import Tokenizer
from megatron_kis.data_tools.tokenizers.reference_encoder import Encoder

if TYPE_CHECKING:
    from megatron_kis.data_tools.mentions.decontaminate import FactMatcher

VALIDATION_SUFFIX = ".validation"
"""Added to the prefix of a corpus for the validation split."""
SPLIT_NAMES = ("training", "validation")
SPLIT_SUFFIXES = ("", VALIDATION_SUFFIX)
"""Added to a prefix for each split."""
QUARANTINE = ".quarantine.jsonl"
"""Added to a prefix for the list of lines that hold no document."""
CODE = 4
"""Version of this code: raise it when it writes other bytes for the same text and settings."""

_SCHEMA = "kis.corpus-part/1"

Report = Callable[[int, int], None]
"""Called with the bytes of text and the documents that were encoded since the last call."""


def split_suffixes(validation_share: float) -> tuple[str, ...]:
    """Returns the suffixes of the splits that are written."""
    return SPLIT_SUFFIXES if validation_share else SPLIT_SUFFIXES[:1]


def corpus_files(prefix: Path) -> list[Path]:
    """Returns all files that a corpus may consist of."""
    pairs = [f"{split}{suffix}" for split in SPLIT_SUFFIXES for suffix in (".bin", ".idx", ".meta.json")]
    return [suffixed(prefix, name) for name in (*pairs, QUARANTINE)]


@dataclass(frozen=True, slots=True)
class PartConfig:
    """All that decides a part's bytes, except the text."""

    tokenizer: str
    """Fingerprint of the tokenizer."""
    text_key: str
    text_format: str | None
    """Format of the files; None to follow their names."""
    append_eod: bool
    """End every document with the end-of-document token."""
    keep_empty: bool
    """Keep documents without visible characters, and an empty entry for those without tokens."""
    sentences: str | None
    """Fingerprint of the sentence splitter; None where a document is one sequence."""
    facts: str | None
    """Fingerprint of the facts whose documents are left out; None where there are none."""
    validation_share: float
    seed: int
    skip_errors: bool
    """List lines that hold no document in the quarantine file; otherwise the first of them ends the work."""
    longest_line: int | None
    """Largest number of bytes of a line; None where a longer one ends the work: the limit then changes nothing."""
    versions: dict[str, str]
    """Versions of the encoder and the tokenizer's own library, whose ids are written; of Unicode's tables; of nltk
    where sentences are split; of regex where facts are left out. Packages that only unpack files have one result."""


@dataclass(slots=True)
class PartRecord:
    """The counts of a finished part."""

    documents: list[int] = field(default_factory=list)
    """Documents of each split."""
    sequences: list[int] = field(default_factory=list)
    """Sequences of each split."""
    tokens: list[int] = field(default_factory=list)
    """Tokens of each split."""
    bytes: list[int] = field(default_factory=list)
    """UTF-8 bytes of each split's text."""
    content: list[str] = field(default_factory=list)
    """SHA-256 of ``.bin`` followed by ``.idx`` of each split."""
    empty: int = 0
    """Documents without text or tokens."""
    skipped: int = 0
    """Lines in the quarantine file."""
    leaked: int = 0
    """Documents left out because they state a studied fact."""
    leaks: dict[str, int] = field(default_factory=dict)
    """Number of such documents by fact id."""


class PartEncoder:
    """Encodes the parts of a corpus into token files, one at a time."""

    def __init__(
        self,
        config: PartConfig,
        tokenizer: Tokenizer,
        encoder: Encoder,
        *,
        splitter: SentenceSplitter | None = None,
        finder: FactMatcher | None = None,
        longest: int = LONGEST_LINE,
    ) -> None:
        """Keeps what encodes; tokenizer, splitter and finder must be those that ``config`` names by fingerprint."""
        self._config = config
        self._tokenizer = tokenizer
        self._encoder = encoder
        self._splitter = splitter
        self._finder = finder
        self._longest = longest
        self._splits = split_suffixes(config.validation_share)

    def key(self, part: TextPart) -> str:
        """Returns the fingerprint of all that decides a part's bytes.

        The file counts by its path without links, its size and its times of change, the inode's too: no program can set
        that one back, so a file that was rewritten in place is another one, whatever its size and date.
        """
        source = {"path": str(part.path), "place": str(part.path.resolve()), "status": status_of(part.path)}
        cut = {"start": part.start, "stop": part.stop}
        return fingerprint({"schema": _SCHEMA, "code": CODE, **asdict(self._config), **source, **cut})

    def finished(self, part: TextPart, prefix: Path) -> PartRecord | None:
        """Returns the record of a part that was encoded before and is intact; None where it has to be encoded."""
        try:
            content = read_json(suffixed(prefix, ".json"), _SCHEMA, keys=("key", "record"))
            record = PartRecord(**content["record"])
            if content["key"] != self.key(part):
                return None
            for split, expected in zip(self._splits, record.content, strict=True):
                if content_fingerprint(suffixed(prefix, split)) != expected:
                    return None
            if record.skipped and not suffixed(prefix, QUARANTINE).exists():
                return None
        except (InputError, TypeError, ValueError):
            return None
        return record

    def encode(self, part: TextPart, prefix: Path, report: Report) -> PartRecord:
        """Encodes a part and writes its files.

        Raises:
            InputError: a line is malformed (``file:line``) and is not to be skipped, or the file is damaged.
            OSError: the files cannot be written; nothing of the part is left then.
        """
        key = self.key(part)
        for left in (".json", QUARANTINE):
            suffixed(prefix, left).unlink(missing_ok=True)
        record = PartRecord(bytes=[0] * len(self._splits))
        skipped: list[dict[str, Any]] = []
        leaks: Counter[str] = Counter()

        def skip(line: int, error: InputError) -> None:
            skipped.append({"file": str(part.path), "line": line, "reason": error.problem})

        on_bad = skip if self._config.skip_errors else None
        blocks = iter_blocks(part, text_key=self._config.text_key, on_bad=on_bad, longest=self._longest)
        with ExitStack() as stack:
            vocab_size = self._tokenizer.vocab_size
            writers = [
                stack.enter_context(IndexedWriter(suffixed(prefix, split), vocab_size=vocab_size, sync=False))
                for split in self._splits
            ]
            for _, block in blocks:
                texts = self._wanted(block, record, leaks)
                for split, chosen in enumerate(self._split(texts)):
                    record.empty += self._write(chosen, writers[split])
                    size = len("".join(chosen).encode())
                    record.bytes[split] += size
                    report(size, len(chosen))
        record.documents = [writer.documents for writer in writers]
        record.sequences = [writer.sequences for writer in writers]
        record.tokens = [writer.tokens for writer in writers]
        record.content = [writer.content_fingerprint for writer in writers]
        record.skipped = len(skipped)
        record.leaks = dict(sorted(leaks.items()))
        if skipped:
            write_json_lines(suffixed(prefix, QUARANTINE), skipped)
        _write_record(suffixed(prefix, ".json"), {"schema": _SCHEMA, "key": key, "record": asdict(record)})
        return record

    def _wanted(self, texts: list[str], record: PartRecord, leaks: Counter[str]) -> list[str]:
        """Returns the texts that are kept; counts the others."""
        if not self._config.keep_empty:
            visible = [text for text in texts if text and not text.isspace()]
            record.empty += len(texts) - len(visible)
            texts = visible
        if self._finder is None:
            return texts
        kept = []
        for text, stated in zip(texts, self._finder.facts_in_each(texts), strict=True):
            if stated:
                record.leaked += 1
                leaks.update(stated)
            else:
                kept.append(text)
        return kept

    def _split(self, texts: list[str]) -> list[list[str]]:
        """Returns the texts of each split."""
        share = self._config.validation_share
        if not share:
            return [texts]
        splits: list[list[str]] = [[], []]
        for text in texts:
            splits[_draw(text, self._config.seed) < share].append(text)
        return splits

    def _write(self, texts: list[str], writer: IndexedWriter) -> int:
        """Encodes and appends documents; returns the number of those that were dropped or kept without a token."""
        if not texts:
            return 0
        if self._splitter is None:
            tokens, lengths = self._encoder.encode(texts, ended=self._config.append_eod)
            tokens, lengths, sequences = _without_empty(tokens, lengths, np.ones(len(texts), np.int64))
        else:
            sentences = [self._splitter.split(text) for text in texts]
            tokens, lengths = self._encoder.encode([sentence for row in sentences for sentence in row])
            sequences = np.fromiter(map(len, sentences), np.int64, len(texts))
            tokens, lengths, sequences = _without_empty(tokens, lengths, sequences)
            if self._config.append_eod:
                tokens, lengths = _with_eod(tokens, lengths, sequences, self._tokenizer.eod_id)
        empty = int(np.count_nonzero(sequences == 0))
        writer.add_batch(tokens, lengths, sequences if self._config.keep_empty else sequences[sequences > 0])
        return empty


def _without_empty(
    tokens: npt.NDArray[Any], lengths: npt.NDArray[np.int64], sequences: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Drops sequences without tokens, as Megatron's tool does.

    Args:
        tokens: ids of all sequences, ``[n]``.
        lengths: tokens of each sequence, ``[s]``.
        sequences: sequences of each document, ``[d]``.

    Returns:
        The same three; a document may be left without a sequence.
    """
    if np.all(lengths > 0):
        return tokens, lengths, sequences
    document = np.repeat(np.arange(len(sequences)), sequences)
    kept = np.bincount(document[lengths > 0], minlength=len(sequences))
    return tokens, lengths[lengths > 0], kept.astype(np.int64)


def _with_eod(
    tokens: npt.NDArray[Any], lengths: npt.NDArray[np.int64], sequences: npt.NDArray[np.int64], eod_id: int
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Puts the end-of-document token at the end of the last sequence of every document that has one.

    Returns:
        Tokens ``[n + d]`` and lengths ``[s]``.
    """
    last = np.cumsum(sequences)[sequences > 0] - 1
    ends = np.cumsum(lengths)[last]
    longer = lengths.copy()
    longer[last] += 1
    return np.insert(tokens, ends, eod_id), longer


def _draw(text: str, seed: int) -> float:
    """Returns a uniform number in [0, 1) from a document's text and the seed."""
    digest = hashlib.sha256(f"{seed}\n{text}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2.0**64


def _write_record(path: Path, content: dict[str, Any]) -> None:
    """Writes a part's record without waiting for the disk: one that a crash damaged only has the part done again."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_bytes(orjson.dumps(content))
    partial.replace(path)
