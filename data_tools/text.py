"""Reads documents from text files, one at a time, with the place each came from.

Formats, by file name: ``.jsonl``/``.ndjson`` (one JSON object a line, the text under ``text_key``), ``.txt`` (documents
separated by blank lines), ``.tsv`` (a header line, the text in the column ``text_key``); each also as ``.gz``.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from megatron_kis.errors import InputError, nearest

_LATER = {".zst": "zstd -d", ".parquet": "a converter to jsonl"}


@dataclass(frozen=True, slots=True)
class Document:
    """One document of general text."""

    text: str
    """The text, as it stands in the file; never empty."""
    source: Path
    """The file it came from."""
    line: int
    """Its first line there, from 1."""


def iter_documents(paths: Iterable[Path], *, text_key: str = "text") -> Iterator[Document]:
    """Yields the documents of all files in order. Documents without any visible character are skipped.

    Raises:
        InputError: a file is missing, of an unknown kind, damaged, not UTF-8, or a line is malformed (``file:line``).
    """
    for path in paths:
        yield from _iter_file(path, text_key)


def check_text_files(paths: Iterable[Path]) -> None:
    """Refuses missing files and unknown kinds before any work starts.

    Raises:
        InputError: names the file and the kinds that are read.
    """
    for path in paths:
        _kind(path)
        if not path.is_file():
            raise InputError("no such file", where=str(path))


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields (line number from 1, line without its end) of a UTF-8 file; blank lines are skipped.

    Raises:
        InputError: the file cannot be read, or a line is not UTF-8 (``file:line``).
    """
    try:
        with open(path, "rb") as file:
            for number, line in _lines(path, file):
                if line.strip():
                    yield number, line.rstrip("\r\n")
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=str(path)) from None


def _iter_file(path: Path, text_key: str) -> Iterator[Document]:
    kind = _kind(path)
    read = {".jsonl": _iter_jsonl, ".txt": _iter_txt, ".tsv": _iter_tsv}[kind]
    try:
        with open(path, "rb") as raw, gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw as file:
            yield from read(path, file, text_key)
    except (gzip.BadGzipFile, EOFError) as error:
        raise InputError(f"damaged gzip file ({error})", where=str(path)) from None
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror or error})", where=str(path)) from None


def _kind(path: Path) -> str:
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if suffix in _LATER:
        raise InputError(f"{suffix} files are not read yet", where=str(path), remedy=f"unpack it with {_LATER[suffix]}")
    if suffix in {".jsonl", ".ndjson"}:
        return ".jsonl"
    if suffix not in {".txt", ".tsv"}:
        raise InputError(
            f"unknown kind of text file {suffix!r}", where=str(path), remedy="expected .jsonl, .txt or .tsv (or .gz)"
        )
    return suffix


def _iter_jsonl(path: Path, file: Iterable[bytes], text_key: str) -> Iterator[Document]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"malformed JSON line ({error})", where=where) from None
        if not isinstance(row, dict):
            raise InputError("not a JSON object", where=where)
        if text_key not in row:
            raise InputError(f"no key {text_key!r}", where=where, remedy=nearest(text_key, row))
        text = row[text_key]
        if not isinstance(text, str):
            raise InputError(f"{text_key!r} is {type(text).__name__}, not a string", where=where)
        if text.strip():
            yield Document(_valid_unicode(text, where), path, number)


def _valid_unicode(text: str, where: str) -> str:
    """JSON can escape half a surrogate pair, which no UTF-8 encoder accepts."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError("holds half of a surrogate pair, which is not text", where=where) from None
    return text


def _lines(path: Path, file: Iterable[bytes]) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(file, start=1):
        try:
            yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"not UTF-8 (byte {error.start} of the line)", where=f"{path}:{number}") from None


def _iter_txt(path: Path, file: Iterable[bytes], _text_key: str) -> Iterator[Document]:
    paragraph: list[str] = []
    first = 1
    for number, line in _lines(path, file):
        if line.strip():
            if not paragraph:
                first = number
            paragraph.append(line)
        elif paragraph:
            yield Document("".join(paragraph).strip("\r\n"), path, first)
            paragraph = []
    if paragraph:
        yield Document("".join(paragraph).strip("\r\n"), path, first)


def _iter_tsv(path: Path, file: Iterable[bytes], text_key: str) -> Iterator[Document]:
    columns: list[str] | None = None
    for number, line in _lines(path, file):
        fields = next(csv.reader(io.StringIO(line.rstrip("\r\n")), delimiter="\t", quoting=csv.QUOTE_NONE), [])
        if columns is None:
            columns = fields
            if text_key not in columns:
                raise InputError(f"no column {text_key!r}", where=f"{path}:1", remedy=nearest(text_key, columns))
            continue
        if not fields:
            continue
        if len(fields) != len(columns):
            problem = f"{len(fields)} fields, the header has {len(columns)}"
            raise InputError(problem, where=f"{path}:{number}")
        text = fields[columns.index(text_key)]
        if text.strip():
            yield Document(text, path, number)
