"""The documents of a part, by the kind of its file: JSON lines, plain text, tables, parquet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import IO

import orjson

from megatron_kis.common.errors import InputError, nearest
from megatron_kis.data_tools.readers.json_depth import too_deep
from megatron_kis.data_tools.readers.json_keys import Spellings, text_of
from megatron_kis.data_tools.readers.lines import BadLineError, OnBad, decoded, iter_lines, skip_line, too_long
from megatron_kis.data_tools.readers.open import open_parquet
from megatron_kis.data_tools.readers.splits import TO_THE_END, TextPart

Block = tuple[Sequence[int], list[str]]
"""Documents: the first line of each, from 1 within its part, and the texts."""

_PARQUET_ROWS = 16  # in memory together, before it is known how long they are


def iter_jsonl(part: TextPart, file: IO[bytes], text_key: str, on_bad: OnBad, longest: int) -> Iterator[Block]:
    """Documents under a key of JSON objects, one per line; a line that has the key twice holds no document."""
    loads, spellings = orjson.loads, Spellings(text_key)
    for first, lines in iter_lines(part, file, on_bad, longest):
        try:
            texts = [loads(line)[text_key] for line in lines]
        except (ValueError, KeyError, TypeError, IndexError):
            texts = []
        if (
            texts
            and set(map(type, texts)) == {str}
            and not any(map(too_deep, lines))
            and not spellings.any_twice(lines)
        ):
            yield range(first, first + len(lines)), texts
            continue
        # The standard library decides what is JSON, and says what is wrong; orjson is five times as fast.
        numbers, texts = [], []
        for number, line in enumerate(lines, start=first):
            if line.strip():
                try:
                    texts.append(text_of(number, line, text_key))
                    numbers.append(number)
                except BadLineError as error:
                    on_bad(number, error)
        yield numbers, texts


class _Paragraphs:
    """The document between blank lines that is being read."""

    def __init__(self, on_bad: OnBad, longest: int, *, inside: bool) -> None:
        self.inside = inside
        """Whether the document belongs to the part; the one that the part's first lines continue does not."""
        self._on_bad, self._longest = on_bad, longest
        self._lines: list[str] = []
        self._first = self._size = 0
        self._bad = False

    def refuse(self, line: int, error: InputError) -> None:
        """Tells once why the document is none, and drops what is read of it until it ends."""
        if self.inside and not self._bad:
            self._on_bad(line, error)
        self._bad, self._lines = True, []

    def add(self, number: int, text: str, size: int) -> None:
        """Takes a line that is not blank."""
        self._first = self._first or number
        self._size += size + 1
        if self._size - 1 > self._longest:
            what = f"document of {self._size - 1} bytes or more"
            self.refuse(self._first, too_long(self._first, what, self._longest))
        if self.inside and not self._bad:
            self._lines.append(text)

    def end(self) -> Iterator[Block]:
        """The document, if there is one; the next one belongs to the part."""
        if self._lines:
            yield [self._first], ["\n".join(self._lines).strip("\r\n")]
        self._lines, self._first, self._size, self._bad, self.inside = [], 0, 0, False, True


def iter_txt(part: TextPart, file: IO[bytes], _text_key: str, on_bad: OnBad, longest: int) -> Iterator[Block]:
    """Documents between blank lines; one belongs to the part in which the blank line before it begins, or its file."""
    document = _Paragraphs(on_bad, longest, inside=part.start == 0)

    def took(number: int, line: bytes) -> bool:
        """Whether the line belongs to a document; a blank one does not."""
        try:
            text = decoded(number if part.start == 0 else 0, line)
        except BadLineError as error:
            document.refuse(number, BadLineError(number, error.problem))
            return True
        if text.strip():
            document.add(number, text, len(line))
            return True
        return False

    number = 0
    for first, lines in iter_lines(part, file, document.refuse, longest):
        for number, line in enumerate(lines, start=first):
            if not took(number, line):
                yield from document.end()
    # The last document may go on after the part.
    while document.inside and part.stop != TO_THE_END and (line := file.readline(longest + 1)):
        number += 1
        if len(line) > longest and not line.endswith(b"\n"):
            size = len(line) + skip_line(file)
            document.refuse(number, too_long(number, f"line of {size} bytes", longest))
        elif not took(number, line.removesuffix(b"\n")):
            break
    if document.inside:
        yield from document.end()


def iter_tsv(part: TextPart, file: IO[bytes], text_key: str, on_bad: OnBad, longest: int) -> Iterator[Block]:
    """Documents in a column of a table that begins with a header; quotes are letters.

    Raises:
        InputError: no header that names the column, whatever ``on_bad``.
    """
    columns: list[str] = []
    column = -1

    def bad(number: int, error: InputError) -> None:
        if number == 1:
            raise InputError(f"the header cannot be read: {error.problem}", where=f"{part.path}:1")
        on_bad(number, error)

    for first, lines in iter_lines(part, file, bad, longest):
        numbers: list[int] = []
        texts: list[str] = []
        for number, line in enumerate(lines, start=first):
            try:
                fields = decoded(number, line).rstrip("\r\n").split("\t")
                if number == 1:
                    columns, column = fields, column_of(part, text_key, fields)
                elif fields == [""]:
                    continue
                elif len(fields) == len(columns):
                    numbers.append(number)
                    texts.append(fields[column])
                else:
                    raise BadLineError(number, f"{len(fields)} fields, the header has {len(columns)}")
            except BadLineError as error:
                bad(number, error)
        yield numbers, texts


def column_of(part: TextPart, name: str, columns: list[str]) -> int:
    """Place of a column.

    Raises:
        InputError: there is none of this name, or several.
    """
    where = f"{part.path}:1" if part.kind == ".tsv" else str(part.path)
    if name not in columns:
        raise InputError(f"no column {name!r}", where=where, remedy=nearest(name, columns))
    if columns.count(name) > 1:
        raise InputError(f"{columns.count(name)} columns are named {name!r}", where=where, remedy="rename one of them")
    return columns.index(name)


def iter_parquet(part: TextPart, text_key: str, on_bad: OnBad, longest: int) -> Iterator[Block]:
    """Documents in a column of a parquet file."""
    with open_parquet(part.path) as file:
        column_of(part, text_key, file.schema_arrow.names)
        row = sum(file.metadata.row_group(group).num_rows for group in range(part.start))
        groups = list(range(part.start, part.stop))
        try:
            for batch in file.iter_batches(_PARQUET_ROWS, row_groups=groups, columns=[text_key]) if groups else ():
                numbers: list[int] = []
                texts: list[str] = []
                # As bytes: one value that is not UTF-8 would otherwise stop the whole batch.
                for cell in batch.column(0).cast("binary"):
                    value = cell.as_py()
                    row += 1
                    try:
                        if len(value or b"") > longest:
                            on_bad(row, too_long(row, f"text of {len(value)} bytes", longest))
                            continue
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
