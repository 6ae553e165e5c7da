"""Results of other trainers: ``curves.csv`` (one row per run) and ``points.csv`` (one row per transition).

``curves.csv``: ``params,tokens,frequency,seed,n,correct`` and optionally ``chance, group, split, scoring, facts,
nonembedding_params, validation_loss, infusion_ratio, infused_facts, configured_ratio, infused_bits,
mean_margin, mean_margin_sd, pairwise, pairwise_sd``. Defaults: group
``infused``, split ``held_out``, scoring ``statement``, facts = n (so give ``facts`` if several questions ask for the
same fact). If runs differ in the number of infused facts, ``infused_facts`` says it for every run with F above 0, and
``configured_ratio`` is the infusion ratio that was asked for, where F follows from it.

``points.csv``: ``params,tokens,kind,value,low,high,status`` and optionally the other columns of `write_points_csv`.
``low`` and ``high`` are empty or ``inf`` where open. ``axis`` says what value, low and high are: ``frequency`` (F, the
default) or ``facts`` (K); ``held_by`` and ``held`` what was held (facts, frequency or ratio), if anything.
``confidence`` is the level of the interval of an observed point, where it is not 0.95.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd

from megatron_kis.analysis.runs.csv_table import CsvLine, header_of, read_table
from megatron_kis.analysis.runs.curves import CURVE_COLUMNS, OPTIONAL_COLUMNS, canonical, with_known
from megatron_kis.analysis.runs.slices import FACTS, USUAL
from megatron_kis.analysis.runs.transitions import (
    COLLAPSED,
    INFORMATIVE,
    KINDS,
    LEVEL,
    OBSERVED,
    STATUSES,
    Transition,
    order_of,
)
from megatron_kis.common.files import atomic_write
from megatron_kis.common.terms import SPLITS
from megatron_kis.config.analysis import AnalysisConfig

CURVES_NEEDED = ("params", "tokens", "frequency", "seed", "n", "correct")
_POINTS_NEEDED = ("params", "tokens", "kind", "value", "low", "high", "status")
_POINTS_INSTEAD = {"kind": "transitions (points.csv) are not curves: give them to --points, or to kis law report"}
_CURVES_INSTEAD = {"correct": "curves (curves.csv) are not transitions: kis law collapse --curves finds these in them"}

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
    "exposures": (0, math.inf),
    "infused_bits": (0, math.inf),
}
"""Smallest and largest value of the optional columns."""

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
_SLICE_COLUMNS = ["axis", "held_by", "held"]
OPTIONAL_POINT_COLUMNS = [*_SLICE_COLUMNS, "exposures", "infused_bits", "confidence"]
"""Columns that are written where a point has something to say in them: an axis other than F of one K, amounts, or
another level of the intervals than 0.95."""


def load_curves_csv(path: Path | str, settings: AnalysisConfig | None = None) -> pd.DataFrame:
    """Reads ``curves.csv`` into a curve table (`megatron_kis.analysis.runs.curves.CURVE_COLUMNS`).

    Args:
        path: the file.
        settings: the choices that the table is for: what they need must be there. None: only what every table needs.

    Raises:
        InputError: a value is wrong, or missing; the message names file, line and column.
    """
    known = [*CURVE_COLUMNS, *OPTIONAL_COLUMNS]
    return table_of_lines(read_table(Path(path), CURVES_NEEDED, known, others=_POINTS_INSTEAD), settings)


def table_of_lines(lines: Iterable[CsvLine], settings: AnalysisConfig | None = None) -> pd.DataFrame:
    """Returns the curve table of lines with the columns of ``curves.csv``, as `load_curves_csv` does of a file's."""
    rows: list[dict[str, Any]] = []
    fields_of: list[CsvLine] = []
    seen: dict[tuple[Any, ...], int] = {}
    consistency = _Consistency()
    for field in lines:
        n, correct = field.asked()
        row: dict[str, Any] = {
            "params": field.params(),
            "tokens": field.tokens(),
            "frequency": field.number("frequency", least=0),
            "seed": int(field.number("seed", least=0, whole=True)),
            "n": n,
            "correct": float(correct),
            "chance": field.optional("chance", least=0, most=1),
            "group": field.group("infused"),
            "split": field.one_of("split", SPLITS, "held_out"),
            "scoring": field.cells.get("scoring") or "statement",
            "nonembedding_params": field.optional("nonembedding_params", least=0),
            "validation_loss": field.optional("validation_loss", least=0),
            "infusion_ratio": field.optional("infusion_ratio", least=0, most=1),
            "infused_facts": field.optional("infused_facts", least=0, whole=True),
            "configured_ratio": field.optional("configured_ratio", least=0, most=1),
            "infused_bits": field.optional("infused_bits", least=0),
            "mean_margin": field.optional("mean_margin", least=-math.inf),
            "mean_margin_sd": field.optional("mean_margin_sd", least=0),
            "pairwise": field.optional("pairwise", least=0, most=1),
            "pairwise_sd": field.optional("pairwise_sd", least=0, most=1),
        }
        facts = field.optional("facts", least=1, most=row["n"])
        row["facts"] = row["n"] if math.isnan(facts) else int(facts)
        _check_units(row, field)
        key = tuple(row[name] for name in ("params", "tokens", "frequency", "seed", "group", "split", "scoring"))
        if row["frequency"] > 0:
            key += tuple(-1.0 if math.isnan(row[name]) else row[name] for name in ("infused_facts", "configured_ratio"))
        if key in seen:
            remedy = "one row per run, group, split and scoring (n and correct of all its questions), or another seed"
            raise field.error("seed", f"the same run as line {seen[key]}", remedy)
        seen[key] = field.line
        consistency.check(row, field)
        rows.append(row)
        fields_of.append(field)
    _check_facts(rows, fields_of)
    if settings is not None:
        _check_needed(rows, fields_of, settings)
    return canonical(with_known(pd.DataFrame(rows, columns=[*CURVE_COLUMNS, *OPTIONAL_COLUMNS])))


def _check_units(row: dict[str, Any], field: CsvLine) -> None:
    """Refuses values that can only come from a wrong unit or a wrong column."""
    if row["chance"] >= 1:
        raise field.error("chance", f"is {row['chance']:g}", "the rate of guessing, below 1")
    if row["nonembedding_params"] > row["params"]:
        raise field.error("nonembedding_params", "is more than params", "params counts every parameter")
    if (row["frequency"] == 0 and row["infusion_ratio"] > 0) or (row["frequency"] > 0 and row["infusion_ratio"] == 0):
        raise field.error(
            "infusion_ratio", f"is {row['infusion_ratio']:g} at F = {row['frequency']:g}", "0 at F = 0, and only there"
        )
    if row["frequency"] > 0:
        for name in ("infused_facts", "configured_ratio"):
            if row[name] == 0:
                raise field.error(name, f"is 0 at F = {row['frequency']:g}", "frequency 0 for the run without infusion")
        if row["infused_facts"] * row["frequency"] > row["tokens"]:
            shown = f"{row['infused_facts']:,g} facts, {row['frequency']:,g} times each, in {row['tokens']:,} tokens"
            raise field.error("infused_facts", shown, "the number of facts of the run, and all tokens of the run")
    if row["group"] == "infused" and row["frequency"] * row["facts"] > row["tokens"]:
        shown = f"{row['tokens']:,} do not hold {row['frequency']:,g} exposures of {row['facts']:,} facts"
        raise field.error("tokens", shown, "all tokens of the run, not millions or billions")


def _check_facts(rows: list[dict[str, Any]], fields_of: list[CsvLine]) -> None:
    """Refuses runs that differ in the number of infused facts where one does not say it."""
    known = {row["infused_facts"] for row in rows if row["frequency"] > 0 and not math.isnan(row["infused_facts"])}
    if len(known) > 1:
        shown = f"is empty, and other runs have {min(known):,g} to {max(known):,g}"
        _refuse_empty(rows, fields_of, "infused_facts", shown, "the number of facts of every run with F above 0")


def _check_needed(rows: list[dict[str, Any]], fields_of: list[CsvLine], settings: AnalysisConfig) -> None:
    """Refuses a table without the columns and values that the settings need."""
    if settings.axis == FACTS:
        needs = "--axis facts (analysis.axis) needs the number of facts of every run with F above 0"
        _refuse_empty(rows, fields_of, "infused_facts", "is empty", needs)
    mine = [
        (row, field)
        for row, field in zip(rows, fields_of, strict=True)
        if (row["split"], row["scoring"]) == (settings.split, settings.scoring)
    ]
    for name in ("mean_margin", "mean_margin_sd") if settings.criterion == "half_margin" and mine else ():
        if all(math.isnan(row[name]) for row, _ in mine):  # a curve without them is undecided
            needs = "--criterion half_margin (analysis.criterion) needs the mean margins and their deviations"
            raise mine[0][1].missing(name, "is empty in every row of its split and scoring", needs)
    for row, field in mine if settings.outcome == "pairwise" else []:
        if math.isnan(row["pairwise"]):
            raise field.missing("pairwise", "is empty", "--outcome pairwise (analysis.outcome) needs it in every row")


def _refuse_empty(rows: list[dict[str, Any]], fields_of: list[CsvLine], column: str, problem: str, remedy: str) -> None:
    """Refuses the first row of an infused run without a value in ``column``."""
    for row, field in zip(rows, fields_of, strict=True):
        if row["frequency"] > 0 and math.isnan(row[column]):
            raise field.missing(column, problem, remedy)


class _Consistency:
    """Checks values that must be the same in all lines of one run or of one model."""

    _SHARED = (
        ("nonembedding_params", ("params",)),
        ("validation_loss", ("params", "tokens", "frequency", "seed", *OPTIONAL_COLUMNS[:2])),
        ("infusion_ratio", ("params", "tokens", "frequency", "seed", *OPTIONAL_COLUMNS[:2])),
    )

    def __init__(self) -> None:
        self._first: dict[tuple[Any, ...], tuple[float, int]] = {}

    def check(self, row: dict[str, Any], field: CsvLine) -> None:
        for name, owner in self._SHARED:
            if math.isnan(row[name]):
                continue
            run = tuple(-1.0 if isinstance(row[key], float) and math.isnan(row[key]) else row[key] for key in owner)
            before, where = self._first.setdefault((name, *run), (row[name], field.line))
            if not math.isclose(before, row[name], rel_tol=1e-6):
                same = ", ".join(key for key in owner if key not in OPTIONAL_COLUMNS or not math.isnan(row[key]))
                raise field.error(
                    name, f"{row[name]:g}, and {before:g} in line {where}", f"one value for the same {same}"
                )


def is_points_csv(path: Path | str) -> bool:
    """Returns whether a CSV file has transitions (a column ``kind``) and not curves."""
    return "kind" in header_of(Path(path))


def load_points_csv(path: Path | str) -> list[Transition]:
    """Reads ``points.csv``.

    Raises:
        InputError: a value is wrong; the message names file, line and column.
    """
    points = []
    lines: dict[tuple[Any, ...], int] = {}
    known = [*POINT_COLUMNS, *OPTIONAL_POINT_COLUMNS]
    for field in read_table(Path(path), _POINTS_NEEDED, known, others=_CURVES_INSTEAD):
        cells = field.cells
        kind = field.one_of("kind", KINDS, None)
        status = field.one_of("status", STATUSES, None)
        if status in INFORMATIVE:  # one status per kind of transition
            status = COLLAPSED if kind == "collapse" else OBSERVED
        one = field.slice()
        symbol = one.symbol
        value = _finite(field.optional("value", least=0, infinite=True))
        low = _finite(field.optional("low", least=0, infinite=True))
        high = _finite(field.optional("high", least=0, infinite=True))
        if status in INFORMATIVE and not value:
            problem = f"is {cells.get('value')!r} and status is {cells['status']!r}"
            raise field.error("value", problem, f"a positive {symbol}")
        if status == "right_censored" and low is None:
            remedy = f"the largest {symbol} without the transition"
            raise field.error("low", "is open and status is 'right_censored'", remedy)
        if status == "left_censored" and high is None:
            remedy = f"the smallest {symbol} with the transition"
            raise field.error("high", "is open and status is 'left_censored'", remedy)
        if status in INFORMATIVE and value is not None and not (low or 0) <= value <= (high or math.inf):
            raise field.error("value", f"{value:g} is outside [low, high]", "low <= value <= high")
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
            name: None if (number := _finite(field.optional(name, least=0, whole=True))) is None else int(number)
            for name in ("nonembedding_params", "levels", "seeds")
        }
        params = field.params()
        if (counts["nonembedding_params"] or 0) > params:
            raise field.error("nonembedding_params", "is more than params", "params counts every parameter")
        point = Transition(
            params=params,
            tokens=field.tokens(),
            kind=kind,
            group=field.group(_DEFAULT_GROUP[kind]),
            split=field.one_of("split", SPLITS, None) if cells.get("split") else None,
            scoring=cells.get("scoring") or None,
            status=status,
            value=value if status in INFORMATIVE else None,
            low=low,
            high=high,
            interval=field.one_of("interval", ("bracket", "profile"), "profile") if status in INFORMATIVE else None,
            confidence=field.level("confidence"),
            flags=cells.get("flags") or "",
            reason=cells.get("reason") or "",
            slice=one,
            **extra,
            **counts,
        )
        key = (point.kind, point.group, point.split, point.scoring, *point.cell)
        if lines.setdefault(key, field.line) != field.line:
            raise field.error("params", f"the same transition as line {lines[key]}", "one row per kind, group, N and D")
        points.append(point)
    return sorted(points, key=order_of)


def points_table(points: Iterable[Transition]) -> pd.DataFrame:
    """Returns transitions as a table (`POINT_COLUMNS`, and those of `OPTIONAL_POINT_COLUMNS` that say something)."""
    points = list(points)
    names = {field.name for field in fields(Transition)} - {"slice"}
    assert names | set(_SLICE_COLUMNS) == {*POINT_COLUMNS, *OPTIONAL_POINT_COLUMNS}
    return pd.DataFrame([_cells(point) for point in points], columns=_columns(points), dtype=object)


def write_points_csv(points: Sequence[Transition], path: Path) -> None:
    """Writes ``points.csv``; an open upper end is ``inf``, any other unknown value is empty."""
    columns = _columns(points)
    with atomic_write(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        for point in points:
            cells = _cells(point)
            if point.status == "right_censored":
                cells["high"] = "inf"
            writer.writerow([_cell(cells[name]) for name in columns])


def _columns(points: Sequence[Transition]) -> list[str]:
    more = _SLICE_COLUMNS if any(point.slice != USUAL for point in points) else []
    amounts = [name for name in ("exposures", "infused_bits") if any(getattr(p, name) is not None for p in points)]
    level = ["confidence"] if any(p.confidence != LEVEL for p in points) else []
    return [*POINT_COLUMNS, *more, *amounts, *level]


def _cells(point: Transition) -> dict[str, Any]:
    """Returns the values of every column."""
    own = {name: getattr(point, name) for name in (*POINT_COLUMNS, "exposures", "infused_bits", "confidence")}
    return own | {name: getattr(point.slice, name) for name in _SLICE_COLUMNS}


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    return str(value)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
