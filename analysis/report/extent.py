"""How much of a large study a report draws and lists: what a page can hold, and a reader can look through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from megatron_kis.analysis.report.table import Table
from megatron_kis.analysis.runs.curves import cells_of_table

MOST_MODELS = 12
"""Models that are drawn one by one."""
MOST_MARKS = 60
"""Runs of a series that are drawn one by one; of more, each level's range is."""
MOST_ROWS = 400
"""Rows of a table on the page."""


def drawn_cells(table: pd.DataFrame) -> list[tuple[int, int]]:
    """Returns the (N, D) of a curve table that are drawn, in rising order.

    All of them, or `MOST_MODELS` from the first to the last, evenly spread over the order by N and D.
    """
    cells = cells_of_table(table)
    if len(cells) <= MOST_MODELS:
        return cells
    return [cells[round(place)] for place in np.linspace(0, len(cells) - 1, MOST_MODELS)]


def rows_of_cells(table: pd.DataFrame, cells: Sequence[tuple[int, int]]) -> pd.DataFrame:
    """Returns the rows of some (N, D)."""
    wanted = pd.MultiIndex.from_tuples(list(cells), names=["params", "tokens"])
    return table[pd.MultiIndex.from_frame(table[["params", "tokens"]]).isin(wanted)]


def omission(table: pd.DataFrame) -> str:
    """Returns a sentence on models that are not drawn; empty if all are."""
    shown, every = len(drawn_cells(table)), len(cells_of_table(table))
    return "" if shown == every else f" {shown} of {every} models are drawn, from the smallest to the largest."


def file_beside(stem: str, name: str) -> str:
    """Returns the name of the file with all rows of a long table, next to the report ``stem``.html."""
    return f"{stem}-{name}.csv"


def shortened(table: Table, file: str) -> Table:
    """Returns a table with its first rows, and a note on where all are, if it is too long for a page."""
    if len(table.rows) <= MOST_ROWS:
        return table
    note = f"The first {MOST_ROWS:,} of {len(table.rows):,} rows; all are in {file}."
    return replace(table, rows=table.rows[:MOST_ROWS], note=f"{note} {table.note}".strip())
