"""One likelihood for all curves of a study: where they decline as a law of N and D, with every run in it.

    theta_i = x_i . beta + k q_i + e_i,      e_i ~ Normal(0, sigma^2)
    log g_i = m + n (log N_i - mean) + u_i,  u_i ~ Normal(0, omega^2)

for the curve of cell i, whose likelihood of theta_i and g_i is its card (`criteria.decline`). theta_i and g_i are
integrated over on the card's grid, so that a curve that never falls, or one that cannot tell, counts for what it says,
and no status decides how. x_i are the covariates of the law; k is its bend, the coefficient of q = (log N - mean)^2,
orthogonal to x. What is left is a density of a few parameters, which is sampled (`law.ensemble`).

A law that is straight over the sizes that were trained need not be straight beyond them. k is therefore normally
distributed around 0 with a stated standard deviation (`AnalysisConfig.bend`), which the data narrow where they can; and
the same is fitted with k = 0, so that both can be said: if the law is straight, and if it may bend.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import scipy

from megatron_kis.analysis.criteria.decline import STEEPNESS, Card, retention, shapes_of
from megatron_kis.analysis.law.candidates import CANDIDATES, Candidate
from megatron_kis.analysis.law.ensemble import sample
from megatron_kis.analysis.law.regression import fit
from megatron_kis.analysis.runs.curves import Array

SCATTER = 0.3
"""Scale of the half-normal prior of sigma, the scatter of log F* between models."""
_SLOPES = 3.0  # standard deviation of the prior of the exponents
_STEEP = (float(np.log(4.0)), 1.0)  # mean and standard deviation of the prior of m
_STEEPER = 0.15  # of that of n
_UNEQUAL = 0.4  # scale of the half-normal prior of omega
_LEAST = -6.0  # of log sigma and log omega
_MOST = 2.0
OTHERS = 8
"""Columns of `Draws` after beta."""
_WALKERS = 40
_TRIED = 20  # places to start from, for each walker
_DISCARD, _ROUNDS, _EVERY = 300, 720, 60
_MANY, _FEWEST_ROUNDS = 30, 240
_SINGLE = np.float32
_LEAST_CELL = 1e-37  # likelihood of a cell, relative to the highest
_NEGLIGIBLE = 1e-18  # next to 1
_HALF = _SINGLE(np.sqrt(0.5))
_HALVINGS = 30  # of the range that holds a quantile
_TOLD = 1.92  # fall of the log-likelihood on both sides that makes a cell tell where it declines
_TERMS: dict[tuple[float, ...], str] = {
    (1, 0): "b_log_params",
    (1, 0, 0): "b_log_params",
    (0, 1): "c_log_tokens",
    (0, 1, 0): "c_log_tokens",
    (0, 0, 1): "d_log_held",
    (1, 1): "b_log_compute",
    (-1, 1): "c_log_tokens_per_param",
}
Single: TypeAlias = npt.NDArray[np.floating[Any]]
"""Numbers in single precision."""
Draws = Array
"""[R, p + 5 + 3]: beta, k, log sigma, m, n, log omega; then the law of the plateau: its log-odds at the mean of log N,
their slope, and the logarithm of their scatter."""


@dataclass(frozen=True, kw_only=True)
class Surface:
    """The fitted likelihood of one kind, group and slice: draws of its parameters."""

    candidate: Candidate
    centre: Array
    """Means of the covariates, and of log N."""
    share: float
    """Share of the excess over chance that is lost at F*."""
    mirrored: bool
    """Whether the plateau is at large doses (an onset)."""
    projection: Array
    """[p] what of (log N - mean)^2 the covariates explain."""
    bend: float
    """Standard deviation of the prior of k."""
    bent: Draws
    straight: Draws
    """The same with k = 0."""
    shapes: Array
    """Probabilities of the forms of a decline (`criteria.decline.shapes_of`), all cells together."""
    chance: float
    cells: int
    told: int
    """Number of cells that show on both sides where they decline."""
    convergence: float
    deviance: float
    """Deviance of all curves from the form of a decline."""
    freedom: int
    """Its degrees of freedom."""

    @property
    def misfit(self) -> float:
        """Probability of such a deviance if the curves have the form of a decline."""
        return float(scipy.special.chdtrc(self.freedom, self.deviance)) if self.freedom else 1.0

    def mean(self, log_n: float, log_d: float, log_h: float | None = None, *, straight: bool = False) -> Array:
        """Returns draws [R] of the law's mean of log F* at one model."""
        held = None if log_h is None else np.array([log_h])
        row = _design(self.candidate, self.centre, np.array([log_n]), np.array([log_d]), held)
        draws = self.straight if straight else self.bent
        p = row.shape[1]
        square = (log_n - self.centre[-1]) ** 2 - float((row @ self.projection)[0])
        mean: Array = draws[:, :p] @ row[0] + draws[:, p] * square
        return mean

    def sigma(self, *, straight: bool = False) -> Array:
        """Returns draws [R] of the scatter between models."""
        draws = self.straight if straight else self.bent
        return np.asarray(np.exp(draws[:, self._others + 1]))

    def estimates(self, confidence: float) -> dict[str, tuple[float, float, float]]:
        """Returns (median, low, high) of the straight law's exponents by term, and of sigma."""
        tail = (1 - confidence) / 2
        columns = {_TERMS[tuple(row)]: self.straight[:, i + 1] for i, row in enumerate(self.candidate.rows)}
        columns["sigma"] = self.sigma(straight=True)
        found = {}
        for name, draws in columns.items():
            low, middle, high = np.quantile(draws, (tail, 0.5, 1 - tail))
            found[name] = float(middle), float(low), float(high)
        return found

    @property
    def _others(self) -> int:
        return len(self.projection)

    def quantiles(self, mean: Array, sigma: Array, levels: Sequence[float]) -> list[float]:
        """Returns quantiles of log F* of a new model: of the mixture of Normal(mean, sigma) over the draws."""
        wanted = np.array(levels)
        low, high = np.full(len(wanted), (mean - 12 * sigma).min()), np.full(len(wanted), (mean + 12 * sigma).max())
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            below = scipy.special.ndtr((middle[:, None] - mean) / sigma).mean(axis=1) < wanted
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        return [float(value) for value in (low + high) / 2]

    def curves(
        self, x: Array, log_n: float, log_d: float, log_h: float | None, generator: np.random.Generator
    ) -> Array:
        """Returns [R, L] rates of a new model at log doses ``x``, one for each draw; the band of its whole curve."""
        o, count = self._others, len(self.bent)
        theta = self.mean(log_n, log_d, log_h) + self.sigma() * generator.standard_normal(count)
        z = log_n - self.centre[-1]
        spread = np.exp(self.bent[:, o + 4])
        steep = np.exp(self.bent[:, o + 2] + self.bent[:, o + 3] * z + spread * generator.standard_normal(count))
        level, slope, scatter = self.bent[:, -3:].T
        odds = level + slope * z + np.exp(scatter) * generator.standard_normal(count)
        forms = shapes_of(self.share)
        chosen = generator.choice(len(forms), size=count, p=self.shapes / self.shapes.sum())
        if self.mirrored:
            x, theta = -x, -theta
        at = np.clip(x, -60.0, 60.0)
        kept = np.empty((count, len(x)))
        for index, (sharp, floor) in enumerate(forms):
            of = chosen == index
            kept[of] = retention(at, theta[of, None], steep[of, None], sharp, floor, self.share)
        rates: Array = self.chance + (1 - self.chance) / (1 + np.exp(-odds))[:, None] * kept
        return rates


def fit_surface(
    cards: Sequence[Card],
    candidate: Candidate,
    log_n: Array,
    log_d: Array,
    log_h: Array | None,
    *,
    chance: float,
    share: float,
    mirrored: bool,
    bend: float,
    generator: np.random.Generator,
) -> Surface:
    """Fits the law of all curves at once.

    Args:
        cards: of the n cells.
        candidate: form of the law.
        log_n: [n].
        log_d: [n].
        log_h: [n] logarithms of what is held, for a candidate with a term in it.
        chance: rate of a guess.
        share: of the cards.
        mirrored: whether the cards are of mirrored curves.
        bend: standard deviation of the law's curvature, per squared e-fold of N.
        generator: random numbers.
    """
    size = log_n - log_n.mean()
    centre = np.concatenate([candidate.covariates(log_n, log_d, log_h).mean(axis=0), [log_n.mean()]])
    x = _design(candidate, centre, log_n, log_d, log_h)
    projection = np.linalg.lstsq(x, size**2, rcond=None)[0]
    square = size**2 - x @ projection
    sides = -1.0 if mirrored else 1.0
    density = _Density(cards, x, square, size, sides)
    straight = density.draw(0.0, generator)
    fits = [density.draw(bend, generator) if bend > 0 else straight, straight]
    plateau = _plateau_law(cards, size, len(fits[0][0]), generator)
    best = [np.unravel_index(int(card.log_likelihood.argmax()), card.log_likelihood.shape) for card in cards]
    return Surface(
        candidate=candidate,
        centre=centre,
        share=share,
        mirrored=mirrored,
        projection=projection,
        bend=bend,
        bent=np.column_stack([fits[0][0], plateau]),
        straight=np.column_stack([fits[1][0], plateau]),
        shapes=np.mean([card.shapes[place] for card, place in zip(cards, best, strict=True)], axis=0),
        chance=chance,
        cells=len(cards),
        told=sum(tells(card) for card in cards),
        convergence=max(fits[0][1], fits[1][1]),
        deviance=sum(card.deviance for card in cards),
        freedom=sum(card.freedom for card in cards),
    )


def tells(card: Card) -> bool:
    """Returns whether a curve shows where it declines: its likelihood falls off on both sides."""
    marginal = card.marginal()
    return bool(marginal[0] < -_TOLD and marginal[-1] < -_TOLD)


def _design(candidate: Candidate, centre: Array, log_n: Array, log_d: Array, log_h: Array | None) -> Array:
    covariates = candidate.covariates(log_n, log_d, log_h) - centre[:-1]
    return np.column_stack([np.ones(len(covariates)), covariates])


class _Density:
    """The log posterior of (beta, k, log sigma, m, n, log omega)."""

    def __init__(self, cards: Sequence[Card], x: Array, square: Array, size: Array, sides: float) -> None:
        theta = np.array([card.theta for card in cards])  # [n, T]
        likelihood = np.exp(np.array([card.log_likelihood for card in cards]))  # [n, T, G]
        spacing = np.array([card.spacing for card in cards])
        if sides < 0:  # a mirrored theta is minus the log dose
            theta, likelihood, spacing = -theta[:, ::-1], likelihood[:, ::-1], spacing[:, ::-1]
        likelihood[likelihood < _NEGLIGIBLE] = 0.0  # products of smaller numbers are slow in single precision
        self._theta, self._spacing = theta.astype(_SINGLE), spacing.astype(_SINGLE)
        self._narrowest = _HALF / np.maximum(_SINGLE(0.6) * self._spacing, _SINGLE(_LEAST_CELL))
        self._room = np.empty((3, 0, 0, 0), dtype=_SINGLE)  # for large arrays, to make which takes as long as to fill
        self._likelihood = np.ascontiguousarray(likelihood.swapaxes(1, 2), dtype=_SINGLE)  # [n, G, T]
        self._x, self._square, self._size = x, square, size

    def __call__(self, at: Array, bend: float) -> Array:
        p = self._x.shape[1]
        beta, k, log_sigma, m, n, log_omega = at[:, :p], *at[:, p:].T
        sigma, omega = np.exp(log_sigma), np.exp(log_omega)
        # Cells are the first axis: for each one, walkers by steepness times steepness by place is a matrix product.
        mean = self._x @ beta.T + self._square[:, None] * k  # [n, W]
        if self._room.shape[1:3] != mean.shape:
            self._room = np.empty((3, *mean.shape, self._theta.shape[1]), dtype=_SINGLE)
        inner = np.matmul(self._steepness(m, n, omega), self._likelihood, out=self._room[0])  # [n, W, T]
        below, within, inside, above = self._place(mean, sigma)
        cells = within * np.einsum("nwt,nwt->nw", inside, inner) + below * inner[..., 0] + above * inner[..., -1]
        prior = -0.5 * (sigma / SCATTER) ** 2 + log_sigma - 0.5 * (omega / _UNEQUAL) ** 2 + log_omega
        prior -= 0.5 * ((m - _STEEP[0]) / _STEEP[1]) ** 2 + 0.5 * (n / _STEEPER) ** 2
        prior -= 0.5 * ((beta[:, 1:] / _SLOPES) ** 2).sum(-1)
        if bend > 0:
            prior -= 0.5 * (k / bend) ** 2
        allowed = (np.minimum(log_sigma, log_omega) > _LEAST) & (np.maximum(log_sigma, log_omega) < _MOST)
        value = np.log(np.maximum(cells, _LEAST_CELL)).sum(axis=0) + prior
        return np.where(allowed, value, -np.inf)

    def _steepness(self, m: Array, n: Array, omega: Array) -> Single:
        """Returns probabilities [n, W, G] of the steepnesses."""
        grid = np.log(STEEPNESS)
        centre = m + n * self._size[:, None]
        narrow = _HALF / np.maximum(omega, 0.6 * (grid[1] - grid[0]))
        weight = _bell(grid.astype(_SINGLE) - centre.astype(_SINGLE)[..., None], narrow.astype(_SINGLE)[:, None])
        weight /= weight.sum(-1, keepdims=True)
        return weight

    def _place(self, mean: Array, sigma: Array) -> tuple[Array, Array, Single, Array]:
        """Returns probabilities [n, W] below, within and above the grid, and those [n, W, T] of its places within.

        Most of the time goes here, and single precision is a quarter of it.
        """
        below = scipy.special.ndtr((self._theta[:, :1] - mean) / sigma)
        above = np.exp(scipy.special.log_ndtr((mean - self._theta[:, -1:]) / sigma))
        narrow = np.minimum((_HALF / sigma).astype(_SINGLE)[:, None], self._narrowest[:, None], out=self._room[1])
        distance = np.subtract(self._theta[:, None], mean.astype(_SINGLE)[..., None], out=self._room[2])
        inside = _bell(distance, narrow)
        narrow *= self._spacing[:, None]
        inside *= narrow
        total = np.maximum(inside.sum(-1), _LEAST_CELL)
        return below, np.maximum(1 - below - above, 0.0) / total, inside, above

    def draw(self, bend: float, generator: np.random.Generator) -> tuple[Array, float]:
        """Returns (draws, convergence) with a bend of standard deviation ``bend``."""
        weight = self._likelihood.sum(axis=1) * self._spacing
        weight = weight / weight.sum(-1, keepdims=True)
        mean = (weight * self._theta).sum(-1)
        variance = (weight * (self._theta - mean[:, None]) ** 2).sum(-1) + 0.02
        information = self._x.T / variance
        covariance = np.linalg.pinv(information @ self._x)
        beta = covariance @ (information @ mean)
        tried = _TRIED * _WALKERS
        p = self._x.shape[1]
        start = np.column_stack(
            [
                beta + generator.multivariate_normal(np.zeros(p), covariance, tried),
                0.5 * bend * generator.standard_normal(tried),
                np.log(0.5 * SCATTER) + 0.4 * generator.standard_normal(tried),
                _STEEP[0] + 0.4 * generator.standard_normal(tried),
                0.5 * _STEEPER * generator.standard_normal(tried),
                np.log(0.5 * _UNEQUAL) + 0.4 * generator.standard_normal(tried),
            ]
        )
        # A walker that begins far out, where the curves' likelihoods are level, may never come back.
        start = start[np.argsort(-self(start, bend), kind="stable")[:_WALKERS]]
        # The density of many cells is nearly normal, and is sampled sooner.
        rounds = max(int(_ROUNDS * min(1.0, _MANY / len(self._theta))), _FEWEST_ROUNDS)
        every = max(rounds * _EVERY // _ROUNDS, 1)
        free = np.arange(start.shape[1]) != p if bend == 0 else np.ones(start.shape[1], dtype=bool)

        def whole(at: Array) -> Array:
            """Returns parameters [W, P] with k = 0 where it is not free."""
            found = np.zeros((len(at), len(free)))
            found[:, free] = at
            return found

        draws, convergence = sample(
            lambda at: self(whole(at), bend), start[:, free], generator, discard=_DISCARD, rounds=rounds, every=every
        )
        return whole(draws), convergence


def _bell(distance: Single, narrow: Single) -> Single:
    """Returns exp(-(distance narrow)^2), at least `_NEGLIGIBLE`; writes into ``distance``."""
    distance *= narrow
    distance *= distance
    np.negative(distance, out=distance)
    np.maximum(distance, _SINGLE(np.log(_NEGLIGIBLE)), out=distance)
    return np.exp(distance, out=distance)


def _plateau_law(cards: Sequence[Card], size: Array, draws: int, generator: np.random.Generator) -> Array:
    """Returns [draws, 3] of the plateau's log-odds at the mean of log N, their slope and their log scatter."""
    odds, variance = np.empty(len(cards)), np.empty(len(cards))
    for index, card in enumerate(cards):
        weight = np.exp(card.log_likelihood) * card.spacing[:, None]
        weight /= weight.sum()
        share = float(np.clip((weight * card.plateau).sum(), 1e-3, 1 - 1e-3))
        error = float((weight * (card.plateau_error**2 + (card.plateau - share) ** 2)).sum())
        odds[index] = np.log(share / (1 - share))
        variance[index] = error / (share * (1 - share)) ** 2
    rows = np.column_stack([np.ones(len(cards)), size])
    if len(np.unique(size)) < 3:
        rows = rows[:, :1]
    found = fit(rows, odds, odds, np.maximum(variance, 1e-6))
    deviation = generator.multivariate_normal(np.zeros(rows.shape[1]), found.covariance, draws)
    law = np.zeros((draws, 3))
    law[:, : rows.shape[1]] = found.beta + _student(float(found.freedom), draws, generator)[:, None] * deviation
    unknown = _student(float(found.scatter_freedom), draws, generator)
    law[:, 2] = np.log(np.maximum(float(found.sigma) * unknown, 1e-3))
    return law


def _student(freedom: float, draws: int, generator: np.random.Generator) -> Array:
    """Returns [draws] factors that make normal deviations those of Student's t."""
    freedom = max(freedom, 1.0)
    return np.asarray(np.sqrt(freedom / generator.chisquare(freedom, draws)))


def record_of(surface: Surface) -> dict[str, Any]:
    """Returns a surface as JSON-ready values, its draws with five digits; `surface_of` reads them."""
    content = {name: getattr(surface, name) for name in Surface.__dataclass_fields__ if name != "candidate"}
    for name, value in content.items():
        if isinstance(value, np.ndarray):
            rounded = np.vectorize(lambda v: float(f"{v:.5g}"), otypes=[float])(value)
            content[name] = rounded.tolist()
    return {"law": surface.candidate.name, **content}


def surface_of(record: Mapping[str, Any]) -> Surface:
    """Makes a surface from its record, which `law_file` has checked."""
    content = {name: record[name] for name in Surface.__dataclass_fields__ if name != "candidate"}
    for name in ("centre", "projection", "bent", "straight", "shapes"):
        content[name] = np.array(content[name], dtype=float)
    return Surface(candidate=CANDIDATES[record["law"]], **content)
