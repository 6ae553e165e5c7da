"""Samples of a density of a few parameters, by an ensemble of walkers that needs no gradient and no tuning.

Half of the walkers move at a time, in directions that the other half spans: by the stretch move of Goodman and Weare
(2010), or along the difference of two of the others (ter Braak 2006). The density takes all walkers in one call.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from megatron_kis.analysis.runs.curves import Array

_STRETCH = 2.0
_WHOLE = 0.1  # share of the moves along a difference that go its whole length, from one mode to another
_JITTER = 1e-5


def sample(
    density: Callable[[Array], Array],
    start: Array,
    generator: np.random.Generator,
    *,
    discard: int,
    rounds: int,
    every: int,
) -> tuple[Array, float]:
    """Returns (draws [R, P], convergence) of a log density.

    The convergence is the largest ratio, over parameters, of the spread of all draws to that within four parts of them:
    both halves of the rounds, of both halves of the walkers (Gelman and Rubin's R). It is near 1 where all have
    forgotten where they began.

    Args:
        density: log density [W] of parameters [W, P]; -inf where there is none.
        start: [W, P] where the walkers begin, an even number of them.
        generator: random numbers.
        discard: rounds that are not kept.
        rounds: rounds after them.
        every: distance of the rounds that are kept.
    """
    at, value = start.copy(), density(start)
    walkers, parameters = at.shape
    half = walkers // 2
    jump = 2.38 / np.sqrt(2 * parameters)
    kept = []
    for turn in range(discard + rounds):
        order = generator.permutation(walkers)
        for moving, still in ((order[:half], order[half:]), (order[half:], order[:half])):
            if generator.random() < 0.5:
                factor = (1 + (_STRETCH - 1) * generator.random(half)) ** 2 / _STRETCH
                other = at[generator.choice(still, half)]
                new = other + factor[:, None] * (at[moving] - other)
                gain = (parameters - 1) * np.log(factor)
            else:
                first = generator.integers(half, size=half)
                second = (first + 1 + generator.integers(half - 1, size=half)) % half
                length = np.where(generator.random(half) < _WHOLE, 1.0, jump)
                new = at[moving] + length[:, None] * (at[still[first]] - at[still[second]])
                new += _JITTER * generator.standard_normal(new.shape)
                gain = np.zeros(half)
            found = density(new)
            taken = np.log(generator.random(half)) < found - value[moving] + gain
            at[moving[taken]], value[moving[taken]] = new[taken], found[taken]
        if turn >= discard and (turn - discard) % every == 0:
            kept.append(at.copy())
    draws = np.array(kept)  # [K, W, P]
    return draws.reshape(-1, parameters), _convergence(draws)


def _convergence(draws: Array) -> float:
    """Returns R of the first and the second half of the rounds and of the walkers, draws [K, W, P]."""
    rounds, walkers, parameters = draws.shape
    early, late = draws[: rounds // 2], draws[rounds // 2 : 2 * (rounds // 2)]
    parts = [part[:, side] for part in (early, late) for side in (slice(None, walkers // 2), slice(walkers // 2, None))]
    groups = np.array([part.reshape(-1, parameters) for part in parts])  # [4, K W / 4, P]
    within = groups.var(axis=1).mean(axis=0)
    between = groups.mean(axis=1).var(axis=0, ddof=1)
    return float(np.sqrt(1 + (between / np.maximum(within, 1e-300))).max())
