"""The scatter of runs' losses, estimated once for a study, and the runs that are outside it.

All sizes, budgets, slices and levels are pooled: two or three seeds of one level say little. Sources, in this order:

1. seeds within levels, if they leave at least three degrees of freedom;
2. a prior of few degrees of freedom, and how far each level lies from the line through its neighbours below the
   tolerance, where the loss hardly depends on the dose.

The prior is a relative standard deviation of 0.006 of a run with infusion and 0.012 of one without, with 4 degrees of
freedom. In the committed studies (docs/study/results, 10 thousand to 660 thousand parameters), pooled within levels,
they are 0.005 and 0.013; single studies with at least four degrees of freedom have 0.0037 to 0.0094 in all. Runs at
dose 0 have a standard deviation of their own for this reason. Where seeds are known it is drawn towards that of the
other runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import scipy

from megatron_kis.analysis.criteria.isotonic import isotonic_fit
from megatron_kis.analysis.runs.curves import Array, Curve
from megatron_kis.analysis.runs.noise import LossNoise

FEW_SEEDS = 3  # degrees of freedom below which a between-seed variance says nothing
PRIOR_SD = 0.006
PRIOR_SD_ZERO = 0.012
PRIOR_FREEDOM = 4.0
_ZERO_FREEDOM = 2.0  # weight of the common noise in that of dose 0
_LEAST_SD = 1e-4  # losses are recorded to four digits
_LEAST_OUTLIER = 0.01  # relative: a run within 1% of its level is none, however well the others agree
_OUTLIER_TAIL = 5e-4  # about one in a thousand levels of Gaussian runs has a run beyond it
_PAIRED_SHARE = 0.5  # a seed's shift is taken out where it is more than half of the variance within levels
_CURVATURE = 1.5  # power of the dose in which the excess is linear between two levels
_TRIPLE_FREEDOM = 0.2  # of one triple: the median of squares has 0.37 of their mean's, second differences about 0.55

Mask = npt.NDArray[np.bool_]


def loss_matrix(levels: Sequence[Mapping[int, float]]) -> tuple[Array, list[int]]:
    """Returns (log losses [L, S], the S seeds) of levels of losses by seed; NaN where a seed has none."""
    seeds = sorted({seed for losses in levels for seed in losses})
    rows = [[losses.get(seed, math.nan) for seed in seeds] for losses in levels]
    values = np.array(rows, dtype=np.float64).reshape(len(rows), len(seeds))
    return np.log(np.where(values > 0, values, math.nan)), seeds


def level_means(y: Array) -> tuple[Array, Array]:
    """Returns (means [L] of the known values, their numbers [L]); NaN where a level has none."""
    runs = np.isfinite(y).sum(axis=1)
    total = np.nansum(y, axis=1)
    return np.divide(total, runs, out=np.full(len(y), math.nan), where=runs > 0), runs.astype(np.float64)


def without_seeds(y: Array) -> Array:
    """Returns [L, S] log losses less what each seed shifts at all its levels, by least squares."""
    known = np.isfinite(y)
    level, seed = np.nonzero(known)
    design = np.zeros((len(level), sum(y.shape)))
    design[np.arange(len(level)), level] = 1
    design[np.arange(len(level)), y.shape[0] + seed] = 1
    shift = np.linalg.lstsq(design, y[known], rcond=None)[0][y.shape[0] :]
    adjusted: Array = y - (shift - shift.mean())
    return adjusted


def outliers(y: Array, noise: LossNoise) -> Mask:
    """Returns [L, S] the runs that are outside the noise, where their level or the neighbouring levels can tell.

    In a level of three or more seeds these are runs far from its median. With one or two it is the single run without
    which the means rise with the dose, which they do not with it (of two such runs the higher one: a run that diverges
    ends too high), or the higher of two that disagree.

    Args:
        y: log losses of levels in the order of their doses, dose 0 first.
        noise: of the study.
    """
    tail = float(scipy.special.stdtrit(noise.freedom, 1 - _OUTLIER_TAIL))
    sd = np.full(len(y), noise.within)
    sd[0] = max(noise.within, noise.zero)
    limit = math.sqrt(2) * tail  # of the difference of two runs
    sd = np.maximum(sd, _LEAST_OUTLIER / limit)
    scaled = y / sd[:, None]
    found = np.zeros(y.shape, dtype=bool)
    runs = np.isfinite(y).sum(axis=1)
    for level in np.flatnonzero(runs >= 3):
        found[level] = np.abs(scaled[level] - np.nanmedian(scaled[level])) > limit
    for _ in range(2):
        kept = np.where(found, math.nan, y)
        runs = np.isfinite(kept).sum(axis=1)
        apart = np.array(
            [
                n == 2 and np.ptp(row[known]) > limit
                for n, row, known in zip(runs, scaled, np.isfinite(kept), strict=True)
            ]
        )
        if misfit(kept, sd) <= limit**2 / 2 and not apart.any():
            break
        few = apart if apart.any() else runs <= 2
        choices = [(int(i), int(j)) for i, j in np.argwhere(np.isfinite(kept) & few[:, None])]
        if not choices:
            break
        after = [misfit(_less(kept, place), sd) for place in choices]
        order = sorted(range(len(choices)), key=lambda k: (round(after[k] / limit**2, 3), -kept[choices[k]]))
        if after[order[0]] > limit**2 / 2 and not apart.any():
            break  # no single run explains it: the loss falls and rises
        found[choices[order[0]]] = True
    return found


def _less(y: Array, place: tuple[int, int]) -> Array:
    rest = y.copy()
    rest[place] = math.nan
    return rest


def misfit(y: Array, sd: Array) -> float:
    """Returns the sum of squares of the level means about the best curve that rises with the dose.

    In units of the variance of a run, whose standard deviations at the levels are ``sd`` [L].
    """
    mean, runs = level_means(y)
    known = runs > 0
    mean, weight = mean[known], 1 / sd[known] ** 2
    if len(mean) < 2 or (np.diff(mean) >= 0).all():
        return 0.0
    return float((weight * (mean - isotonic_fit(mean, weight)) ** 2).sum())


def noise_of(curves: Iterable[Curve], tolerance: float) -> LossNoise:
    """Returns the noise of the losses of a study's curves; every group's curves have the same runs, counted once.

    Args:
        curves: of all sizes, budgets and slices.
        tolerance: relative excess of the loss that is looked for; neighbouring levels are compared below it.
    """
    studied = _distinct(curves)
    within = _pooled([level for y, _ in studied for level in y])
    if within is None:
        return _without_seeds([(level_means(y)[0], dose) for y, dose in studied], tolerance)
    rough = math.sqrt(within)
    kept, at_zero = [], [dose[0] == 0 for _, dose in studied]
    for y, _ in studied:
        deviation = np.abs(y - np.nanmedian(y, axis=1, keepdims=True)) if y.size else y
        width = 5.5 * rough  # the range of ten Gaussian runs exceeds it once in 200
        kept.append(np.where((deviation > width).any(axis=1, keepdims=True), math.nan, y))
    plain = _sums(kept, at_zero, seeds=False)
    shifted = _sums([without_seeds(y) for y in kept], at_zero, seeds=True)
    paired = shifted[1] >= 2 * FEW_SEEDS and shifted[0] / shifted[1] < _PAIRED_SHARE * plain[0] / plain[1]
    squares, freedom, zero_squares, zero_freedom = shifted if paired else plain
    every = squares / freedom
    others = (squares - zero_squares) / (freedom - zero_freedom) if freedom - zero_freedom >= FEW_SEEDS else every
    zero = (zero_squares + _ZERO_FREEDOM * others) / (zero_freedom + _ZERO_FREEDOM)
    source = f"seeds within levels, {freedom:.3g} degrees of freedom" + (", less each seed's shift" if paired else "")
    return LossNoise(
        infused=max(math.sqrt(others), _LEAST_SD),
        zero=max(math.sqrt(zero), _LEAST_SD),
        freedom=freedom,
        paired=bool(paired),
        within=max(math.sqrt(plain[0] / plain[1]), _LEAST_SD),
        source=source,
    )


def _distinct(curves: Iterable[Curve]) -> list[tuple[Array, Array]]:
    """Returns (log losses [L, S], doses [L]) of the levels of each (N, D) and slice, every run once.

    Groups may have been asked in some of the runs only, and slices share runs.
    """
    cells: dict[tuple[object, ...], dict[float, dict[int, float]]] = {}
    for curve in curves:
        levels = cells.setdefault(curve.cell, {})
        for dose, losses in zip(curve.dose, curve.seed_losses, strict=True):
            levels.setdefault(float(dose), {}).update(losses)
    seen: set[tuple[object, ...]] = set()
    found = []
    for (params, tokens, _), levels in cells.items():
        doses = []
        for dose, losses in sorted(levels.items()):
            runs = {(params, tokens, *run) for run in losses.items()}
            if runs - seen:
                doses.append(dose)
            seen |= runs
        if doses:
            found.append((loss_matrix([levels[dose] for dose in doses])[0], np.array(doses)))
    return found


def _pooled(levels: Sequence[Array]) -> float | None:
    """Returns a variance within levels that a few outlying runs do not move; None where seeds are too few."""
    ratios, freedom = [], 0
    for level in levels:
        known = level[np.isfinite(level)]
        more = len(known) - 1
        if more > 0:
            ratios.append(float(((known - known.mean()) ** 2).sum()) / _median_chi2(more))
            freedom += more
    return max(float(np.median(ratios)), _LEAST_SD**2) if freedom >= FEW_SEEDS else None


def _sums(lines: Sequence[Array], at_zero: Sequence[bool], *, seeds: bool) -> tuple[float, float, float, float]:
    """Returns sums of squares about the levels' means and their degrees of freedom: of all levels, and of dose 0.

    ``seeds`` says that each seed's shift was taken out, which costs degrees of freedom.
    """
    total = np.zeros(4)
    for y, zero in zip(lines, at_zero, strict=True):
        mean, runs = level_means(y)
        freedom = np.maximum(runs - 1, 0)
        if not freedom.any():
            continue
        if seeds:
            several = np.isfinite(y[runs > 1]).any(axis=0).sum()
            freedom *= max(freedom.sum() - (several - 1), 0.0) / freedom.sum()
        squares = np.nansum((y - mean[:, None]) ** 2, axis=1)
        total += squares.sum(), freedom.sum(), squares[0] * zero, freedom[0] * zero
    return float(total[0]), float(total[1]), float(total[2]), float(total[3])


def _without_seeds(lines: Sequence[tuple[Array, Array]], tolerance: float) -> LossNoise:
    """Returns the prior's noise, with what levels of one seed each show about their neighbours."""
    residuals = []
    for every, dose in lines:
        alone = outliers(every[:, None], prior_noise())[:, 0] if dose[0] == 0 and len(every) > 1 else False
        y = np.where(alone, math.nan, every)
        known = np.isfinite(y)
        level, x = y[known], dose[known] ** _CURVATURE
        for i in range(1, len(level) - 1):
            if level[i + 1] - level[0] > math.log1p(tolerance):
                break
            share = (x[i + 1] - x[i]) / (x[i + 1] - x[i - 1])
            between = share * level[i - 1] + (1 - share) * level[i + 1]
            residuals.append((level[i] - between) ** 2 / (1 + share**2 + (1 - share) ** 2))
    freedom = len(residuals) * _TRIPLE_FREEDOM
    seen = float(np.median(residuals) / _median_chi2(1)) if residuals else 0.0
    infused, zero = (
        math.sqrt((PRIOR_FREEDOM * prior**2 + freedom * seen) / (PRIOR_FREEDOM + freedom))
        for prior in (PRIOR_SD, PRIOR_SD_ZERO)
    )
    source = f"a prior of {PRIOR_SD:.1%}" + (" and neighbouring levels" if residuals else "")
    return LossNoise(
        infused=infused, zero=zero, freedom=PRIOR_FREEDOM + freedom, within=infused, assumed=True, source=source
    )


def _median_chi2(freedom: int) -> float:
    return 2 * float(scipy.special.gammaincinv(freedom / 2, 0.5))


def prior_noise() -> LossNoise:
    """Returns the noise that is assumed where nothing is known of a study."""
    return _without_seeds([], 0.0)
