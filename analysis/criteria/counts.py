"""Rates by level, their weights, and rates drawn from a model of them.

Everything takes leading axes, so that a bootstrap's resamples go through one call: rates are [..., L] for L levels of
the dose, the seeds of a level pooled. How much a level's rate varies is known from the whole study
(`criteria.dispersion`); resamples need neither seeds nor an estimate of their own.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from megatron_kis.analysis.runs.curves import Array, Curve
from megatron_kis.config.analysis import AnalysisConfig


@dataclass(frozen=True)
class Evidence:
    """Rates of the levels with their seeds pooled, and their weights."""

    rate: Array
    """[..., L] share answered right."""
    weight: Array
    """[L] effective number of independent facts."""
    freedom: float = np.inf
    """Degrees of freedom behind the weights (`Dispersion.freedom`)."""
    single: npt.NDArray[np.bool_] | None = None
    """[L] whether a level is one run; None: none is."""

    def of(self, rate: Array) -> Evidence:
        """Returns the evidence of other rates [..., L] of the same levels."""
        return replace(self, rate=rate)


def generator_of(curve: Curve, settings: AnalysisConfig, *purpose: str) -> np.random.Generator:
    """Returns random numbers that depend on the settings' seed and on the curve, never on the order of curves."""
    name = (curve.slice.name,) if curve.slice.name else ()
    parts = (*purpose, curve.params, curve.tokens, curve.group, curve.split, curve.scoring, *name)
    return np.random.default_rng([settings.seed, zlib.crc32("/".join(map(str, parts)).encode())])


def pooled_rates(curve: Curve) -> Array:
    """Returns [L] the rates of a curve, its seeds pooled by their facts."""
    levels = zip(curve.seed_rates, curve.seed_facts, strict=True)
    # Sorted, so that the order of the table's rows does not change the last digit.
    sums = [float(np.sort(rates * facts).sum() / facts.sum()) for rates, facts in levels]
    return np.array(sums)


def draw(generator: np.random.Generator, p: Array, weight: Array, freedom: float, resamples: int) -> Array:
    """Draws rates [R, L] of levels with true rates ``p``, [L] or [R, L], and effective numbers of facts ``weight`` [L].

    Each resample has a dispersion of its own, ``freedom`` / chi-square(``freedom``) times the estimated one: not
    knowing it widens what is drawn.
    """
    p = np.clip(np.broadcast_to(p, (resamples, len(weight))), 0.0, 1.0)
    factor = np.ones((resamples, 1))
    if np.isfinite(freedom):
        factor = freedom / np.maximum(generator.chisquare(freedom, (resamples, 1)), 1e-9)
    size = np.maximum(np.rint(weight / factor), 1).astype(np.int64)
    return generator.binomial(size, p) / size
