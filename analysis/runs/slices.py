"""Slices: along which axis the dose of a curve varies, and what is held fixed.

A run is infused with K facts, F exposures of each. A curve has one of the two as its dose:

| axis | dose | held |
|---|---|---|
| frequency | F | K (``held_by`` facts); None where all runs have one K, or K is not known |
| facts | K | F (``held_by`` frequency), or the configured infusion ratio (``held_by`` ratio): F falls as K grows |

The run without infusion (F = 0) is dose 0 of every curve of its (N, D). Slices are found in the data: one is there
where at least three doses differ and the rest is held.

Runs of a configured infusion ratio have an F that differs a little by seed, because the exposures drawn differ in
length. Along F at one K they are one level per (N, D, K, ratio), at the mean F of these runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from megatron_kis.common.errors import InputError

FREQUENCY, FACTS, RATIO = "frequency", "facts", "ratio"
AXES = (FREQUENCY, FACTS)
HELD_BY = {FREQUENCY: (FACTS,), FACTS: (FREQUENCY, RATIO)}
"""What may be held along each axis."""

_SYMBOLS = {FREQUENCY: "F", FACTS: "K", RATIO: "ρ"}
_ENOUGH = 3  # doses, 0 included: two are no curve
_ENOUGH_BESIDE = 4  # doses of F in addition to an axis of K that nobody asked for: a hinge needs as many
_SAME = 1e-6  # relative difference of numbers that differ by rounding

_FACTS_COLUMN, _RATIO_COLUMN = "infused_facts", "configured_ratio"
_CELL = ["params", "tokens", _FACTS_COLUMN, _RATIO_COLUMN]
"""Columns in which the runs of a level of a configured ratio are alike."""

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Slice:
    """The axis of a curve's dose, and what is held along it."""

    axis: str = FREQUENCY
    """``frequency`` (the dose is F) or ``facts`` (the dose is K)."""
    held_by: str | None = None
    """What is held: ``facts``, ``frequency`` or ``ratio``; None where nothing else varies, or it is not known."""
    held: float | None = None
    """The held value: K, F in exposures per fact, or the infusion ratio. None with a ``held_by``: all slices that hold
    it, for a law of them together."""

    def covers(self, other: Slice) -> bool:
        """Returns whether ``other`` is this slice, or one of those that it stands for without its held value."""
        if self.held_by is not None and self.held is None:
            return (other.axis, other.held_by) == (self.axis, self.held_by)
        return other == self

    @property
    def symbol(self) -> str:
        """Symbol of the dose: F or K."""
        return _SYMBOLS[self.axis]

    @property
    def symbol_at_transition(self) -> str:
        """Symbol of the dose at a transition: F* or K*."""
        return f"{self.symbol}*"

    @property
    def unit(self) -> str:
        """What a dose counts."""
        return "exposures per fact" if self.axis == FREQUENCY else "facts"

    @property
    def label(self) -> str:
        """What is held, as ``K = 400``; empty where nothing is."""
        if self.held_by is None or self.held is None:
            return ""
        value = f"{self.held:,.0f}" if self.held_by == FACTS else f"{self.held:g}"
        return f"{_SYMBOLS[self.held_by]} = {value}"

    @property
    def key(self) -> tuple[bool, str, float]:
        """Sort key: the number of facts first, then by what is held and by its value."""
        return self.axis != FACTS, self.held_by or "", self.held or 0.0

    @property
    def name(self) -> str:
        """The slice as a part of file names and ids; empty for the usual one."""
        if self == USUAL:
            return ""
        held = () if self.held_by is None else (self.held_by, "all" if self.held is None else f"{self.held:g}")
        return "-".join((self.axis, *held))

    @property
    def held_symbol(self) -> str:
        """Symbol of what is held; empty where nothing is."""
        return "" if self.held_by is None else _SYMBOLS[self.held_by]

    def record(self) -> dict[str, Any]:
        """Returns axis, held_by and held for JSON; empty for `USUAL`, so that older records stay as they are."""
        return {} if self == USUAL else {"axis": self.axis, "held_by": self.held_by, "held": self.held}


USUAL = Slice()
"""F, where all runs have one number of facts, or it is not known."""


def slice_of_record(record: dict[str, Any], *, where: str) -> Slice:
    """Returns the slice of a record with `Slice.record`'s keys; the usual one where it has none.

    Raises:
        InputError: there is no such axis, or it cannot be held so.
    """
    axis, held_by, held = record.get("axis"), record.get("held_by"), record.get("held")
    axis = FREQUENCY if axis is None else axis
    if axis not in AXES:
        raise InputError(f"axis is {axis!r}", where=where, remedy="frequency or facts")
    if held_by is not None and held_by not in HELD_BY[axis]:
        raise InputError(f"held_by is {held_by!r}", where=where, remedy=f"{' or '.join(HELD_BY[axis])} for {axis}")
    if held_by is None and held is not None:
        raise InputError("held without held_by", where=where, remedy="both, or neither")
    if held is not None and (right := wrong_held(held_by, held)) is not None:
        raise InputError(f"held is {held!r}", where=where, remedy=right)
    return Slice(axis, held_by, None if held is None else float(held))


def wrong_held(held_by: str | None, held: Any) -> str | None:
    """Returns what would be right where a value cannot be held: no number, K below 1, or a ratio above 1; else None."""
    if isinstance(held, bool) or not isinstance(held, int | float) or not 0 < held < np.inf:
        return "a positive number"
    if held_by == RATIO and held > 1:
        return "a share of the tokens, at most 1"
    return "a number of facts, at least 1" if held_by == FACTS and held < 1 else None


def varies_facts(table: pd.DataFrame) -> bool:
    """Returns whether the infused runs of a curve table have several K."""
    return _FACTS_COLUMN in table and table.loc[table["frequency"] > 0, _FACTS_COLUMN].nunique() > 1


def slices_of(table: pd.DataFrame, axis: str = "auto") -> list[Slice]:
    """Returns the slices of a curve table, those along the number of facts first.

    Args:
        table: the curve table.
        axis: ``frequency``, ``facts``, or ``auto``: facts where the runs vary K, and F too where a K has four doses
            of it.

    Raises:
        InputError: K is asked for, or varies, and a run does not say its K.
    """
    infused = table[table["frequency"] > 0]
    varied = varies_facts(table)
    if axis == FACTS or varied:
        _need_facts(infused, varied=varied)
    if not varied and (axis != FACTS or infused.empty):
        return [Slice(FACTS)] if axis == FACTS else [USUAL]
    found: list[Slice] = []
    if axis != FREQUENCY:
        ratio = _configured(infused)
        found += [Slice(FACTS, FREQUENCY, value) for value in _values(infused.loc[ratio.isna(), "frequency"])]
        found += [Slice(FACTS, RATIO, value) for value in _values(ratio.dropna())]
    if axis != FACTS:
        found += [Slice(FREQUENCY, FACTS, value) for value in _values(infused[_FACTS_COLUMN])]
    least = {FREQUENCY: _ENOUGH_BESIDE if axis == "auto" else _ENOUGH, FACTS: _ENOUGH}
    enough = [one for one in found if _doses(rows_of_slice(table, one)) >= least[one.axis]]
    return sorted(enough or found, key=lambda one: one.key)


def rows_of_slice(table: pd.DataFrame, one: Slice) -> pd.DataFrame:
    """Returns the rows of a slice with their ``dose``; of an (N, D) only where a run of the slice is infused."""
    base = (table["frequency"] == 0).to_numpy(bool)
    if one.axis == FREQUENCY:
        dose = table["frequency"].to_numpy(float) if one.held_by is None else _frequencies(table, _CELL)
    else:
        dose = np.where(base, 0.0, table[_FACTS_COLUMN].to_numpy(float) if _FACTS_COLUMN in table else np.nan)
    rows = table.assign(dose=dose)
    if one.held is None:
        return rows
    infused = ~base & _held(table, one)
    cells = list(zip(table["params"], table["tokens"], strict=True))
    there = {cell for cell, mine in zip(cells, infused, strict=True) if mine}
    mine: pd.DataFrame = rows[infused | (base & np.array([cell in there for cell in cells], dtype=bool))]
    return mine


def levels_of_frequency(table: pd.DataFrame) -> pd.Series[float]:
    """Returns the level of F of each row: F, or for a configured ratio the mean F of all runs of its K and ratio."""
    cell = [name for name in (_FACTS_COLUMN, _RATIO_COLUMN) if name in table]
    return pd.Series(_frequencies(table, cell), index=table.index)


def _frequencies(table: pd.DataFrame, cell: list[str]) -> npt.NDArray[np.float64]:
    """Returns F [rows], for a configured ratio the mean F of the runs that are alike in the columns ``cell``."""
    frequency = table["frequency"].to_numpy(float).copy()
    asked = (_configured(table).notna() & (table["frequency"] > 0)).to_numpy(bool)
    if not asked.any():
        return frequency
    rows = table.loc[asked, list(dict.fromkeys(["params", "tokens", "seed", "frequency", *cell]))]
    group = rows.groupby(cell, dropna=False).ngroup()
    # A run counts once, however many rows it has, and the order of the rows does not change the sum.
    runs = rows.assign(group=group).drop_duplicates().sort_values("frequency")
    means = {key: _mean(mine.to_numpy(float)) for key, mine in runs.groupby("group")["frequency"]}
    frequency[asked] = group.map(means)
    return frequency


def _mean(values: npt.NDArray[np.float64]) -> float:
    """Returns the mean; of equal values the value itself, without rounding."""
    return float(values[0]) if values[0] == values[-1] else float(values.mean())


def _held(table: pd.DataFrame, one: Slice) -> Bools:
    """Returns [rows] whether each row has the held value."""
    assert one.held is not None
    ratio = _configured(table)
    if one.held_by == RATIO:
        values = ratio
    elif one.held_by == FACTS:
        values = table[_FACTS_COLUMN]
    else:
        values = table["frequency"].where(ratio.isna())
    same: Bools = np.isclose(values.to_numpy(float), one.held, rtol=_SAME, atol=0.0)
    return same


def _configured(table: pd.DataFrame) -> pd.Series[float]:
    """Returns the configured infusion ratio of each row; NaN where F was configured, or it is not known."""
    if _RATIO_COLUMN in table:
        return table[_RATIO_COLUMN].astype(float)
    return pd.Series(np.nan, index=table.index, dtype=float)


def _values(column: pd.Series[float]) -> list[float]:
    """Returns the distinct values of a column in rising order."""
    found: list[float] = []
    for value in sorted(column.astype(float).unique().tolist()):
        if not found or value > found[-1] * (1 + _SAME):
            found.append(value)
    return found


def _doses(rows: pd.DataFrame) -> int:
    """Returns the largest number of doses of an (N, D)."""
    return int(rows.groupby(["params", "tokens"])["dose"].nunique().max()) if len(rows) else 0


def _need_facts(infused: pd.DataFrame, *, varied: bool) -> None:
    known = infused[_FACTS_COLUMN].notna() if _FACTS_COLUMN in infused else pd.Series(False, index=infused.index)
    if bool(known.all()):
        return
    row = infused[~known].iloc[0]
    which = f"params {int(row['params'])}, tokens {int(row['tokens'])}, F = {row['frequency']:g}, seed {row['seed']}"
    raise InputError(
        f"a run does not say how many facts it was infused with ({which})",
        where="analysis.axis",
        remedy="add a column infused_facts" + ("" if varied else ", or use axis: frequency"),
    )
