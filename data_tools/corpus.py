"""General text to a tokenized corpus in Megatron's format, with a validation split set aside.

``PREFIX.bin``/``.idx`` hold the training split, ``PREFIX.validation.bin``/``.idx`` the validation split; every document
ends with the end-of-document token. Beside each lies ``.meta.json`` (schema ``kis.corpus/1``). A document's split
depends on its text and the seed alone: it stays where it is when files are added, and copies of one text never stand
in both splits. Documents that state a studied fact are left out of both.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.facts import Fact
from data_tools.indexed import IndexedReader, IndexedWriter, suffixed
from data_tools.leaks import LeakCount, LeakFinder
from data_tools.progress import Progress
from data_tools.text import check_text_files, iter_documents
from data_tools.tokenizer import Tokenizer
from megatron_kis.errors import InputError
from megatron_kis.files import read_json, sha256_file, write_json

VALIDATION_SUFFIX = ".validation"
"""Added to the corpus prefix for the validation split."""
SCHEMA = "kis.corpus/1"


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
    leaks: LeakCount
    """Documents left out because they state a studied fact."""


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
) -> CorpusSummary:
    """Tokenizes text files into a corpus.

    Args:
        inputs: text files (see ``data_tools.text``), read in this order.
        tokenizer: the tokenizer.
        prefix: where to write; folders are created.
        text_key: key or column of the text.
        facts: studied facts; documents that state one are left out and counted.
        validation_share: share of documents set aside, in [0, 1).
        seed: seed of the validation split.
        progress: where to report.

    Raises:
        InputError: a file or line is damaged (``file:line``), or nothing is left to train on. No corpus is left half
            written.
    """
    if not 0 <= validation_share < 1:
        raise InputError(f"is {validation_share}", where="validation_share", remedy="expected a share in [0, 1)")
    check_text_files(inputs)
    finder, leaks = LeakFinder(facts), LeakCount()
    progress = progress or Progress()
    prefixes = [prefix] + ([suffixed(prefix, VALIDATION_SUFFIX)] if validation_share else [])
    text_bytes = [0, 0]
    with ExitStack() as stack:
        writers = [stack.enter_context(IndexedWriter(path, vocab_size=tokenizer.vocab_size)) for path in prefixes]
        documents = iter_documents(inputs, text_key=text_key)
        for document in progress.track(documents, description="documents"):
            stated = finder.find(document.text)
            if stated:
                leaks.add(stated)
                continue
            split = int(bool(validation_share) and _draw(document.text, seed) < validation_share)
            writers[split].add([*tokenizer.encode(document.text), tokenizer.eod_id])
            text_bytes[split] += len(document.text.encode())
        names = ("training", "validation")
        for writer, name in zip(writers, names, strict=False):
            if not writer.documents:
                problem = f"no documents for the {name} split ({leaks.documents} left out as leaks)"
                raise InputError(problem, where=", ".join(map(str, inputs)))
        # Descriptions of an earlier corpus must not outlive its tokens.
        for path in prefixes:
            suffixed(path, ".meta.json").unlink(missing_ok=True)
    sources = [{"path": str(path), "sha256": sha256_file(path)} for path in inputs]
    for writer, path, size, name in zip(writers, prefixes, text_bytes, names, strict=False):
        meta = {
            "schema": SCHEMA,
            "split": name,
            "tokenizer_fingerprint": tokenizer.fingerprint,
            "eod_id": tokenizer.eod_id,
            "vocab_size": tokenizer.vocab_size,
            "documents": writer.documents,
            "tokens": writer.tokens,
            "bytes": size,
            "content_fingerprint": writer.content_fingerprint,
            "validation_share": validation_share,
            "seed": seed,
            "leaked_documents_removed": leaks.documents,
            "leaked_facts": len(leaks.facts),
            "sources": sources,
            "versions": _versions(),
        }
        write_json(suffixed(path, ".meta.json"), meta)
    validation = writers[1] if len(writers) > 1 else None
    return CorpusSummary(
        prefix=prefix,
        validation_prefix=prefixes[1] if validation else None,
        documents=writers[0].documents,
        tokens=writers[0].tokens,
        validation_documents=validation.documents if validation else 0,
        validation_tokens=validation.tokens if validation else 0,
        leaks=leaks,
    )


def read_corpus_meta(prefix: Path) -> dict[str, Any]:
    """Reads ``PREFIX.meta.json`` and checks it against the index.

    Raises:
        InputError: it is missing, of another schema, or counts other documents or tokens than the index.
    """
    path = suffixed(prefix, ".meta.json")
    meta = read_json(path, SCHEMA)
    reader = IndexedReader(prefix)
    for key, found in (("documents", len(reader)), ("tokens", reader.tokens)):
        if meta.get(key) != found:
            raise InputError(f"{key} is {meta.get(key)}, the index has {found}", where=str(path))
    return meta


def _draw(text: str, seed: int) -> float:
    """A uniform number in [0, 1) from the document's text and the seed."""
    digest = hashlib.sha256(f"{seed}\n{text}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2.0**64


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("sentencepiece", "numpy")}
