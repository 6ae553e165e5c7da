"""Reads documents from text files, one at a time, with the place each came from.

Formats, by file name: ``.jsonl``/``.ndjson`` (one JSON object a line, the text under ``text_key``), ``.txt`` (documents
separated by blank lines), ``.tsv`` (a header line, the text in the column ``text_key``), each also as ``.gz`` and
``.zst``; and ``.parquet`` (a document a row, the text in the column ``text_key``).

A file is read whole or as one of the parts that ``data_tools.text_parts`` cuts it into, so that several processes share
it and a part can be done again alone. Documents come in the same order either way, and memory is bounded by the longest
line.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from data_tools.text_formats import Block, iter_jsonl, iter_parquet, iter_tsv, iter_txt
from data_tools.text_lines import BadLineError, OnBad, lines_before
from data_tools.text_open import kind_of, opened
from data_tools.text_parts import TextPart, whole
from megatron_kis.errors import InputError
from megatron_kis.files import unreadable


@dataclass(frozen=True, slots=True)
class Document:
    """One document of general text."""

    text: str
    """The text, as it stands in the file."""
    source: Path
    """The file it came from."""
    line: int
    """Its first line there, or its row, from 1. Of a part that does not begin its file: from 1 within the part."""


def iter_documents(paths: Iterable[Path], *, text_key: str = "text") -> Iterator[Document]:
    """Yields the documents of all files in order. Documents without any visible character are skipped.

    Raises:
        InputError: a file is missing, of an unknown kind, damaged, not UTF-8, or a line is malformed (``file:line``).
    """
    for path in paths:
        for document in iter_part(whole(path), text_key=text_key):
            if document.text.strip():
                yield document


def iter_part(part: TextPart, *, text_key: str = "text", on_bad: OnBad | None = None) -> Iterator[Document]:
    """Yields the documents of a part in order, empty ones included; see :func:`iter_blocks`."""
    for lines, texts in iter_blocks(part, text_key=text_key, on_bad=on_bad):
        for line, text in zip(lines, texts, strict=True):
            yield Document(text, part.path, line)


def iter_blocks(part: TextPart, *, text_key: str = "text", on_bad: OnBad | None = None) -> Iterator[Block]:
    """Yields the documents of a part in order, empty ones included, some hundred at a time.

    Args:
        part: what to read.
        text_key: JSON key or column of the text.
        on_bad: told of each line that holds no document, which is then skipped; None raises instead.

    Yields:
        The first line of each document, and its text.

    Raises:
        InputError: the file is missing or damaged, or a line is malformed and ``on_bad`` is None. Of a part that does
            not begin its file the line is counted within the whole file, which takes a look at all before it.
    """
    kind, _ = kind_of(part.path)
    try:
        if kind == ".parquet":
            yield from iter_parquet(part, text_key, on_bad or _raise)
            return
        with opened(part.path) as file:
            read = {".jsonl": iter_jsonl, ".txt": iter_txt, ".tsv": iter_tsv}[kind]
            yield from read(part, file, text_key, on_bad or _raise)
    except BadLineError as error:
        first = lines_before(part.path, [part.start])[part.start] if part.start else 0
        raise InputError(error.problem, where=f"{part.path}:{first + error.line}", remedy=error.remedy) from None
    except (gzip.BadGzipFile, EOFError) as error:
        raise InputError(f"damaged gzip file ({error})", where=str(part.path)) from None
    except OSError as error:
        raise unreadable(error, part.path) from None


def _raise(_line: int, error: InputError) -> None:
    raise error
