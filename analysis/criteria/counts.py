"""Counts by level and seed: their effective size, and curves drawn from a model of them.

Everything takes leading axes, so that a bootstrap's resamples go through one call: rates are [..., L, S] for L levels
of the dose and S seeds, NaN where a seed was not run.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from megatron_kis.analysis.runs.curves import Array, Curve
from megatron_kis.config.analysis import AnalysisConfig

FEW_SEEDS = 3  # degrees of freedom below which a between-seed variance says nothing


@dataclass(frozen=True)
class Evidence:
    """Rates of the levels with their seeds pooled, and what they weigh."""

    rate: Array
    """[..., L] share answered right, seeds pooled by their facts."""
    weight: Array
    """[..., L] effective number of independent facts, seeds summed."""
    icc: Array
    """[...] intraclass correlation of the facts of one run."""
    spread: Array
    """[...] pooled standard deviation of the rate between seeds; 0 where seeds are too few to tell."""

    def of(self, index: int) -> Evidence:
        """Returns the evidence of one curve of several."""
        return Evidence(self.rate[index], self.weight[index], self.icc[index], self.spread[index])


def generator_of(curve: Curve, settings: AnalysisConfig, *purpose: str) -> np.random.Generator:
    """Returns random numbers that depend on the settings' seed and on the curve, never on the order of curves."""
    name = (curve.slice.name,) if curve.slice.name else ()
    parts = (*purpose, curve.params, curve.tokens, curve.group, curve.split, curve.scoring, *name)
    return np.random.default_rng([settings.seed, zlib.crc32("/".join(map(str, parts)).encode())])


def seed_matrix(curve: Curve) -> tuple[Array, Array]:
    """Returns (rates, facts), both [L, S]; NaN and 0 where a level has fewer seeds than another."""
    rates = np.full((len(curve.dose), curve.seeds), np.nan)
    facts = np.zeros_like(rates)
    for level, (r, n) in enumerate(zip(curve.seed_rates, curve.seed_facts, strict=True)):
        # In an order of their own: the table's row order must not reach the random numbers.
        order = np.lexsort((n, r))
        rates[level, : len(r)], facts[level, : len(n)] = r[order], n[order]
    return rates, facts


def evidence(rates: Array, facts: Array, floor: float) -> Evidence:
    """Pools the seeds of rates [..., L, S] of ``facts`` [L, S]; ``floor`` is the least intraclass correlation.

    A level of n facts in one run weighs like ``n / (1 + (n - 1) * icc)`` independent ones (the design effect of cluster
    sampling). The correlation is a moment estimate from the spread of the seeds where at least three degrees of freedom
    are there, and the floor otherwise.
    """
    there = facts > 0
    filled = np.where(there, rates, 0.0)
    total = facts.sum(axis=-1)
    rate = (filled * facts).sum(axis=-1) / total
    more = np.maximum(there.sum(axis=-1) - 1, 0)
    icc = np.full(rate.shape[:-1], float(floor))
    spread = np.zeros(rate.shape[:-1])
    freedom = int(more.sum())
    if freedom >= FEW_SEEDS:
        # Between-seed sum of squares less what binomial counts alone would show, over what full correlation would add.
        centre = filled.sum(axis=-1) / there.sum(axis=-1)
        squares = (np.where(there, rates - centre[..., None], 0.0) ** 2).sum(axis=-1)  # (seeds - 1) * variance
        spread = np.sqrt(squares.sum(axis=-1) / freedom)
        n = total / there.sum(axis=-1)
        usable = (more > 0) & (n > 1)
        binomial = rate * (1 - rate)
        excess = np.where(usable, squares - more * binomial / n, 0.0).sum(axis=-1)
        scale = np.where(usable, more * binomial * (1 - 1 / n), 0.0).sum(axis=-1)
        found = np.divide(excess, scale, out=np.full_like(scale, floor), where=scale > 0)
        icc = np.clip(found, floor, 0.99)
    design = 1 + np.maximum(facts - 1, 0) * icc[..., None, None]
    return Evidence(rate, (facts / design).sum(axis=-1), icc, spread)


def draw(generator: np.random.Generator, p: Array, facts: Array, icc: float, resamples: int) -> Array:
    """Draws rates [R, L, S] of beta-binomial seeds around ``p`` [L] or [R, L]; NaN where there is no seed."""
    p = np.clip(np.broadcast_to(p, (resamples, len(facts)))[..., None], 1e-9, 1 - 1e-9)
    shape = (resamples, *facts.shape)
    if icc > 0:
        strength = 1 / icc - 1
        p = generator.beta(np.broadcast_to(p * strength, shape), np.broadcast_to((1 - p) * strength, shape))
    n = np.broadcast_to(facts.astype(np.int64), shape)
    counts = generator.binomial(n, np.broadcast_to(p, shape))
    return np.where(n > 0, counts / np.maximum(n, 1), np.nan)
