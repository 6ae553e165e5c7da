"""How much rates vary between runs: one estimate for a study's group, from all that the study shows.

Three sources, joined by Bayes' rule over the two variances of `Dispersion`:

1. Seeds within levels, of all sizes, budgets and slices together: sum n (rate - mean)^2 over (seeds - 1) p (1 - p).
2. Level means about the best curve that rises and then falls, of every curve: its deviance over that of curves
   simulated at a scale of one. That works with one seed too, and is the only source on what the seeds of a level share.
3. A prior: log scale is Student's t with `_PRIOR_TAIL` degrees of freedom and scale `_PRIOR_SPREAD` around that of the
   correlation `analysis.overdispersion`, 1 + (facts - 1) * correlation. Its default of 0.01 is a standard deviation of
   seeds of 0.05 at a rate of one half. In this project's own studies (60 to 200 facts, the same ones asked of every
   run) the scale was 0.1 to 2.3, and 0.4 to 0.6 in those with three seeds; seeds of published small models vary as
   much as correlations of 0.01 to 0.05. The prior weighs like about three degrees of freedom, a factor of seven to
   either side, and gives way to data that contradict it. That of the level's variance has the median `_LEVEL` and a
   long tail.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import scipy

from megatron_kis.analysis.criteria.counts import draw, pooled_rates
from megatron_kis.analysis.criteria.remembered import remembered
from megatron_kis.analysis.criteria.unimodal import log_likelihood, unimodal_fit, unimodal_likelihood
from megatron_kis.analysis.runs.curves import Array, Curve, Dispersion
from megatron_kis.analysis.runs.groups import base_group
from megatron_kis.config.analysis import AnalysisConfig

PRIOR_FREEDOM = 3.0
_PRIOR_TAIL, _PRIOR_SPREAD = 4.0, 0.75
_LEVEL = 0.0003  # of p (1 - p): a standard deviation of 0.04 on the logit scale
_FEWEST_LEVELS = 4  # fewer say nothing about the scatter around their best curve
_RESAMPLES = 200
# Degrees of freedom, as simulated studies of 4 to 12 levels and 1 to 3 seeds have them (tests/analysis).
_PER_SEED, _FIRST_SHAPE, _PER_LEVEL = 0.95, 0.4, 0.55


def with_dispersion(curves: Sequence[Curve], settings: AnalysisConfig) -> list[Curve]:
    """Returns the curves with the dispersion of their group, estimated from all of ``curves``; one they have is kept.

    Control facts get none: no criterion looks at their rates. Curves of one split and scoring rule are expected.
    """
    missing = {base_group(curve.group) for curve in curves if curve.dispersion is None} - {"control"}
    found = {
        base: study_dispersion([c for c in curves if base_group(c.group) == base], settings) for base in sorted(missing)
    }
    return [replace(c, dispersion=c.dispersion or found.get(base_group(c.group))) for c in curves]


def dispersion_of(curve: Curve, settings: AnalysisConfig) -> Dispersion:
    """Returns the dispersion of a curve: its study's, or what it shows itself, together with the prior."""
    return curve.dispersion or study_dispersion([curve], settings)


def study_dispersion(curves: Sequence[Curve], settings: AnalysisConfig) -> Dispersion:
    """Returns the dispersion of curves of one group, which need not be of one size, budget or slice.

    That of the last groups is cached: points, laws and figures need the same.
    """
    return _estimated(_independent(curves), settings)


def _key(curves: Sequence[Curve], settings: AnalysisConfig) -> bytes:
    """Returns a digest of everything that the dispersion of curves depends on."""
    digest = hashlib.sha256(f"{settings.overdispersion} {settings.seed}".encode())
    for curve in curves:
        digest.update(f"{curve.params} {curve.tokens} {[len(rates) for rates in curve.seed_rates]}".encode())
        for part in (*curve.seed_rates, *curve.seed_facts, curve.facts, curve.runs, pooled_rates(curve)):
            digest.update(np.ascontiguousarray(part).tobytes())
    return digest.digest()


@remembered(32, _key)
def _estimated(curves: Sequence[Curve], settings: AnalysisConfig) -> Dispersion:
    per_run = np.concatenate([facts for curve in curves for facts in curve.seed_facts])
    usual = float(np.median(per_run))
    prior = 1 + max(usual - 1, 0.0) * settings.overdispersion
    within, freedom = _within(curves, usual, prior)
    guess = (PRIOR_FREEDOM * prior + freedom * within) / (PRIOR_FREEDOM + freedom)
    seen = Dispersion(guess, 0.0, freedom, "", usual)
    shapes = [one for one in (_around(curve, seen, settings) for curve in curves) if one is not None]
    facts = float(np.median(np.concatenate([_facts_of(curve, seen) for curve in curves])))
    scale, level, total = _posterior(prior, (within, freedom), shapes, facts)
    return Dispersion(scale, level, total, _said(curves, freedom, len(shapes)), usual)


def expected_dispersion(facts: float, models: Sequence[Sequence[int]], settings: AnalysisConfig) -> Dispersion:
    """Returns the dispersion that a study will find if its runs vary as `AnalysisConfig.overdispersion` expects.

    Args:
        facts: that a run is asked about.
        models: runs at each level, by model.
        settings: the declared settings.
    """
    prior = 1 + max(facts - 1, 0.0) * settings.overdispersion
    within = _PER_SEED * sum(runs - 1 for levels in models for runs in levels)
    usual = facts * float(np.median([runs for levels in models for runs in levels]))
    shapes = [
        (prior, _FIRST_SHAPE + _PER_LEVEL * (len(levels) - _FEWEST_LEVELS), usual)
        for levels in models
        if len(levels) >= _FEWEST_LEVELS
    ]
    scale, level, freedom = _posterior(prior, (prior, within), shapes, usual)
    return Dispersion(scale, level, freedom, "expected", facts)


def _independent(curves: Sequence[Curve]) -> list[Curve]:
    """Returns curves of a whole group where there are some: those of its strengths are parts of them."""
    whole = [curve for curve in curves if curve.group == base_group(curve.group)]
    return whole or list(curves)


def _facts_of(curve: Curve, dispersion: Dispersion) -> Array:
    """Returns [L] the facts of the levels, each counted as usual runs would have to have to be known as well."""
    return curve.facts / dispersion.relative(curve.facts / curve.runs)


def _within(curves: Sequence[Curve], usual: float, guess: float) -> tuple[float, float]:
    """Returns (scale, degrees of freedom) of the seeds within levels; a level of two slices counts once."""
    rows: list[tuple[float, float, float, float]] = []  # sum of squares, p (1 - p), degrees of freedom, facts of a run
    seen: set[tuple[object, ...]] = set()
    for curve in curves:
        for rates, facts in zip(curve.seed_rates, curve.seed_facts, strict=True):
            own = (curve.params, curve.tokens, *sorted(zip(rates.tolist(), facts.tolist(), strict=True)))
            if len(rates) < 2 or own in seen:
                continue
            seen.add(own)
            mean = float((rates * facts).sum() / facts.sum())
            squares = float((facts * (rates - mean) ** 2).sum())
            rows.append((squares, mean * (1 - mean), len(rates) - 1, float(facts.mean())))
    if not rows or not any(variance > 0 for _, variance, _, _ in rows):
        return 1.0, 0.0
    squares, variance, freedom, facts = np.array(rows).T
    expected = float((freedom * variance).sum())
    scale = guess
    for _ in range(20 if np.ptp(facts) > 0 else 1):  # how much a level of more facts should vary depends on the scale
        relative = Dispersion(scale, 0.0, 0.0, "", usual).relative(facts)
        scale = float((squares / relative).sum()) / expected
    return scale, expected**2 / float((freedom * variance**2).sum())


def _around(curve: Curve, guess: Dispersion, settings: AnalysisConfig) -> tuple[float, float, float] | None:
    """Returns (scale, degrees of freedom, facts of a level) of level means about the best curve; None of few levels.

    The scale counts the facts of all seeds of a level: it is that of the seeds, and what they share on top. ``guess``
    is what the noise of the simulated curves starts from, for how much of it a fit follows depends on how large it is.
    """
    facts = _facts_of(curve, guess)
    if len(facts) < _FEWEST_LEVELS:
        return None
    rate = pooled_rates(curve)
    exact = float(log_likelihood(rate, rate, facts).sum())
    deviance = 2 * (exact - float(unimodal_likelihood(rate, facts)))
    generator = np.random.default_rng([settings.seed, 3])
    scale, freedom = guess.scale, 0.0
    for _ in range(2):
        weight = facts / scale
        fit = unimodal_fit(rate, weight)
        # A level at 0 or 1 shows no noise however much runs vary, and must not be treated as a level without any.
        p = np.where((fit > 0) & (fit < 1), (fit * weight + 0.5) / (weight + 1), fit)
        drawn = draw(generator, p, weight, np.inf, _RESAMPLES)
        noise = 2 * (log_likelihood(drawn, drawn, weight).sum(axis=1) - unimodal_likelihood(drawn, weight))
        mean, variance = float(noise.mean()), float(noise.var())
        if mean <= 1e-6 or variance <= 0:
            return None
        freedom = 2 * mean**2 / variance
        # A deviance of 0 is one of few levels in order, not of no noise: see the degrees of freedom.
        scale = float(np.clip(deviance / mean, 0.02, 1e3))
    return deviance / mean, freedom, float(np.median(facts))


def _posterior(
    prior: float, within: tuple[float, float], around: Sequence[tuple[float, float, float]], facts: float
) -> tuple[float, float, float]:
    """Returns (scale, level, degrees of freedom) from the three sources, on a grid of both variances.

    ``facts`` are those of all seeds of a usual level. Each source has sum of squares / variance ~ chi-square. What a
    test needs is the variance of a level's mean, scale + facts * level; its logarithm's mean and variance over the grid
    are those of freedom * scale / chi-square(freedom).
    """
    scale = prior * np.exp(np.linspace(np.log(1e-3), np.log(1e3), 241))[:, None]
    level = np.concatenate([[0.0], np.geomspace(1e-5, 0.3, 60)])[None, :]

    def says(found: float, freedom: float, variance: Array) -> Array:
        return -0.5 * freedom * (np.log(variance) + found / variance)

    away = np.log(scale / prior) / _PRIOR_SPREAD
    said = -0.5 * (_PRIOR_TAIL + 1) * np.log1p(away**2 / _PRIOR_TAIL) + np.log(_share_of_level(level))
    said = said + says(within[0], within[1], scale)
    for found, freedom, own in around:
        said = said + says(found, freedom, scale + own * level)
    weight = np.exp(said - said.max())
    weight /= weight.sum()
    total = scale + facts * level
    mean = float((weight * np.log(total)).sum())
    spread = float((weight * (np.log(total) - mean) ** 2).sum())
    freedom = 2 * _inverse_trigamma(spread)
    whole = float(np.exp(mean - np.log(freedom / 2) + scipy.special.digamma(freedom / 2)))
    shared = float((weight * facts * level / total).sum())
    return whole * (1 - shared), whole * shared / facts, freedom


def _share_of_level(level: Array) -> Array:
    """Returns the prior masses of the grid of level variances: beyond x lie 1 / (1 + x / m)^2, with median `_LEVEL`."""
    below = 1 - (1 + level * (np.sqrt(2) - 1) / _LEVEL) ** -2.0
    edges = np.concatenate([(below[:, 1:] + below[:, :-1]) / 2, np.ones((1, 1))], axis=1)
    return np.diff(edges, prepend=0.0, axis=1)


def _inverse_trigamma(value: float) -> float:
    """Returns x with trigamma(x) = value, by Newton's steps on 1 / trigamma, which is nearly straight."""
    x = 0.5 + 1 / value
    for _ in range(20):
        there = float(scipy.special.polygamma(1, x))
        x += there * (1 - there / value) / float(scipy.special.polygamma(2, x))
    return x


def _said(curves: Sequence[Curve], freedom: float, shapes: int) -> str:
    several = f"{len(curves)} curves" if len(curves) > 1 else "one curve"
    if freedom < 1:
        return f"the prior and the levels of {several}; one seed" if shapes else "the prior alone; one seed"
    return f"the seeds and the levels of {several}"
