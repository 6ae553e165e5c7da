"""Runs exported from Weights & Biases, one row per run, as a curve table.

The export is that of the table of runs (its menu: "CSV export"): a column for each setting and each summary value. The
caller says which column is which; a number instead of a column's name applies to all rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from megatron_kis.analysis.runs.csv_table import CsvLine, read_table
from megatron_kis.analysis.runs.curves import FINER_COLUMNS
from megatron_kis.analysis.runs.elsewhere import RUN_NEEDED, RUN_OPTIONAL, Asked, not_whole, whole_count
from megatron_kis.analysis.runs.load_csv import table_of_lines
from megatron_kis.common.errors import InputError, nearest
from megatron_kis.common.units import parse_count

_ANSWERS = ("n", "correct", "rate", "facts", "chance", *FINER_COLUMNS)
_STATES, _FINISHED = ("State", "state"), "finished"
_SHARE = "a share from 0 to 1: divide percentages by 100"
_OF_A_CHART = ("__MIN", "__MAX")


def import_wandb(path: Path, run: Sequence[str], groups: Sequence[Asked]) -> tuple[pd.DataFrame, list[str]]:
    """Reads an export of runs.

    Args:
        path: the CSV file.
        run: ``NAME=COLUMN`` for what describes a run: params, tokens, frequency, seed and others of ``RUN_OPTIONAL``.
        groups: for each group, ``NAME=COLUMN`` for its answers: n, and correct or rate; facts, chance.

    Returns:
        The curve table, and the runs that were left out because they are not finished.

    Raises:
        InputError: an unknown name or column, or a value that is wrong; the message names file, line and column.
    """
    lines = list(read_table(path))
    header = list(lines[0].cells)
    if chart := next((name for name in header if name.endswith(_OF_A_CHART)), None):
        remedy = "export the table of runs, with one row per run"
        raise InputError(f"is the export of a chart (column {chart!r})", where=f"{path}:1", remedy=remedy)
    about = _columns(run, (*RUN_NEEDED, *RUN_OPTIONAL), header, "--run", path)
    if absent := [name for name in RUN_NEEDED if name not in about]:
        remedy = f"--run {' '.join(f'{name}=COLUMN' for name in absent)} (or a number)"
        raise InputError(f"does not name {', '.join(absent)}", where="--run", remedy=remedy)
    asked = []
    for group in groups:
        flag = f"--group {group.group}/{group.split}"
        columns = _columns(group.sources, _ANSWERS, header, flag, path)
        if "n" not in columns or ("correct" in columns) == ("rate" in columns):
            remedy = "n=COLUMN (or a number), and correct=COLUMN or rate=COLUMN"
            raise InputError("needs the number of questions, and of right answers", where=flag, remedy=remedy)
        asked.append((group, columns))
    state = next((name for name in _STATES if name in header), _STATES[0])
    finished = [line for line in lines if line.cells.get(state, "") in ("", _FINISHED)]
    if not finished:
        remedy = f"export finished runs ({state}: {_FINISHED})"
        raise InputError("no run is finished", where=str(path), remedy=remedy)
    rows = (_row(line, {**about, **columns}, group) for line in finished for group, columns in asked)
    done = {line.line for line in finished}
    left = [f"line {line.line} ({line.cells[state]})" for line in lines if line.line not in done]
    return table_of_lines(rows), left


def _columns(
    given: Sequence[str], known: Sequence[str], header: Sequence[str], flag: str, path: Path
) -> dict[str, tuple[str, str | None]]:
    """Returns name -> (its column or name, the number that was given instead of a column)."""
    found: dict[str, tuple[str, str | None]] = {}
    for text in given:
        name, equals, column = text.partition("=")
        if not equals:
            raise InputError(f"is {text!r}", where=flag, remedy="NAME=COLUMN, for example n=eval/questions")
        if name not in known:
            raise InputError(f"there is no {name!r}", where=f"{flag} {text}", remedy=nearest(name, known))
        if name in found:
            raise InputError(f"{name!r} is given twice", where=flag, remedy="keep one")
        if column in header:
            found[name] = column, None
        elif parse_count(column) is not None:
            found[name] = name, column
        else:
            raise InputError(f"no column {column!r} in {path}", where=f"{flag} {text}", remedy=nearest(column, header))
    return found


def _row(line: CsvLine, columns: Mapping[str, tuple[str, str | None]], group: Asked) -> CsvLine:
    """Returns the row of a run and a group, with a count instead of a rate."""
    shown = {name: column for name, (column, _) in columns.items()}
    cells = {name: line.cells[column] if constant is None else constant for name, (column, constant) in columns.items()}
    row = CsvLine(line.path, line.line, {**cells, "group": group.group, "split": group.split}, shown)
    if "rate" not in columns:
        return row
    if (text := row.cells["rate"]).endswith("%"):
        raise row.error("rate", f"{text} is a percentage", _SHARE)
    rate = row.number("rate", least=-float("inf"))
    n = int(row.number("n", least=1, whole=True))
    if not 0 <= rate <= 1:
        raise row.error("rate", not_whole(rate, n), _SHARE)
    count = whole_count(rate, n)
    if count is None:
        remedy = "n is the number of questions behind this rate; or log the number of right answers (correct=COLUMN)"
        raise row.error("rate", not_whole(rate, n), remedy)
    return CsvLine(line.path, line.line, {**row.cells, "correct": str(count)}, {**shown, "correct": shown["rate"]})
