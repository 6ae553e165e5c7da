"""Joins corpora: their tokens are copied as they are, their descriptions are added up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from megatron_kis.common.errors import InputError
from megatron_kis.common.files import read_json, read_json_lines
from megatron_kis.data_tools.corpus.meta import retire, write_corpus_meta, write_quarantine
from megatron_kis.data_tools.corpus.part import QUARANTINE, SPLIT_SUFFIXES, VALIDATION_SUFFIX, corpus_files
from megatron_kis.data_tools.corpus.workers import explained_full_disk
from megatron_kis.data_tools.readers.files import file_identities, refuse_own_outputs
from megatron_kis.data_tools.storage.indexed import CORPUS_SCHEMA, IndexedReader, IndexedWriter, suffixed

_SAME = ("schema", "split", "tokenizer_fingerprint", "eod_id", "vocab_size", "append_eod", "sentences")
_SAME_OR_NONE = (
    "validation_share",
    "seed",
    "facts",
    "text_key",
    "text_format",
    "keep_empty",
    "skip_errors",
    "longest_line",
    "job",
)
_SUMMED = ("documents", "sequences", "tokens", "bytes", "leaked_documents_removed", "empty_documents", "skipped_lines")

_WEIGHTS = "to show text more often, give a corpus a larger weight in data.corpus of the runs"


def merge_corpora(prefixes: Sequence[Path], target: Path) -> list[tuple[Path, IndexedWriter]]:
    """Joins corpora or shards, validation splits and quarantines too.

    All shards of one job, in order, give the bytes of the job done at once. Pairs of files that others made, without
    descriptions, are joined as well. Corpora of different encoders are not joined: nothing would say afterwards which
    encoder gave which ids. A run can read them side by side.

    Args:
        prefixes: corpora in their order.
        target: prefix of the result.

    Returns:
        Prefix of each split, and the closed writer with its counts.

    Raises:
        InputError: corpora that do not fit together or hold the same text, a shard that is missing or out of order, or
            a result that would be written over an input.
        JobError: the disk is full.
    """
    _refuse_own_inputs(prefixes, target)
    identities = [file_identities(suffixed(prefix, ".bin"))[-1] for prefix in prefixes]
    for number, identity in enumerate(identities):
        if identity in identities[:number]:
            raise InputError("is given twice", where=str(prefixes[number]), remedy=_WEIGHTS)
    with_validation = [suffixed(suffixed(prefix, VALIDATION_SUFFIX), ".idx").exists() for prefix in prefixes]
    if any(with_validation) and not all(with_validation):
        having = prefixes[with_validation.index(True)]
        lacking = prefixes[with_validation.index(False)]
        problem = f"has no validation split, {having} has one"
        raise InputError(problem, where=str(lacking), remedy="make all with or without one")
    splits = SPLIT_SUFFIXES if all(with_validation) else SPLIT_SUFFIXES[:1]
    split_prefixes = [[suffixed(prefix, split) for prefix in prefixes] for split in splits]
    metas = [_merged_meta(_descriptions(paths), paths) for paths in split_prefixes]
    with explained_full_disk(), ExitStack() as stack:
        writers = [
            stack.enter_context(_joined(paths, suffixed(target, split)))
            for split, paths in zip(splits, split_prefixes, strict=True)
        ]
        retire(target, splits)
    quarantines = [path for prefix in prefixes if (path := suffixed(prefix, QUARANTINE)).exists()]
    write_quarantine(target, (row for path in quarantines for _, row in read_json_lines(path)))
    for split, meta, writer in zip(splits, metas, writers, strict=True):
        if meta is not None:
            write_corpus_meta(suffixed(target, split), meta, writer)
    return [(suffixed(target, split), writer) for split, writer in zip(splits, writers, strict=True)]


def _refuse_own_inputs(prefixes: Sequence[Path], target: Path) -> None:
    """Refuses a result that would replace a file of its own inputs.

    Raises:
        InputError: names the input.
    """
    for prefix in prefixes:
        try:
            refuse_own_outputs(corpus_files(prefix), corpus_files(target))
        except InputError:
            problem = f"would be overwritten by the result {target}"
            raise InputError(problem, where=str(prefix), remedy="give the result another name") from None


@contextmanager
def _joined(prefixes: Sequence[Path], target: Path) -> Iterator[IndexedWriter]:
    """Joins pairs of files into one, which is put in its place at the end.

    Raises:
        InputError: a pair is missing or damaged, or the types of their tokens differ.
    """
    first = IndexedReader(prefixes[0])
    largest = np.iinfo(first.dtype).max
    with IndexedWriter(target, vocab_size=largest, dtype=first.dtype) as writer:
        for prefix in prefixes:
            reader = IndexedReader(prefix)
            if reader.dtype != first.dtype:
                problem = f"tokens are {reader.dtype.name}, those of {prefixes[0]} {first.dtype.name}"
                raise InputError(problem, where=str(prefix), remedy="encode all with one tokenizer")
            writer.copy(reader)
        yield writer


def _descriptions(prefixes: Sequence[Path]) -> list[dict[str, Any]]:
    paths = [suffixed(prefix, ".meta.json") for prefix in prefixes]
    there = [path for path in paths if path.exists()]
    if not there:
        return []
    return [read_json(path, CORPUS_SCHEMA, keys=(*_SAME, *_SUMMED, "sources", "versions")) for path in paths]


def _merged_meta(metas: Sequence[dict[str, Any]], prefixes: Sequence[Path]) -> dict[str, Any] | None:
    """Adds up descriptions; None where there are none.

    Raises:
        InputError: they do not fit together.
    """
    if not metas:
        return None
    first = metas[0]
    for meta, prefix in zip(metas, prefixes, strict=True):
        where = str(suffixed(prefix, ".meta.json"))
        for key in _SAME:
            if meta[key] != first[key]:
                raise InputError(f"{key} is {meta[key]}, that of {prefixes[0]} is {first[key]}", where=where)
        ours = meta["versions"].get("encoder")
        theirs = first["versions"].get("encoder")
        if ours != theirs:
            problem = f"was encoded with {ours}, {prefixes[0]} with {theirs}"
            raise InputError(problem, where=where, remedy="encode all with one, such as --encoder reference")
    _check_shards(metas, prefixes)
    leaks: Counter[str] = Counter()
    for meta in metas:
        leaks.update(meta.get("leaks", {}))
    total = {key: value for key, value in first.items() if key != "shard"}
    for key in _SAME_OR_NONE:
        if any(meta.get(key) != first.get(key) for meta in metas):
            total[key] = None
    total.update({key: sum(meta[key] for meta in metas) for key in _SUMMED})
    total.update(leaked_facts=len(leaks), leaks=dict(sorted(leaks.items())))
    total.update(sources=_sources(metas, prefixes), versions=_versions(metas))
    return total


def _versions(metas: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Returns the versions of all, those that differ one after another."""
    found: dict[str, dict[str, None]] = {}
    for meta in metas:
        for name, version in meta["versions"].items():
            found.setdefault(name, {})[version] = None
    return {name: ", ".join(versions) for name, versions in found.items()}


def _sources(metas: Sequence[dict[str, Any]], prefixes: Sequence[Path]) -> list[dict[str, str]]:
    """Returns the text files of all, each once.

    Raises:
        InputError: two corpora hold the same text, or shards of one file saw different contents of it.
    """
    found: dict[Any, tuple[dict[str, str], Path]] = {}
    for meta, prefix in zip(metas, prefixes, strict=True):
        shard = meta.get("shard")
        for number, source in enumerate(meta["sources"]):
            # Shards share the file in which one ends and the next begins, perhaps under another path elsewhere.
            key = shard.get("first_source", 0) + number if shard else (source["sha256"], meta.get("text_key"))
            other, there = found.setdefault(key, (source, prefix))
            if shard and other["sha256"] != source["sha256"]:
                problem = f"{source['path']} had another content when {there} was made"
                raise InputError(problem, where=str(prefix), remedy="make the shards again, from the same files")
            if not shard and there != prefix:
                problem = f"holds {source['path']}, which {there} holds already"
                raise InputError(problem, where=str(prefix), remedy=_WEIGHTS)
    return [source for source, _ in found.values()]


def _check_shards(metas: Sequence[dict[str, Any]], prefixes: Sequence[Path]) -> None:
    shards = [meta.get("shard") for meta in metas]
    if not any(shards):
        return
    jobs = {meta["job"] for meta in metas}
    found = [shard and shard["number"] for shard in shards]
    of = next(shard["of"] for shard in shards if shard)
    if found != list(range(1, of + 1)) or len(jobs) != 1:
        problem = f"shards {found} of {of}" if len(jobs) == 1 else "shards of different jobs"
        where = ", ".join(map(str, prefixes))
        raise InputError(problem, where=where, remedy=f"all shards of one job from 1 to {of}, in order")
