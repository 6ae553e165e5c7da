"""The hinge: a rate that rises, saturates, and falls from tau on, in x = log F with a chance floor.

    rate = chance + (1 - chance) * share,   h = max(x - tau, 0),   gamma > 0

    logit:  share = expit(s(x) - gamma * h)
    power:  share = expit(s(x)) * exp(-gamma * h)

The shape of a fall is not known, and near a plateau of one it decides where a fall begins: in the logit a straight fall
from there takes one or two e-folds of F in which nothing can be seen missing. A fall as a power of F, which a limited
capacity gives, shows at once. Both are fitted. The likelihood chooses, and the profile of tau is the higher of the two.
A curve that reaches one has a plateau of
at most `_MOST_LOGIT` in the logit, so that it falls as a power unless its levels say otherwise.

``s`` is any non-decreasing function that has reached its plateau M at some level kappa <= tau. Below kappa it is fitted
by isotonic regression, so no form of the rise is assumed and F = 0 (x = -inf) needs no place on the axis. The chance
floor lets a collapsed curve level out: on a plain logit scale its flat end would drag tau down.

For given tau and M the best rise is known: the isotonic fit of the levels before the last one up to tau, cut off at M
(bounded isotonic regression). What is left are two smooth parameters, M and log gamma, found by a damped Fisher scoring
for all taus of a grid and all curves at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_kis.analysis.criteria.isotonic import prefix_fits
from megatron_kis.analysis.criteria.unimodal import log_likelihood
from megatron_kis.analysis.runs.curves import Array

_MOST = 9.0  # |M|: rates within 1e-4 of chance and of one are at the ends
_MOST_LOGIT = 4.6  # M of a fall in the logit: a rate of 0.99
_MOST_POWER = 12.0
Bools = npt.NDArray[np.bool_]
_CONVERGED = 1e-10  # log-likelihood gained by no node: further steps are rounding
_ZOOM = 13  # taus per step of the search that takes tau off the grid
_STEEPNESS = (np.log(1e-2), np.log(2e2))  # of log gamma: nothing seen over a decade, and a cliff within 5% of F


@dataclass(frozen=True)
class Precision:
    """How finely a hinge is fitted."""

    steps: int
    """Number of taus tried per bracket of levels."""
    rounds: int
    """Largest number of scoring steps per node."""
    polish: bool = False
    """Whether the best tau of the grid is then refined between its points."""


FINE = Precision(8, 25, polish=True)
"""Precision for measured curves."""
COARSE = Precision(4, 7)
"""Precision for the many simulated curves of a bootstrap; docs/statistics.md says how much it matters."""


@dataclass(frozen=True)
class HingeFits:
    """Fitted hinges of curves [R, L], and their profiles over tau."""

    x: Array
    """[L] log F; -inf for F = 0."""
    chance: float
    """Rate of a guess."""
    taus: Array
    """[T] grid of tau = log F."""
    likelihood: Array
    """[R, T] log-likelihood maximised over everything but tau; gamma may reach 0."""
    tau: Array
    """[R] the best tau; the middle of the near-ties of an abrupt drop."""
    best: Array
    """[R] the largest log-likelihood."""
    plateau: Array
    """[R] M at the best tau."""
    gamma: Array
    """[R] gamma at the best tau."""
    kappa: npt.NDArray[np.int64]
    """[R] level from which on the best fit is on its plateau."""
    power: Bools
    """[R] whether it falls as a power of F, not in the logit."""

    @property
    def ratio(self) -> Array:
        """[R, T] likelihood-ratio statistic of each tau against the best."""
        return 2 * (self.best[:, None] - self.likelihood)

    @property
    def plateau_rate(self) -> Array:
        """[R] rates on the plateau."""
        return rate_of(self.plateau, self.chance)

    def rates(self) -> Array:
        """Returns the fitted rates [R, L] of plateau and fall; the rise, below ``kappa``, is left out."""
        return plateau_and_fall(self.x, self.tau, self.plateau, self.gamma, self.chance, self.power)


def link(rate: Array, chance: float) -> Array:
    """Returns the logit of the excess over chance, kept within +-`_MOST`."""
    share = np.clip((rate - chance) / (1 - chance), 1e-9, 1 - 1e-9)
    return np.clip(np.log(share / (1 - share)), -_MOST, _MOST)


def rate_of(eta: Array, chance: float) -> Array:
    """Returns the rates of linear predictors: the inverse of `link`."""
    return chance + (1 - chance) / (1 + np.exp(-np.clip(eta, -500.0, 500.0)))


def plateau_and_fall(x: Array, tau: Array, plateau: Array, gamma: Array, chance: float, power: Bools | bool) -> Array:
    """Returns the rates [R, L] at ``x`` [L] of hinges at ``tau`` [R] without their rise; the rest is [R] or one."""
    with np.errstate(invalid="ignore"):
        beyond = np.where(np.isfinite(x), np.maximum(x - tau[:, None], 0.0), 0.0)
    down = gamma[..., None] * beyond
    straight = rate_of(plateau[..., None] - down, chance)
    curved = chance + (rate_of(plateau[..., None], chance) - chance) * np.exp(-np.minimum(down, 500.0))
    return np.where(np.asarray(power)[..., None], curved, straight)


def tau_grid(x: Array, steps: int) -> Array:
    """Returns taus [T] from the second level to the last, ``steps`` per bracket.

    At the last level nothing has fallen. In the bracket before it the fall is an abrupt one, and its place is open.
    """
    inner = x[1:]
    grid = [np.linspace(low, high, steps, endpoint=False) for low, high in pairwise(inner)]
    return np.concatenate([*grid, inner[-1:]])


_MOST_TAUS = 40  # of a coarse fit, which has 4 per bracket up to 12 levels
_BLOCK = 80_000  # numbers of an array of `fit_nodes` (curves x taus x levels) that are worked on at once: about 600 kB


def fit_hinges(x: Array, rate: Array, weight: Array, chance: float, precision: Precision) -> HingeFits:
    """Fits hinges to curves ``rate`` [R, L] with effective counts ``weight`` [L] at ``x`` [L] = log F.

    Args:
        x: rising; the first may be -inf (F = 0). At least 3 levels.
        rate: shares answered right.
        weight: effective numbers of facts.
        chance: rate of a guess, below 1.
        precision: how finely.
    """
    weight = np.broadcast_to(weight, rate.shape)
    both = [_fit_shape(x, rate, weight, chance, precision, power) for power in (False, True)]
    return _chosen(rate, *both)


def _chosen(rate: Array, logit: HingeFits, power: HingeFits) -> HingeFits:
    """Returns the fits of the shape that is likelier for each curve, with the higher of the two profiles.

    A fall does not begin before a level at which everything is known: no shape may say so.
    """
    x = logit.x
    everything = rate >= 1 - 1e-12
    last = rate.shape[1] - 1 - everything[:, ::-1].argmax(axis=1)
    known = np.where(everything.any(axis=1), x[last], -np.inf)
    curved = (power.best > logit.best + 1e-6) | (logit.tau < known)

    def of(name: str) -> Any:
        return np.where(curved, getattr(power, name), getattr(logit, name))

    return HingeFits(
        x,
        logit.chance,
        logit.taus,
        np.maximum(logit.likelihood, power.likelihood),
        np.maximum(of("tau"), known),
        np.maximum(logit.best, power.best),
        of("plateau"),
        of("gamma"),
        of("kappa"),
        curved,
    )


def _fit_shape(x: Array, rate: Array, weight: Array, chance: float, precision: Precision, power: bool) -> HingeFits:
    """Returns the hinges of one shape; arguments as of `fit_hinges`."""
    steps = precision.steps
    if not precision.polish:  # many levels are close to each other: fewer steps between them are as fine
        steps = max(min(steps, _MOST_TAUS // (len(x) - 2)), min(steps, 2))
    taus = tau_grid(x, steps)
    isotonic = prefix_fits(rate, weight)
    flat = log_likelihood(isotonic[:, -1], rate, weight).sum(axis=1)  # without a fall (gamma = 0)
    size = max(_BLOCK // (len(taus) * len(x)), 1)
    blocks = [slice(start, start + size) for start in range(0, len(rate), size)]
    parts = [
        fit_nodes(
            x,
            taus,
            weight[b] * rate[b],
            weight[b],
            chance,
            precision.rounds,
            rise=_rises(x, taus, isotonic[b]),
            power=power,
        )
        for b in blocks
    ]
    m, gamma, likelihood = (np.concatenate(part) for part in zip(*parts, strict=True))
    likelihood = np.maximum(likelihood, flat[:, None])
    tau, index = _peak(taus, likelihood, x)
    row = np.arange(len(rate))
    plateau = m[row, index]
    kappa = _first_on_plateau(_rises(x, taus[index][:, None], isotonic)[:, 0], plateau, chance)
    best = likelihood.max(axis=1)
    shape = np.full(len(rate), power)
    fits = HingeFits(x, chance, taus, likelihood, tau, best, plateau, gamma[row, index], kappa, shape)
    return _polish(rate, weight, fits, isotonic) if precision.polish else fits


def _rises(x: Array, taus: Array, isotonic: Array) -> Array:
    """Returns [R, T, L] the isotonic fit of the levels before the last one up to each tau; +inf from that one on.

    Args:
        x: [L] log F.
        taus: [T] for all curves, or [R, T].
        isotonic: [R, L + 1, L] fits of the first i levels (`isotonic.prefix_fits`).
    """
    last = np.searchsorted(x, taus + 1e-12, side="right") - 1
    return isotonic[np.arange(len(isotonic))[:, None], last]


def _first_on_plateau(rise: Array, plateau: Array, chance: float) -> npt.NDArray[np.int64]:
    """Returns [R] kappa: the first level whose bounded rise [R, L] has reached M [R]."""
    kappa: npt.NDArray[np.int64] = np.argmax(rise >= rate_of(plateau, chance)[:, None], axis=1)
    return kappa


def _start(h: Array, bound: Array, k: Array, n: Array, chance: float, power: bool) -> tuple[Array, Array]:
    """Returns (M, log gamma), each [R, T], to start `fit_nodes` from; arguments as there, [R, T, L].

    M is that of the pooled rate of the levels on the plateau, gamma the fall to the pooled rate of the levels after tau
    over their mean distance from it.
    """
    before = ((h == 0) & np.isinf(bound)).astype(float)
    after = (h > 0).astype(float)
    below = np.where(np.isfinite(bound), bound, 0.0).max(axis=-1)
    stay = np.maximum((k * before).sum(-1) / np.maximum((n * before).sum(-1), 1e-12), below)
    down = (k * after).sum(-1) / np.maximum((n * after).sum(-1), 1e-12)
    m = np.clip(link(stay, chance), -5.0, _MOST)
    reach = np.maximum((n * h).sum(-1) / np.maximum((n * after).sum(-1), 1e-12), 1e-9)
    if power:
        left = np.clip((down - chance) / np.maximum(stay - chance, 1e-9), 1e-3, 1.0)
        return m, np.clip(np.log(np.maximum(-np.log(left), 0.02) / reach), *_STEEPNESS)
    fall = np.maximum(m - np.clip(link(down, chance), -5.0, 5.0), 0.05)
    return m, np.clip(np.log(fall / reach), *_STEEPNESS)


def _highest(k: Array, n: Array, chance: float, power: bool) -> Array | float:
    """Returns the largest M, [R, 1] or one, of curves with k of n right answers [R, 1, L].

    In the logit a plateau is as high as the highest rate that is below one; that all is known says nothing of how far
    from being lost it is.
    """
    if power:
        return _MOST_POWER
    top = (k / np.maximum(n, 1e-12)).max(axis=-1)
    highest: Array = np.where(top < 1 - 1e-12, np.maximum(link(top, chance), _MOST_LOGIT), _MOST_LOGIT)
    return highest


def _rates(m: Array, u: Array, h: Array, bound: Array, chance: float, power: bool) -> tuple[Array, Array, Array]:
    """Returns (p, dp/dM, dp/du), each [R, T, L], at M and u = log gamma, both [R, T]."""
    slope = np.exp(u)[..., None] * h
    eta = m[..., None] if power else m[..., None] - slope
    s = 1 / (1 + np.exp(-np.clip(eta, -30.0, 30.0)))
    share = s * np.exp(-np.minimum(slope, 60.0)) if power else s
    p = np.clip(chance + (1 - chance) * share, 1e-12, 1 - 1e-12)
    by_m = (1 - chance) * share * (1 - s)
    by_u = -slope * ((1 - chance) * share if power else by_m)
    free = p <= bound  # a level of the rise below M does not move with it
    return np.minimum(p, bound), np.where(free, by_m, 0.0), np.where(free, by_u, 0.0)


def fit_nodes(
    x: Array,
    taus: Array,
    k: Array,
    n: Array,
    chance: float,
    rounds: int,
    *,
    rise: Array | None = None,
    start: tuple[Array, Array] | None = None,
    power: bool = False,
) -> tuple[Array, Array, Array]:
    """Fits M and gamma of a hinge for every curve and every tau: k of n right answers [R, L] at levels ``x`` [L].

    Maximises sum_l k_l log p_l + (n_l - k_l) log(1 - p_l) over M and u = log gamma, where

        p_l = min(chance + (1 - chance) share_l, rise_l),   h_l = max(x_l - tau, 0),
        share_l = expit(M - e^u h_l), or expit(M) exp(-e^u h_l)

    by Fisher scoring with Levenberg's damping: a step that does not raise the likelihood is left out, and the next one
    is shorter.

    Args:
        x: rising; the first may be -inf (F = 0).
        taus: where the fall begins, [T] for all curves or [R, T].
        k: right answers.
        n: effective numbers of facts.
        chance: rate of a guess.
        rounds: largest number of scoring steps.
        rise: [R, T, L] rates of the levels before the plateau, which M bounds; +inf on it. None: all on it.
        start: (M, gamma), each [R], to start from; else from the levels on both sides of each tau.
        power: whether the fall is one of the log share, not of its logit.

    Returns:
        (M, gamma, log-likelihood), each [R, T]
    """
    # Every array below is [R, T, L] (curve, tau, level) or broadcasts to it; sums over levels give [R, T].
    h = np.maximum(np.where(np.isfinite(x), x, -np.inf) - taus[..., None], 0.0)
    nodes = (len(k), taus.shape[-1])
    k = k[:, None, :]
    n = n[:, None, :]
    miss = n - k
    bound = np.full((1, 1, len(x)), np.inf) if rise is None else rise
    if start is None:
        m, u = _start(h, bound, k, n, chance, power)
    else:
        m = np.broadcast_to(start[0][:, None], nodes)
        u = np.broadcast_to(np.log(start[1])[:, None], nodes)
    m = np.minimum(m, _highest(k, n, chance, power))
    damping = np.full(m.shape, 1e-2)
    bound = np.clip(bound, 1e-12, None)

    highest = _highest(k, n, chance, power)
    p, by_m, by_u = _rates(m, u, h, bound, chance, power)
    likelihood = (k * np.log(p) + miss * np.log1p(-p)).sum(-1)
    for _ in range(rounds):
        score = (k - n * p) / (p * (1 - p))
        information = n / (p * (1 - p))
        score_m = (score * by_m).sum(-1)
        score_u = (score * by_u).sum(-1)
        info_mm = (information * by_m * by_m).sum(-1)
        info_mu = (information * by_m * by_u).sum(-1)
        info_uu = (information * by_u * by_u).sum(-1)
        # The damped 2 x 2 system by Cramer's rule; a step is at most 3 in M and 1.5 in log gamma.
        damped_mm = info_mm * (1 + damping) + 1e-9
        damped_uu = info_uu * (1 + damping) + 1e-9
        determinant = np.maximum(damped_mm * damped_uu - info_mu * info_mu, 1e-18)
        step_m = np.clip((damped_uu * score_m - info_mu * score_u) / determinant, -3.0, 3.0)
        step_u = np.clip((damped_mm * score_u - info_mu * score_m) / determinant, -1.5, 1.5)
        m_new = np.clip(m + step_m, -_MOST, highest)
        u_new = np.clip(u + step_u, *_STEEPNESS)
        moved = _rates(m_new, u_new, h, bound, chance, power)
        new = (k * np.log(moved[0]) + miss * np.log1p(-moved[0])).sum(-1)
        better = new > likelihood
        gained = np.where(better, new - likelihood, 0.0).max()
        damping = np.where(better, damping / 10, damping * 10)
        m = np.where(better, m_new, m)
        u = np.where(better, u_new, u)
        likelihood = np.where(better, new, likelihood)
        # Done when no node gains and those that failed did so with short steps.
        if gained < _CONVERGED and damping[~better].min(initial=np.inf) > 1.0:
            break
        p, by_m, by_u = (np.where(better[..., None], a, b) for a, b in zip(moved, (p, by_m, by_u), strict=True))
    return m, np.exp(u), likelihood


_TIE = 0.02  # log-likelihood below the best that no data of ours tells from it


def _peak(taus: Array, likelihood: Array, x: Array) -> tuple[Array, npt.NDArray[np.int64]]:
    """Returns (tau [R], its grid index [R]) of the largest likelihood [R, T].

    That is the top of the parabola through the best node and its neighbours; or the middle of the near-ties around the
    best node where they span half a bracket, as an abrupt drop leaves them.
    """
    index = likelihood.argmax(axis=1)
    row = np.arange(len(likelihood))
    near = likelihood >= likelihood[row, index][:, None] - _TIE
    low = taus[np.argmax(near, axis=1)]
    high = taus[near.shape[1] - 1 - np.argmax(near[:, ::-1], axis=1)]
    # The parabola through (tl, fl), (tm, fm), (tr, fr): left, middle and right.
    inside = (index > 0) & (index < len(taus) - 1)
    left = np.maximum(index - 1, 0)
    right = np.minimum(index + 1, len(taus) - 1)
    fl, fm, fr = likelihood[row, left], likelihood[row, index], likelihood[row, right]
    tl, tm, tr = taus[left], taus[index], taus[right]
    with np.errstate(invalid="ignore", divide="ignore"):
        top = (tm - tl) ** 2 * (fm - fr) - (tm - tr) ** 2 * (fm - fl)
        bottom = (tm - tl) * (fm - fr) - (tm - tr) * (fm - fl)
        shifted = tm - 0.5 * top / bottom
    usable = inside & np.isfinite(shifted) & (shifted > tl) & (shifted < tr)
    tau = np.where(usable, shifted, tm)
    inner = x[1:]
    bracket = np.searchsorted(inner, tm, side="right").clip(1, len(inner) - 1)
    width = inner[bracket] - inner[bracket - 1]
    tied = (high - low) > 0.5 * width
    tau = np.where(tied & (high > low), (low + high) / 2, tau)
    return tau, np.abs(taus[None, :] - tau[:, None]).argmin(axis=1)


def _polish(rate: Array, weight: Array, fits: HingeFits, isotonic: Array, *, rounds: int = 40) -> HingeFits:
    """Returns the fits with tau taken off the grid, unless an abrupt drop leaves it undetermined.

    Each step lays `_ZOOM` taus between the neighbours of the best one, and starts from its M and gamma.
    """
    x, chance, taus, k = fits.x, fits.chance, fits.taus, weight * rate
    index = fits.likelihood.argmax(axis=1)
    tied = np.abs(fits.tau - taus[index]) > (taus[-1] - taus[0]) / len(taus) + 1e-12
    low = taus[np.maximum(index - 1, 0)]
    high = taus[np.minimum(index + 1, len(taus) - 1)]
    tau, plateau, gamma, kappa = fits.tau.copy(), fits.plateau.copy(), fits.gamma.copy(), fits.kappa.copy()
    best = np.full(len(rate), -np.inf)
    while True:
        (active,) = np.nonzero(~tied & (high - low > 1e-9))  # curves [A]
        if not len(active):
            break
        inner = np.linspace(low[active], high[active], _ZOOM, axis=1)  # [A, Z]
        rise = _rises(x, inner, isotonic[active])
        start = (plateau[active], gamma[active])
        power = bool(fits.power[0])  # one shape at a time
        m, g, likelihood = fit_nodes(
            x, inner, k[active], weight[active], chance, rounds, rise=rise, start=start, power=power
        )
        at = likelihood.argmax(axis=1)
        row = np.arange(len(active))
        low[active] = inner[row, np.maximum(at - 1, 0)]
        high[active] = inner[row, np.minimum(at + 1, _ZOOM - 1)]
        better = likelihood[row, at] > best[active]
        row, at, active = row[better], at[better], active[better]
        best[active] = likelihood[row, at]
        tau[active] = inner[row, at]
        plateau[active] = m[row, at]
        gamma[active] = g[row, at]
        kappa[active] = _first_on_plateau(rise[row, at], m[row, at], chance)
    gained = best > fits.best
    return replace(
        fits,
        tau=np.where(gained, tau, fits.tau),
        best=np.where(gained, best, fits.best),
        plateau=np.where(gained, plateau, fits.plateau),
        gamma=np.where(gained, gamma, fits.gamma),
        kappa=np.where(gained, kappa, fits.kappa),
    )
