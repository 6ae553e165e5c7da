"""Results of other trainers: ``curves.csv`` (one row per run) and ``points.csv`` (one row per transition).

``curves.csv``: ``params,tokens,frequency,seed,n,correct`` and optionally ``chance, group, split, scoring, facts,
nonembedding_params, validation_loss, infusion_ratio``. Defaults: group ``infused``, split ``held_out``, scoring
``statement``, facts = n (so give ``facts`` if several questions ask for the same fact).

``points.csv``: ``params,tokens,kind,value,low,high,status`` and optionally the other columns of `write_points_csv`.
``low`` and ``high`` are empty or ``inf`` where open.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd

from megatron_kis.analysis.runs.curves import CURVE_COLUMNS, canonical
from megatron_kis.analysis.runs.transitions import (
    COLLAPSED,
    CURVE_GROUPS,
    INFORMATIVE,
    KINDS,
    OBSERVED,
    STATUSES,
    Transition,
)
from megatron_kis.common.errors import InputError, nearest
from megatron_kis.common.files import atomic_write, read_text
from megatron_kis.common.terms import SPLITS
from megatron_kis.common.units import parse_count

_CURVES_NEEDED = ("params", "tokens", "frequency", "seed", "n", "correct")
_POINTS_NEEDED = ("params", "tokens", "kind", "value", "low", "high", "status")
_FEWEST_PARAMS = 1000
"""Smallest plausible N; a smaller number is probably in millions or billions."""

_EXTRA = {
    "infusion_ratio": (0, 1),
    "ratio_low": (0, 1),
    "ratio_high": (0, math.inf),
    "exposure_tokens": (0, math.inf),
    "peak": (-math.inf, math.inf),
    "drop": (-math.inf, math.inf),
    "detectable": (0, math.inf),
    "p_value": (0, 1),
    "steepness": (0, math.inf),
    "companion": (0, math.inf),
}
"""Smallest and largest value of the optional columns."""

_COUNTS = ("params", "tokens", "nonembedding_params")
"""Columns of counts, which may have a unit (7b, 1.2M)."""

_DEFAULT_GROUP = {"onset": "infused", "collapse": "infused", "tolerance": "general"}

POINT_COLUMNS = [
    "params",
    "tokens",
    "kind",
    "value",
    "low",
    "high",
    "status",
    "group",
    "split",
    "scoring",
    "nonembedding_params",
    "infusion_ratio",
    "ratio_low",
    "ratio_high",
    "exposure_tokens",
    "peak",
    "drop",
    "detectable",
    "p_value",
    "steepness",
    "companion",
    "interval",
    "flags",
    "levels",
    "seeds",
    "reason",
]


def load_curves_csv(path: Path | str) -> pd.DataFrame:
    """Reads ``curves.csv`` into a curve table (`megatron_kis.analysis.runs.curves.CURVE_COLUMNS`).

    Raises:
        InputError: a value is wrong; the message names file, line and column.
    """
    rows = []
    seen: dict[tuple[Any, ...], int] = {}
    consistency = _Consistency()
    for line, cells in _records(Path(path), _CURVES_NEEDED, CURVE_COLUMNS):
        field = _Field(Path(path), line, cells)
        row: dict[str, Any] = {
            "params": field.params(),
            "tokens": int(field.number("tokens", least=1, whole=True)),
            "frequency": field.number("frequency", least=0),
            "seed": int(field.number("seed", least=0, whole=True)),
            "n": int(field.number("n", least=1, whole=True)),
            "correct": field.number("correct", least=0, whole=True),
            "chance": field.optional("chance", least=0, most=1),
            "group": field.one_of("group", CURVE_GROUPS, "infused"),
            "split": field.one_of("split", SPLITS, "held_out"),
            "scoring": cells.get("scoring") or "statement",
            "nonembedding_params": field.optional("nonembedding_params", least=0),
            "validation_loss": field.optional("validation_loss", least=0),
            "infusion_ratio": field.optional("infusion_ratio", least=0, most=1),
        }
        facts = field.optional("facts", least=1, most=row["n"])
        row["facts"] = row["n"] if math.isnan(facts) else int(facts)
        if row["correct"] > row["n"]:
            raise field.error(
                "correct", f"{row['correct']:g} of {row['n']} questions", "a count of at most n, not a rate"
            )
        _check_units(row, field)
        consistency.check(row, line, field)
        key = tuple(row[name] for name in ("params", "tokens", "frequency", "seed", "group", "split", "scoring"))
        if key in seen:
            raise field.error("seed", f"the same run as line {seen[key]}", "one row a run, or another seed")
        seen[key] = line
        rows.append(row)
    return canonical(pd.DataFrame(rows, columns=CURVE_COLUMNS))


def _check_units(row: dict[str, Any], field: _Field) -> None:
    """Refuses values that can only come from a wrong unit or a wrong column."""
    if row["chance"] >= 1:
        raise field.error("chance", f"is {row['chance']:g}", "the rate of guessing, below 1")
    if row["nonembedding_params"] > row["params"]:
        raise field.error("nonembedding_params", "is more than params", "params counts every parameter")
    if (row["frequency"] == 0 and row["infusion_ratio"] > 0) or (row["frequency"] > 0 and row["infusion_ratio"] == 0):
        raise field.error(
            "infusion_ratio", f"is {row['infusion_ratio']:g} at F = {row['frequency']:g}", "0 at F = 0, and only there"
        )
    if row["group"] == "infused" and row["frequency"] * row["facts"] > row["tokens"]:
        shown = f"{row['tokens']:,} do not hold {row['frequency']:,g} exposures of {row['facts']:,} facts"
        raise field.error("tokens", shown, "all tokens of the run, not millions or billions")


class _Consistency:
    """Checks values that must be the same in all lines of one run or of one model."""

    _SHARED = (
        ("nonembedding_params", ("params",)),
        ("validation_loss", ("params", "tokens", "frequency", "seed")),
        ("infusion_ratio", ("params", "tokens", "frequency", "seed")),
    )

    def __init__(self) -> None:
        self._first: dict[tuple[Any, ...], tuple[float, int]] = {}

    def check(self, row: dict[str, Any], line: int, field: _Field) -> None:
        for name, owner in self._SHARED:
            if math.isnan(row[name]):
                continue
            before, where = self._first.setdefault((name, *(row[key] for key in owner)), (row[name], line))
            if not math.isclose(before, row[name], rel_tol=1e-6):
                raise field.error(
                    name, f"{row[name]:g}, and {before:g} in line {where}", f"one value for the same {', '.join(owner)}"
                )


def is_points_csv(path: Path | str) -> bool:
    """Returns whether a CSV file has transitions (a column ``kind``) and not curves."""
    header = next(csv.reader(read_text(Path(path)).removeprefix("\ufeff").splitlines()[:1]), [])
    return "kind" in (name.strip() for name in header)


def load_points_csv(path: Path | str) -> list[Transition]:
    """Reads ``points.csv``.

    Raises:
        InputError: a value is wrong; the message names file, line and column.
    """
    points = []
    lines: dict[tuple[Any, ...], int] = {}
    for line, cells in _records(Path(path), _POINTS_NEEDED, POINT_COLUMNS):
        field = _Field(Path(path), line, cells)
        kind = field.one_of("kind", KINDS, None)
        status = field.one_of("status", STATUSES, None)
        if status in INFORMATIVE:  # one status per kind of transition
            status = COLLAPSED if kind == "collapse" else OBSERVED
        value = _finite(field.optional("value", least=0, infinite=True))
        low = _finite(field.optional("low", least=0, infinite=True))
        high = _finite(field.optional("high", least=0, infinite=True))
        if status in INFORMATIVE and not value:
            raise field.error("value", f"is {cells.get('value')!r} and status is {cells['status']!r}", "a positive F")
        if status == "right_censored" and low is None:
            raise field.error("low", "is open and status is 'right_censored'", "the largest F without the transition")
        if status == "left_censored" and high is None:
            raise field.error("high", "is open and status is 'left_censored'", "the smallest F with the transition")
        if status in INFORMATIVE and value is not None and not (low or 0) <= value <= (high or math.inf):
            raise field.error("value", f"{value:g} lies outside [low, high]", "low <= value <= high")
        if low is not None and high is not None and low > high:
            raise field.error("low", f"{low:g} is more than high, {high:g}", "low <= high")
        if status not in INFORMATIVE and value is not None:
            raise field.error(
                "value", f"is {value:g} and status is {status!r}", "leave it empty, or correct the status"
            )
        extra: dict[str, Any] = {
            name: _finite(field.optional(name, least=least, most=most)) for name, (least, most) in _EXTRA.items()
        }
        counts: dict[str, Any] = {
            name: None if (number := _finite(field.optional(name, least=0))) is None else int(number)
            for name in ("nonembedding_params", "levels", "seeds")
        }
        point = Transition(
            params=field.params(),
            tokens=int(field.number("tokens", least=1, whole=True)),
            kind=kind,
            group=field.one_of("group", CURVE_GROUPS, _DEFAULT_GROUP[kind]),
            split=field.one_of("split", SPLITS, None) if cells.get("split") else None,
            scoring=cells.get("scoring") or None,
            status=status,
            value=value if status in INFORMATIVE else None,
            low=low,
            high=high,
            interval=field.one_of("interval", ("bracket", "profile"), "profile") if status in INFORMATIVE else None,
            flags=cells.get("flags") or "",
            reason=cells.get("reason") or "",
            **extra,
            **counts,
        )
        key = (point.kind, point.group, point.split, point.scoring, point.params, point.tokens)
        if lines.setdefault(key, line) != line:
            raise field.error("params", f"the same transition as line {lines[key]}", "one row a kind, group, N and D")
        points.append(point)
    return sorted(points, key=_order)


def points_table(points: Iterable[Transition]) -> pd.DataFrame:
    """Returns transitions as a table (`POINT_COLUMNS`)."""
    names = {field.name for field in fields(Transition)}
    assert names == set(POINT_COLUMNS), names ^ set(POINT_COLUMNS)
    rows = [{name: getattr(point, name) for name in POINT_COLUMNS} for point in points]
    return pd.DataFrame(rows, columns=POINT_COLUMNS, dtype=object)


def write_points_csv(points: Sequence[Transition], path: Path) -> None:
    """Writes ``points.csv``; an open upper end is ``inf``, any other unknown value is empty."""
    with atomic_write(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(POINT_COLUMNS)
        for point in points:
            cells = {name: getattr(point, name) for name in POINT_COLUMNS}
            if point.status == "right_censored":
                cells["high"] = "inf"
            writer.writerow([_cell(cells[name]) for name in POINT_COLUMNS])


def _order(point: Transition) -> tuple[int, str, int, int]:
    return KINDS.index(point.kind), point.group, point.params, point.tokens


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    return str(value)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _records(path: Path, needed: Sequence[str], known: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields (line number, column -> stripped text) of a CSV file after checking its header."""
    reader = csv.reader(read_text(path).removeprefix("\ufeff").splitlines())
    header = [name.strip() for name in next(reader, [])]
    for name in needed:
        if name not in header:
            remedy = "needed are " + ",".join(needed)
            if len(header) == 1 and re.search(r"[;\t]", header[0]):
                remedy = "separate the columns by commas"
            elif alike := next((other for other in header if other.lower() == name), None):
                remedy = f"the header has {alike!r}"
            raise InputError(f"no column {name!r}", where=f"{path}:1", remedy=remedy)
    for name in header:
        if name not in known:
            raise InputError(f"unknown column {name!r}", where=f"{path}:1", remedy=nearest(name, known))
        if header.count(name) > 1:
            raise InputError(f"column {name!r} is given twice", where=f"{path}:1")
    empty = True
    for cells in reader:
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header):
            raise InputError(
                f"{len(cells)} cells", where=f"{path}:{reader.line_num}", remedy=f"the header has {len(header)} columns"
            )
        empty = False
        yield reader.line_num, dict(zip(header, (cell.strip() for cell in cells), strict=True))
    if empty:
        raise InputError("holds no row", where=str(path), remedy="a header line and one row a run or a point")


class _Field:
    """The cells of one line, read with errors that name file, line and column."""

    def __init__(self, path: Path, line: int, cells: dict[str, str]) -> None:
        self._where = f"{path}:{line}"
        self._cells = cells

    def error(self, column: str, problem: str, remedy: str) -> InputError:
        return InputError(f"column {column!r}: {problem}", where=self._where, remedy=remedy)

    def params(self) -> int:
        """Returns N, the number of parameters."""
        count = int(self.number("params", least=1, whole=True))
        if count < _FEWEST_PARAMS:
            raise self.error("params", f"is {count}", "the number of parameters, not of millions or billions")
        return count

    def number(
        self, column: str, *, least: float, most: float = math.inf, whole: bool = False, infinite: bool = False
    ) -> float:
        text = self._cells.get(column, "")
        bound = f"a {'whole ' if whole else ''}number" + ("" if least == -math.inf else f" of at least {least:g}")
        bound += "" if most == math.inf else f" and at most {most:g}"
        count = parse_count(text) if column in _COUNTS else None  # 7b, 1.2M
        try:
            value = float(text if count is None else count)
        except ValueError:
            raise self.error(column, f"{text!r} is no number", bound) from None
        if math.isnan(value) or (math.isinf(value) and not infinite) or not least <= value <= most:
            raise self.error(column, f"{text} is out of range", bound)
        if whole and not value.is_integer():
            raise self.error(column, f"{text} is not whole", bound)
        return value

    def optional(self, column: str, *, least: float, most: float = math.inf, infinite: bool = False) -> float:
        """Returns the number, or NaN if the column is absent or the cell is empty."""
        if self._cells.get(column, "").lower() in ("", "nan", "none", "na"):
            return math.nan
        return self.number(column, least=least, most=most, infinite=infinite)

    def one_of(self, column: str, choices: Sequence[str], default: str | None) -> str:
        text = self._cells.get(column, "") or default or ""
        if text not in choices:
            raise self.error(column, f"is {text!r}", nearest(text, choices))
        return text
