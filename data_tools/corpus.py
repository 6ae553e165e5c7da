"""General text to a tokenized corpus in Megatron's format, with a validation split set aside.

``PREFIX.bin``/``.idx`` hold the training split, ``PREFIX.validation.bin``/``.idx`` the validation split. Beside each
lies ``.meta.json`` (schema ``kis.corpus/1``). A document's split depends on its text and the seed alone: it stays where
it is when files are added, and copies of one text never stand in both splits. Documents that state a studied fact are
left out of both.

The way: the files are cut into parts, several processes encode them into ``PREFIX.parts/``, and meanwhile what is
finished is joined in order. A command that was killed finds the finished parts and does the others; the bytes do not
depend on the number of processes, the size of the parts or how often the work was interrupted.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_tools.corpus_merge import SCHEMA, write_meta
from data_tools.corpus_part import QUARANTINE, SPLITS, PartEncoder, PartRecord, PartSettings
from data_tools.corpus_plan import part_bytes, sample_texts, shard_of
from data_tools.corpus_work import encode_parts, full_disk_told
from data_tools.encode import Encoder, choose_encoder
from data_tools.facts import Fact
from data_tools.indexed import IndexedReader, IndexedWriter, suffixed
from data_tools.progress import Progress
from data_tools.sentences import SentenceSplitter, load_splitter, train_splitter
from data_tools.text_lines import lines_before
from data_tools.text_parts import TextPart, check_text_files, expand, plan_parts
from data_tools.tokenizer import Tokenizer
from megatron_kis.errors import InputError
from megatron_kis.files import fingerprint, locked, read_json, read_json_lines, sha256_file, write_json_lines

VALIDATION_SUFFIX = SPLITS[1]
"""Added to the corpus prefix for the validation split."""

if TYPE_CHECKING:
    from data_tools.leaks import LeakFinder

_SPLIT_NAMES = ("training", "validation")
_SAMPLED_PARTS, _SAMPLED_CHARACTERS = 8, 64_000  # for the choice of the encoder
_PUNKT_PARTS, _PUNKT_CHARACTERS = 64, 4_000_000  # to learn sentences from: Punkt reads some 0.3 MB a second


@dataclass(frozen=True, slots=True)
class CorpusOptions:
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
    """``auto``, ``gigatoken`` or ``reference``; the ids are the same."""
    workers: int | None = None
    """Processes; None for one a core."""
    shard: tuple[int, int] | None = None
    """(i, n): do the i-th of n equal shards, i from 1, and write it to ``PREFIX-0000i-of-0000n``."""
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
    options: CorpusOptions | None = None,
) -> CorpusSummary:
    """Tokenizes text files into a corpus, or into one shard of it.

    Args:
        inputs: text files (see ``data_tools.text``) or patterns of their names, read in this order.
        tokenizer: the tokenizer.
        prefix: where to write; folders are created.
        text_key: key or column of the text.
        facts: studied facts; documents that state one are left out and counted.
        validation_share: share of documents set aside, in [0, 1).
        seed: seed of the validation split.
        progress: where to report.
        options: how.

    Raises:
        InputError: a file or line is damaged (``file:line``), or nothing is left to train on. No corpus is left half
            written; finished parts are kept for the next attempt.
        JobError: the disk is full, a worker died, or another process is at work on this corpus.
    """
    options, progress, facts = options or CorpusOptions(), progress or Progress(), list(facts)
    if not 0 <= validation_share < 1:
        raise InputError(f"is {validation_share}", where="validation_share", remedy="expected a share in [0, 1)")
    paths = expand(inputs)
    check_text_files(paths)
    parts = plan_parts(paths, part_bytes=options.part_bytes or part_bytes(paths))
    target, chosen = shard_of(prefix, parts, options.shard)
    splitter = _splitter(parts, text_key, prefix, options, progress)
    settings = PartSettings(
        tokenizer=tokenizer.fingerprint,
        text_key=text_key,
        append_eod=options.append_eod,
        keep_empty=options.keep_empty,
        sentences=splitter.fingerprint if splitter else None,
        facts=fingerprint([asdict(fact) for fact in facts]) if facts else None,
        validation_share=validation_share,
        seed=seed,
        skip_errors=options.skip_errors,
    )
    job = _job(settings, paths, parts, options)
    if metas := _up_to_date(target, job, settings, chosen):
        progress.say(f"{target}: up to date")
        return _summary(target, metas)
    sample = sample_texts(parts, text_key, most=_SAMPLED_PARTS, characters=_SAMPLED_CHARACTERS)
    encoder, why = choose_encoder(tokenizer, list(sample), options.encoder)
    part_encoder = PartEncoder(settings, tokenizer, encoder, splitter=splitter, finder=_finder(facts))
    splits = SPLITS if validation_share else SPLITS[:1]
    with _folder(suffixed(target, ".parts")) as folder, ThreadPoolExecutor(1) as thread:
        work = [(part, folder / f"{number:06d}") for number, part in enumerate(chosen)]
        aside: list[Future[dict[str, Any]]] = []  # what the processes that encode leave time for

        def started() -> None:
            aside.append(thread.submit(_provenance, chosen, encoder, tokenizer))
            progress.say(f"encoding with {encoder.name}: {why}")

        records: list[PartRecord] = []
        with full_disk_told(), ExitStack() as stack:
            writers = [
                stack.enter_context(
                    IndexedWriter(suffixed(target, split), vocab_size=tokenizer.vocab_size, scratch=folder)
                )
                for split in splits
            ]
            encoded = encode_parts(part_encoder, work, workers=options.workers, progress=progress, started=started)
            for record, (_, at) in zip(encoded, work, strict=True):
                records.append(record)
                for split, writer in zip(splits, writers, strict=True):
                    writer.copy(IndexedReader(suffixed(at, split)))
            left_out = _left_out(records)
            for split, writer in zip(_SPLIT_NAMES, writers, strict=False):
                if not options.shard and not writer.documents:
                    raise _nothing(split, left_out, inputs)
            for split in splits:  # a description of an earlier corpus must not outlive its tokens
                suffixed(target, f"{split}.meta.json").unlink(missing_ok=True)
        common = {
            "schema": SCHEMA,
            "tokenizer_fingerprint": tokenizer.fingerprint,
            "eod_id": tokenizer.eod_id,
            "vocab_size": tokenizer.vocab_size,
            "append_eod": options.append_eod,
            "sentences": settings.sentences,
            "validation_share": validation_share,
            "seed": seed,
            "facts": settings.facts,
            **left_out,
            **aside[0].result(),
            "job": job,
        }
        if options.shard:
            common["shard"] = {"number": options.shard[0], "of": options.shard[1]}
        for number, (split, writer) in enumerate(zip(splits, writers, strict=True)):
            text = sum(record.bytes[number] for record in records)
            write_meta(suffixed(target, split), {**common, "split": _SPLIT_NAMES[number], "bytes": text}, writer)
        _write_quarantine(target, work)
    return _summary(target, [read_corpus_meta(suffixed(target, split)) for split in splits])


def read_corpus_meta(prefix: Path) -> dict[str, Any]:
    """Reads ``PREFIX.meta.json`` and checks it against the index.

    Raises:
        InputError: it is missing, of another schema, or counts other documents or tokens than the index.
    """
    path = suffixed(prefix, ".meta.json")
    meta = read_json(path, SCHEMA)
    reader = IndexedReader(prefix)
    for key, found in (("documents", reader.documents), ("tokens", reader.tokens)):
        if meta.get(key) != found:
            raise InputError(f"{key} is {meta.get(key)}, the index has {found}", where=str(path))
    return meta


def _job(settings: PartSettings, paths: list[Path], parts: list[TextPart], options: CorpusOptions) -> str:
    """Fingerprint of what all shards of a job have in common, on whatever machine."""
    files = [{"name": path.name, "size": path.stat().st_size} for path in paths]
    cuts = [[part.start, part.stop] for part in parts] if options.shard else None
    return fingerprint({"settings": asdict(settings), "files": files, "cuts": cuts})


def _sources(parts: Iterable[TextPart]) -> list[dict[str, str]]:
    paths = dict.fromkeys(part.path for part in parts)
    return [{"path": str(path), "sha256": sha256_file(path)} for path in paths]


def _up_to_date(
    target: Path, job: str, settings: PartSettings, parts: Sequence[TextPart]
) -> list[dict[str, Any]] | None:
    """Descriptions of a corpus that was made from the same by the same, and is whole."""
    splits = SPLITS if settings.validation_share else SPLITS[:1]
    try:
        metas = [read_corpus_meta(suffixed(target, split)) for split in splits]
    except InputError:
        return None
    if any(meta.get("job") != job for meta in metas) or metas[0].get("sources") != _sources(parts):
        return None
    return metas


def _splitter(
    parts: list[TextPart], text_key: str, prefix: Path, options: CorpusOptions, progress: Progress
) -> SentenceSplitter | None:
    if not options.sentences:
        return None
    path = options.punkt or suffixed(prefix, ".punkt.json")
    texts = sample_texts(parts, text_key, most=_PUNKT_PARTS, characters=_PUNKT_CHARACTERS)
    if options.punkt is None and train_splitter(texts, path):
        progress.say(f"{path}: learned from the text")
    return load_splitter(path, keep_newlines=options.keep_newlines)


def _finder(facts: list[Fact]) -> LeakFinder | None:
    if not facts:
        return None
    from data_tools.leaks import LeakFinder

    return LeakFinder(facts)


def _left_out(records: Sequence[PartRecord]) -> dict[str, Any]:
    leaks: Counter[str] = Counter()
    for record in records:
        leaks.update(record.leaks)
    return {
        "leaked_documents_removed": sum(record.leaked for record in records),
        "leaked_facts": len(leaks),
        "leaks": dict(sorted(leaks.items())),
        "empty_documents": sum(record.empty for record in records),
        "skipped_lines": sum(record.skipped for record in records),
    }


def _nothing(split: str, counts: dict[str, Any], inputs: Sequence[Path]) -> InputError:
    reasons = ("leaked_documents_removed", "empty_documents", "skipped_lines")
    why = ", ".join(f"{counts[key]} {key.replace('_', ' ')}" for key in reasons)
    return InputError(f"no documents for the {split} split ({why})", where=", ".join(map(str, inputs)))


def _write_quarantine(target: Path, work: Sequence[tuple[TextPart, Path]]) -> None:
    """Joins the lists of the parts; lines are counted within the whole file now."""
    found = [(part, path) for part, at in work if (path := suffixed(at, QUARANTINE)).exists()]
    if not found:
        suffixed(target, QUARANTINE).unlink(missing_ok=True)
        return
    starts: dict[Path, list[int]] = {}
    for part, _ in found:
        starts.setdefault(part.path, []).append(part.start)
    before = {path: lines_before(path, edges) for path, edges in starts.items()}

    def rows() -> Iterator[dict[str, Any]]:
        for part, path in found:
            for _, row in read_json_lines(path):
                yield {**row, "line": row["line"] + before[part.path][part.start]}

    write_json_lines(suffixed(target, QUARANTINE), rows())


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


def _provenance(parts: Iterable[TextPart], encoder: Encoder, tokenizer: Tokenizer) -> dict[str, Any]:
    """Hashes of the files and versions of the packages."""
    import importlib.metadata

    versions = {name: importlib.metadata.version(name) for name in (tokenizer.library, "numpy")}
    return {"sources": _sources(parts), "versions": {**versions, "encoder": encoder.name}}
