"""The documents of a part, by the kind of its file: JSON lines, plain text, tables, parquet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from typing import IO, Any

import orjson

from data_tools.text_lines import LONGEST_LINE, BadLineError, OnBad, decoded, iter_lines
from data_tools.text_open import open_parquet
from data_tools.text_parts import TO_THE_END, TextPart
from megatron_kis.errors import InputError, nearest

Block = tuple[Sequence[int], list[str]]
"""Documents: the first line of each, from 1 within its part, and the texts."""

_PARQUET_ROWS = 256  # a batch in memory: some hundred documents


def iter_jsonl(part: TextPart, file: IO[bytes], text_key: str, on_bad: OnBad) -> Iterator[Block]:
    """Documents under a key of JSON objects, one per line; a line that has the key twice holds no document."""
    loads = orjson.loads
    spellings = {json.dumps(text_key, ensure_ascii=ascii_only).encode() for ascii_only in (False, True)}
    for first, lines in iter_lines(part, file, on_bad):
        try:
            texts = [loads(line)[text_key] for line in lines]
        except (ValueError, KeyError, TypeError, IndexError):
            texts = []
        if texts and set(map(type, texts)) == {str} and not _any_twice(lines, text_key, spellings):
            yield range(first, first + len(lines)), texts
            continue
        # The standard library decides what is JSON, and says what is wrong; orjson is five times as fast.
        numbers, texts = [], []
        for number, line in enumerate(lines, start=first):
            if line.strip():
                try:
                    texts.append(_text_of(number, line, text_key))
                    numbers.append(number)
                except BadLineError as error:
                    on_bad(number, error)
        yield numbers, texts


def _any_twice(lines: list[bytes], key: str, spellings: set[bytes]) -> bool:
    """Whether a line has a key twice. Nearly all lines hold its spelling once, which is found out in no time."""
    for spelling in spellings:
        for line in lines:
            if line.count(spelling) > 1 and [name for name, _ in _parsed(line)[1]].count(key) > 1:
                return True
    return False


def _parsed(line: bytes) -> tuple[Any, list[tuple[str, Any]]]:
    """The content of a line, and the keys and values of its object, those that are repeated too."""
    outermost: list[tuple[str, Any]] = []

    def keep(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        outermost[:] = pairs  # objects are closed from the inside out
        return dict(pairs)

    return json.loads(line, object_pairs_hook=keep), outermost


def _text_of(number: int, line: bytes, text_key: str) -> str:
    try:
        row, pairs = _parsed(line)
    except (ValueError, RecursionError) as error:
        raise BadLineError(number, f"malformed JSON line ({error})") from None
    if not isinstance(row, dict):
        raise BadLineError(number, "not a JSON object")
    if text_key not in row:
        raise BadLineError(number, f"no key {text_key!r}", nearest(text_key, row))
    if [name for name, _ in pairs].count(text_key) > 1:
        raise BadLineError(number, f"the key {text_key!r} is given twice", "keep one of them")
    text = row[text_key]
    if not isinstance(text, str):
        raise BadLineError(number, f"{text_key!r} is {type(text).__name__}, not a string")
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON can escape half a surrogate pair, which no UTF-8 encoder accepts
        raise BadLineError(number, "holds half of a surrogate pair, which is not text") from None
    return text


def iter_txt(part: TextPart, file: IO[bytes], _text_key: str, on_bad: OnBad) -> Iterator[Block]:
    """Documents between blank lines; one belongs to the part in which the blank line before it begins, or its file."""
    inside = part.start == 0
    paragraph: list[str] = []
    damage: BadLineError | None = None
    first = 0

    def finished() -> Iterator[Block]:
        if damage:
            on_bad(damage.line, damage)
        elif paragraph:
            yield [first], ["\n".join(paragraph).strip("\r\n")]

    for number, line in _lines_to_blank(part, file, on_bad):
        try:
            text = decoded(number if part.start == 0 else 0, line)
        except BadLineError as error:
            text, damage = "?", damage or (BadLineError(number, error.problem) if inside else None)
        if text.strip():
            first = first if paragraph else number
            if inside:
                paragraph.append(text)
            continue
        yield from finished()
        paragraph, damage, inside = [], None, True
    yield from finished()


def _lines_to_blank(part: TextPart, file: IO[bytes], on_bad: OnBad) -> Iterator[tuple[int, bytes]]:
    """The lines of a part, and those after it up to the first blank line."""
    number = 0
    for first, lines in iter_lines(part, file, on_bad):
        for number, line in enumerate(lines, start=first):
            yield number, line
    while (line := file.readline(LONGEST_LINE)) and part.stop < TO_THE_END:
        number += 1
        yield number, line.removesuffix(b"\n")
        try:
            if not decoded(0, line).strip():
                return
        except BadLineError:
            continue


def iter_tsv(part: TextPart, file: IO[bytes], text_key: str, on_bad: OnBad) -> Iterator[Block]:
    """Documents in a column of a table that begins with a header."""
    columns: list[str] | None = None
    for first, lines in iter_lines(part, file, on_bad):
        numbers: list[int] = []
        texts: list[str] = []
        for number, line in enumerate(lines, start=first):
            try:
                row = decoded(number, line).rstrip("\r\n")
                fields = next(csv.reader(io.StringIO(row), delimiter="\t", quoting=csv.QUOTE_NONE), [])
                if columns is not None and fields and len(fields) != len(columns):
                    raise BadLineError(number, f"{len(fields)} fields, the header has {len(columns)}")
            except (BadLineError, csv.Error) as error:
                on_bad(number, error if isinstance(error, BadLineError) else BadLineError(number, str(error)))
                continue
            if columns is None:
                columns = fields
                if text_key not in columns:
                    problem = f"no column {text_key!r}"
                    raise InputError(problem, where=f"{part.path}:1", remedy=nearest(text_key, columns))
            elif fields:
                numbers.append(number)
                texts.append(fields[columns.index(text_key)])
        yield numbers, texts


def iter_parquet(part: TextPart, text_key: str, on_bad: OnBad) -> Iterator[Block]:
    """Documents in a column of a parquet file."""
    with open_parquet(part.path) as file:
        columns = file.schema_arrow.names
        if text_key not in columns:
            remedy = nearest(text_key, columns)
            raise InputError(f"no column {text_key!r}", where=str(part.path), remedy=remedy)
        row = sum(file.metadata.row_group(group).num_rows for group in range(part.start))
        groups = list(range(part.start, part.stop))
        try:
            for batch in file.iter_batches(_PARQUET_ROWS, row_groups=groups, columns=[text_key]) if groups else ():
                numbers: list[int] = []
                texts: list[str] = []
                # As bytes: one value that is not UTF-8 would otherwise stop the whole batch.
                for value in batch.column(0).cast("binary").to_pylist():
                    row += 1
                    try:
                        texts.append(value.decode())
                        numbers.append(row)
                    except AttributeError:
                        on_bad(row, BadLineError(row, f"{text_key!r} is null"))
                    except UnicodeDecodeError as error:
                        on_bad(row, BadLineError(row, f"not UTF-8 (byte {error.start} of the text)"))
                yield numbers, texts
        except (ValueError, NotImplementedError) as error:
            problem = f"column {text_key!r} cannot be read as text ({str(error).splitlines()[0]})"
            raise InputError(problem, where=str(part.path)) from None
