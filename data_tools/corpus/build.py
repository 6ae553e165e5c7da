"""General text to a tokenized corpus in Megatron's format, with a validation split set aside.

``PREFIX.bin``/``.idx`` hold the training split, ``PREFIX.validation.bin``/``.idx`` the validation split. Beside each
lies ``.meta.json`` (schema ``kis.corpus/1``). A document's split depends on its text and the seed alone: it stays where
it is when files are added, and copies of one text never stand in both splits. Documents that state a studied fact are
left out of both.

A corpus is up to date, and a part is used again, only where text, settings, tokenizer and the encoder with its version
are the same. gigatoken may turn out to give other ids than the tokenizer's own library while it works, or fail; then
the library encodes everything again.

The way: the files are cut into parts, several processes encode them into ``PREFIX.parts/``, and meanwhile what is
finished is joined in order. A command that was killed finds the finished parts and does the others; the bytes do not
depend on the number of processes, the size of the parts or how often the work was interrupted.
"""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_kis.common.errors import InputError
from megatron_kis.common.files import fingerprint, locked, write_text
from megatron_kis.common.known_files import Sources
from megatron_kis.common.progress import Progress
from megatron_kis.data_tools.corpus.merge import remove_split, write_meta
from megatron_kis.data_tools.corpus.meta import (
    changes_of,
    description,
    job_of,
    left_out,
    read_corpus_meta,
    sources_of,
    up_to_date,
    writing_versions,
)
from megatron_kis.data_tools.corpus.part import QUARANTINE, SPLITS, PartConfig, PartEncoder, PartRecord
from megatron_kis.data_tools.corpus.quarantine import first_skipped, write_quarantine
from megatron_kis.data_tools.corpus.sentences import SentenceSplitter, load_splitter, train_splitter
from megatron_kis.data_tools.corpus.splits import outputs_of, part_bytes, sample_texts, shard_of
from megatron_kis.data_tools.corpus.workers import encode_parts, full_disk_told
from megatron_kis.data_tools.facts.fact import Fact
from megatron_kis.data_tools.readers.lines import LONGEST_LINE
from megatron_kis.data_tools.readers.splits import TextPart, check_text_files, expand, plan_parts, refuse_own_outputs
from megatron_kis.data_tools.storage.indexed import IndexedReader, IndexedWriter, suffixed
from megatron_kis.data_tools.tokenizers.base import Tokenizer
from megatron_kis.data_tools.tokenizers.encoder import choose_encoder
from megatron_kis.data_tools.tokenizers.reference_encoder import Encoder, EncodersDifferError, ReferenceEncoder

VALIDATION_SUFFIX = SPLITS[1]
"""Added to the corpus prefix for the validation split."""

if TYPE_CHECKING:
    from megatron_kis.data_tools.mentions.decontaminate import LeakFinder

_SPLIT_NAMES = ("training", "validation")
_SAMPLED_PARTS, _SAMPLED_CHARACTERS = 8, 64_000  # for the choice of the encoder
_PUNKT_PARTS, _PUNKT_CHARACTERS = 64, 4_000_000  # to learn sentences from: Punkt reads some 0.3 MB a second


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
    """Put lines that hold no document into ``PREFIX.quarantine.jsonl`` and go on; otherwise the first ends the work."""
    encoder: str = "auto"
    """``gigatoken``, ``reference`` (the tokenizer's own library), or ``auto``: gigatoken where the ids are the same."""
    workers: int | None = None
    """Processes; None for one a core."""
    shard: tuple[int, int] | None = None
    """(i, n): do the i-th of n equal shards, i from 1, and write it to ``PREFIX-0000i-of-0000n``."""
    text_format: str | None = None
    """``jsonl``, ``txt``, ``tsv`` or ``parquet``, whatever the files' names; None: as their names say."""
    longest_line: int = LONGEST_LINE
    """Bytes of the longest line or document; a longer one is a line that holds no document."""
    part_bytes: int | None = None
    """Bytes of text between two restart points; None for 2 MB, more where that makes more than 4096 parts."""


@dataclass(frozen=True, slots=True)
class CorpusSummary:
    """What a corpus build wrote."""

    prefix: Path
    """Prefix of the training split."""
    validation_prefix: Path | None
    """Prefix of the validation split; None where its share is 0."""
    documents: int
    """Documents of the training split."""
    tokens: int
    """Its tokens, end-of-document tokens included."""
    validation_documents: int
    """Documents of the validation split."""
    validation_tokens: int
    """Its tokens."""
    text_bytes: int
    """UTF-8 bytes of the text of both."""
    leaked_documents: int
    """Documents left out because they state a studied fact."""
    leaked_facts: int
    """Facts that they state."""
    empty: int
    """Documents without text or tokens."""
    skipped: int
    """Lines that hold no document."""
    quarantine: Path | None
    """Where those lines are listed."""


def build_corpus(
    inputs: Sequence[Path],
    tokenizer: Tokenizer,
    prefix: Path,
    *,
    text_key: str = "text",
    facts: Iterable[Fact] = (),
    validation_share: float = 0.02,
    seed: int = 0,
    progress: Progress | None = None,
    options: CorpusBuildConfig | None = None,
    also_read: Sequence[Path] = (),
) -> CorpusSummary:
    """Tokenizes text files into a corpus, or into one shard of it.

    Args:
        inputs: text files (see ``data_tools.readers.documents``) or patterns of their names, read in this order.
        tokenizer: the tokenizer.
        prefix: where to write; folders are created.
        text_key: key or column of the text.
        facts: studied facts; documents that state one are left out and counted.
        validation_share: share of documents set aside, in [0, 1).
        seed: seed of the validation split.
        progress: where to report.
        options: how.
        also_read: files of the tokenizer and the facts, which nothing is written over.

    Raises:
        InputError: a file is given twice or changes meanwhile, a line is damaged (``file:line``), or nothing is left to
            train on. No corpus is left half written; finished parts are kept for the next attempt.
        JobError: the disk is full, a worker died, or another process is at work on this corpus.
    """
    options, progress, facts = options or CorpusBuildConfig(), progress or Progress(), list(facts)
    if not 0 <= validation_share < 1:
        raise InputError(f"is {validation_share}", where="validation_share", remedy="expected a share in [0, 1)")
    paths = expand(inputs)
    check_text_files(paths, options.text_format)
    sources = Sources(paths)
    parts = plan_parts(paths, part_bytes=options.part_bytes or part_bytes(paths), text_format=options.text_format)
    target, chosen = shard_of(prefix, parts, options.shard)
    read = [*inputs, *also_read, *([options.punkt] if options.punkt else [])]
    learned = [suffixed(prefix, ".punkt.json")] if options.sentences and options.punkt is None else []
    refuse_own_outputs(read, [*outputs_of(target), *learned])
    splitter = _splitter(parts, text_key, prefix, options, progress)

    def plan(encoder: Encoder, why: str) -> _Plan:
        settings = PartConfig(
            tokenizer=tokenizer.fingerprint,
            text_key=text_key,
            text_format=options.text_format,
            append_eod=options.append_eod,
            keep_empty=options.keep_empty,
            sentences=splitter.fingerprint if splitter else None,
            facts=fingerprint([asdict(fact) for fact in facts]) if facts else None,
            validation_share=validation_share,
            seed=seed,
            skip_errors=options.skip_errors,
            longest_line=options.longest_line if options.skip_errors else None,
            versions=writing_versions(encoder, tokenizer, sentences=splitter is not None, facts=bool(facts)),
        )
        described = description(settings, tokenizer)
        job = job_of(described, paths, parts, sharded=options.shard is not None)
        return _Plan(target, chosen, settings, described, job, encoder, why)

    encoder, why = _choose(tokenizer, parts, text_key, options)
    first, second = plan(encoder, why), None
    if options.encoder == "auto" and not options.shard and not isinstance(encoder, ReferenceEncoder):
        second = plan(ReferenceEncoder(tokenizer), f"{encoder.name} is not right for some of this text")
        if _known_to_differ(second, encoder):
            first, second = second, None
    if metas := up_to_date(target, first.job, first.described, chosen):
        progress.say(f"{target}: up to date")
        return _summary(target, metas)
    first_source = list(dict.fromkeys(part.path for part in parts)).index(chosen[0].path)
    make = _Maker(tokenizer, splitter, facts, options, sources, inputs, first_source, progress)
    try:
        return make(first)
    except EncodersDifferError as error:
        if second is None:
            raise
        progress.say(f"{error.problem}; all of it is encoded again")
        write_text(_distrust(target), encoder.name)
        return make(second)


def encoder_for(
    paths: Sequence[Path], tokenizer: Tokenizer, text_key: str = "text", text_format: str | None = None
) -> tuple[Encoder, str]:
    """The encoder that ``build_corpus`` begins with, and why; takes a second or two.

    Raises:
        InputError: a file is missing or damaged.
    """
    parts = plan_parts(paths, part_bytes=part_bytes(paths), text_format=text_format)
    return _choose(tokenizer, parts, text_key, CorpusBuildConfig())


def _choose(
    tokenizer: Tokenizer, parts: list[TextPart], text_key: str, options: CorpusBuildConfig
) -> tuple[Encoder, str]:
    sample = sample_texts(
        parts, text_key, most=_SAMPLED_PARTS, characters=_SAMPLED_CHARACTERS, longest=options.longest_line
    )
    return choose_encoder(tokenizer, list(sample), options.encoder)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is to be written where, and with which encoder."""

    target: Path
    parts: list[TextPart]
    settings: PartConfig
    described: dict[str, Any]
    """What the description will say of it."""
    job: str
    encoder: Encoder
    why: str
    """Why this encoder."""

    @property
    def splits(self) -> tuple[str, ...]:
        return SPLITS if self.settings.validation_share else SPLITS[:1]


@dataclass(frozen=True, slots=True)
class _Maker:
    """Makes a corpus by a plan."""

    tokenizer: Tokenizer
    splitter: SentenceSplitter | None
    facts: list[Fact]
    options: CorpusBuildConfig
    sources: Sources
    inputs: Sequence[Path]
    first_source: int
    """Place of the shard's first file among all."""
    progress: Progress

    def __call__(self, plan: _Plan) -> CorpusSummary:
        target, splits = plan.target, plan.splits
        part_encoder = PartEncoder(
            plan.settings,
            self.tokenizer,
            plan.encoder,
            splitter=self.splitter,
            finder=_finder(self.facts),
            longest=self.options.longest_line,
        )
        with _folder(suffixed(target, ".parts")) as folder, ThreadPoolExecutor(1) as thread:
            work = [(part, folder / f"{number:06d}") for number, part in enumerate(plan.parts)]
            hashed: list[Future[list[dict[str, str]]]] = []  # what the processes that encode leave time for

            def started() -> None:
                hashed.append(thread.submit(sources_of, plan.parts))
                self.progress.say(f"encoding with {plan.encoder.name}: {plan.why}{_instead(target, plan.described)}")

            records: list[PartRecord] = []
            with full_disk_told(), ExitStack() as stack:
                size = self.tokenizer.vocab_size
                writers = [
                    stack.enter_context(IndexedWriter(suffixed(target, split), vocab_size=size, scratch=folder))
                    for split in splits
                ]
                workers = self.options.workers
                encoded = encode_parts(part_encoder, work, workers=workers, progress=self.progress, started=started)
                for record, (_, at) in zip(encoded, work, strict=True):
                    records.append(record)
                    for split, writer in zip(splits, writers, strict=True):
                        writer.copy(IndexedReader(suffixed(at, split)))
                counts = left_out(records)
                for split, writer in zip(_SPLIT_NAMES, writers, strict=False):
                    if not self.options.shard and not writer.documents:
                        raise _nothing(split, counts, self.inputs, first_skipped(work))
                sources = hashed[0].result()
                self.sources.check()
                for split in splits:  # a description of an earlier corpus must not outlive its tokens
                    suffixed(target, f"{split}.meta.json").unlink(missing_ok=True)
                for split in SPLITS[len(splits) :]:
                    remove_split(suffixed(target, split))
            common = {**plan.described, **counts, "sources": sources, "job": plan.job}
            common["versions"] = {**common["versions"], "numpy": importlib.metadata.version("numpy")}
            common["frame"] = self.tokenizer.frame_record()
            if _distrust(target).exists():
                common["encoder_instead_of"] = _distrust(target).read_text(encoding="utf-8")
            if self.options.shard:
                number, of = self.options.shard
                common["shard"] = {"number": number, "of": of, "first_source": self.first_source}
            for number, (split, writer) in enumerate(zip(splits, writers, strict=True)):
                text = sum(record.bytes[number] for record in records)
                write_meta(suffixed(target, split), {**common, "split": _SPLIT_NAMES[number], "bytes": text}, writer)
            write_quarantine(target, work)
        return _summary(target, [read_corpus_meta(suffixed(target, split)) for split in splits])


def _distrust(target: Path) -> Path:
    """Names the encoder that was found to differ, while the work is not finished."""
    return suffixed(target, ".parts") / "distrusted"


def _known_to_differ(plan: _Plan, encoder: Encoder) -> bool:
    """Whether an earlier command found that this encoder gives other ids for this text."""
    with suppress(OSError):
        return _distrust(plan.target).read_text(encoding="utf-8") == encoder.name
    metas = up_to_date(plan.target, plan.job, plan.described, plan.parts)
    return metas is not None and metas[0].get("encoder_instead_of") == encoder.name


def _instead(target: Path, described: dict[str, Any]) -> str:
    """What the corpus that is there was made with otherwise."""
    try:
        meta = read_corpus_meta(target)
    except InputError:
        return ""
    changed = changes_of(meta, {key: value for key, value in described.items() if key in meta})
    return f"; the corpus there has another {', '.join(changed)}" if changed else ""


def _splitter(
    parts: list[TextPart], text_key: str, prefix: Path, options: CorpusBuildConfig, progress: Progress
) -> SentenceSplitter | None:
    if not options.sentences:
        return None
    path = options.punkt or suffixed(prefix, ".punkt.json")
    texts = sample_texts(parts, text_key, most=_PUNKT_PARTS, characters=_PUNKT_CHARACTERS, longest=options.longest_line)
    if options.punkt is None and train_splitter(texts, path):
        progress.say(f"{path}: learned from the text")
    return load_splitter(path, keep_newlines=options.keep_newlines)


def _finder(facts: list[Fact]) -> LeakFinder | None:
    if not facts:
        return None
    from megatron_kis.data_tools.mentions.decontaminate import LeakFinder

    return LeakFinder(facts)


def _nothing(split: str, counts: dict[str, Any], inputs: Sequence[Path], skipped: str) -> InputError:
    reasons = ("leaked_documents_removed", "empty_documents", "skipped_lines")
    why = ", ".join(f"{counts[key]} {key.replace('_', ' ')}" for key in reasons)
    why += f", the first {skipped}" if skipped else ""
    return InputError(f"no documents for the {split} split ({why})", where=", ".join(map(str, inputs)))


@contextmanager
def _folder(folder: Path) -> Iterator[Path]:
    """The folder of the parts: locked while at work, gone when all is done or nothing was."""
    with locked(folder, "kis data corpus"):
        for partial in folder.glob(".*.partial"):
            partial.unlink()
        try:
            yield folder
        except BaseException:
            if not any(folder.glob("*.json")):
                shutil.rmtree(folder)
            raise
        shutil.rmtree(folder)


def _summary(target: Path, metas: Sequence[dict[str, Any]]) -> CorpusSummary:
    training, validation = metas[0], metas[1] if len(metas) > 1 else None
    return CorpusSummary(
        prefix=target,
        validation_prefix=suffixed(target, VALIDATION_SUFFIX) if validation else None,
        documents=training["documents"],
        tokens=training["tokens"],
        validation_documents=validation["documents"] if validation else 0,
        validation_tokens=validation["tokens"] if validation else 0,
        text_bytes=sum(meta["bytes"] for meta in metas),
        leaked_documents=training["leaked_documents_removed"],
        leaked_facts=training["leaked_facts"],
        empty=training["empty_documents"],
        skipped=training["skipped_lines"],
        quarantine=suffixed(target, QUARANTINE) if training["skipped_lines"] else None,
    )
