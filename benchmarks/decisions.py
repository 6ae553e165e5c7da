"""How often nothing is lost at the dose that `kis law decide` names with 95%, over simulated studies.

    python -m benchmarks.decisions [--studies 400]

Six sizes from 10M to 1B have points of a collapse and of a loss tolerance, each known to 5%, whose scatter between
models is correlated. The decision is for ten times the largest. The new model loses nothing if both its transitions lie
beyond the dose. An oracle knows both laws and the scatter, but not the new model.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from megatron_kis.analysis.criteria import Transition
from megatron_kis.analysis.law.decision import decide
from megatron_kis.analysis.law.fit import fit_law

SIZES = np.geomspace(1e7, 1e9, 6)
TOKENS, TARGET = 20_000_000_000, 1e10
CONFIDENCE = 0.95
LAWS = (("collapse", "background", 300.0), ("tolerance", "general", 330.0))
SLOPE, ERROR = 0.2, 0.05


@dataclass(frozen=True)
class Kept:
    """Decisions of many studies."""

    kept: float
    """Share in which nothing was lost at the dose."""
    cost: float
    """Median log ratio of the oracle's dose to the dose."""


def simulate(studies: int, scatter: float, correlation: float, seed: int = 0) -> Kept:
    """Decides in ``studies`` studies whose models scatter by ``scatter``."""
    generator = np.random.default_rng([seed, round(100 * scatter), round(100 * correlation)])
    both = scatter**2 * np.array([[1.0, correlation], [correlation, 1.0]])
    kept, cost = [], []
    for _ in range(studies):
        deviations = generator.multivariate_normal(np.zeros(2), both, len(SIZES) + 1)
        laws, new = [], []
        for (kind, group, at), deviation in zip(LAWS, deviations.T, strict=True):
            mean = math.log(at) + SLOPE * np.log(np.append(SIZES, TARGET) / SIZES[0])
            seen = mean[:-1] + deviation[:-1] + ERROR * generator.standard_normal(len(SIZES))
            points = [
                Transition(
                    params=round(size),
                    tokens=TOKENS,
                    kind=kind,
                    group=group,
                    status="collapsed" if kind == "collapse" else "observed",
                    value=math.exp(y),
                    low=math.exp(y - 1.96 * ERROR),
                    high=math.exp(y + 1.96 * ERROR),
                    interval="profile",
                )
                for size, y in zip(SIZES, seen, strict=True)
            ]
            laws.append(fit_law(points, kind, group, law="N", compare_laws=False))
            new.append(mean[-1] + deviation[-1])
        dose = decide(laws, TARGET, TOKENS, confidence=CONFIDENCE).dose or 0.5
        kept.append(min(new) > math.log(dose))
        known = math.log(LAWS[0][2]) + SLOPE * math.log(TARGET / SIZES[0]) + scatter * norm.ppf(1 - CONFIDENCE)
        cost.append(known - math.log(dose))
    return Kept(float(np.mean(kept)), float(np.median(cost)))


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=400, help="simulated studies per row (400)")
    options = parser.parse_args()
    print("| scatter | correlation | nothing lost | log of the oracle's dose over it |")
    print("|---|---|---|---|")
    for scatter in (0.1, 0.3):
        for correlation in (0.0, 0.8):
            found = simulate(options.studies, scatter, correlation)
            print(f"| {scatter} | {correlation} | {found.kept:.3f} | {found.cost:.2f} |", flush=True)


if __name__ == "__main__":
    main()
