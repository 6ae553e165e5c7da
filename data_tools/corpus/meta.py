"""What ``PREFIX.meta.json`` says of a corpus, and whether a corpus is what a command would write again."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megatron_kis.common.errors import InputError
from megatron_kis.common.files import fingerprint, read_json, sha256_file
from megatron_kis.common.identity import differences
from megatron_kis.data_tools.corpus.merge import SCHEMA
from megatron_kis.data_tools.corpus.part import CODE, QUARANTINE, SPLITS, PartConfig, PartRecord
from megatron_kis.data_tools.readers.splits import TextPart
from megatron_kis.data_tools.storage.indexed import IndexedReader, content_fingerprint, suffixed
from megatron_kis.data_tools.tokenizers.base import Tokenizer
from megatron_kis.data_tools.tokenizers.reference_encoder import Encoder, package_version, versions_of


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


def writing_versions(encoder: Encoder, tokenizer: Tokenizer, *, sentences: bool, facts: bool) -> dict[str, str]:
    """Versions of everything that decides a corpus' bytes next to its text and settings.

    Args:
        encoder: what encodes.
        tokenizer: the tokenizer.
        sentences: nltk splits sentences.
        facts: documents that state facts are left out; regex knows the scripts of their names.
    """
    versions = {**versions_of(encoder, tokenizer), "unicode": unicodedata.unidata_version}
    packages = [*(["nltk"] if sentences else []), *(["regex"] if facts else [])]
    return versions | {package: package_version(package) for package in packages}


def description(settings: PartConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """All of ``.meta.json`` that is known before the work: what the corpus is made with."""
    settled = asdict(settings)
    versions = {**settled.pop("versions"), "code": str(CODE)}
    return {
        "schema": SCHEMA,
        "tokenizer_fingerprint": settled.pop("tokenizer"),
        "eod_id": tokenizer.eod_id,
        "eod": tokenizer.piece(tokenizer.eod_id),
        "vocab_size": tokenizer.vocab_size,
        **settled,
        "versions": versions,
    }


def job_of(described: Mapping[str, Any], paths: Iterable[Path], parts: Iterable[TextPart], *, sharded: bool) -> str:
    """Fingerprint of what all shards of a job have in common, on whatever machine."""
    files = [{"name": path.name, "size": path.stat().st_size} for path in paths]
    cuts = [[part.start, part.stop] for part in parts] if sharded else None
    return fingerprint({"described": dict(described), "files": files, "cuts": cuts})


def sources_of(parts: Iterable[TextPart]) -> list[dict[str, str]]:
    """The files of some parts and their SHA-256."""
    paths = dict.fromkeys(part.path for part in parts)
    return [{"path": str(path), "sha256": sha256_file(path)} for path in paths]


def up_to_date(
    target: Path, job: str, described: Mapping[str, Any], parts: Sequence[TextPart]
) -> list[dict[str, Any]] | None:
    """Descriptions of a corpus that was made from the same by the same, and still has the bytes that were written."""
    splits = SPLITS if described["validation_share"] else SPLITS[:1]
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
    """``key then -> now`` of what a description says otherwise; the versions of other packages do not count."""
    then = {key: meta.get(key) for key in described}
    versions = meta.get("versions")
    if isinstance(versions, dict):
        then["versions"] = {name: version for name, version in versions.items() if name in described["versions"]}
    return differences(then, described)


def left_out(records: Sequence[PartRecord]) -> dict[str, Any]:
    """What is in no split, counted over all parts."""
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
