"""What a straight law says far beyond its points where the truth bends, and what one says that may bend.

    python -m benchmarks.bent_laws [--studies 2000]

Sizes are evenly spaced in log N, their points known exactly: what is left is how far the shape of the law carries.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from megatron_kis.analysis.law import bend as bends
from megatron_kis.analysis.law import regression
from megatron_kis.analysis.law.fit import BEND
from megatron_kis.analysis.runs.curves import Array

SMALLEST, LARGEST = 25e6, 3.2e9
_SLOPE = 0.4
_FIRST = math.log(100.0)
"""log F* of the smallest model."""


def _power(log_n: Array) -> Array:
    return _FIRST + _SLOPE * (log_n - math.log(SMALLEST))


def _bent(log_n: Array) -> Array:
    middle = (math.log(SMALLEST) + math.log(LARGEST)) / 2
    return _power(log_n) - 0.034 * (log_n - middle) ** 2


TRUTHS: dict[str, Callable[[Array], Array]] = {
    "straight": _power,
    "saturating at 900": lambda log_n: -np.logaddexp(-_power(log_n), -math.log(900.0)),
    "bent by -.034 (log N)^2": _bent,
    "power, flat from 1.6B on": lambda log_n: _power(np.minimum(log_n, math.log(1.6e9))),
    "floor of 150": lambda log_n: np.logaddexp(_power(log_n), math.log(150.0)),
}


@dataclass(frozen=True)
class Covered:
    """Shares of new models, and log widths of their intervals."""

    straight: float
    bent: float
    below: float
    """Share of new models below the interval of the law that may bend: whose recommended end is too high."""
    straight_width: float
    bent_width: float


def covered(truth: str, scatter: float, beyond: float, studies: int, *, sizes: int = 8, seed: int = 0) -> Covered:
    """Returns how often the 95% intervals hold a new model ``beyond`` times the largest one."""
    generator = np.random.default_rng([seed, sizes, round(1000 * scatter), round(beyond)])
    mean = TRUTHS[truth]
    log_n = np.linspace(math.log(SMALLEST), math.log(LARGEST), sizes)
    x = np.column_stack([np.ones(sizes), log_n - log_n.mean()])
    y = mean(log_n) + scatter * generator.standard_normal((studies, sizes))
    known = np.zeros_like(y)
    found = regression.fit(x, y, y, known)
    residual = y - found.beta @ x.T
    bend = bends.fit_bend(BEND, x, log_n, (residual, residual, known), found.sigma, found.factor)
    at = float(log_n[-1] + math.log(beyond))
    new = mean(np.array(at)) + scatter * generator.standard_normal(studies)
    row = np.array([1.0, at - log_n.mean()])
    centre = found.beta @ row
    error = np.sqrt(np.einsum("i,rij,j->r", row, found.covariance, row))
    freedom = found.freedom, found.scatter_freedom
    half = regression.half_width(error, found.sigma, *freedom)
    shift, of_points, of_prior = bend.at(row, at)
    wider = bends.half_width((of_points, of_prior), found.sigma, *freedom, 0.95)
    return Covered(
        straight=float((np.abs(new - centre) <= half).mean()),
        bent=float((np.abs(new - centre - shift) <= wider).mean()),
        below=float((new < centre + shift - wider).mean()),
        straight_width=float(np.median(2 * half)),
        bent_width=float(np.median(2 * wider)),
    )


def markdown(studies: int) -> str:
    """Returns the table of the documentation."""
    lines = [
        f"A new model 10 and 70 times beyond 8 sizes from 25M to 3.2B, {studies} studies per row: its share in the 95% "
        f"interval if straight, in that of a law that may bend (bend {BEND:g}), below the latter; both log widths.",
        "",
        "| truth | scatter | 10x: straight | may bend | below | widths | 70x: straight | may bend | below | widths |",
        "|" + 10 * "---|",
    ]
    for truth in TRUTHS:
        for scatter in (0.05, 0.15):
            cells = []
            for beyond in (10, 70):
                c = covered(truth, scatter, beyond, studies)
                widths = f"{c.straight_width:.2f}, {c.bent_width:.2f}"
                cells += [f"{c.straight:.3f}", f"{c.bent:.3f}", f"{c.below:.3f}", widths]
            lines.append(f"| {truth} | {scatter:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=2000, help="studies per row (2000)")
    print(markdown(parser.parse_args().studies))


if __name__ == "__main__":
    main()
