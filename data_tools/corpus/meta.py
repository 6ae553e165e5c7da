"""``PREFIX.meta.json``, the description of a corpus, and whether a command would write the same corpus again."""

from __future__ import annotations

import itertools
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megatron_kis.common.errors import InputError
from megatron_kis.common.files import fingerprint, read_json, sha256_file, write_json, write_json_lines
from megatron_kis.common.identity import differences
from megatron_kis.data_tools.corpus.part import CODE, QUARANTINE, SPLIT_SUFFIXES, PartConfig, PartRecord, split_suffixes
from megatron_kis.data_tools.readers.parts import TextPart
from megatron_kis.data_tools.storage.indexed import (
    CORPUS_SCHEMA,
    IndexedReader,
    IndexedWriter,
    content_fingerprint,
    suffixed,
)
from megatron_kis.data_tools.tokenizers.base import Tokenizer
from megatron_kis.data_tools.tokenizers.reference_encoder import Encoder, package_version, versions_of


def read_corpus_meta(prefix: Path) -> dict[str, Any]:
    """Reads ``PREFIX.meta.json`` and checks it against the index.

    Raises:
        InputError: it is missing, of another schema, or counts other documents or tokens than the index.
    """
    path = suffixed(prefix, ".meta.json")
    meta = read_json(path, CORPUS_SCHEMA)
    reader = IndexedReader(prefix)
    for key, found in (("documents", reader.documents), ("tokens", reader.tokens)):
        if meta.get(key) != found:
            raise InputError(f"{key} is {meta.get(key)}, the index has {found}", where=str(path))
    return meta


def write_corpus_meta(prefix: Path, meta: dict[str, Any], writer: IndexedWriter) -> None:
    """Writes ``PREFIX.meta.json`` of a pair of files that ``writer`` has finished: ``meta`` and the counts."""
    counts = {"documents": writer.documents, "sequences": writer.sequences, "tokens": writer.tokens}
    write_json(suffixed(prefix, ".meta.json"), {**meta, **counts, "content_fingerprint": writer.content_fingerprint})


def retire(target: Path, splits: Sequence[str]) -> None:
    """Removes what must not outlive an earlier corpus's tokens: descriptions, and splits other than ``splits``.

    Killed from here on, nothing looks complete: neither half of the earlier corpus next to one of the new. Files of
    others, without a description of ours, stay.
    """
    for split in splits:
        suffixed(target, f"{split}.meta.json").unlink(missing_ok=True)
    for split in SPLIT_SUFFIXES[len(splits) :]:
        with suppress(InputError):
            read_json(suffixed(target, f"{split}.meta.json"), CORPUS_SCHEMA)
            for suffix in (".meta.json", ".idx", ".bin"):
                suffixed(target, f"{split}{suffix}").unlink(missing_ok=True)


def write_quarantine(target: Path, rows: Iterator[dict[str, Any]]) -> None:
    """Writes ``PREFIX.quarantine.jsonl``, the lines that hold no document; removes it where there are none."""
    first = next(rows, None)
    if first is None:
        suffixed(target, QUARANTINE).unlink(missing_ok=True)
    else:
        write_json_lines(suffixed(target, QUARANTINE), itertools.chain([first], rows))


def writing_versions(encoder: Encoder, tokenizer: Tokenizer, *, sentences: bool, facts: bool) -> dict[str, str]:
    """Returns the versions of everything that decides a corpus' bytes next to its text and settings.

    Args:
        encoder: the encoder.
        tokenizer: the tokenizer.
        sentences: nltk splits sentences.
        facts: documents that state facts are left out; regex knows the scripts of their names.
    """
    versions = {**versions_of(encoder, tokenizer), "unicode": unicodedata.unidata_version}
    packages = [*(["nltk"] if sentences else []), *(["regex"] if facts else [])]
    return versions | {package: package_version(package) for package in packages}


def description(config: PartConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns all of ``.meta.json`` that is known before the work."""
    settings = asdict(config)
    versions = {**settings.pop("versions"), "code": str(CODE)}
    return {
        "schema": CORPUS_SCHEMA,
        "tokenizer_fingerprint": settings.pop("tokenizer"),
        "eod_id": tokenizer.eod_id,
        "eod": tokenizer.piece(tokenizer.eod_id),
        "vocab_size": tokenizer.vocab_size,
        **settings,
        "versions": versions,
    }


def job_fingerprint(
    described: Mapping[str, Any], paths: Iterable[Path], parts: Iterable[TextPart], sharded: bool
) -> str:
    """Returns the fingerprint of a job, which is the same for all its shards and on any machine."""
    files = [{"name": path.name, "size": path.stat().st_size} for path in paths]
    cuts = [[part.start, part.stop] for part in parts] if sharded else None
    return fingerprint({"described": dict(described), "files": files, "cuts": cuts})


def sources_of(parts: Iterable[TextPart]) -> list[dict[str, str]]:
    """Returns the files of some parts and their SHA-256."""
    paths = dict.fromkeys(part.path for part in parts)
    return [{"path": str(path), "sha256": sha256_file(path)} for path in paths]


def up_to_date(
    target: Path, job: str, described: Mapping[str, Any], parts: Sequence[TextPart]
) -> list[dict[str, Any]] | None:
    """Returns the descriptions of a corpus that the same job made and that still has its bytes; None otherwise."""
    splits = split_suffixes(described["validation_share"])
    try:
        metas = [read_corpus_meta(suffixed(target, split)) for split in splits]
        if any(meta.get("job") != job or changes_of(meta, described) for meta in metas):
            return None
        if metas[0].get("skipped_lines") and not suffixed(target, QUARANTINE).exists():
            return None
        sources = sources_of(parts)
        for split, meta in zip(splits, metas, strict=True):
            if meta.get("sources") != sources:
                return None
            if meta.get("content_fingerprint") != content_fingerprint(suffixed(target, split)):
                return None
    except InputError:
        return None
    return metas


def changes_of(meta: Mapping[str, Any], described: Mapping[str, Any]) -> list[str]:
    """Returns ``key then -> now`` of each difference; the versions of other packages do not count."""
    then = {key: meta.get(key) for key in described}
    versions = meta.get("versions")
    if isinstance(versions, dict):
        then["versions"] = {name: version for name, version in versions.items() if name in described["versions"]}
    return differences(then, described)


def left_out(records: Sequence[PartRecord]) -> dict[str, Any]:
    """Counts what is in no split, over all parts."""
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
