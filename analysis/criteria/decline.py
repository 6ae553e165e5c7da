"""The likelihood of one curve: a level rate that declines, and the dose at which it has lost a stated share.

    rate(x) = chance + A R(x),    R(x) = f + (1 - f) (1 + exp(s g (x - t)))^(-1/s),    x = log dose

A is the excess over chance on the plateau. R, the retention, falls with the power g of the dose; s says how sharp the
corner is (1: none, a logistic curve; large: a power of the dose from t on), and f what is never lost. The place of the
decline is ``theta``: the log dose at which R = 1 - r, for a stated share r. It means the same whatever the form of the
decline, also where the curve has no corner.

A run may have failed. A level is therefore, with a small probability, not of the curve at all but of any rate: one that
is far from the others costs that probability and no more (`criteria.robust`).

Levels before the plateau may be lower. A number of the first levels is therefore left free, each with a rate of its
own, at the price that Bayes' rule asks for a free rate. The likelihood is integrated over that number, over A (Laplace)
and over s and f on a grid, and is kept as a function of theta and log g (`Card`). No property of a curve has to be
decided for it: a curve that never falls has a likelihood that is level towards large doses, one that falls at once a
likelihood that is level towards small ones.

An onset is the same on the mirrored axis (`mirrored`): the plateau is at large doses, and is lost towards small ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
import scipy

from megatron_kis.analysis.criteria.isotonic import isotonic_prefixes
from megatron_kis.analysis.criteria.remembered import remembered
from megatron_kis.analysis.runs.curves import Array

STEEPNESS: Array = np.exp(np.linspace(np.log(0.4), np.log(24.0), 24))
"""[G] values of g: beyond a corner half of the excess is lost over 1.7 e-folds of the dose, or a thirtieth of one."""
SHARPNESS = (1.0, 6.0)
_FLOORS = (0.0, 0.35, 0.7)  # f, as shares of 1 - r: f must be below the retention at theta
_NO_RISE = 0.6  # prior that the plateau begins at the first level
_RISES = 5  # numbers of free levels that are tried
_FAR_BEHIND = 8.0  # log-likelihood of a number of free levels that adds nothing to the sum
_FITTED = 3  # parameters of a decline that the deviance is reduced by: theta, g, A
_HOPELESS = 10.0  # log-likelihood below the best one of a form that adds nothing anywhere
_ROUNDS = 6  # scoring steps to A, which is one concave parameter
_STILL = 1e-6  # a step to A that is the last
_NOTHING = 30.0  # log-likelihood below the best one that adds nothing, and at which A need not be found
_FAR = 60.0  # log dose of F = 0, and its mirror image
_BEYOND = (3.0, 4.0)  # e-folds before the first and after the last level at which a slow decline still shows
_COARSE, _FINE = 48, 48  # values of theta over everything, and where the likelihood is


@dataclass(frozen=True)
class Card:
    """What one curve shows about where it declines, and how steeply."""

    theta: Array
    """[T] log dose at which the share is lost, in rising order, denser where the likelihood is."""
    log_likelihood: Array
    """[T, G] at each theta and each of `STEEPNESS`, with a maximum of 0. It is flat beyond both ends of theta."""
    plateau: Array
    """[T, G] most likely excess over chance on the plateau, as a share of what is possible."""
    plateau_error: Array
    """[T, G] its standard error."""
    shapes: Array
    """[T, G, shapes] probabilities of `shapes_of` the share."""
    deviance: float
    """Twice the log-likelihood by which rates of their own would fit the levels better than the best decline."""
    freedom: int
    """Degrees of freedom of the deviance; 0 where there are too few levels."""

    @cached_property
    def spacing(self) -> Array:
        """[T] width of theta that each value stands for."""
        edges = np.concatenate([self.theta[:1], (self.theta[1:] + self.theta[:-1]) / 2, self.theta[-1:]])
        widths: Array = np.diff(edges)
        return widths

    def marginal(self, centre: float = float(np.log(4.0)), spread: float = 1.0) -> Array:
        """Returns [T] the log-likelihood of theta, with log g normally distributed; its maximum is 0."""
        weight = -0.5 * ((np.log(STEEPNESS) - centre) / spread) ** 2
        found: Array = scipy.special.logsumexp(self.log_likelihood + weight, axis=1)
        return np.asarray(found - found.max())


def fitted(card: Card, x: Array, chance: float, share: float) -> Array:
    """Returns the most likely rates [L] of a card's curve at log doses ``x`` [L]: its plateau and its decline."""
    place, steep = np.unravel_index(int(card.log_likelihood.argmax()), card.log_likelihood.shape)
    at = np.clip(x, -_FAR, _FAR)
    forms = [retention(at, card.theta[place], STEEPNESS[steep], *form, share) for form in shapes_of(share)]
    rates: Array = chance + (1 - chance) * card.plateau[place, steep] * (card.shapes[place, steep] @ np.array(forms))
    return rates


def shapes_of(share: float) -> list[tuple[float, float]]:
    """Returns the tried (s, f) of a decline that has lost ``share`` at theta."""
    return [(sharp, floor * (1 - share)) for sharp, floor in product(SHARPNESS, _FLOORS)]


def retention(x: Array, theta: Array, steepness: Array, sharp: float, floor: float, share: float) -> Array:
    """Returns R at log doses ``x``, which has fallen to 1 - ``share`` at ``theta``; arguments are broadcast."""
    left = (1 - share - floor) / (1 - floor)
    start = theta - np.log(left**-sharp - 1) / (sharp * steepness)
    beyond = np.minimum(sharp * steepness * (x - start), 700.0)
    kept: Array = floor + (1 - floor) * np.exp(np.log(1 + np.exp(beyond)) / -sharp)
    return kept


def mirrored(x: Array, *levels: Array) -> tuple[Array, ...]:
    """Returns a curve of log dose ``x`` [L] and its ``levels`` [L] with small and large doses exchanged."""
    return (-x[::-1], *(values[::-1] for values in levels))


@remembered(512)  # of some 0.2 MB each
def card_of(x: Array, rate: Array, weight: Array, failed: Array, chance: float, share: float) -> Card:
    """Returns the card of one curve; the last ones are cached, because points and law need the same.

    Args:
        x: [L] log dose, rising; -inf for a dose of 0, or inf on the mirrored axis. At least two are finite.
        rate: [L] shares answered right.
        weight: [L] effective numbers of facts.
        failed: [L] probabilities that a level is of no curve.
        chance: rate of a guess, below 1.
        share: r, the share of the excess that is lost at theta, between 0 and 1.
    """
    ends = x[np.isfinite(x)]
    low, high = float(ends[0]) - _BEYOND[0], float(ends[-1]) + _BEYOND[1]
    if np.isinf(x[-1]):  # mirrored
        low, high = float(ends[0]) - _BEYOND[1], float(ends[-1]) + _BEYOND[0]
    curve = _Curve(np.clip(x, -_FAR, _FAR), weight * rate, weight * (1 - rate), failed, chance, share)
    free = list(zip(*_free_levels(curve.right, curve.wrong), strict=True))
    forms = [_Form(index, count, price) for index in range(len(shapes_of(share))) for count, price in free]
    coarse = np.linspace(low, high, _COARSE)
    kept = _retentions(curve, forms, coarse, STEEPNESS[::3])
    first = np.array([_plateau(curve, form, kept[form.shape])[0] for form in forms])
    peak = scipy.special.logsumexp(first, axis=(0, 2))
    best = first.max(axis=(1, 2))
    forms = [form for form, highest in zip(forms, best, strict=True) if highest >= best.max() - _HOPELESS]
    step = coarse[1] - coarse[0]
    near = coarse[peak >= peak.max() - _FAR_BEHIND]
    fine = np.linspace(max(near[0] - step, low), min(near[-1] + step, high), _FINE)
    theta = np.sort(np.concatenate([coarse, fine]))
    return _summed(curve, forms, theta)


@dataclass(frozen=True)
class _Curve:
    """The counts of one curve, all [L], and what its card is asked."""

    x: Array
    right: Array
    wrong: Array
    failed: Array
    chance: float
    share: float


@dataclass(frozen=True)
class _Form:
    """One form of a decline, with a number of free levels before it."""

    shape: int
    free: int
    price: float
    """Log-probability of the free levels, and of their number."""


def _summed(curve: _Curve, forms: list[_Form], theta: Array) -> Card:
    """Returns the card of a curve at ``theta`` [T], summed over ``forms``."""
    kept = _retentions(curve, forms, theta, STEEPNESS)
    every = [_plateau(curve, form, kept[form.shape]) for form in forms]
    likelihoods = np.array([one[0] for one in every])  # [forms, T, G]
    total = scipy.special.logsumexp(likelihoods, axis=0)
    share_of = np.exp(likelihoods - total)
    plateaus = np.array([one[1] for one in every])
    plateau = (share_of * plateaus).sum(axis=0)
    within = (share_of * (np.array([one[2] for one in every]) + (plateaus - plateau) ** 2)).sum(axis=0)
    shapes = np.zeros((*total.shape, len(shapes_of(curve.share))))
    for form, part in zip(forms, share_of, strict=True):
        shapes[..., form.shape] += part
    best = int(likelihoods.max(axis=(1, 2)).argmax())
    free = forms[best].free
    exact = float(_binomial(curve.right, curve.wrong)[free:].sum())
    possible = 1 - curve.chance
    return Card(
        theta=theta,
        log_likelihood=total - total.max(),
        plateau=plateau / possible,
        plateau_error=np.sqrt(within) / possible,
        shapes=shapes,
        deviance=2 * (exact - float(every[best][3].max())),
        freedom=max(len(curve.x) - free - _FITTED, 0),
    )


def _free_levels(right: Array, wrong: Array) -> tuple[list[int], list[float]]:
    """Returns the numbers of first levels that may be off the plateau, and the log-probability of each.

    A free rate is uniform below the highest rate of the others, u, which costs log of the integral of
    p^k (1 - p)^(n - k) from 0 to u, over u. Numbers that are far below the best one are left out even where the other
    levels are fitted by any curve that never rises.
    """
    levels = len(right)
    most = max(levels - 2, 1)
    rate = right / (right + wrong)
    cost = np.zeros(most)
    for count in range(1, most):
        below = float(np.clip(rate[count:].max(), 1e-3, 1.0))
        inside = scipy.special.betainc(right[:count] + 1, wrong[:count] + 1, below)
        cost[count] = (
            scipy.special.betaln(right[:count] + 1, wrong[:count] + 1) + np.log(np.maximum(inside, 1e-300) / below)
        ).sum()
    cost += np.log(np.where(np.arange(most) == 0, _NO_RISE, (1 - _NO_RISE) / max(most - 1, 1)))
    # No decline fits the rest better than the best curve that never rises.
    best = isotonic_prefixes(rate[::-1], (right + wrong)[::-1])[::-1][:most]
    score = cost + best
    chosen = np.argsort(-score, kind="stable")[:_RISES]
    kept = sorted(int(count) for count in chosen if score[count] >= score.max() - _FAR_BEHIND)
    return kept, [float(cost[count]) for count in kept]


def _binomial(right: Array, wrong: Array) -> Array:
    """Returns the largest log-likelihood of counts that need not be whole."""
    total = right + wrong
    p = np.clip(right / total, 1e-12, 1 - 1e-12)
    found: Array = right * np.log(p) + wrong * np.log1p(-p)
    return found


def _retentions(curve: _Curve, forms: list[_Form], theta: Array, steepness: Array) -> dict[int, Array]:
    """Returns the retention [L, T, G] of each shape of ``forms``."""
    shapes, x = shapes_of(curve.share), curve.x[:, None, None]
    used = {form.shape for form in forms}
    return {index: retention(x, theta[:, None], steepness, *shapes[index], curve.share) for index in used}


def _plateau(curve: _Curve, form: _Form, kept: Array) -> tuple[Array, Array, Array, Array]:
    """Returns (log-likelihood, A, variance of A, largest log-likelihood), each [T, G], of one form of a decline.

    The first is integrated over A, uniform between 0 and 1 - chance, by Laplace's approximation.

    Args:
        curve: the counts.
        form: with its free levels.
        kept: [L, T, G] retention of the form's shape.
    """
    # Levels are the first axis, over which sums are fast; places and steepnesses are one axis, [M].
    grid = kept.shape[1:]
    kept = kept[form.free :].reshape(-1, math.prod(grid))
    right, wrong, failed = (part[form.free :, None] for part in (curve.right, curve.wrong, curve.failed))
    total = right + wrong
    apart = np.log(failed) + scipy.special.betaln(right + 1, wrong + 1)
    alike = np.log1p(-failed)
    chance, possible = curve.chance, 1 - curve.chance

    def state(a: Array, kept: Array) -> tuple[Array, Array, Array]:
        """Returns (log-likelihood, score, information), each [M]."""
        p = np.maximum(chance + a * kept, 1e-9)  # below 1, because a is below 1 - chance
        q = 1 - p
        there = alike + right * np.log(p) + wrong * np.log(q)
        other = np.exp(np.minimum(apart - there, 700.0))
        slope = kept / ((1 + other) * (p * q))
        value = (there + np.log1p(other)).sum(axis=0)
        return value, (slope * (right - total * p)).sum(axis=0), (slope * kept * total).sum(axis=0)

    start = (right.sum() / total.sum() - chance) / np.maximum((kept * total).sum(axis=0) / total.sum(), 1e-3)
    a = np.clip(start, 0.02 * possible, 0.999 * possible)
    value, information = np.empty_like(a), np.empty_like(a)
    moving, of_moving = np.arange(len(a)), kept
    for turn in range(_ROUNDS + 1):
        before = a[moving]
        found, score, known = state(before, of_moving)
        value[moving], information[moving] = found, known
        step = score / np.maximum(known, 1e-9)
        after = np.clip(before + step, 0.01 * possible, (1 - 1e-6) * possible)
        still = np.abs(after - before) < _STILL
        if turn:  # the first step may be a long one
            still |= found + 2 * score * step < value.max() - _NOTHING
        if still.all() or turn == _ROUNDS:
            break
        moving, of_moving = moving[~still], of_moving[:, ~still]
        a[moving] = after[~still]
    variance = 1 / (information + 2 * np.pi / possible**2)  # no wider than the uniform prior
    integrated = value + 0.5 * np.log(2 * np.pi * variance / possible**2) + form.price
    return integrated.reshape(grid), a.reshape(grid), variance.reshape(grid), value.reshape(grid)
