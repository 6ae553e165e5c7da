"""Curves of rate versus dose: one row per run, group, split and scoring rule; seeds kept apart, and pooled by level.

The dose is the infusion frequency F or the number of infused facts K (`analysis.runs.slices`).

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

Optional columns, which a table has where they are known (`OPTIONAL_COLUMNS`):

| column | meaning |
|---|---|
| infused_facts | number of infused facts K |
| configured_ratio | the infusion ratio that was asked for, where F follows from it; empty where F was asked for |
| infused_bits | bits of the infused facts: the sum of log2 of the possible objects of each |
| mean_margin | score of the right option less the mean of the wrong ones, mean over questions, nats |
| mean_margin_sd | standard deviation of the facts' mean margins |
| pairwise | share of wrong options that score below the right one, mean over questions (chance 0.5) |
| pairwise_sd | standard deviation of the facts' shares |
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from megatron_kis.analysis.runs.load import Runs
from megatron_kis.analysis.runs.noise import LossNoise
from megatron_kis.analysis.runs.slices import USUAL, Slice, rows_of_slice, slices_of, varies_facts
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
FINER_COLUMNS = ["mean_margin", "mean_margin_sd", "pairwise", "pairwise_sd"]
"""Outcomes that change before an answer changes."""
OPTIONAL_COLUMNS = ["infused_facts", "configured_ratio", "infused_bits", *FINER_COLUMNS]
_CELL = ["params", "tokens", "frequency", "seed"]
_AMOUNT = ["infused_facts", "configured_ratio"]
_COUNTS_OF_FACTS = [*_AMOUNT, "infused_bits"]
_PAIR_CHANCE = 0.5
_SERIES = ["group", "split", "scoring"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Dispersion:
    """How much rates vary, in units of p (1 - p): a property of a study's group, not of one curve."""

    scale: float
    """Variance between seeds over the binomial variance p (1 - p) / facts. Below 1 where every run is asked the same
    facts, some easy and some hard."""
    level: float
    """Variance of what all seeds of a level share (the order of the data, say), over p (1 - p)."""
    freedom: float
    """Degrees of freedom behind both."""
    source: str
    """What it rests on, in words."""
    facts: float = 0.0
    """Facts of a run for which the scale holds; 0: any. A scale above 1 is a correlation, which grows with them."""

    def relative(self, facts: Array) -> Array:
        """Returns the scale of runs with ``facts`` over that of usual ones."""
        if self.scale <= 1 or self.facts <= 1:
            return np.ones_like(facts)
        grown: Array = 1 + (facts - 1) * (self.scale - 1) / (self.facts - 1)
        return grown / self.scale

    def effective(self, facts: Array, runs: npt.NDArray[np.int64]) -> Array:
        """Returns the effective numbers [L] of independent facts of levels.

        ``facts`` are those of all ``runs`` of each level together, both [L].
        """
        return 1 / (self.scale * self.relative(facts / runs) / facts + self.level)


@dataclass(frozen=True)
class Curve:
    """The rate-versus-dose curve of one (N, D) and slice: arrays over the L levels of the dose, in rising order."""

    params: int
    tokens: int
    nonembedding_params: int | None
    group: str
    split: str
    scoring: str
    dose: Array
    """[L] F, exposures of each infused fact; or K, number of infused facts (``slice``)."""
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
    slice: Slice = USUAL
    """What the dose is, and what is held."""
    exposures: Array | None = None
    """[L] exposures of all infused facts, K * F, NaN where unknown; None if nothing is known of K."""
    bits: Array | None = None
    """[L] bits of the infused facts, NaN where unknown; None if nothing is known of them."""
    seed_margins: tuple[Array, ...] | None = None
    """[L] arrays, each with one mean margin per seed (nats), NaN where unknown; None if none is known."""
    seed_margin_sds: tuple[Array, ...] | None = None
    """[L] arrays, each with one standard deviation of the facts' margins per seed; None if none is known."""
    loss_noise: LossNoise | None = None
    """Scatter of the losses of the study's runs; None where only this curve is known."""
    dispersion: Dispersion | None = None
    """How much the rates of the curve's study vary; None: not estimated from the whole study."""

    @property
    def cell(self) -> tuple[int, int, Slice]:
        """N, D and the slice."""
        return self.params, self.tokens, self.slice

    @property
    def symbol(self) -> str:
        """Symbol of the dose: F or K."""
        return self.slice.symbol

    @property
    def facts(self) -> Array:
        """[L] distinct facts, summed over the seeds."""
        return np.array([facts.sum() for facts in self.seed_facts])

    @property
    def runs(self) -> npt.NDArray[np.int64]:
        """[L] number of runs."""
        return np.array([len(rates) for rates in self.seed_rates], dtype=np.int64)

    @property
    def seeds(self) -> int:
        """Largest number of seeds at a level."""
        return max(len(rates) for rates in self.seed_rates)

    @property
    def mean_chance(self) -> float | None:
        """Chance level, the mean of the levels'; None where it is not known."""
        return float(np.nanmean(self.chance)) if np.isfinite(self.chance).any() else None

    @property
    def assumed_chance(self) -> float:
        """Chance level that rates are compared with: 0 where it is not known, which the flags of a point say."""
        return self.mean_chance or 0.0


def curve_table(runs: Runs) -> pd.DataFrame:
    """Returns the curve table (`CURVE_COLUMNS`, known `OPTIONAL_COLUMNS`) of complete runs at their last step.

    The rows are in canonical order.

    Raises:
        InputError: no complete run of the study; two runs of one cell and seed.
    """
    if runs.runs.empty:
        listed = "; ".join(f"{row.run}: {row.reason}" for row in rows_of(runs.problems.head(5)))
        problem, rule = "no complete run", "a run counts when its DONE exists"
        if not runs.unasked.empty:
            problem = "no complete run was asked the study's questions"
            rule = "kis study probe STUDY.yaml asks finished runs again, without training"
        elif not runs.foreign.empty:
            problem, rule = "no complete run of this study", f"{rule} and it was made as the study says"
        raise InputError(problem, where=str(runs.folder), remedy=f"{rule} ({listed})")
    amounts = runs.runs[[*_CELL, *_AMOUNT]].copy()
    amounts.loc[amounts["frequency"] == 0, _AMOUNT] = np.nan  # without infusion K says nothing
    repeated = runs.runs[amounts.duplicated(keep=False)]
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
    return canonical(with_known(table))


def with_known(table: pd.DataFrame) -> pd.DataFrame:
    """Returns the columns of a curve table: `CURVE_COLUMNS`, and those of `OPTIONAL_COLUMNS` that have a value."""
    known = [name for name in OPTIONAL_COLUMNS if name in table and table[name].notna().any()]
    return table[[*CURVE_COLUMNS, *known]]


def canonical(table: pd.DataFrame) -> pd.DataFrame:
    """Sorts rows by their content only and drops exact repeats."""
    keys = [*_SERIES, *_CELL, *(name for name in _AMOUNT if name in table)]
    return table.drop_duplicates().sort_values(keys, kind="stable").reset_index(drop=True)


def rows_of(table: pd.DataFrame) -> Iterator[Any]:
    """Iterates over the rows of a table as named tuples."""
    return iter(table.itertuples())


def primary_rows(table: pd.DataFrame, settings: AnalysisConfig) -> pd.DataFrame:
    """Returns the rows of the split and the scoring rule that the settings declare as the primary choice.

    Their rates are of the declared outcome (`with_outcome`).
    """
    mine = table[(table["split"] == settings.split) & (table["scoring"] == settings.scoring)]
    return with_outcome(mine, settings)


def with_outcome(table: pd.DataFrame, settings: AnalysisConfig) -> pd.DataFrame:
    """Returns a table with the declared outcome as its rate: ``correct`` and ``chance`` of ``pairwise`` are its own.

    Raises:
        InputError: the table does not have that outcome for every row.
    """
    if settings.outcome == "accuracy":
        return table
    if "pairwise" not in table or table["pairwise"].isna().any():
        raise InputError(
            "not every probe row has 'pairwise'",
            where="analysis.outcome",
            remedy="runs of this version write it; use outcome: accuracy for older ones",
        )
    return table.assign(correct=table["pairwise"] * table["n"], chance=_PAIR_CHANCE)


def cells_of_table(table: pd.DataFrame) -> list[tuple[int, int]]:
    """Returns the (N, D) cells of a curve table in rising order."""
    cells = table[["params", "tokens"]].drop_duplicates()
    return sorted((int(n), int(d)) for n, d in zip(cells["params"], cells["tokens"], strict=True))


def curves(table: pd.DataFrame, slices: Sequence[Slice] | None = None) -> list[Curve]:
    """Returns the curves of a curve table, ordered by slice, group, split, scoring, N and D.

    Args:
        table: the curve table.
        slices: which slices; those of the table (`slices_of`) if None. A part of a study's table needs the study's.
    """
    return [curve for one in (slices_of(table) if slices is None else slices) for curve in _iter_curves(table, one)]


def _iter_curves(table: pd.DataFrame, one: Slice) -> Iterator[Curve]:
    key: Any  # (group, split, scoring, params, tokens)
    rows_of_all = rows_of_slice(canonical(table), one)
    if one != USUAL:  # canonical order is by F
        rows_of_all = rows_of_all.sort_values([*_SERIES, "params", "tokens", "dose", "seed"], kind="stable")
    known = _amounts(rows_of_all) if one.held is not None or counts_facts(table) else {}
    for key, rows in rows_of_all.groupby([*_SERIES, "params", "tokens"], sort=True):
        group, split, scoring, params, tokens = key
        dose, first = np.unique(rows["dose"].to_numpy(float), return_index=True)
        nonembedding = rows["nonembedding_params"].dropna()
        column = {
            name: np.split(rows[name].to_numpy(float), first[1:])
            for name in ("n", "correct", "facts", "seed", "chance", "infusion_ratio", "validation_loss")
        }
        amounts: dict[str, list[Array]] = {
            name: np.split(values[rows.index].to_numpy(np.float64), first[1:]) for name, values in known.items()
        }
        levels = list(zip(column["correct"], column["n"], strict=True))
        yield Curve(
            params=int(params),
            tokens=int(tokens),
            nonembedding_params=int(nonembedding.iloc[0]) if len(nonembedding) else None,
            group=str(group),
            split=str(split),
            scoring=str(scoring),
            dose=dose,
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
            slice=one,
            exposures=_means(amounts["exposures"]) if "exposures" in amounts else None,
            bits=_means(amounts["bits"]) if "bits" in amounts else None,
            seed_margins=_by_level(rows, "mean_margin", first),
            seed_margin_sds=_by_level(rows, "mean_margin_sd", first),
        )


def _by_level(rows: pd.DataFrame, name: str, first: npt.NDArray[np.int64]) -> tuple[Array, ...] | None:
    """Returns [L] arrays of a column's values; None if none is known."""
    if name not in rows or rows[name].isna().all():
        return None
    return tuple(np.split(rows[name].to_numpy(np.float64), first[1:]))


def counts_facts(table: pd.DataFrame) -> bool:
    """Returns whether K of a table matters: several K were infused, or the bits of the facts are known.

    Where it does not, results are given as F alone.
    """
    return varies_facts(table) or ("infused_bits" in table and bool(table["infused_bits"].notna().any()))


def _amounts(table: pd.DataFrame) -> dict[str, pd.Series[float]]:
    """Returns exposures and bits of each row, by name, where something is known of them."""
    infused = table["frequency"] > 0
    found: dict[str, pd.Series[float]] = {}
    if "infused_facts" in table:
        found["exposures"] = (table["frequency"] * table["infused_facts"].astype(float)).where(infused, 0.0)
    if "infused_bits" in table:
        found["bits"] = table["infused_bits"].astype(float).where(infused, 0.0)
    return found


def _means(levels: list[Array]) -> Array:
    """Returns the mean [L] of the known values at each level, NaN where there is none."""
    known = [values[~np.isnan(values)] for values in levels]
    return np.array([values.mean() if len(values) else np.nan for values in known])


def mean_curves(rows: pd.DataFrame) -> pd.DataFrame:
    """Returns level means over seeds of the rows of a slice (`rows_of_slice`), with the lowest and highest seed.

    Columns: group, split, scoring, params, tokens, dose, rate, lowest, highest, seeds, chance, infusion_ratio.
    """
    rates = rows.assign(rate=rows["correct"] / rows["n"])
    grouped = rates.groupby([*_SERIES, "params", "tokens", "dose"], sort=True)
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
    if not counts_facts(table):
        whole = whole.drop(columns=[name for name in _COUNTS_OF_FACTS if name in whole])
    plain = ("frequency", "correct", "n", "facts", "nonembedding_params", *OPTIONAL_COLUMNS)
    for column in (name for name in plain if name in whole):
        whole[column] = [_plain(value) for value in whole[column]]
    with atomic_write(path) as file:
        whole.to_csv(file, index=False, lineterminator="\n")


def _plain(value: float | None) -> str:
    """Formats a number without a needless ``.0``; empty for a missing one."""
    if value is None or pd.isna(value):
        return ""
    return str(int(value)) if float(value).is_integer() else repr(float(value))
