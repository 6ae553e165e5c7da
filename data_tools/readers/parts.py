"""The parts into which text files are cut, so that several processes share them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from megatron_kis.common.errors import InputError
from megatron_kis.data_tools.readers.open import is_packed, kind_of, open_parquet

TO_THE_END = 1 << 62
"""The ``stop`` of a packed file, whose content is longer than its bytes on disk."""


@dataclass(frozen=True, slots=True)
class TextPart:
    """A file, or a piece of one that can be read without the rest."""

    path: Path
    """File that the part belongs to."""
    start: int
    """First byte of a .jsonl or .txt file, first row group of a .parquet file; 0 for other kinds, which are not cut."""
    stop: int
    """The byte, or row group, after the last. A line belongs to the part in which it begins."""
    size: int
    """Bytes on disk, for progress."""
    kind: str
    """``.jsonl``, ``.txt``, ``.tsv`` or ``.parquet``."""


def whole_file(path: Path, text_format: str | None = None) -> TextPart:
    """Returns all of a file as one part.

    Raises:
        InputError: it is missing, of an unknown kind, or no parquet file in spite of its name.
    """
    kind = kind_of(path, text_format)
    if not path.is_file():
        raise InputError("no such file", where=str(path))
    size = path.stat().st_size
    if kind == ".parquet":
        with open_parquet(path) as file:
            stop = int(file.metadata.num_row_groups)
    else:
        stop = TO_THE_END if is_packed(path) else size
    return TextPart(path, 0, stop, size, kind)


def plan_parts(paths: Sequence[Path], *, part_bytes: int, text_format: str | None = None) -> list[TextPart]:
    """Cuts files into parts of about ``part_bytes`` where that is possible (.jsonl, .txt, .parquet), in order.

    Raises:
        InputError: a file is missing, of an unknown kind, or no parquet file in spite of its name.
    """
    return [part for path in paths for part in _cut(whole_file(path, text_format), part_bytes)]


def _cut(part: TextPart, part_bytes: int) -> Iterator[TextPart]:
    pieces = max(1, -(-part.size // part_bytes))
    if not _has_bytes(part):
        pieces = min(pieces, max(1, part.stop)) if part.kind == ".parquet" else 1
    for index in range(pieces):
        start = part.stop * index // pieces
        stop = part.stop * (index + 1) // pieces
        yield replace(part, start=start, stop=stop, size=part.size // pieces)


def head_of(part: TextPart, size: int) -> TextPart:
    """Returns the first ``size`` bytes of a part as a part; all of it where it cannot be cut."""
    return replace(part, stop=min(part.stop, part.start + size)) if _has_bytes(part) else part


def _has_bytes(part: TextPart) -> bool:
    """Returns whether a part is a range of bytes, which can be cut: lines need nothing of those before them."""
    return part.kind in (".jsonl", ".txt") and part.stop != TO_THE_END
