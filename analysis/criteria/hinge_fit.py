"""The hinge: a rate that rises, saturates, and falls from tau on, in x = log F on a logit scale with a chance floor.

    rate = chance + (1 - chance) * expit(eta),   eta = s(x) - gamma * max(x - tau, 0),   gamma > 0

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

import numpy as np
import numpy.typing as npt

from megatron_kis.analysis.criteria.unimodal import log_likelihood, prefix_fits
from megatron_kis.analysis.runs.curves import Array

_MOST = 9.0  # |M|: rates within 1e-4 of chance and of one are at the ends
_CONVERGED = 1e-10  # log-likelihood gained by no node: further steps are rounding
_ZOOM = 13  # taus a step of the search that takes tau off the grid
_STEEPNESS = (np.log(1e-2), np.log(2e2))  # of log gamma: nothing seen over a decade, and a cliff within 5% of F


@dataclass(frozen=True)
class HingeFits:
    """Profiles over tau of curves [R, L]."""

    taus: Array
    """[T] grid of tau = log F."""
    likelihood: Array
    """[R, T] log-likelihood maximised over everything but tau; gamma may reach 0."""
    null: Array
    """[R] log-likelihood without a fall (gamma = 0)."""
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

    @property
    def ratio(self) -> Array:
        """[R, T] likelihood-ratio statistic of each tau against the best."""
        return 2 * (self.best[:, None] - self.likelihood)


def link(rate: Array, chance: float) -> Array:
    """Logit of the excess over chance, kept within +-`_MOST`."""
    share = np.clip((rate - chance) / (1 - chance), 1e-9, 1 - 1e-9)
    return np.clip(np.log(share / (1 - share)), -_MOST, _MOST)


def rate_of(eta: Array, chance: float) -> Array:
    """The rate of a linear predictor."""
    return chance + (1 - chance) / (1 + np.exp(-np.clip(eta, -500.0, 500.0)))


def tau_grid(x: Array, steps: int) -> Array:
    """[T] taus from the second level to the last but one, ``steps`` a bracket.

    At both ends two levels lie on each side, the one at tau counted on both.
    """
    inner = x[1:-1]
    grid = [np.linspace(low, high, steps, endpoint=False) for low, high in pairwise(inner)]
    return np.concatenate([*grid, inner[-1:]])


def fit_hinges(x: Array, rate: Array, weight: Array, chance: float, *, steps: int = 6, rounds: int = 7) -> HingeFits:
    """Fits hinges to curves ``rate`` [R, L] with effective counts ``weight`` [R, L] at ``x`` [L] = log F.

    Args:
        x: rising; the first may be -inf (F = 0). At least 3 levels.
        rate: shares answered right.
        weight: effective numbers of facts.
        chance: rate of a guess, below 1.
        steps: taus tried in each bracket of levels.
        rounds: scoring steps of a node.
    """
    taus = tau_grid(x, steps)
    fits = prefix_fits(rate, weight)
    flat = log_likelihood(fits[:, -1], rate, weight).sum(axis=1)
    rise = _rises(x, taus, fits)
    m, gamma, likelihood = fit_nodes(x, taus, weight * rate, weight, chance, rounds, rise=rise)
    best = np.maximum(likelihood, flat[:, None])
    tau, index = _peak(taus, best, x)
    row = np.arange(len(rate))
    plateau = m[row, index]
    kappa = np.argmax(rise[row, index] >= rate_of(plateau, chance)[:, None], axis=1)
    return HingeFits(taus, best, flat, tau, best.max(axis=1), plateau, gamma[row, index], kappa)


def _rises(x: Array, taus: Array, fits: Array) -> Array:
    """[R, T, L] the isotonic fit of the levels before the last one up to each tau; +inf from that one on."""
    last = np.searchsorted(x, taus + 1e-12, side="right") - 1
    return fits[:, last]


def fit_nodes(
    x: Array, taus: Array, k: Array, n: Array, chance: float, rounds: int, *, rise: Array | None = None,
    start: tuple[float, float] | None = None,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """(M, gamma, log-likelihood), each [R, T], of hinges at ``taus`` [T]: levels x [L], right answers k of n [R, L].

    Args:
        x: rising; the first may be -inf (F = 0).
        taus: where the fall begins.
        k: right answers.
        n: effective numbers of facts.
        chance: rate of a guess.
        rounds: scoring steps at most.
        rise: [R, T, L] rates of the levels before the plateau, which M bounds; +inf on it. None: all on it.
        start: (M, gamma) to start from; else from the levels on both sides of each tau.
    """
    with np.errstate(invalid="ignore"):
        h = np.maximum(np.where(np.isfinite(x), x, -np.inf)[None, :] - taus[:, None], 0.0)  # [T, L]
    k, miss, n = k[:, None, :], (n - k)[:, None, :], n[:, None, :]
    bound = np.full((1, 1, len(x)), np.inf) if rise is None else rise
    if start is None:
        before, after = ((h == 0) & np.isinf(bound)).astype(float), (h > 0).astype(float)
        below = np.where(np.isfinite(bound), bound, 0.0).max(axis=-1)
        stay = np.maximum((k * before).sum(-1) / np.maximum((n * before).sum(-1), 1e-12), below)
        down = (k * after).sum(-1) / np.maximum((n * after).sum(-1), 1e-12)
        m = np.clip(link(stay, chance), -5.0, 5.0)
        reach = np.maximum((n * h).sum(-1) / np.maximum((n * after).sum(-1), 1e-12), 1e-9)
        fall = np.maximum(m - np.clip(link(down, chance), -5.0, 5.0), 0.05)
        u = np.clip(np.log(fall / reach), *_STEEPNESS)
    else:
        m, u = (np.full((len(k), len(taus)), value) for value in (start[0], float(np.log(start[1]))))
    damping = np.full(m.shape, 1e-2)
    bound = np.clip(bound, 1e-12, None)

    def state(m: Array, u: Array) -> tuple[Array, Array, Array]:
        eta = np.clip(m[..., None] - np.exp(u)[..., None] * h, -30.0, 30.0)
        share = 1 / (1 + np.exp(-eta))
        p = np.minimum(chance + (1 - chance) * share, 1 - 1e-12)
        share = np.where(p <= bound, share, 0.0)  # a level of the rise below M does not move with it
        p = np.minimum(p, bound)
        return (k * np.log(p) + miss * np.log1p(-p)).sum(-1), share, p

    likelihood, share, p = state(m, u)
    for _ in range(rounds):
        # Canonical-form pieces of a binomial model with p' = (1 - chance) s (1 - s); (1 - p) = (1 - chance)(1 - s).
        pull = (k - n * p) * share / p
        info = n * (1 - chance) * share * share * (1 - share) / p
        gh = np.exp(u)[..., None] * h
        g0, g1 = pull.sum(-1), -(pull * gh).sum(-1)
        a, b, d = info.sum(-1), -(info * gh).sum(-1), (info * gh * gh).sum(-1)
        a_, d_ = a * (1 + damping) + 1e-9, d * (1 + damping) + 1e-9
        determinant = np.maximum(a_ * d_ - b * b, 1e-18)
        step0 = np.clip((d_ * g0 - b * g1) / determinant, -3.0, 3.0)
        step1 = np.clip((a_ * g1 - b * g0) / determinant, -1.5, 1.5)
        m_new, u_new = np.clip(m + step0, -_MOST, _MOST), np.clip(u + step1, *_STEEPNESS)
        new, share_new, p_new = state(m_new, u_new)
        better = new > likelihood
        gained = np.where(better, new - likelihood, 0.0).max()
        damping = np.where(better, damping / 10, damping * 10)
        m, u, likelihood = np.where(better, m_new, m), np.where(better, u_new, u), np.where(better, new, likelihood)
        if gained < _CONVERGED and damping[~better].min(initial=np.inf) > 1.0:
            break
        share = np.where(better[..., None], share_new, share)
        p = np.where(better[..., None], p_new, p)
    return m, np.exp(u), likelihood


_TIE = 0.02  # log-likelihood below the best that no data of ours tells from it


def _peak(taus: Array, likelihood: Array, x: Array) -> tuple[Array, npt.NDArray[np.int64]]:
    """(tau, its grid index) of the maximum; the middle of the near-ties around it where they span half a bracket."""
    index = likelihood.argmax(axis=1)
    row = np.arange(len(likelihood))
    near = likelihood >= likelihood[row, index][:, None] - _TIE
    low = taus[np.argmax(near, axis=1)]
    high = taus[near.shape[1] - 1 - np.argmax(near[:, ::-1], axis=1)]
    # A parabola through the best node and its neighbours, where both lie in its bracket.
    inside = (index > 0) & (index < len(taus) - 1)
    left, right = np.maximum(index - 1, 0), np.minimum(index + 1, len(taus) - 1)
    fl, fm, fr = likelihood[row, left], likelihood[row, index], likelihood[row, right]
    tl, tm, tr = taus[left], taus[index], taus[right]
    with np.errstate(invalid="ignore", divide="ignore"):
        top = (tm - tl) ** 2 * (fm - fr) - (tm - tr) ** 2 * (fm - fl)
        bottom = (tm - tl) * (fm - fr) - (tm - tr) * (fm - fl)
        shifted = tm - 0.5 * top / bottom
    usable = inside & np.isfinite(shifted) & (shifted > tl) & (shifted < tr)
    tau = np.where(usable, shifted, tm)
    bracket = np.searchsorted(x[1:-1], tm, side="right").clip(1, max(len(x) - 3, 1))
    inner = x[1:-1]
    width = inner[np.minimum(bracket, len(inner) - 1)] - inner[bracket - 1] if len(inner) > 1 else np.zeros(len(tm))
    tied = (high - low) > 0.5 * width
    tau = np.where(tied & (high > low), (low + high) / 2, tau)
    return tau, np.abs(taus[None, :] - tau[:, None]).argmin(axis=1)


def polish(x: Array, rate: Array, weight: Array, chance: float, fits: HingeFits, *, rounds: int = 40) -> HingeFits:
    """The fit of one curve with tau taken off the grid, unless an abrupt drop leaves it undetermined."""
    taus, index = fits.taus, int(fits.likelihood[0].argmax())
    if abs(float(fits.tau[0]) - taus[index]) > (taus[-1] - taus[0]) / len(taus) + 1e-12:
        return fits  # ties: the middle stands
    low, high = float(taus[max(index - 1, 0)]), float(taus[min(index + 1, len(taus) - 1)])
    rises, k = prefix_fits(rate, weight), weight * rate
    start, tau, best = (float(fits.plateau[0]), float(fits.gamma[0])), float(fits.tau[0]), -np.inf
    while high - low > 1e-9:
        inner = np.linspace(low, high, _ZOOM)
        rise = _rises(x, inner, rises)
        m, gamma, likelihood = fit_nodes(x, inner, k, weight, chance, rounds, rise=rise, start=start)
        at = int(likelihood[0].argmax())
        if likelihood[0, at] > best:
            best, tau, start = float(likelihood[0, at]), float(inner[at]), (float(m[0, at]), float(gamma[0, at]))
            kappa = int(np.argmax(rise[0, at] >= rate_of(m[:, at], chance)))
        low, high = float(inner[max(at - 1, 0)]), float(inner[min(at + 1, _ZOOM - 1)])
    if best <= fits.best[0]:
        return fits
    return replace(
        fits, tau=np.array([tau]), best=np.array([best]), plateau=np.array([start[0]]), gamma=np.array([start[1]]),
        kappa=np.array([kappa]),
    )  # fmt: skip
