"""General text to a tokenized corpus in Megatron's format, with a validation split set aside.

``PREFIX.bin``/``.idx`` hold the training split, ``PREFIX.validation.bin``/``.idx`` the validation split, each with a
``.meta.json`` (schema ``kis.corpus/1``). A document's split depends on its text and the seed alone: it stays the same
when files are added, and copies of one text are never in both splits. Documents that state a studied fact are left out
of both.

A corpus is up to date, and a part is used again, only where text, settings, tokenizer and the encoder with its version
are the same. gigatoken may turn out to give other ids than the tokenizer's own library while it works, or fail; then
the library encodes everything again.

The stages of :func:`build_corpus`:

1. plan (``corpus.plan``): the files are cut into parts, and an encoder is chosen by a trial on a sample;
2. encode (``corpus.workers``, ``corpus.part``): several processes encode the parts into ``PREFIX.parts/``;
3. merge: meanwhile the finished parts are joined in order;
4. publish: ``.bin`` and ``.idx`` are put in place, then ``.meta.json`` and the list of skipped lines.

A command that was killed finds the finished parts and does the others; the bytes do not depend on the number of
processes, the size of the parts or how often the work was interrupted.
"""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_kis.common.errors import InputError
from megatron_kis.common.files import fingerprint, locked, read_json_lines, write_text
from megatron_kis.common.progress import Progress
from megatron_kis.data_tools.corpus.meta import (
    changes_of,
    description,
    job_fingerprint,
    left_out,
    read_corpus_meta,
    retire,
    sources_of,
    up_to_date,
    write_corpus_meta,
    write_quarantine,
    writing_versions,
)
from megatron_kis.data_tools.corpus.part import (
    QUARANTINE,
    SPLIT_NAMES,
    VALIDATION_SUFFIX,
    PartConfig,
    PartEncoder,
    PartRecord,
)
from megatron_kis.data_tools.corpus.plan import CorpusBuildConfig, CorpusJob, part_bytes, sample_texts
from megatron_kis.data_tools.corpus.workers import encode_parts, explained_full_disk
from megatron_kis.data_tools.facts.fact import Fact, fact_row
from megatron_kis.data_tools.readers.documents import lines_before
from megatron_kis.data_tools.readers.parts import TextPart, plan_parts
from megatron_kis.data_tools.storage.indexed import IndexedReader, IndexedWriter, suffixed
from megatron_kis.data_tools.tokenizers.base import Tokenizer
from megatron_kis.data_tools.tokenizers.encoder import choose_encoder
from megatron_kis.data_tools.tokenizers.reference_encoder import Encoder, EncodersDifferError, ReferenceEncoder

_SAMPLED_PARTS = 8  # for the choice of the encoder
_SAMPLED_CHARACTERS = 64_000

Work = Sequence[tuple[TextPart, Path]]
"""Parts, and the prefixes of their files."""


@dataclass(frozen=True, slots=True)
class CorpusSummary:
    """The result of a corpus build."""

    prefix: Path
    """Prefix of the training split."""
    validation_prefix: Path | None
    """Prefix of the validation split; None where its share is 0."""
    documents: int
    """Documents of the training split."""
    tokens: int
    """Tokens of the training split, end-of-document tokens included."""
    validation_documents: int
    """Documents of the validation split."""
    validation_tokens: int
    """Tokens of the validation split."""
    text_bytes: int
    """UTF-8 bytes of the text of both splits."""
    leaked_documents: int
    """Documents left out because they state a studied fact."""
    leaked_facts: int
    """Facts that these documents state."""
    empty: int
    """Documents without text or tokens."""
    skipped: int
    """Lines that hold no document."""
    quarantine: Path | None
    """List of these lines; None where there are none."""


@dataclass(frozen=True, slots=True)
class _Attempt:
    """An encoder, and the description of the corpus that it would give."""

    encoder: Encoder
    why: str
    """Reason for this encoder."""
    config: PartConfig
    described: dict[str, Any]
    """All of ``.meta.json`` that is known before the work."""
    job: str
    """Fingerprint of the job that all shards have in common."""


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
    config: CorpusBuildConfig | None = None,
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
        config: how the corpus is made.
        also_read: files of the tokenizer and the facts, which nothing is written over.

    Raises:
        InputError: a file is given twice or changes meanwhile, a line is damaged (``file:line``), or nothing is left to
            train on. No corpus is left half written; finished parts are kept for the next attempt.
        JobError: the disk is full, a worker died, or another process is at work on this corpus.
    """
    job = CorpusJob(
        inputs,
        tokenizer,
        prefix,
        text_key=text_key,
        facts=facts,
        validation_share=validation_share,
        seed=seed,
        progress=progress or Progress(),
        config=config or CorpusBuildConfig(),
        also_read=also_read,
    )
    first, second = _attempts(job)
    if metas := up_to_date(job.target, first.job, first.described, job.parts):
        job.progress.say(f"{job.target}: up to date")
        return _summary(job.target, metas)
    try:
        return _make(job, first)
    except EncodersDifferError as error:
        if second is None:
            raise
        job.progress.say(f"{error.problem}; all of it is encoded again")
        write_text(_distrusted(job.target), first.encoder.name)
        return _make(job, second)


def encoder_for(
    paths: Sequence[Path], tokenizer: Tokenizer, text_key: str = "text", text_format: str | None = None
) -> tuple[Encoder, str]:
    """Returns the encoder that ``build_corpus`` starts with, and why; takes a second or two.

    Raises:
        InputError: a file is missing or damaged.
    """
    parts = plan_parts(paths, part_bytes=part_bytes(paths), text_format=text_format)
    return _choose(tokenizer, parts, text_key, CorpusBuildConfig())


# Which encoder


def _attempts(job: CorpusJob) -> tuple[_Attempt, _Attempt | None]:
    """Returns the first attempt, and the one with the reference encoder for the case that gigatoken differs."""
    encoder, why = _choose(job.tokenizer, job.all_parts, job.text_key, job.config)
    first = _attempt(job, encoder, why)
    if job.config.encoder != "auto" or job.config.shard or isinstance(encoder, ReferenceEncoder):
        return first, None
    second = _attempt(job, ReferenceEncoder(job.tokenizer), f"{encoder.name} is not right for some of this text")
    return (second, None) if _known_to_differ(job, second, encoder) else (first, second)


def _choose(
    tokenizer: Tokenizer, parts: list[TextPart], text_key: str, config: CorpusBuildConfig
) -> tuple[Encoder, str]:
    sample = sample_texts(
        parts, text_key, most=_SAMPLED_PARTS, characters=_SAMPLED_CHARACTERS, longest=config.longest_line
    )
    return choose_encoder(tokenizer, list(sample), config.encoder)


def _attempt(job: CorpusJob, encoder: Encoder, why: str) -> _Attempt:
    config = PartConfig(
        tokenizer=job.tokenizer.fingerprint,
        text_key=job.text_key,
        text_format=job.config.text_format,
        append_eod=job.config.append_eod,
        keep_empty=job.config.keep_empty,
        sentences=job.splitter.fingerprint if job.splitter else None,
        facts=fingerprint([fact_row(fact) for fact in job.facts]) if job.facts else None,
        validation_share=job.validation_share,
        seed=job.seed,
        skip_errors=job.config.skip_errors,
        longest_line=job.config.longest_line if job.config.skip_errors else None,
        versions=writing_versions(encoder, job.tokenizer, sentences=job.splitter is not None, facts=bool(job.facts)),
    )
    described = description(config, job.tokenizer)
    sharded = job.config.shard is not None
    return _Attempt(encoder, why, config, described, job_fingerprint(described, job.paths, job.all_parts, sharded))


def _distrusted(target: Path) -> Path:
    """Returns the file that names an encoder found to differ, while the work is not finished."""
    return suffixed(target, ".parts") / "distrusted"


def _known_to_differ(job: CorpusJob, attempt: _Attempt, encoder: Encoder) -> bool:
    """Returns whether an earlier command found that this encoder gives other ids for this text."""
    with suppress(OSError):
        return _distrusted(job.target).read_text(encoding="utf-8") == encoder.name
    metas = up_to_date(job.target, attempt.job, attempt.described, job.parts)
    return metas is not None and metas[0].get("encoder_instead_of") == encoder.name


# Encode, merge, publish


def _make(job: CorpusJob, attempt: _Attempt) -> CorpusSummary:
    with _parts_folder(suffixed(job.target, ".parts")) as folder:
        work = [(part, folder / f"{number:06d}") for number, part in enumerate(job.parts)]
        records, writers, sources = _encode_and_merge(job, attempt, work, folder)
        _publish(job, attempt, records, writers, sources)
        write_quarantine(job.target, _skipped_lines(work))
    return _summary(job.target, [read_corpus_meta(suffixed(job.target, split)) for split in job.suffixes])


def _encode_and_merge(
    job: CorpusJob, attempt: _Attempt, work: Work, folder: Path
) -> tuple[list[PartRecord], list[IndexedWriter], list[dict[str, str]]]:
    """Encodes the parts and joins them, into ``.bin`` and ``.idx`` of each split.

    Returns:
        The record of each part, the closed writer of each split, and the files of the text with their SHA-256.
    """
    encoder = _part_encoder(job, attempt)
    records: list[PartRecord] = []
    hashed: list[Future[list[dict[str, str]]]] = []
    with ThreadPoolExecutor(1) as thread, explained_full_disk(), ExitStack() as stack:
        writers = [
            stack.enter_context(
                IndexedWriter(suffixed(job.target, split), vocab_size=job.tokenizer.vocab_size, scratch=folder)
            )
            for split in job.suffixes
        ]

        def started() -> None:
            hashed.append(thread.submit(sources_of, job.parts))  # in the time that the encoding processes leave
            instead = _instead_of(job.target, attempt.described)
            job.progress.say(f"encoding with {attempt.encoder.name}: {attempt.why}{instead}")

        encoded = encode_parts(encoder, work, workers=job.config.workers, progress=job.progress, started=started)
        for record, (_, prefix) in zip(encoded, work, strict=True):
            records.append(record)
            for split, writer in zip(job.suffixes, writers, strict=True):
                writer.copy(IndexedReader(suffixed(prefix, split)))
        _refuse_nothing(job, records, writers, work)
        sources = hashed[0].result()
        job.sources.check()
        retire(job.target, job.suffixes)
    return records, writers, sources


def _part_encoder(job: CorpusJob, attempt: _Attempt) -> PartEncoder:
    finder = None
    if job.facts:
        from megatron_kis.data_tools.mentions.decontaminate import FactMatcher

        finder = FactMatcher(job.facts)
    return PartEncoder(
        attempt.config,
        job.tokenizer,
        attempt.encoder,
        splitter=job.splitter,
        finder=finder,
        longest=job.config.longest_line,
    )


def _publish(
    job: CorpusJob,
    attempt: _Attempt,
    records: Sequence[PartRecord],
    writers: Sequence[IndexedWriter],
    sources: list[dict[str, str]],
) -> None:
    """Writes ``.meta.json`` of each split."""
    common = {**attempt.described, **left_out(records), "sources": sources, "job": attempt.job}
    common["versions"] = {**common["versions"], "numpy": importlib.metadata.version("numpy")}
    common["frame"] = job.tokenizer.frame_record()
    if _distrusted(job.target).exists():
        common["encoder_instead_of"] = _distrusted(job.target).read_text(encoding="utf-8")
    if job.config.shard:
        number, of = job.config.shard
        common["shard"] = {"number": number, "of": of, "first_source": job.first_source}
    for index, (split, writer) in enumerate(zip(job.suffixes, writers, strict=True)):
        text = sum(record.bytes[index] for record in records)
        meta = {**common, "split": SPLIT_NAMES[index], "bytes": text}
        write_corpus_meta(suffixed(job.target, split), meta, writer)


@contextmanager
def _parts_folder(folder: Path) -> Iterator[Path]:
    """Makes the folder of the parts, locked during the work and removed when all is done or nothing was."""
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


def _instead_of(target: Path, described: dict[str, Any]) -> str:
    """Says in what an existing corpus differs."""
    try:
        meta = read_corpus_meta(target)
    except InputError:
        return ""
    changed = changes_of(meta, {key: value for key, value in described.items() if key in meta})
    return f"; the corpus there has another {', '.join(changed)}" if changed else ""


def _refuse_nothing(
    job: CorpusJob, records: Sequence[PartRecord], writers: Sequence[IndexedWriter], work: Work
) -> None:
    """Refuses a corpus, other than a shard of one, with a split that has no documents.

    Raises:
        InputError: names the split, and why documents were left out.
    """
    empty = next((name for name, writer in zip(SPLIT_NAMES, writers, strict=False) if not writer.documents), None)
    if empty is None or job.config.shard:
        return
    counts = left_out(records)
    reasons = ("leaked_documents_removed", "empty_documents", "skipped_lines")
    why = ", ".join(f"{counts[key]} {key.replace('_', ' ')}" for key in reasons)
    first_list = next(([pair] for pair in work if suffixed(pair[1], QUARANTINE).exists()), [])
    skipped = next(_skipped_lines(first_list), None)
    why += f", the first {skipped['file']}:{skipped['line']}: {skipped['reason']}" if skipped else ""
    where = ", ".join(map(str, job.inputs))
    remedy = "reserve a larger share for validation, or give more text" if work and empty != SPLIT_NAMES[0] else None
    raise InputError(f"no documents for the {empty} split ({why})", where=where, remedy=remedy)


def _skipped_lines(work: Work) -> Iterator[dict[str, Any]]:
    """Yields the lines of all parts that hold no document, counted within the whole file."""
    lists = [(part, path) for part, prefix in work if (path := suffixed(prefix, QUARANTINE)).exists()]
    starts: dict[tuple[Path, str], list[int]] = {}
    for part, _ in lists:
        starts.setdefault((part.path, part.kind), []).append(part.start)
    before = {path: lines_before(path, kind, of_file) for (path, kind), of_file in starts.items()}
    for part, path in lists:
        for _, row in read_json_lines(path):
            yield {**row, "line": row["line"] + before[part.path][part.start]}


def _summary(target: Path, metas: Sequence[dict[str, Any]]) -> CorpusSummary:
    training = metas[0]
    validation = metas[1] if len(metas) > 1 else None
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
