"""TSV and CSV tables of triples, also packed.

A header line that names ``subject``, ``relation`` and ``object``, or calls them as other data sets do (``head``,
``predicate``, ``obj_label``), gives the columns, in any order; ``id``, ``subject_id``, ``object_id``,
``subject_aliases`` and ``object_aliases`` (names between ``|``, or a JSON list) are optional, other columns are
ignored. Without a header a line is subject, relation, object. Only a header or a whole triple determines the columns:
a malformed row or comment above it is refused, or skipped if errors are skipped, and a header below triples is refused.

Quotes are ordinary characters in TSV: the album ``"Heroes"`` has them. A field whose inner quotes are doubled
was written with CSV's quotes, as pandas does (``"The ""High"" One"``), and is refused.
"""

from __future__ import annotations

import csv
import json
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_kis.common.errors import InputError, first_of, not_utf8
from megatron_kis.data_tools.facts.fact import Candidate
from megatron_kis.data_tools.facts.importers.base import Imported, malformed, parse_rows, validated
from megatron_kis.data_tools.facts.importers.columns import (
    ALIASES,
    NEEDED,
    column_layout,
    is_header_word,
    looks_like_header,
)
from megatron_kis.data_tools.facts.importers.reading import decoded, source_lines
from megatron_kis.data_tools.readers.base import LONGEST_LINE

_Row = tuple[int, Sequence[str] | InputError]
_LONGEST_RECORD = 1 << 20  # characters of a record of many lines: an unclosed quote must not swallow the file


def import_tsv(
    path: Path, *, skip_errors: bool = False, columns: Mapping[str, str] | None = None
) -> Iterator[Imported]:
    """Reads tab-separated triples; quotes are ordinary characters, and doubled ones are refused.

    Args:
        path: the file.
        skip_errors: drop malformed rows instead of ending.
        columns: column of a field, by its name in the header or its number from 1; None goes by the header.

    Raises:
        InputError: a line has another number of fields or an empty name (``file:line``).
    """
    return _import(path, _tsv_rows(path), "tabs", skip_errors, columns or {})


def import_csv(
    path: Path, *, skip_errors: bool = False, columns: Mapping[str, str] | None = None
) -> Iterator[Imported]:
    """Reads comma-separated triples; a field in double quotes may hold commas and line breaks.

    Args:
        path: the file.
        skip_errors: drop malformed rows instead of ending.
        columns: column of a field, as for TSV.

    Raises:
        InputError: as for TSV, or quotes are not closed (``file:line``).
    """
    return _import(path, _csv_rows(path), "commas", skip_errors, columns or {})


def _tsv_rows(path: Path) -> Iterator[_Row]:
    for number, line in source_lines(path):
        try:
            yield number, decoded(line, f"{path}:{number}").split("\t")
        except InputError as error:
            yield number, error


def _csv_rows(path: Path) -> Iterator[_Row]:
    """Yields the records of a CSV file; of a malformed one only the first line is skipped."""
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_LINE))
    lines = _RecordLines(path)
    reader = csv.reader(lines, strict=True, skipinitialspace=True)
    while True:
        lines.begin_record()
        try:
            fields = next(reader)
            row: Sequence[str] | InputError = fields
        except StopIteration:
            return
        except csv.Error as error:
            problem = "a lone carriage return" if "new-line" in str(error) else str(error)
            other = next(
                (_SEPARATORS[sign] for sign in "\t;|" if f'"{sign}"'.encode() in lines.text),
                None,
            )
            remedy = f"expected commas between fields, found {other}" if other else _CSV_REMEDY
            row = InputError(f"not valid CSV ({problem})", where=f"{path}:{lines.first}", remedy=remedy)
        except _BadLineError as error:
            row = InputError(error.problem, where=error.where)
        if isinstance(row, InputError):
            number = lines.rewind_to_second_line()
            yield number, row
        elif row:
            yield lines.first, row


_CSV_REMEDY = 'write a quote within quotes as "", and end lines with line feeds'


class _BadLineError(InputError):
    """A line that cannot be part of a record."""


class _RecordLines:
    """Lines of a file, which can be rewound to the second line of the record that is being read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines = source_lines(path)
        self._pending: deque[tuple[int, bytes]] = deque()
        self._taken: list[tuple[int, bytes]] = []
        self._length = 0

    @property
    def first(self) -> int:
        """Number of the record's first line."""
        return self._taken[0][0]

    @property
    def text(self) -> bytes:
        """First line of the record."""
        return self._taken[0][1]

    def begin_record(self) -> None:
        """Starts another record."""
        self._taken = []
        self._length = 0

    def rewind_to_second_line(self) -> int:
        """Makes the record's second line the start of the next record; returns the number of its first line."""
        first, *rest = self._taken
        self._pending.extendleft(reversed(rest))
        return first[0]

    def __iter__(self) -> _RecordLines:
        return self

    def __next__(self) -> str:
        number, line = self._pending.popleft() if self._pending else next(self._lines)
        self._taken.append((number, line))
        self._length += len(line)
        where = f"{self._path}:{number}"
        if len(self._taken) > 1 and self._length > _LONGEST_RECORD:
            raise _BadLineError("not valid CSV (a quote is not closed)", where=f"{self._path}:{self.first}")
        try:
            return line.decode()
        except UnicodeDecodeError as error:
            problem, remedy = not_utf8(error, of=" of the line")
            raise _BadLineError(problem, where=where, remedy=remedy) from None


def _import(
    path: Path, rows: Iterator[_Row], separator: str, skip_errors: bool, columns: Mapping[str, str]
) -> Iterator[Imported]:
    table = None
    for row in rows:
        try:
            table, found = _start_table(path, row, separator, columns)
        except _LayoutError:
            raise
        except InputError as error:  # such a row does not determine the columns: the header may follow it
            if not skip_errors:
                raise
            yield malformed(error)
            continue
        yield from [] if found is None else [found]
        break
    if table is not None:
        yield from parse_rows(table.rows_below(rows), table.parse, skip_errors=skip_errors)


class _LayoutError(InputError):
    """The columns cannot be determined, so that no row can be read."""


def _start_table(path: Path, row: _Row, separator: str, columns: Mapping[str, str]) -> tuple[_Table, Imported | None]:
    """Returns the table that begins with a row, and the row's triple if it is not a header.

    Raises:
        _LayoutError: the row looks like a header, or like JSON, and does not determine the columns.
        InputError: it can be neither a header nor a triple.
    """
    number, fields = row
    if isinstance(fields, InputError):
        raise fields
    where = f"{path}:{number}"
    if fields[0].lstrip().startswith(('{"', "[{")):
        raise _LayoutError("looks like JSON, not like a table", where=where, remedy="use --from jsonl or lama")
    if not looks_like_header(fields):
        if _COMMENT.match(fields[0]):
            raise InputError("is a comment", where=where, remedy="begin with the header or the first triple")
        if len(fields) < len(NEEDED):
            raise InputError(_miscounted(fields), where=where, remedy=_remedy(fields, len(NEEDED), False, separator))
    try:
        indices, is_header = column_layout(fields, columns, where)
    except InputError as error:
        numbers = [int(column) for column in columns.values() if column.isdecimal()]
        if error.where == where and len(fields) < max(numbers, default=0):  # too short a row, or a wrong number
            raise
        raise _LayoutError(error.problem, where=error.where, remedy=error.remedy) from None
    width = len(fields) if is_header or columns else len(NEEDED)
    table = _Table(path, indices, width, fields if is_header else None, separator)
    return table, None if is_header else validated(table.parse(row))


@dataclass(frozen=True, slots=True)
class _Table:
    """A table whose first line is read."""

    path: Path
    indices: Mapping[str, int]
    """Index in a row, by field."""
    width: int
    """Number of fields of a row."""
    header: Sequence[str] | None
    separator: str
    """Separator of the fields: ``tabs`` or ``commas``."""

    def rows_below(self, rows: Iterable[_Row]) -> Iterator[_Row]:
        """Yields the rows, none of which may be a header: the rows below it would have other columns.

        Raises:
            InputError: one is, and is not a repetition of the first line.
        """
        relation, known = self.indices["relation"], sorted(self.header or ())
        for number, fields in rows:
            if not isinstance(fields, InputError) and len(fields) > relation and is_header_word(fields[relation]):
                where = f"{self.path}:{number}"
                if self.header is None and looks_like_header(fields):
                    problem = f"looks like a header ({first_of(fields, 20)}) below other rows"
                    raise InputError(problem, where=where, remedy="take out what is above it")
                if known == sorted(fields):
                    if list(self.header or ()) != list(fields):
                        problem = "another header, with the columns in another order"
                        raise InputError(problem, where=where, remedy="write the tables into files of their own")
                    yield number, InputError("the header once more", where=where, remedy="take it out")
                    continue
            yield number, fields

    def parse(self, row: _Row) -> Imported:
        """Parses a row.

        Raises:
            InputError: it is malformed.
        """
        number, fields = row
        if isinstance(fields, InputError):
            raise fields
        where = f"{self.path}:{number}"
        if len(fields) != self.width:
            remedy = _remedy(fields, self.width, self.header is not None, self.separator)
            raise InputError(_miscounted(fields), where=where, remedy=remedy)
        values = {name: fields[index].strip() for name, index in self.indices.items()}
        if self.separator == "tabs":
            for name, value in values.items():
                if '""' in value and _QUOTED.fullmatch(value) and not (name in ALIASES and value.startswith('"[')):
                    problem = f"{name} is quoted as in CSV: {value[:60]!r}"
                    remedy = "write the table without such quotes (pandas: quoting=csv.QUOTE_NONE), or as CSV"
                    raise InputError(problem, where=where, remedy=remedy)
        for name in NEEDED:
            if not values[name]:
                raise InputError(f"{name} is missing", where=where, remedy="every fact needs all three")
        aliases = {name: _names(values.pop(name, ""), name, where) for name in ALIASES}
        return Candidate(where=where, **values, **aliases)  # type: ignore[arg-type]


_COMMENT = re.compile(r"\s*#(?:[\s#]|$)")  # "#MeToo" is a name
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_SEPARATORS = {
    "\t": "tabs: use --from tsv",
    ",": "commas: use --from csv",
    ";": "semicolons: write commas or tabs",
    "|": "bars: write commas or tabs",
}
"""Separators that rows may have instead, and what to do."""


def _miscounted(fields: Sequence[str]) -> str:
    count = "object is missing" if len(fields) == 2 else "1 field" if len(fields) == 1 else f"{len(fields)} fields"
    return f"{count}: {' '.join(fields)[:60]!r}"


def _remedy(fields: Sequence[str], width: int, is_header: bool, separator: str) -> str:
    """Returns the remedy for a row with a wrong number of fields."""
    text, expected = fields[0], f"expected subject, relation and object between {separator}"
    if "\r" in "".join(fields):
        remedy = "end lines with line feeds, not with carriage returns alone"
    elif text.startswith("/a/["):
        remedy = "these are ConceptNet's assertions; write subject, relation and object of one language as a table"
    elif len(fields) == 1 and text.startswith("<"):
        remedy = "these are N-Triples, ids without names; write a table of names"
    elif len(fields) == 1:
        found = next((name for sign, name in _SEPARATORS.items() if sign in text), None)
        remedy = f"{expected}, found {found}" if found else f"{expected}; spaces do not separate them"
    elif is_header or width != len(NEEDED):
        remedy = f"expected {width} fields as in the {'header' if is_header else 'first line'}"
    else:
        remedy = f"{expected}, or --columns subject=1 relation=2 object=3"
    return remedy


def _names(text: str, key: str, where: str) -> tuple[str, ...]:
    """Splits names between ``|``, or of a JSON list; in tables of pandas the list is quoted as in CSV."""
    plain = text[1:-1].replace('""', '"') if text.startswith('"[') and text.endswith(']"') else text
    if not plain.startswith(('["', "['", '[ "')) and plain != "[]":
        return tuple(name.strip() for name in text.split("|") if name.strip())
    try:
        names = json.loads(plain)
    except ValueError:
        raise InputError(
            f"{key} is not a JSON list: {text[:60]!r}", where=where, remedy="or put | between names"
        ) from None
    return tuple(str(name).strip() for name in names if str(name).strip())
