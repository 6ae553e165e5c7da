"""TSV and CSV tables of triples.

A header line that names ``subject``, ``relation`` and ``object`` gives the columns, in any order; ``id``,
``subject_id``, ``object_id``, ``subject_aliases`` and ``object_aliases`` (names between ``|``) may stand beside them,
other columns are ignored. Without a header a line is subject, relation, object.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from data_tools.importers.base import Candidate, Imported, parse_rows
from data_tools.text_lines import read_lines
from megatron_kis.errors import InputError
from megatron_kis.files import unreadable

_NAMES = ("subject", "relation", "object")
_OPTIONAL = ("id", "subject_id", "object_id")
_ALIASES = ("subject_aliases", "object_aliases")
_Row = tuple[int, Sequence[str]]


def import_tsv(path: Path, *, skip_errors: bool = False) -> Iterator[Imported]:
    """Reads tab-separated triples; quotes are letters like any other.

    Raises:
        InputError: with ``file:line``, where a line has another number of fields or an empty name.
    """
    rows = ((number, line.split("\t")) for number, line in read_lines(path))
    return _import(path, rows, "subject, relation and object between tabs", skip_errors)


def import_csv(path: Path, *, skip_errors: bool = False) -> Iterator[Imported]:
    """Reads comma-separated triples; a field in double quotes may hold commas and line breaks.

    Raises:
        InputError: with ``file:line``, as for TSV, or where quotes are not closed.
    """
    return _import(path, _csv_rows(path), "subject, relation and object between commas", skip_errors)


def _csv_rows(path: Path) -> Iterator[_Row]:
    lines = _Lines(path)
    reader = csv.reader(lines, strict=True)
    first = 1
    try:
        for fields in reader:
            if fields:
                yield first, fields
            first = lines.number + 1
    except csv.Error as error:
        raise InputError(f"not valid CSV ({error})", where=f"{path}:{first}") from None


class _Lines:
    """Lines of a file with their ends, and the number of the last one."""

    def __init__(self, path: Path) -> None:
        self._path, self.number = path, 0

    def __iter__(self) -> Iterator[str]:
        try:
            with open(self._path, "rb") as file:
                for self.number, line in enumerate(file, start=1):
                    yield line.decode("utf-8-sig" if self.number == 1 else "utf-8")
        except OSError as error:
            raise unreadable(error, self._path) from None
        except UnicodeDecodeError as error:
            problem = f"not UTF-8 (byte {error.start} of the line)"
            raise InputError(problem, where=f"{self._path}:{self.number}") from None


def _import(path: Path, rows: Iterator[_Row], expected: str, skip_errors: bool) -> Iterator[Imported]:
    first = next(rows, None)
    if first is None:
        return
    header = [field.strip().casefold() for field in first[1]]
    columns = list(_NAMES)
    if set(_NAMES) <= set(header):
        columns = header
    else:
        yield from parse_rows([first], _parser(path, columns, expected), skip_errors=skip_errors)
    yield from parse_rows(rows, _parser(path, columns, expected), skip_errors=skip_errors)


def _parser(path: Path, columns: list[str], expected: str) -> Callable[[_Row], Imported]:
    places = {name: columns.index(name) for name in (*_NAMES, *_OPTIONAL, *_ALIASES) if name in columns}

    def parse(row: _Row) -> Imported:
        number, fields = row
        where = f"{path}:{number}"
        if len(fields) != len(columns):
            missing = "object is missing" if len(fields) == 2 else f"{len(fields)} fields"
            remedy = f"expected {len(columns)} fields as in the header" if columns != list(_NAMES) else None
            raise InputError(
                f"{missing}: {' '.join(fields)[:60]!r}", where=where, remedy=remedy or f"expected {expected}"
            )
        values = {name: fields[place].strip() for name, place in places.items()}
        for name in _NAMES:
            if not values[name]:
                raise InputError(f"{name} is missing", where=where, remedy="every fact needs all three")
        aliases = {name: _split(values.pop(name, "")) for name in _ALIASES}
        return Candidate(where=where, **values, **aliases)  # type: ignore[arg-type]

    return parse


def _split(names: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in names.split("|") if name.strip())
