"""Looks into a corpus or exposure store: counts, lengths, a decoded sample, and whether all of it is intact."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.indexed import IndexedReader, suffixed
from data_tools.tokenizer import Tokenizer
from megatron_kis.errors import InputError
from megatron_kis.files import read_json

_BLOCK = 1 << 20
_DESCRIPTIONS = ((".meta.json", "kis.corpus/1"), (".json", "kis.exposures/1"))


def inspect_corpus(prefix: Path, *, tokenizer: Tokenizer | None = None, sample: int = 3) -> dict[str, Any]:
    """Checks ``PREFIX`` thoroughly and describes it.

    Args:
        prefix: prefix of ``.bin`` and ``.idx``, with ``.meta.json`` (corpus) or ``.json`` (exposures) beside.
        tokenizer: decodes the sample; must be the one that made the tokens.
        sample: documents to show, evenly spread.

    Returns:
        ``documents``, ``tokens``, ``dtype``, ``lengths`` (min, median, mean, max), ``content_fingerprint``, ``kind``,
        ``sample`` (document, tokens, text).

    Raises:
        InputError: damage: sizes, index entries, token ids, end-of-document tokens, counts or the content fingerprint
            do not agree; or another tokenizer.
    """
    reader = IndexedReader(prefix)
    reader.verify()
    found = _content_fingerprint(prefix)
    kind, meta = _description(prefix)
    if meta:
        _compare(prefix, meta, reader, found)
    if tokenizer and meta and meta["tokenizer_fingerprint"] != tokenizer.fingerprint:
        problem = f"was made with another tokenizer ({meta['tokenizer_fingerprint'][:12]})"
        raise InputError(problem, where=str(prefix), remedy=f"the given one is {tokenizer.fingerprint[:12]}")
    lengths = reader.lengths
    shown = sorted({int(index) for index in np.linspace(0, len(reader) - 1, min(sample, len(reader)))})
    result: dict[str, Any] = {
        "prefix": str(prefix),
        "kind": kind,
        "documents": len(reader),
        "tokens": reader.tokens,
        "dtype": reader.dtype.name,
        "content_fingerprint": found,
        "sample": [
            {
                "document": index,
                "tokens": len(reader[index]),
                "text": tokenizer.decode(reader[index].tolist()) if tokenizer else None,
                "ids": reader[index][:32].tolist(),
            }
            for index in shown
        ],
    }
    if len(reader):
        result["lengths"] = {
            "min": int(lengths.min()),
            "median": float(np.median(lengths)),
            "mean": float(lengths.mean()),
            "max": int(lengths.max()),
        }
    return result


def describe(result: dict[str, Any]) -> list[str]:
    """The result of :func:`inspect_corpus` as lines to read."""
    lines = [
        f"{result['prefix']}: {result['kind']}, intact",
        f"{result['documents']} documents, {result['tokens']} tokens of {result['dtype']}",
        f"content fingerprint {result['content_fingerprint']}",
    ]
    if "lengths" in result:
        values = result["lengths"]
        lines.append(
            f"tokens a document: {values['min']} to {values['max']}, median {values['median']:g},"
            f" mean {values['mean']:.1f}"
        )
    for entry in result["sample"]:
        content = entry["text"] if entry["text"] is not None else " ".join(map(str, entry["ids"]))
        lines.append(f"[{entry['document']}] {content[:300]}")
    return lines


def _description(prefix: Path) -> tuple[str, dict[str, Any] | None]:
    for suffix, schema in _DESCRIPTIONS:
        path = suffixed(prefix, suffix)
        if path.exists():
            return ("corpus" if schema == "kis.corpus/1" else "exposures"), read_json(path, schema)
    return "indexed tokens without description", None


def _compare(prefix: Path, meta: dict[str, Any], reader: IndexedReader, found: str) -> None:
    where = str(prefix)
    if meta["content_fingerprint"] != found:
        problem = f"bytes of .bin and .idx have the sha256 {found}, written were {meta['content_fingerprint']}"
        raise InputError(problem, where=where, remedy="the files changed or are damaged; build them again")
    if "facts" in meta:
        expected = sum(fact["templates"] for fact in meta["facts"])
        if expected != len(reader):
            raise InputError(f"{len(reader)} documents, the index of facts counts {expected}", where=where)
    else:
        for key, count in (("documents", len(reader)), ("tokens", reader.tokens)):
            if meta[key] != count:
                raise InputError(f"{key}: index has {count}, description {meta[key]}", where=where)
    ends = reader.offsets // reader.dtype.itemsize + reader.lengths - 1
    for first in range(0, len(ends), _BLOCK):
        last_tokens = reader.at(ends[first : first + _BLOCK])
        wrong = np.flatnonzero(last_tokens != meta["eod_id"])
        if len(wrong):
            problem = f"document {first + int(wrong[0])} does not end with token {meta['eod_id']}"
            raise InputError(problem, where=where)


def _content_fingerprint(prefix: Path) -> str:
    digest = hashlib.sha256()
    for suffix in (".bin", ".idx"):
        with open(suffixed(prefix, suffix), "rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()
