"""How often a study that is extended until its interval is narrow misses the new model, with and without looks counted.

    python -m benchmarks.stopping [--studies 2000] [--looks 16]

Several sizes from 30M to 500M ask for 7B. log F* scatters around a straight law. Each look adds runs to all sizes, so
that the errors of their points shrink as in one series of runs, and the interval is that of `kis law fit` on the points
(`law.regression`). The study ends when that interval is as narrow as a full grid of the same truth has it, or after the
last look. The points alone are simulated, not curves, so that thousands of studies take seconds;
`benchmarks.next_runs` has curves.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np

from megatron_kis.analysis.law.looks import level_at_look
from megatron_kis.analysis.law.regression import Fit, fit, half_width
from megatron_kis.analysis.runs.curves import Array

CONFIDENCE = 0.95
FULL_ERROR = 0.06
"""Standard error of log F* of a size of the full grid."""
RULES = ("every look at 95%", "looks declared", "looks not declared")


@dataclass(frozen=True)
class Stopped:
    """Studies that were ended by their intervals."""

    coverage: float
    """Share whose last interval holds the new model."""
    narrow: float
    """Share that ended before the last look."""
    missed_narrow: float
    """Share of all studies that ended so and missed."""
    looks: float
    """Mean number of looks."""
    width: float
    """Median log width of the last interval."""


def level(rule: str, look: int, looks: int) -> float:
    """The level of the interval at a look."""
    if rule == RULES[0]:
        return CONFIDENCE
    return level_at_look(CONFIDENCE, look, looks if rule == RULES[1] else 0)


def simulate(studies: int, sizes: int, looks: int, scatter: float, seed: int = 0) -> dict[str, Stopped]:
    """Studies of ``sizes`` sizes with up to ``looks`` looks, by the rule that gives the level."""
    generator = np.random.default_rng([seed, sizes, looks])
    log_n = np.log(np.geomspace(30e6, 500e6, sizes))
    x = np.column_stack([np.ones(sizes), log_n - log_n.mean()])
    target = np.array([1.0, np.log(7e9) - log_n.mean()])
    truth = 0.25 * x[:, 1] + scatter * generator.standard_normal((studies, sizes))
    new = 0.25 * target[1] + scatter * generator.standard_normal(studies)

    information = 10.0 * np.arange(1, looks + 1)  # the first look knows a point to 0.3
    steps = np.sqrt(np.diff(information, prepend=0.0))
    noise = np.cumsum(steps[:, None, None] * generator.standard_normal((looks, studies, sizes)), axis=0)
    seen = truth + noise / information[:, None, None]

    def told(points: Array, variance: float) -> tuple[Array, Array, Fit]:
        found = fit(x, points, points, np.full_like(points, variance))
        return found.beta @ target, np.sqrt(np.einsum("i,rij,j->r", target, found.covariance, target)), found

    def half(told: tuple[Array, Array, Fit], level: float) -> Array:
        _, error, found = told
        return half_width(error, found.sigma, found.freedom, found.scatter_freedom, level)

    wanted = half(told(truth + FULL_ERROR * generator.standard_normal(truth.shape), FULL_ERROR**2), CONFIDENCE)
    every = [told(points, 1 / amount) for points, amount in zip(seen, information, strict=True)]
    ended = {}
    for rule in RULES:
        halves = np.array([half(found, level(rule, look, looks)) for look, found in enumerate(every, start=1)])
        misses = np.array([np.abs(new - found[0]) for found in every]) > halves
        narrow = halves <= wanted
        last = np.where(narrow[:-1].any(axis=0), narrow[:-1].argmax(axis=0), looks - 1)
        early = last < looks - 1
        missed, width = (values[last, np.arange(studies)] for values in (misses, 2 * halves))
        ended[rule] = Stopped(
            coverage=1 - float(missed.mean()),
            narrow=float(early.mean()),
            missed_narrow=float((missed & early).mean()),
            looks=float(last.mean() + 1),
            width=float(np.median(width)),
        )
    return ended


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=2000, help="simulated studies per row (2000)")
    parser.add_argument("--seed", type=int, default=0, help="of the simulation (0)")
    options = parser.parse_args()
    print("| sizes | scatter | looks | level | coverage | ended by its width | looks, mean | log width, median |")
    print("|---|---|---|---|---|---|---|---|")
    for sizes, scatter in ((5, 0.08), (5, 0.3), (4, 0.15), (8, 0.15)):
        for looks in (3, 5, 16):
            for rule, found in simulate(options.studies, sizes, looks, scatter, options.seed).items():
                print(
                    f"| {sizes} | {scatter} | {looks} | {rule} | {found.coverage:.3f} | {found.narrow:.2f} | "
                    f"{found.looks:.1f} | {found.width:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
