"""Simulated studies with a known truth, 1M to 70B parameters, to test the methods before they are used on data.

A truth defines the collapse points (`collapse_point`: a power law in N and D, optionally with an offset or a curvature,
and a scatter between models), the shape of curves (rise, plateau, hinge, chance floor) and their measurement (facts,
seeds, beta-binomial counts). `simulate_curve` and `simulate_table` return inputs of the analysis; `write_runs` writes
whole run folders.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from megatron_kis.analysis.criteria.hinge_fit import link, rate_of
from megatron_kis.analysis.runs.curves import (
    CURVE_COLUMNS,
    FINER_COLUMNS,
    OPTIONAL_COLUMNS,
    Array,
    Curve,
    canonical,
    rows_of,
    with_known,
)
from megatron_kis.analysis.runs.slices import FACTS, RATIO, USUAL, Slice

Cell = tuple[int, int]
"""N and D of a model: (params, tokens)."""


@dataclass(frozen=True, kw_only=True)
class Truth:
    """A known truth. Rates are those of background facts unless stated otherwise."""

    collapse_at: float = 400.0
    """F* of the reference model, exposures per fact."""
    reference: Cell = (100_000_000, 2_000_000_000)
    size_exponent: float = 0.25
    """b of log F* = a + b log N + c log D."""
    budget_exponent: float = 0.0
    """c of log F* = a + b log N + c log D."""
    curvature: float = 0.0
    """Coefficient of (log N/N_reference)^2; zero if the law is well specified."""
    offset: float = 0.0
    """F_inf, which is added to the power law."""
    scatter: float = 0.10
    """sigma: standard deviation of log F* between models of one (N, D)."""
    noise: str = "gaussian"
    """Shape of the scatter: ``gaussian`` or ``t4`` (Student's t, 4 degrees of freedom, the same variance)."""
    collapses: bool = True
    """Whether curves fall beyond F*."""
    chance: float = 0.25
    base: float = 0.55
    """Rate without infusion."""
    plateau: float = 0.80
    steepness: float = 6.0
    """gamma: fall of the logit per e-fold of F beyond F*."""
    rise: float = 0.08
    """Share of F* at which half of the rise is reached."""
    facts: int = 120
    correlation: float = 0.01
    """Intraclass correlation of the facts of a run, which a seed moves together."""
    fact_tokens: float = 15.0
    """Mean length of an exposure."""
    fact_bits: float | None = None
    """Bits of an infused fact; None: not written into the table."""
    loss: float = 3.0
    """Validation loss of the reference model at F = 0, nats per token."""

    def collapse_point(self, params: float, tokens: float) -> float:
        """Returns F* of the law, without scatter."""
        n, d = math.log(params / self.reference[0]), math.log(tokens / self.reference[1])
        power = math.log(self.collapse_at) + self.size_exponent * n + self.budget_exponent * d
        return self.offset + math.exp(power + self.curvature * n * n)

    def scatters(self, generator: np.random.Generator, count: int) -> Array:
        """Draws [count] deviations of log F* from the law."""
        if self.noise == "t4":
            return self.scatter * generator.standard_t(4, size=count) / math.sqrt(2.0)
        return self.scatter * generator.standard_normal(count)

    def rates(self, frequency: Array, collapse: float) -> Array:
        """Returns the true rates [L] of a model that collapses at ``collapse``."""
        f = np.asarray(frequency, dtype=float)
        half = self.rise * collapse
        risen = np.minimum(1.25 * f**2 / (f**2 + half**2), 1.0)  # saturates: the plateau is reached at 2 half
        low, high = link(np.array([self.base, self.plateau]), self.chance)
        with np.errstate(divide="ignore"):
            beyond = np.maximum(np.log(f) - math.log(collapse), 0.0) if self.collapses else 0.0
        return rate_of(low + (high - low) * risen - self.steepness * beyond, self.chance)

    def infused(self, frequency: Array, collapse: float) -> Array:
        """Returns the true rates [L] of the infused facts: chance, a jump, a lasting plateau."""
        f = np.asarray(frequency, dtype=float)
        return self.chance + (0.95 - self.chance) * f**3 / (f**3 + (self.rise * collapse) ** 3)

    def ratio(self, dose: float, tokens: float, one: Slice = USUAL) -> float:
        """Returns the infusion ratio at a dose."""
        if one.held_by == RATIO and one.held is not None:
            return one.held if dose > 0 else 0.0
        return dose * (self.facts if one.held is None else one.held) * self.fact_tokens / tokens

    def validation_loss(self, params: float, frequency: float, collapse: float) -> float:
        """Returns the loss on general text, which rises with F and is 5% above that of F = 0 at F*."""
        loss: float = self.loss * (params / self.reference[0]) ** -0.05 * (1 + 0.05 * (frequency / collapse) ** 1.5)
        return loss


def draw_seeds(generator: np.random.Generator, p: Array, facts: Array, icc: float, resamples: int) -> Array:
    """Draws rates [R, L, S] of beta-binomial seeds around ``p``, [L] or [R, L]; NaN where there is no seed.

    ``facts`` is [L, S]; ``icc`` the intraclass correlation of the facts of a run, which its seed moves together.
    """
    p = np.clip(np.broadcast_to(p, (resamples, len(facts)))[..., None], 1e-9, 1 - 1e-9)
    shape = (resamples, *facts.shape)
    if icc > 0:
        strength = 1 / icc - 1
        p = generator.beta(np.broadcast_to(p * strength, shape), np.broadcast_to((1 - p) * strength, shape))
    n = np.broadcast_to(facts.astype(np.int64), shape)
    counts = generator.binomial(n, np.broadcast_to(p, shape))
    return np.where(n > 0, counts / np.maximum(n, 1), np.nan)


def simulate_curve(
    truth: Truth,
    cell: Cell,
    frequency: Sequence[float],
    seeds: int,
    generator: np.random.Generator,
    *,
    collapse: float | None = None,
    group: str = "background",
    one: Slice = USUAL,
) -> Curve:
    """Simulates a measured curve over the doses ``frequency`` of a slice.

    ``collapse`` is its F* (or K*); if None, that of the law with a drawn scatter. ``facts`` of the truth are the facts
    that are asked about, at every dose.
    """
    params, tokens = cell
    if collapse is None:
        collapse = truth.collapse_point(params, tokens) * math.exp(float(truth.scatters(generator, 1)[0]))
    f = np.array(frequency, dtype=float)
    facts = np.full((len(f), seeds), float(truth.facts))
    if group == "control":
        p = np.full(len(f), truth.chance)
    else:
        p = truth.infused(f, collapse) if group == "infused" else truth.rates(f, collapse)
    rates = draw_seeds(generator, p, facts, truth.correlation, 1)[0]
    loss = np.array([truth.validation_loss(params, value, collapse) for value in f])
    return replace(
        measured_curve(cell, f, rates, facts, truth.chance),
        nonembedding_params=round(0.8 * params),
        group=group,
        ratio=np.array([truth.ratio(value, tokens, one) for value in f]),
        loss=loss,
        seed_losses=tuple({seed: float(value) for seed in range(seeds)} for value in loss),
        slice=one,
        bits=None if truth.fact_bits is None else truth.fact_bits * _facts_at(truth, f, one),
    )


def measured_curve(cell: Cell, dose: Array, rates: Array, facts: Array, chance: float) -> Curve:
    """Returns a curve of background facts from rates [L, S] of ``facts`` [L, S] at doses [L], with all that it needs.

    Every seed has to be run at every dose.
    """
    unknown = np.full(len(dose), np.nan)
    return Curve(
        params=cell[0],
        tokens=cell[1],
        nonembedding_params=None,
        group="background",
        split="held_out",
        scoring="statement",
        dose=dose,
        rate=(rates * facts).sum(axis=1) / facts.sum(axis=1),
        seed_rates=tuple(rates),
        seed_facts=tuple(facts),
        chance=np.full(len(dose), chance),
        ratio=unknown,
        loss=unknown,
        seed_losses=({},) * len(dose),
    )


def _facts_at(truth: Truth, dose: Array, one: Slice) -> Array:
    """Returns [L] the number of infused facts of doses; 0 without infusion."""
    if one.axis == FACTS:
        return dose
    return np.where(dose > 0, float(truth.facts) if one.held is None else one.held, 0.0)


def simulate_curves(
    truth: Truth,
    cells: Iterable[Cell],
    frequencies: Sequence[float] | dict[Cell, Sequence[float]],
    seeds: int,
    generator: np.random.Generator,
    *,
    groups: Sequence[str] = ("background",),
    one: Slice = USUAL,
) -> tuple[list[Curve], dict[Cell, float]]:
    """Simulates curves of every cell; returns them and each cell's F* (or K*).

    ``frequencies``: one grid of doses, or one per cell.
    """
    curves, collapse = [], {}
    for cell in cells:
        point = truth.collapse_point(*cell) * math.exp(float(truth.scatters(generator, 1)[0]))
        grid = frequencies[cell] if isinstance(frequencies, dict) else frequencies
        collapse[cell] = point
        curves += [
            simulate_curve(truth, cell, grid, seeds, generator, collapse=point, group=group, one=one)
            for group in groups
        ]
    return curves, collapse


def table_of(curves: Iterable[Curve]) -> pd.DataFrame:
    """Returns simulated curves as a curve table (`megatron_kis.analysis.runs.curves.CURVE_COLUMNS`).

    Of a held ratio F follows with exposures of `Truth.fact_tokens` tokens.
    """
    rows = []
    for curve in curves:
        for level in range(len(curve.dose)):
            for seed, (rate, facts) in enumerate(zip(curve.seed_rates[level], curve.seed_facts[level], strict=True)):
                rows.append(
                    {
                        "params": curve.params,
                        "tokens": curve.tokens,
                        **_amount(curve, level),
                        "seed": seed,
                        "n": int(facts),
                        "correct": float(round(rate * facts)),
                        "facts": int(facts),
                        "chance": float(curve.chance[level]),
                        "group": curve.group,
                        "split": curve.split,
                        "scoring": curve.scoring,
                        "nonembedding_params": curve.nonembedding_params,
                        "validation_loss": curve.seed_losses[level].get(seed),
                        "infusion_ratio": curve.ratio[level],
                    }
                )
    return canonical(with_known(pd.DataFrame(rows, columns=[*CURVE_COLUMNS, *OPTIONAL_COLUMNS])))


def _amount(curve: Curve, level: int) -> dict[str, float]:
    """Returns what was infused at a level, by the columns of the curve table."""
    dose, one = float(curve.dose[level]), curve.slice
    bits = {} if curve.bits is None else {"infused_bits": float(curve.bits[level])}
    if dose == 0 or one == USUAL:
        return {"frequency": dose} | bits
    assert one.held is not None
    if one.axis != FACTS:
        return {"frequency": dose, "infused_facts": one.held} | bits
    if one.held_by != RATIO:
        return {"frequency": one.held, "infused_facts": dose} | bits
    shown = one.held * curve.tokens / (dose * Truth.fact_tokens)
    return {"frequency": shown, "infused_facts": dose, "configured_ratio": one.held} | bits


def simulate_table(
    truth: Truth,
    cells: Iterable[Cell],
    frequencies: Sequence[float] | dict[Cell, Sequence[float]],
    seeds: int,
    generator: np.random.Generator,
    *,
    groups: Sequence[str] = ("infused", "background", "control"),
    one: Slice = USUAL,
) -> tuple[pd.DataFrame, dict[Cell, float]]:
    """Simulates a curve table of one slice; returns it and each cell's F* (or K*)."""
    curves, collapse = simulate_curves(truth, cells, frequencies, seeds, generator, groups=groups, one=one)
    return table_of(curves), collapse


def write_runs(table: pd.DataFrame, folder: Path, *, study: str = "simulated") -> int:
    """Writes a run folder for every (N, D, F, K, seed) of a curve table below ``folder``; returns their number.

    The folders have the files that the analysis reads (run.json, metrics.jsonl, probes.jsonl, exposures.json, DONE)
    and are marked as simulated.
    """
    count = 0
    finer = [name for name in FINER_COLUMNS if name in table]
    amounts = [name for name in ("infused_facts", "configured_ratio") if name in table]
    key: Any  # (params, tokens, frequency, seed, infused_facts, configured_ratio)
    for key, rows in table.groupby(["params", "tokens", "frequency", "seed", *amounts], sort=True, dropna=False):
        params, tokens, seed = int(key[0]), int(key[1]), int(key[3])
        frequency = int(key[2]) if float(key[2]).is_integer() else float(key[2])
        shown = {column: float(value) for column, value in zip(amounts, key[4:], strict=True) if not np.isnan(value)}
        facts = f"-k{shown['infused_facts']:g}" if "infused_facts" in shown else ""
        name = f"n{params}-d{tokens}{facts}-f{frequency}-s{seed}"
        path = folder / name
        path.mkdir(parents=True, exist_ok=True)
        first = rows.iloc[0]
        run: dict[str, Any] = {
            "schema": "kis.run/1",
            "run": name,
            "study": study,
            "params": params,
            "nonembedding_params": int(first["nonembedding_params"]),
            "tokens": tokens,
            "infusion_frequency": frequency,
            "infusion_ratio": float(first["infusion_ratio"]),
            "seed": seed,
            "model": {"name": f"simulated-{params}"},
            "background_policy": "displaced",
            "simulated": True,
        }
        if "infused_facts" in shown:
            run["infused_facts"] = int(shown["infused_facts"])
        if "configured_ratio" in shown:
            run["settings"] = {"infusion": {"ratio": shown["configured_ratio"]}}
        if "infused_bits" in table and not np.isnan(first["infused_bits"]):
            run["infused_bits"] = float(first["infused_bits"])
        metrics = {"kind": "validation", "step": 1, "tokens": tokens, "loss": float(first["validation_loss"])}
        probes = [
            {
                "step": 1,
                "tokens": tokens,
                "group": row.group,
                "split": row.split,
                "scoring": row.scoring,
                "n": int(row.n),
                "facts": int(row.facts),
                "correct": int(row.correct),
                "chance": float(row.chance),
                **{column: float(getattr(row, column)) for column in finer},
            }
            for row in rows_of(rows)
        ]
        (path / "run.json").write_text(json.dumps(run), encoding="utf-8")
        (path / "metrics.jsonl").write_text(json.dumps(metrics) + "\n", encoding="utf-8")
        (path / "probes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in probes), encoding="utf-8")
        (path / "exposures.json").write_text(json.dumps({"schema": "kis.ledger/1"}), encoding="utf-8")
        (path / "DONE").write_text(json.dumps({"schema": "kis.done/1"}), encoding="utf-8")
        count += 1
    return count
