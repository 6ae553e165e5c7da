"""``PREFIX.quarantine.jsonl``: the lines of all parts that hold no document."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from megatron_kis.common.files import read_json_lines, write_json_lines
from megatron_kis.data_tools.corpus.part import QUARANTINE
from megatron_kis.data_tools.readers.documents import lines_before
from megatron_kis.data_tools.readers.parts import TextPart
from megatron_kis.data_tools.storage.indexed import suffixed


def write_quarantine(target: Path, work: Sequence[tuple[TextPart, Path]]) -> None:
    """Joins the lists of the parts; lines are counted within the whole file now.

    Args:
        target: prefix of the corpus; a list of an earlier one goes where there are no such lines.
        work: parts and the prefixes of their files.
    """
    found = _found(work)
    if found:
        write_json_lines(suffixed(target, QUARANTINE), _rows(found))
    else:
        suffixed(target, QUARANTINE).unlink(missing_ok=True)


def first_skipped(work: Sequence[tuple[TextPart, Path]]) -> str:
    """``FILE:LINE: REASON`` of the first line that holds no document; "" where there is none."""
    row = next(_rows(_found(work)[:1]), None)
    return f"{row['file']}:{row['line']}: {row['reason']}" if row else ""


def _found(work: Sequence[tuple[TextPart, Path]]) -> list[tuple[TextPart, Path]]:
    return [(part, path) for part, at in work if (path := suffixed(at, QUARANTINE)).exists()]


def _rows(found: Sequence[tuple[TextPart, Path]]) -> Iterator[dict[str, Any]]:
    starts: dict[tuple[Path, str], list[int]] = {}
    for part, _ in found:
        starts.setdefault((part.path, part.kind), []).append(part.start)
    before = {path: lines_before(path, kind, edges) for (path, kind), edges in starts.items()}
    for part, path in found:
        for _, row in read_json_lines(path):
            yield {**row, "line": row["line"] + before[part.path][part.start]}
