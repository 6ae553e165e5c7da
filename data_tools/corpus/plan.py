"""Plans the work on a corpus: its configuration, the parts of its text, the shard that is made, samples of the text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_kis.common.errors import InputError
from megatron_kis.common.known_files import Sources
from megatron_kis.common.progress import Progress
from megatron_kis.common.units import plural
from megatron_kis.data_tools.corpus.part import QUARANTINE, corpus_files, split_suffixes
from megatron_kis.data_tools.corpus.sentences import SentenceSplitter, load_splitter, train_splitter
from megatron_kis.data_tools.facts.fact import Fact
from megatron_kis.data_tools.readers.base import LONGEST_LINE
from megatron_kis.data_tools.readers.documents import iter_part
from megatron_kis.data_tools.readers.files import check_text_files, expand, refuse_own_outputs
from megatron_kis.data_tools.readers.parts import TextPart, head_of, plan_parts
from megatron_kis.data_tools.storage.indexed import suffixed
from megatron_kis.data_tools.tokenizers.base import Tokenizer

_SMALLEST_PART = 2 << 20
_MOST_PARTS = 4096
_BYTES_PER_CHARACTER = 8  # of the files, at most, in most texts: names of keys and other columns included
_PUNKT_PARTS = 64  # to learn sentences from
_PUNKT_CHARACTERS = 4_000_000  # Punkt reads some 0.3 MB per second


@dataclass(frozen=True, slots=True)
class CorpusBuildConfig:
    """How a corpus is made, beyond its text, tokenizer and facts."""

    append_eod: bool = True
    """End every document with the end-of-document token, as ``--append-eod`` of Megatron's tool."""
    sentences: bool = False
    """Make every sentence a sequence of its document; Punkt is trained on the text, into ``PREFIX.punkt.json``."""
    punkt: Path | None = None
    """A trained Punkt model to use instead."""
    keep_newlines: bool = False
    """Keep the white space between sentences, as ``--keep-newlines`` of Megatron's tool."""
    keep_empty: bool = False
    """Keep documents without visible characters, and an empty entry for one without tokens, as Megatron's tool does."""
    skip_errors: bool = False
    """List lines that hold no document in ``PREFIX.quarantine.jsonl``; otherwise the first of them ends the work."""
    encoder: str = "auto"
    """``gigatoken``, ``reference`` (the tokenizer's own library), or ``auto``: gigatoken where the ids are the same."""
    workers: int | None = None
    """Number of processes; None for one per core."""
    shard: tuple[int, int] | None = None
    """(i, n): make the i-th of n equal shards, i from 1, and write it to ``PREFIX-0000i-of-0000n``."""
    text_format: str | None = None
    """``jsonl``, ``txt``, ``tsv`` or ``parquet``, whatever the files' names; None to follow the names."""
    longest_line: int = LONGEST_LINE
    """Largest number of bytes of a line or document; a longer one is a line that holds no document."""
    part_bytes: int | None = None
    """Bytes of text between two restart points; None for 2 MB, more where that makes more than 4096 parts."""


class CorpusJob:
    """The work of one command: the text and its parts, how they are encoded, and where the corpus is written."""

    def __init__(
        self,
        inputs: Sequence[Path],
        tokenizer: Tokenizer,
        prefix: Path,
        *,
        text_key: str,
        facts: Iterable[Fact],
        validation_share: float,
        seed: int,
        progress: Progress,
        config: CorpusBuildConfig,
        also_read: Sequence[Path],
    ) -> None:
        """Plans the work; see ``corpus.build.build_corpus`` for the arguments. Trains the sentence splitter if needed.

        Raises:
            InputError: a setting is out of range; a file is missing, given twice, no text, or would be written over.
        """
        check_validation_share(validation_share)
        self.inputs = inputs
        self.tokenizer = tokenizer
        self.text_key = text_key
        self.facts = list(facts)
        self.validation_share = validation_share
        self.seed = seed
        self.progress = progress
        self.config = config
        self.paths = expand(inputs)
        """Text files of the corpus."""
        check_text_files(self.paths, config.text_format)
        self.sources = Sources(self.paths)
        """Status of the text files at the start."""
        size = config.part_bytes or part_bytes(self.paths)
        self.all_parts = plan_parts(self.paths, part_bytes=size, text_format=config.text_format)
        """Parts of the whole text."""
        self.target, self.parts = _shard_of(prefix, self.all_parts, config.shard)
        """Prefix of the files to write, and the parts that this command encodes: all, or those of its shard."""
        read = [*inputs, *also_read, *([config.punkt] if config.punkt else [])]
        learned = [suffixed(prefix, ".punkt.json")] if config.sentences and config.punkt is None else []
        unfinished = [suffixed(self.target, ".parts") / f"000000{suffix}" for suffix in (QUARANTINE, ".json")]
        refuse_own_outputs(read, [*corpus_files(self.target), *unfinished, *learned])
        self.suffixes = split_suffixes(validation_share)
        """Suffixes of the splits that are written."""
        self.first_source = list(dict.fromkeys(part.path for part in self.all_parts)).index(self.parts[0].path)
        """Index of the first file of ``parts`` among all files."""
        self.splitter = self._splitter(prefix) if config.sentences else None
        """Splits documents into sentences; None where a document is one sequence."""

    def _splitter(self, prefix: Path) -> SentenceSplitter:
        path = self.config.punkt or suffixed(prefix, ".punkt.json")
        texts = sample_texts(
            self.all_parts,
            self.text_key,
            most=_PUNKT_PARTS,
            characters=_PUNKT_CHARACTERS,
            longest=self.config.longest_line,
        )
        if self.config.punkt is None and train_splitter(texts, path):
            self.progress.say(f"{path}: learned from the text")
        return load_splitter(path, keep_newlines=self.config.keep_newlines)


def check_validation_share(share: float) -> None:
    """Refuses what is no share of the documents.

    Raises:
        InputError: it is below 0, or 1 or more.
    """
    if not 0 <= share < 1:
        raise InputError(f"is {share:g}", where="validation_share", remedy="use 0 or more, and less than 1")


def part_bytes(paths: Sequence[Path]) -> int:
    """Returns the bytes of a part: a power of two, so that it seldom changes when files are added."""
    size = sum(path.stat().st_size for path in paths if path.is_file())
    return max(_SMALLEST_PART, 1 << (size // _MOST_PARTS).bit_length())


def _shard_of(prefix: Path, parts: list[TextPart], shard: tuple[int, int] | None) -> tuple[Path, list[TextPart]]:
    """Returns prefix and parts of a shard. Its parts are neighbours: shards joined in order are the whole.

    Args:
        prefix: prefix of the whole corpus.
        parts: all parts.
        shard: (i, n), i from 1; None for everything.

    Raises:
        InputError: there is no such shard.
    """
    if shard is None:
        return prefix, parts
    number, of = shard
    if not 1 <= number <= of:
        raise InputError(f"is {number}/{of}", where="shard", remedy="expected i/n with i from 1 to n")
    if of > len(parts):
        raise InputError(f"the text has {plural(len(parts), 'part')}, too few for {of} shards", where="shard")
    chosen = parts[len(parts) * (number - 1) // of : len(parts) * number // of]
    return prefix.with_name(f"{prefix.name}-{number:05d}-of-{of:05d}"), chosen


def sample_texts(
    parts: Sequence[TextPart], text_key: str, *, most: int, characters: int, longest: int = LONGEST_LINE
) -> Iterator[str]:
    """Yields documents from the heads of at most ``most`` parts, evenly spread, about ``characters`` in all.

    Lines that hold no document are skipped here.
    """
    chosen = parts[:: max(1, -(-len(parts) // most))]
    for part in chosen:
        left = characters // len(chosen)
        head = head_of(part, _BYTES_PER_CHARACTER * left)
        for document in iter_part(head, text_key=text_key, on_bad=lambda _line, _error: None, longest=longest):
            yield document.text[:left]
            left -= len(document.text)
            if left <= 0:
                break
