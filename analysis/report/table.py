"""A table of text, and how one is made from items and columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    head: str
    numeric: bool
    text: Callable[[Any], str]
    """Returns the cell's text for the row's item."""


def words(head: str, text: Callable[[Any], str]) -> Column:
    """Returns a column of words; ``text`` gives the cell of an item."""
    return Column(head, False, text)


def numbers(head: str, text: Callable[[Any], str]) -> Column:
    """Returns a column of numbers; ``text`` gives the cell of an item."""
    return Column(head, True, text)


@dataclass(frozen=True)
class Table:
    """A table: columns and rows of text."""

    columns: list[Column]
    rows: list[list[str]]
    note: str = ""
    titles: dict[str, str] = field(default_factory=dict)
    """Full texts of shortened cells, shown on hover."""
    remark: bool = False
    """Whether the last column is a sentence, shown under the row on a line of its own unless it is empty."""


def table_of(columns: list[Column], items: Iterable[Any], note: str = "", *, remark: bool = False) -> Table:
    """Returns the table with one row per item."""
    rows = [[column.text(item) for column in columns] for item in items]
    return Table(columns, rows, note, remark=remark)
