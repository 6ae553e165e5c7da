"""Inspects a corpus or exposure store: whether it is intact, counts, lengths, a histogram of its tokens, a sample.

Everything is read in blocks: memory stays bounded whatever the size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_kis.common.errors import InputError
from megatron_kis.common.files import read_json
from megatron_kis.common.units import plural
from megatron_kis.data_tools.storage.exposures import ExposureIndex, index_fingerprint, read_exposure_index
from megatron_kis.data_tools.storage.indexed import CORPUS_SCHEMA, IndexedReader, content_fingerprint, suffixed
from megatron_kis.data_tools.tokenizers.base import Tokenizer

_BLOCK = 1 << 20
_SHOWN_TOKENS = 20  # most frequent tokens that are listed
_BAR = 40  # characters of the longest bar of a histogram
_SHOWN_IDS = 32  # ids of a sample that is not decoded
_LARGEST_ID = (1 << 24) - 1  # no vocabulary is that large, and the histogram of larger ids would fill memory
_CHANGED = "the files changed or are damaged; build them again"


def inspect_corpus(prefix: Path, *, tokenizer: Tokenizer | None = None, sample: int = 3) -> dict[str, Any]:
    """Checks ``PREFIX`` thoroughly and describes it.

    Args:
        prefix: prefix of ``.bin`` and ``.idx``, with ``.meta.json`` (corpus), ``.json`` (exposures) or neither.
        tokenizer: decodes the sample and spells the tokens; must be the one that encoded them.
        sample: sequences to show, evenly spread.

    Returns:
        ``kind``, ``documents``, ``sequences``, ``tokens``, ``dtype``, ``lengths`` (min, median, mean, max) and
        ``length_histogram`` of the sequences, ``token_histogram``, ``content_fingerprint``, ``sample`` (sequence,
        tokens, text, ids), and for exposures ``exposures``: facts and rows of each group and relation.

    Raises:
        InputError: damage: sizes, index entries, token ids, end-of-document tokens, counts or fingerprints do not
            agree; or another tokenizer.
    """
    reader = IndexedReader(prefix)
    reader.verify()
    found = content_fingerprint(prefix)
    kind, meta, index = _description(prefix, reader)
    if meta and tokenizer and meta["tokenizer_fingerprint"] != tokenizer.fingerprint:
        problem = f"was made with another tokenizer ({meta['tokenizer_fingerprint'][:12]})"
        raise InputError(problem, where=str(prefix), remedy=f"the given one is {tokenizer.fingerprint[:12]}")
    histogram = _token_counts(reader)
    vocabulary = tokenizer.vocab_size if tokenizer else (meta or {}).get("vocab_size")
    if vocabulary is not None and len(histogram) > vocabulary:
        problem = f"holds token {len(histogram) - 1}, the vocabulary has {vocabulary}"
        raise InputError(problem, where=str(suffixed(prefix, ".bin")), remedy=_CHANGED)
    if meta:
        _compare(prefix, meta, reader, found)
    shown = sorted({int(row) for row in np.linspace(0, len(reader) - 1, min(sample, len(reader)))})
    result: dict[str, Any] = {
        "prefix": str(prefix),
        "kind": kind,
        "documents": reader.documents,
        "sequences": len(reader),
        "tokens": reader.tokens,
        "dtype": reader.dtype.name,
        "content_fingerprint": found,
        "token_histogram": _histogram(histogram, vocabulary, tokenizer),
        "sample": [_shown(reader, row, tokenizer, index) for row in shown],
    }
    if len(reader):
        result["lengths"] = {
            "min": int(reader.lengths.min()),
            "median": float(np.median(reader.lengths)),
            "mean": float(reader.lengths.mean()),
            "max": int(reader.lengths.max()),
        }
        result["length_histogram"] = _length_histogram(reader.lengths)
    if index is not None:
        result["exposures"] = _exposure_counts(index)
    return result


def describe(result: dict[str, Any]) -> list[str]:
    """Formats the result of :func:`inspect_corpus` as lines to read."""
    histogram = result["token_histogram"]
    of = f" of {histogram['vocab_size']}" if histogram["vocab_size"] is not None else ""
    lines = [
        f"{result['prefix']}: {result['kind']}, intact",
        f"{plural(result['documents'], 'document')}, {plural(result['sequences'], 'sequence')}, "
        f"{plural(result['tokens'], 'token')} of {result['dtype']}",
        f"content fingerprint {result['content_fingerprint']}",
    ]
    if "lengths" in result:
        values = result["lengths"]
        lines.append(
            f"tokens per sequence: {values['min']} to {values['max']}, median {values['median']:g},"
            f" mean {values['mean']:.1f}"
        )
        most = max(entry["sequences"] for entry in result["length_histogram"])
        lines += [
            f"{entry['from']:>9} to {entry['to']:<9} {entry['sequences']:>10}  "
            + "#" * (_BAR * entry["sequences"] // most)
            for entry in result["length_histogram"]
        ]
    lines.append(f"tokens that occur: {histogram['used']}{of}; the most frequent:")
    lines += [
        f"{entry['count']:>12} {entry['share']:7.2%}  {entry['token']}"
        + (f" {entry['piece']!r}" if entry["piece"] is not None else "")
        for entry in histogram["most_frequent"]
    ]
    for entry in result.get("exposures", []):
        lines.append(
            f"{entry['group']} {entry['relation']}: {plural(entry['facts'], 'fact')}, "
            f"{plural(entry['exposures'], 'exposure')}, {entry['fewest']} to {entry['most']} templates each"
        )
    for entry in result["sample"]:
        content = entry["text"] if entry["text"] is not None else " ".join(map(str, entry["ids"]))
        origin = f" {entry['fact']} train[{entry['template']}]" if "fact" in entry else ""
        lines.append(f"[{entry['sequence']}]{origin} {content[:300]}")
    return lines


def _description(prefix: Path, reader: IndexedReader) -> tuple[str, dict[str, Any] | None, ExposureIndex | None]:
    if suffixed(prefix, ".meta.json").exists():
        return "corpus", read_json(suffixed(prefix, ".meta.json"), CORPUS_SCHEMA), None
    if suffixed(prefix, ".json").exists():
        index = read_exposure_index(prefix, exposures=len(reader))
        if "index_fingerprint" in index.header and index_fingerprint(prefix) != index.header["index_fingerprint"]:
            raise InputError("is not the index that was written", where=f"{prefix}.facts.npy", remedy=_CHANGED)
        return "exposures", index.header, index
    return "indexed tokens without description", None, None


def _compare(prefix: Path, meta: dict[str, Any], reader: IndexedReader, found: str) -> None:
    where = str(prefix)
    if meta["content_fingerprint"] != found:
        problem = f"bytes of .bin and .idx have the sha256 {found}, written were {meta['content_fingerprint']}"
        raise InputError(problem, where=where, remedy=_CHANGED)
    for key, count in (("documents", reader.documents), ("sequences", len(reader)), ("tokens", reader.tokens)):
        if key in meta and meta[key] != count:
            raise InputError(f"{key}: index has {count}, description {meta[key]}", where=where)
    if not meta.get("append_eod", True):
        return
    for first in range(0, reader.documents, _BLOCK):
        bounds = np.array(reader.boundaries[first : first + _BLOCK + 1])
        documents = np.flatnonzero(np.diff(bounds) > 0)
        last = bounds[documents + 1] - 1
        ends = reader.offsets[last] // reader.dtype.itemsize + reader.lengths[last] - 1
        wrong = np.flatnonzero(reader.at(ends) != meta["eod_id"])
        if len(wrong):
            problem = f"document {first + int(documents[wrong[0]])} does not end with token {meta['eod_id']}"
            raise InputError(problem, where=where)


def _token_counts(reader: IndexedReader) -> NDArray[np.int64]:
    """Counts how often each id occurs, up to the largest.

    Raises:
        InputError: a negative id.
    """
    counts = np.zeros(0, np.int64)
    for start in range(0, reader.tokens, _BLOCK):
        block = reader.read(start, min(_BLOCK, reader.tokens - start))
        if block.min() < 0 or block.max() > _LARGEST_ID:
            problem = f"holds token {block.min() if block.min() < 0 else block.max()}"
            raise InputError(problem, where=str(suffixed(reader.prefix, ".bin")), remedy="not a file of token ids")
        found = np.bincount(block)
        if len(found) > len(counts):
            counts, found = found, counts  # the longer one is added to
        counts[: len(found)] += found
    return counts


def _histogram(counts: NDArray[np.int64], vocabulary: int | None, tokenizer: Tokenizer | None) -> dict[str, Any]:
    total = max(1, int(counts.sum()))
    order = np.argsort(-counts, kind="stable")[:_SHOWN_TOKENS]
    return {
        "vocab_size": vocabulary,
        "used": int(np.count_nonzero(counts)),
        "most_frequent": [
            {
                "token": token,
                "piece": tokenizer.piece(token) if tokenizer else None,
                "count": int(counts[token]),
                "share": int(counts[token]) / total,
            }
            for token in order.tolist()
            if counts[token]
        ],
    }


def _length_histogram(lengths: NDArray[np.int32]) -> list[dict[str, int]]:
    """Counts the sequences by length, in powers of two."""
    edges = [0, *(1 << power for power in range(int(lengths.max()).bit_length() + 1))]
    counted, _ = np.histogram(lengths, bins=edges)
    return [
        {"from": low, "to": high - 1, "sequences": int(count)}
        for low, high, count in zip(edges[:-1], edges[1:], counted, strict=True)
        if count
    ]


def _shown(reader: IndexedReader, row: int, tokenizer: Tokenizer | None, index: ExposureIndex | None) -> dict[str, Any]:
    tokens = reader[row]
    shown = {
        "sequence": row,
        "tokens": len(tokens),
        "text": tokenizer.decode(tokens.tolist()) if tokenizer else None,
        "ids": tokens[:_SHOWN_IDS].tolist(),
    }
    if index is not None:
        fact = int(np.searchsorted(index.table[:, 0], row, side="right")) - 1
        shown |= {"fact": index.ids[fact], "template": row - int(index.table[fact, 0])}
    return shown


def _exposure_counts(index: ExposureIndex) -> list[dict[str, Any]]:
    """Counts the facts and exposures of each group and relation."""
    counts = []
    for group in index.groups:
        rows = index.rows_of(group)
        for place, relation in enumerate(index.relations):
            templates = index.table[rows, 1][index.table[rows, 3] == place]
            if len(templates):
                counts.append(
                    {
                        "group": group,
                        "relation": relation,
                        "facts": len(templates),
                        "exposures": int(templates.sum()),
                        "fewest": int(templates.min()),
                        "most": int(templates.max()),
                    }
                )
    return counts
