"""The hinge: a rate that rises, saturates, and falls from tau on, in x = log F on a logit scale with a chance floor.

    rate = chance + (1 - chance) * expit(eta),   eta = s(x) - gamma * max(x - tau, 0),   gamma > 0

``s`` is any non-decreasing function that has reached its plateau M at some level kappa <= tau. Below kappa it is fitted
by isotonic regression, so no form of the rise is assumed and F = 0 (x = -inf) needs no place on the axis. The chance
floor lets a collapsed curve level out: on a plain logit scale its flat end would drag tau down.

Everything is fitted for many curves at once: for each (kappa, tau) of a grid the two parameters (M, log gamma) are
found by a damped Fisher scoring, all nodes and resamples together. A node whose rise ends above its plateau is left
out: its constrained optimum is the node of a smaller kappa.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar

from analysis.collapse.unimodal import isotonic_prefixes
from analysis.curves import Array

_MOST = 9.0  # |M|: rates within 1e-4 of chance and of one are at the ends
_JUMP = 1e-7  # of rate: equal heights on both sides of kappa must not look like a fall
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
    resamples, levels = rate.shape
    taus = tau_grid(x, steps)
    rising, top = isotonic_prefixes(rate, weight)
    best = np.full((resamples, len(taus)), -np.inf)
    plateau, slope = np.zeros_like(best), np.zeros_like(best)
    kappas = np.zeros(best.shape, dtype=np.int64)
    null = np.full(resamples, -np.inf)
    for kappa in range(levels):
        k = weight[:, kappa:] * rate[:, kappa:]
        n = weight[:, kappa:]
        flat = np.maximum(k.sum(axis=1) / n.sum(axis=1), chance)
        allowed = top[:, kappa] <= flat + _JUMP
        level = rising[:, kappa] + _level_likelihood(flat, k, n)
        null = np.where(allowed, np.maximum(null, level), null)
        mine = np.flatnonzero(taus >= x[kappa] - 1e-12)
        if not len(mine) or kappa >= levels - 1:
            continue
        m, g, likelihood = fit_nodes(x[kappa:], taus[mine], k, n, chance, rounds)
        likelihood = likelihood + rising[:, kappa, None]
        likelihood[top[:, kappa, None] > rate_of(m, chance) + _JUMP] = -np.inf
        better = likelihood > best[:, mine]
        rows, columns = np.nonzero(better)
        places = mine[columns]
        best[rows, places] = likelihood[better]
        plateau[rows, places], slope[rows, places], kappas[rows, places] = m[better], g[better], kappa
    best = np.maximum(best, null[:, None])
    tau, index = _peak(taus, best, x)
    row = np.arange(resamples)
    return HingeFits(
        taus, best, null, tau, best.max(axis=1), plateau[row, index], slope[row, index], kappas[row, index]
    )  # fmt: skip


def _level_likelihood(p: Array, k: Array, n: Array) -> Array:
    p = np.clip(p, 1e-12, 1 - 1e-12)
    return np.log(p) * k.sum(axis=1) + np.log1p(-p) * (n - k).sum(axis=1)


def fit_nodes(x: Array, taus: Array, k: Array, n: Array, chance: float, rounds: int) -> tuple[Array, Array, Array]:
    """(M, gamma, log-likelihood), each [R, T], of levels from the plateau on: x [l], k and n [R, l]."""
    with np.errstate(invalid="ignore"):
        h = np.maximum(np.where(np.isfinite(x), x, -np.inf)[None, :] - taus[:, None], 0.0)  # [T, l]
    k, miss = k[:, None, :], (n - k)[:, None, :]
    n = n[:, None, :]
    on = (h == 0).astype(float)[None]
    stay = (k * on).sum(-1) / np.maximum((n * on).sum(-1), 1e-12)
    down = (k * (1 - on)).sum(-1) / np.maximum((n * (1 - on)).sum(-1), 1e-12)
    m = np.clip(link(stay, chance), -5.0, 5.0)
    reach = np.maximum((n * h[None]).sum(-1) / np.maximum((n * (1 - on)).sum(-1), 1e-12), 1e-9)
    fall = np.maximum(m - np.clip(link(down, chance), -5.0, 5.0), 0.05)
    u = np.clip(np.log(fall / reach), *_STEEPNESS)
    damping = np.full(m.shape, 1e-2)

    def state(m: Array, u: Array) -> tuple[Array, Array, Array, Array]:
        eta = np.clip(m[..., None] - np.exp(u)[..., None] * h, -30.0, 30.0)
        share = 1 / (1 + np.exp(-eta))
        p = np.clip(chance + (1 - chance) * share, 1e-12, 1 - 1e-12)
        return (k * np.log(p) + miss * np.log1p(-p)).sum(-1), share, p, eta

    likelihood, share, p, _ = state(m, u)
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
        new, share_new, p_new, _ = state(m_new, u_new)
        better = new > likelihood
        damping = np.where(better, damping / 10, damping * 10)
        m, u, likelihood = np.where(better, m_new, m), np.where(better, u_new, u), np.where(better, new, likelihood)
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
    kappa = int(fits.kappa[0])
    low, high = max(float(taus[max(index - 1, 0)]), float(x[kappa])), float(taus[min(index + 1, len(taus) - 1)])
    if low >= high:
        return fits
    rising, top = isotonic_prefixes(rate, weight)
    k, n = (weight * rate)[:, kappa:], weight[:, kappa:]

    def loss(tau: float) -> float:
        return -float(fit_nodes(x[kappa:], np.array([tau]), k, n, chance, rounds)[2][0, 0])

    tau = float(minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-9}).x)
    m, gamma, likelihood = fit_nodes(x[kappa:], np.array([tau]), k, n, chance, rounds)
    best = likelihood[:, 0] + rising[:, kappa]
    if top[0, kappa] > rate_of(m, chance)[0, 0] + _JUMP or best[0] <= fits.best[0]:
        return fits
    return replace(fits, tau=np.array([tau]), best=best, plateau=m[:, 0], gamma=gamma[:, 0])
