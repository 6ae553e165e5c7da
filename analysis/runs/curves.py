"""Rate-versus-frequency curves: one row per run, group, split and scoring rule; seeds kept apart, and pooled by level.

The curve table is the same whether it comes from run folders or from a ``curves.csv`` of another trainer:

| column | meaning |
|---|---|
| params, nonembedding_params | total and non-embedding N |
| tokens | token budget D |
| frequency | infusion frequency F, exposures of each infused fact |
| seed | one trained run per (params, tokens, frequency, seed) |
| n, correct | probe questions, and those answered right |
| facts | distinct facts behind the questions: the unit of evidence within a run |
| chance | mean of 1/options |
| group, split, scoring | infused/background/control, train/held_out/question, the scoring rule |
| validation_loss | final loss on general text, nats per token |
| infusion_ratio | share of the training tokens spent on exposures of infused facts |
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from megatron_kis.analysis.runs.load import Runs
from megatron_kis.common.errors import InputError
from megatron_kis.common.files import atomic_write
from megatron_kis.config.analysis import AnalysisConfig

CURVE_COLUMNS = [
    "params",
    "tokens",
    "frequency",
    "seed",
    "n",
    "correct",
    "facts",
    "chance",
    "group",
    "split",
    "scoring",
    "nonembedding_params",
    "validation_loss",
    "infusion_ratio",
]
_CELL = ["params", "tokens", "frequency", "seed"]
_SERIES = ["group", "split", "scoring"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """The rate-versus-F curve of one (N, D): arrays over the L levels of F, in rising order."""

    params: int
    tokens: int
    nonembedding_params: int | None
    group: str
    split: str
    scoring: str
    frequency: Array
    """[L] exposures of each infused fact."""
    rate: Array
    """[L] questions answered right / questions, seeds pooled."""
    seed_rates: tuple[Array, ...]
    """[L] arrays, each with one rate per seed."""
    seed_facts: tuple[Array, ...]
    """[L] arrays, each with one number of distinct facts per seed."""
    chance: Array
    """[L] chance level, NaN where unknown."""
    ratio: Array
    """[L] infusion ratio, NaN where unknown."""
    loss: Array
    """[L] mean validation loss, NaN where unknown."""
    seed_losses: tuple[dict[int, float], ...]
    """[L] dicts seed -> validation loss."""

    @property
    def seeds(self) -> int:
        """Largest number of seeds at a level."""
        return max(len(rates) for rates in self.seed_rates)

    @property
    def mean_chance(self) -> float | None:
        """Chance level, the mean of the levels'; None where it is not known."""
        return float(np.nanmean(self.chance)) if np.isfinite(self.chance).any() else None


def curve_table(runs: Runs) -> pd.DataFrame:
    """Returns the curve table (`CURVE_COLUMNS`) of complete runs at their last step, in canonical order.

    Raises:
        InputError: no complete run of the study; two runs of one cell and seed.
    """
    if runs.runs.empty:
        listed = "; ".join(f"{row.run}: {row.reason}" for row in rows_of(runs.problems.head(5)))
        problem, rule = "no complete run", "a run counts when its DONE exists"
        if not runs.foreign.empty:
            problem, rule = "no complete run of this study", f"{rule} and it was made as the study says"
        raise InputError(problem, where=str(runs.folder), remedy=f"{rule} ({listed})")
    repeated = runs.runs[runs.runs.duplicated(_CELL, keep=False)]
    if len(repeated):
        names = ", ".join(repeated["run"].head(4))
        raise InputError(
            f"several runs of one cell and seed ({names})",
            where=str(runs.folder),
            remedy="keep one, or give each a seed",
        )
    final = runs.losses.sort_values("step").groupby("run")["loss"].last()
    table = runs.probes.merge(runs.runs, on="run", validate="many_to_one")
    table["validation_loss"] = table["run"].map(final).astype(float)
    return canonical(table[CURVE_COLUMNS])


def canonical(table: pd.DataFrame) -> pd.DataFrame:
    """Sorts rows by their content only and drops exact repeats."""
    keys = [*_SERIES, *_CELL]
    return table.drop_duplicates().sort_values(keys, kind="stable").reset_index(drop=True)


def rows_of(table: pd.DataFrame) -> Iterator[Any]:
    """Iterates over the rows of a table as named tuples."""
    return iter(table.itertuples())


def primary_rows(table: pd.DataFrame, settings: AnalysisConfig) -> pd.DataFrame:
    """Returns the rows of the split and the scoring rule that the settings declare as the primary choice."""
    return table[(table["split"] == settings.split) & (table["scoring"] == settings.scoring)]


def cells_of_table(table: pd.DataFrame) -> list[tuple[int, int]]:
    """Returns the (N, D) cells of a curve table in rising order."""
    return sorted({(int(n), int(d)) for n, d in zip(table["params"], table["tokens"], strict=True)})


def curves(table: pd.DataFrame) -> list[Curve]:
    """Returns the curves of a curve table, ordered by group, split, scoring, N and D."""
    return list(_iter_curves(table))


def _iter_curves(table: pd.DataFrame) -> Iterator[Curve]:
    key: Any  # (group, split, scoring, params, tokens)
    for key, rows in canonical(table).groupby([*_SERIES, "params", "tokens"], sort=True):
        group, split, scoring, params, tokens = key
        frequency, first = np.unique(rows["frequency"].to_numpy(float), return_index=True)
        nonembedding = rows["nonembedding_params"].dropna()
        column = {
            name: np.split(rows[name].to_numpy(float), first[1:])
            for name in ("n", "correct", "facts", "seed", "chance", "infusion_ratio", "validation_loss")
        }
        levels = list(zip(column["correct"], column["n"], strict=True))
        yield Curve(
            params=int(params),
            tokens=int(tokens),
            nonembedding_params=int(nonembedding.iloc[0]) if len(nonembedding) else None,
            group=str(group),
            split=str(split),
            scoring=str(scoring),
            frequency=frequency,
            rate=np.array([correct.sum() / n.sum() for correct, n in levels]),
            seed_rates=tuple(correct / n for correct, n in levels),
            seed_facts=tuple(column["facts"]),
            chance=_means(column["chance"]),
            ratio=_means(column["infusion_ratio"]),
            loss=_means(column["validation_loss"]),
            seed_losses=tuple(
                {int(seed): float(loss) for seed, loss in zip(seeds, losses, strict=True) if np.isfinite(loss)}
                for seeds, losses in zip(column["seed"], column["validation_loss"], strict=True)
            ),
        )


def _means(levels: list[Array]) -> Array:
    """Returns the mean [L] of the known values at each level, NaN where there is none."""
    known = [values[~np.isnan(values)] for values in levels]
    return np.array([values.mean() if len(values) else np.nan for values in known])


def mean_curves(table: pd.DataFrame) -> pd.DataFrame:
    """Returns level means over seeds, with the lowest and highest seed.

    Columns: group, split, scoring, params, tokens, frequency, rate, lowest, highest, seeds, chance, infusion_ratio.
    """
    rates = table.assign(rate=table["correct"] / table["n"])
    grouped = rates.groupby([*_SERIES, "params", "tokens", "frequency"], sort=True)
    summary = grouped.agg(
        rate=("rate", "mean"),
        lowest=("rate", "min"),
        highest=("rate", "max"),
        seeds=("rate", "size"),
        chance=("chance", "mean"),
        infusion_ratio=("infusion_ratio", "mean"),
    )
    return summary.reset_index()


def write_curves_csv(table: pd.DataFrame, path: Path) -> None:
    """Writes a curve table as ``curves.csv``; `analysis.runs.load_csv.load_curves_csv` reads it back unchanged."""
    whole = table.copy()
    for column in ("frequency", "correct", "n", "facts", "nonembedding_params"):
        whole[column] = [_plain(value) for value in whole[column]]
    with atomic_write(path) as file:
        whole.to_csv(file, index=False, lineterminator="\n")


def _plain(value: float | None) -> str:
    """Formats a number without a needless ``.0``; empty for a missing one."""
    if value is None or pd.isna(value):
        return ""
    return str(int(value)) if float(value).is_integer() else repr(float(value))
