"""Reads documents from text files, one at a time, with the place each came from.

Formats, by file name or by what the user says: ``.jsonl``/``.json``/``.ndjson`` (one JSON object per line, the text
under ``text_key``), ``.txt`` (documents separated by blank lines), ``.tsv`` (a header line, the text in the column
``text_key``), each also as ``.gz``, ``.zst``, ``.bz2`` and ``.xz``; and ``.parquet`` (one document per row, the text in
the column ``text_key``).

A file is read whole or as one of the parts that ``readers.splits`` cuts it into, so that several processes share
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
from megatron_kis.data_tools.readers.formats import Block, iter_jsonl, iter_parquet, iter_tsv, iter_txt
from megatron_kis.data_tools.readers.lines import LONGEST_LINE, BadLineError, OnBad, lines_before
from megatron_kis.data_tools.readers.open import check_beginning, opened
from megatron_kis.data_tools.readers.splits import TextPart, whole


@dataclass(frozen=True, slots=True)
class Document:
    """One document of general text."""

    text: str
    """The text, as it stands in the file."""
    source: Path
    """The file it came from."""
    line: int
    """Its first line there, or its row, from 1. Of a part that does not begin its file: from 1 within the part."""


@dataclass(slots=True)
class SkippedLines:
    """Lines that hold no document, where they do not end the work."""

    count: int = 0
    """How many there are."""
    first: str = ""
    """``FILE:LINE: REASON`` of the first."""

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
        text_format: their format; None where their names tell it.
        longest: bytes of the longest line or document.
        skipped: where to count lines that hold no document; None: the first of them ends the work.

    Raises:
        InputError: a file is missing, of an unknown kind, damaged, not UTF-8, or a line is malformed (``file:line``).
    """
    for path in paths:
        on_bad = partial(skipped.add, path) if skipped is not None else None
        for document in iter_part(whole(path, text_format), text_key=text_key, on_bad=on_bad, longest=longest):
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
        on_bad: told of each line that holds no document, which is then skipped; None raises instead.
        longest: bytes of the longest line or document.

    Yields:
        The first line of each document, and its text.

    Raises:
        InputError: the file is missing, damaged or of another kind than its name says; or a line is malformed and
            ``on_bad`` is None. Of a part that does not begin its file the line is counted within the whole file, which
            takes a look at all before it.
    """
    try:
        if part.kind == ".parquet":
            yield from iter_parquet(part, text_key, on_bad or _raise, longest)
            return
        if part.start == 0:
            check_beginning(part.path, part.kind)
        with opened(part.path) as file:
            read = {".jsonl": iter_jsonl, ".txt": iter_txt, ".tsv": iter_tsv}[part.kind]
            yield from read(part, file, text_key, on_bad or _raise, longest)
    except BadLineError as error:
        first = lines_before(part.path, part.kind, [part.start])[part.start] if part.start else 0
        raise InputError(error.problem, where=f"{part.path}:{first + error.line}", remedy=error.remedy) from None
    except OSError as error:
        raise unreadable(error, part.path) from None


def _raise(_line: int, error: InputError) -> None:
    raise error
