"""Reads documents from text files, one at a time, with the place each came from.

Formats, by file name or by what the user says: ``.jsonl``/``.json``/``.ndjson`` (one JSON object per line, the text
under ``text_key``), ``.txt`` (documents separated by blank lines), ``.tsv`` (a header line, the text in the column
``text_key``), each also as ``.gz``, ``.zst``, ``.bz2`` and ``.xz``; and ``.parquet`` (one document per row, the text in
the column ``text_key``).

A file is read whole or as one of the parts that ``readers.parts`` cuts it into, so that several processes share
it and a part can be done again alone. Documents come in the same order either way, and memory is bounded by the longest
line or document that is allowed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from megatron_kis.common.errors import InputError
from megatron_kis.common.files import unreadable
from megatron_kis.data_tools.readers.base import LONGEST_LINE, BadLineError, Block, OnBad, Reader
from megatron_kis.data_tools.readers.jsonl import JsonlReader
from megatron_kis.data_tools.readers.open import BUFFER
from megatron_kis.data_tools.readers.parts import TextPart, whole_file
from megatron_kis.data_tools.readers.tables import ParquetReader, TsvReader
from megatron_kis.data_tools.readers.txt import TxtReader

READERS: dict[str, type[Reader]] = {
    ".jsonl": JsonlReader,
    ".parquet": ParquetReader,
    ".tsv": TsvReader,
    ".txt": TxtReader,
}
"""Readers by the kind of file."""


@dataclass(frozen=True, slots=True)
class Document:
    """One document of general text."""

    text: str
    """The text, as it is in the file."""
    source: Path
    """The file that holds it."""
    line: int
    """Its first line there, or its row, from 1; within its part, where the part does not begin its file."""


@dataclass(slots=True)
class SkippedLines:
    """A count of lines that hold no document, where they do not end the work."""

    count: int = 0
    """Number of lines that hold no document."""
    first: str = ""
    """The first, as ``FILE:LINE: REASON``."""

    def add(self, path: Path, line: int, error: InputError) -> None:
        """Counts a line of a file."""
        self.first = self.first or f"{path}:{line}: {error.problem}"
        self.count += 1


def iter_documents(
    paths: Iterable[Path],
    *,
    text_key: str = "text",
    text_format: str | None = None,
    longest: int = LONGEST_LINE,
    skipped: SkippedLines | None = None,
) -> Iterator[Document]:
    """Yields the documents of all files in order. Documents without any visible character are skipped.

    Args:
        paths: the files.
        text_key: JSON key or column of the text.
        text_format: their format; None to follow their names.
        longest: bytes of the longest line or document.
        skipped: counts the lines that hold no document; None: the first of them ends the work.

    Raises:
        InputError: a file is missing, of an unknown kind, damaged, not UTF-8, or a line is malformed (``file:line``).
    """
    for path in paths:
        on_bad = partial(skipped.add, path) if skipped is not None else None
        for document in iter_part(whole_file(path, text_format), text_key=text_key, on_bad=on_bad, longest=longest):
            if document.text.strip():
                yield document


def iter_part(
    part: TextPart, *, text_key: str = "text", on_bad: OnBad | None = None, longest: int = LONGEST_LINE
) -> Iterator[Document]:
    """Yields the documents of a part in order, empty ones included; see :func:`iter_blocks`."""
    for lines, texts in iter_blocks(part, text_key=text_key, on_bad=on_bad, longest=longest):
        for line, text in zip(lines, texts, strict=True):
            yield Document(text, part.path, line)


def iter_blocks(
    part: TextPart, *, text_key: str = "text", on_bad: OnBad | None = None, longest: int = LONGEST_LINE
) -> Iterator[Block]:
    """Yields the documents of a part in order, empty ones included, some hundred at a time.

    Args:
        part: what to read.
        text_key: JSON key or column of the text.
        on_bad: called for each line that holds no document, which is then skipped; None raises instead.
        longest: bytes of the longest line or document.

    Yields:
        The first line of each document, and its text.

    Raises:
        InputError: the file is missing, damaged or of another kind than its name says; or a line is malformed and
            ``on_bad`` is None. The line is counted within the whole file: for a part that does not begin its file, all
            before it is read.
    """
    reader = READERS[part.kind](part, text_key=text_key, on_bad=on_bad or _raise, longest=longest)
    try:
        yield from reader.blocks()
    except BadLineError as error:
        first = lines_before(part.path, part.kind, [part.start])[part.start] if part.start else 0
        raise InputError(error.problem, where=f"{part.path}:{first + error.line}", remedy=error.remedy) from None
    except OSError as error:
        raise unreadable(error, part.path) from None


def lines_before(path: Path, kind: str, starts: Iterable[int]) -> dict[int, int]:
    """Counts the lines before the parts that start at these bytes of a file; reads the file once.

    The result is added to the numbers of a part's lines, which begin at 1. Rows of parquet files, and lines of files
    that are not cut, are counted in the whole file already.
    """
    if kind == ".parquet":
        return dict.fromkeys(starts, 0)
    found: dict[int, int] = {}
    count = 0
    at = 0
    last = b"\n"
    with open(path, "rb") as file:
        for start in sorted(set(starts)):
            while at < start and (block := file.read(min(BUFFER, start - at))):
                count += block.count(b"\n")
                at += len(block)
                last = block[-1:]
            found[start] = count + (last != b"\n")
    return found


def _raise(_line: int, error: InputError) -> None:
    raise error
