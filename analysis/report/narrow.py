"""Tables on a page of any width: values that all rows share go into the note; narrow screens show rows as lists."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from megatron_kis.analysis.report.table import Table

NOTHING = ("–", "")
_MOST_COLUMNS = 14


def narrowed(table: Table) -> Table:
    """Returns a table without the columns that say nothing, or the same in every row: that is said in its note.

    The first column stays, and so does a remark.
    """
    if not table.rows:
        return table
    last = len(table.columns) - (1 if table.remark else 0)
    kept, same = [0], []
    for at in range(1, len(table.columns)):
        values = {row[at] for row in table.rows}
        if at >= last or len(values) > 1:
            kept.append(at)
        elif (value := values.pop()) not in NOTHING:
            if len(table.rows) == 1:
                kept.append(at)
            else:
                same.append(f"{table.columns[at].head}: {value}")
    note = " ".join(part for part in (f"In every row: {'; '.join(same)}." if same else "", table.note) if part)
    rows = [[row[at] for at in kept] for row in table.rows]
    return replace(table, columns=[table.columns[at] for at in kept], rows=rows, note=note)


def split(table: Table, before: str, keys: int = 4) -> tuple[Table, Table | None]:
    """Returns a table in two, where it has more columns than a page has room for.

    Args:
        table: to be shown.
        before: head of the first column of the second part.
        keys: first columns that both parts have. The note and the remark are the second's.
    """
    heads = [column.head for column in table.columns]
    if len(heads) <= _MOST_COLUMNS or before not in heads:
        return table, None
    at = heads.index(before)
    first, second = list(range(at)), [*range(min(keys, at)), *range(at, len(heads))]

    def part(kept: list[int]) -> Table:
        rows = [[row[i] for i in kept] for row in table.rows]
        return replace(table, columns=[table.columns[i] for i in kept], rows=rows)

    return replace(part(first), note="", remark=False), part(second)


def labels(tables: Mapping[str, Sequence[str]]) -> str:
    """Returns the style by which each cell of a table is preceded by the head of its column, where rows are lists.

    Args:
        tables: heads of the columns by the id of the table.
    """
    rules = [
        f'#{name} tr:not(.remark)>:nth-child({at}):before{{content:"{_escaped(head)}"}}'
        for name, heads in tables.items()
        for at, head in enumerate(heads, start=1)
        if at > 1
    ]
    return "\n".join(rules)


def heads_of(tables: Mapping[str, Table | None]) -> dict[str, list[str]]:
    """Returns the heads of tables by their ids."""
    return {
        f"t-{name}": _heads(table.columns[:-1] if table.remark else table.columns)
        for name, table in tables.items()
        if table is not None
    }


def _heads(columns: Iterable[object]) -> list[str]:
    return [str(getattr(column, "head", "")) for column in columns]


def _escaped(text: str) -> str:
    """Returns a text inside a CSS string inside a style element."""
    return "".join(f"\\{ord(letter):x} " if letter in '"\\<>\n\r\f' else letter for letter in text)
