"""Joins corpora: their tokens are copied as they are, their descriptions are added up."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.corpus_part import QUARANTINE, SPLITS
from data_tools.corpus_work import full_disk_told
from data_tools.indexed import IndexedReader, IndexedWriter, suffixed
from megatron_kis.errors import InputError
from megatron_kis.files import read_json, read_json_lines, write_json, write_json_lines

SCHEMA = "kis.corpus/1"

_SAME = ("schema", "split", "tokenizer_fingerprint", "eod_id", "vocab_size", "append_eod", "sentences")
_SAME_OR_NONE = ("validation_share", "seed", "facts", "job")
_SUMS = ("documents", "sequences", "tokens", "bytes", "leaked_documents_removed", "empty_documents", "skipped_lines")


def join(prefixes: Sequence[Path], target: Path, meta: dict[str, Any] | None) -> IndexedWriter:
    """Joins pairs of files into one, and writes its description.

    Args:
        prefixes: pairs in their order.
        target: prefix of the pair to write.
        meta: content of ``.meta.json`` without what is counted; None for no description.

    Raises:
        InputError: a pair is missing or damaged, or the types of their tokens differ.
        JobError: the disk is full.
    """
    first = IndexedReader(prefixes[0])
    largest = np.iinfo(first.dtype).max
    with full_disk_told(), IndexedWriter(target, vocab_size=largest, dtype=first.dtype) as writer:
        for prefix in prefixes:
            reader = IndexedReader(prefix)
            if reader.dtype != first.dtype:
                problem = f"tokens are {reader.dtype.name}, those of {prefixes[0]} {first.dtype.name}"
                raise InputError(problem, where=str(prefix), remedy="encode all with one tokenizer")
            writer.copy(reader)
        # A description of an earlier corpus must not outlive its tokens.
        suffixed(target, ".meta.json").unlink(missing_ok=True)
    if meta is not None:
        write_meta(target, meta, writer)
    return writer


def write_meta(target: Path, meta: dict[str, Any], writer: IndexedWriter) -> None:
    """Writes ``.meta.json`` of a pair of files that ``writer`` has finished: ``meta`` and what is counted."""
    counts = {"documents": writer.documents, "sequences": writer.sequences, "tokens": writer.tokens}
    write_json(suffixed(target, ".meta.json"), {**meta, **counts, "content_fingerprint": writer.content_fingerprint})


def merge_corpora(prefixes: Sequence[Path], target: Path) -> list[tuple[Path, IndexedWriter]]:
    """Joins corpora or shards, validation splits and quarantines too.

    All shards of one job, in order, give the bytes of the job done at once. Pairs of files that others made, without
    descriptions, are joined as well.

    Args:
        prefixes: corpora in their order.
        target: prefix of the result.

    Returns:
        Prefix of each split and what was written there.

    Raises:
        InputError: corpora that do not fit together, or a shard that is missing or out of order.
    """
    if target in prefixes:
        raise InputError("would be written over", where=str(target), remedy="another name for the result")
    splits = [split for split in SPLITS if not split or suffixed(suffixed(prefixes[0], split), ".idx").exists()]
    joined = []
    descriptions = [_descriptions([suffixed(prefix, split) for prefix in prefixes]) for split in splits]
    for split, found in zip(splits, descriptions, strict=True):
        pairs = [suffixed(prefix, split) for prefix in prefixes]
        path = suffixed(target, split)
        joined.append((path, join(pairs, path, _sum(found, pairs) if found else None)))
    rows = [path for prefix in prefixes if (path := suffixed(prefix, QUARANTINE)).exists()]
    if rows:
        lines = itertools.chain.from_iterable(read_json_lines(path) for path in rows)
        write_json_lines(suffixed(target, QUARANTINE), (row for _, row in lines))
    return joined


def _descriptions(prefixes: Sequence[Path]) -> list[dict[str, Any]]:
    paths = [suffixed(prefix, ".meta.json") for prefix in prefixes]
    there = [path for path in paths if path.exists()]
    if not there:
        return []
    return [read_json(path, SCHEMA, keys=(*_SAME, *_SUMS)) for path in paths]


def _sum(metas: Sequence[dict[str, Any]], prefixes: Sequence[Path]) -> dict[str, Any]:
    first = metas[0]
    for meta, prefix in zip(metas, prefixes, strict=True):
        for key in _SAME:
            if meta[key] != first[key]:
                problem = f"{key} is {meta[key]}, that of {prefixes[0]} is {first[key]}"
                raise InputError(problem, where=str(suffixed(prefix, ".meta.json")))
    _check_shards(metas, prefixes)
    leaks: Counter[str] = Counter()
    for meta in metas:
        leaks.update(meta.get("leaks", {}))
    sources = {source["path"]: source for meta in metas for source in meta["sources"]}
    total = {key: value for key, value in first.items() if key != "shard"}
    for key in _SAME_OR_NONE:
        if any(meta.get(key) != first.get(key) for meta in metas):
            total[key] = None
    total.update({key: sum(meta[key] for meta in metas) for key in _SUMS})
    total.update(leaked_facts=len(leaks), leaks=dict(sorted(leaks.items())), sources=list(sources.values()))
    return total


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
