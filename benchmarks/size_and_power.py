"""How often is a collapse called where there is none, and found where there is one? By simulation, as tables.

    python -m benchmarks.size_and_power [--curves 200] [--output FILE]

The curves are written without the shapes that the criterion fits: flat, rising and stepped truths; smooth falls and
facts with difficulties of their own. What makes runs differ is varied: a correlation of the facts of a run, an effect
of a seed at all doses, an effect of a dose that its seeds share, relations that fail whole, a run that diverged. Each
truth is judged alone (one size) and as a study of four sizes, which knows more of how much rates vary.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_kis.analysis.criteria.counts import generator_of
from megatron_kis.analysis.criteria.dispersion import with_dispersion
from megatron_kis.analysis.criteria.hinge import HingeCollapse, measured
from megatron_kis.analysis.criteria.one_run import run_it_rests_on
from megatron_kis.analysis.criteria.unimodal import critical_value, fall_statistic, fall_test
from megatron_kis.analysis.runs.curves import Array, Curve
from megatron_kis.analysis.simulate import measured_curve
from megatron_kis.config.analysis import AnalysisConfig

SETTINGS = AnalysisConfig(resamples=199)
DOSE = np.array([0, 50, 100, 200, 400, 800, 1600, 3200.0])
FLAT = np.full(8, 0.7)
RISING = np.array([0.25, 0.3, 0.36, 0.5, 0.62, 0.71, 0.76, 0.78])
STEP = np.array([0.3, 0.3, 0.3, 0.8, 0.8, 0.8, 0.8, 0.8])
RELATIONS, TEMPLATES = 6, 6


@dataclass(frozen=True, kw_only=True)
class World:
    """What makes runs differ, and how many there are."""

    facts: int = 120
    seeds: int = 3
    icc: float = 0.01
    """Intraclass correlation of the facts of a run (beta-binomial)."""
    seed_effect: float = 0.0
    """Standard deviation on the logit scale of a seed, the same at every dose."""
    shared: float = 0.0
    """Standard deviation on the logit scale of a dose, which its seeds share."""
    failing: float = 0.0
    """Share of runs that lose one relation, a sixth of the facts, whole."""
    diverged: float | None = None
    """Rate of one run at the largest dose, instead of its true rate."""
    items: float = 0.0
    """Standard deviation on the logit scale of the facts' difficulties, the same in every run; 0: none."""


def seeds_of(world: World, truth: Array, generator: np.random.Generator) -> Array:
    """Draws the rates [L, S] of the runs of one size with true rates ``truth`` [L]."""
    shape = len(truth), world.seeds
    eta = np.log(truth / (1 - truth))[:, None] + world.shared * generator.standard_normal((len(truth), 1))
    eta = eta + world.seed_effect * generator.standard_normal((1, world.seeds))
    if world.items:
        facts = world.items * generator.standard_normal(world.facts)
        # The same mean rate with difficulties as without: the logit is stretched by what they add to its spread.
        stretched = eta * math.sqrt(1 + world.items**2 / 2.89)
        p = 1 / (1 + np.exp(-stretched[..., None] - facts - 0.03 * generator.standard_normal((*shape, 1))))
        right = generator.binomial(TEMPLATES, p) / TEMPLATES
        return np.asarray(right.mean(axis=-1), dtype=np.float64)
    p = np.broadcast_to(1 / (1 + np.exp(-eta)), shape)
    if world.icc:
        strength = 1 / world.icc - 1
        p = generator.beta(p * strength, (1 - p) * strength)
    counts = generator.binomial(world.facts, p).astype(np.float64)
    if world.failing:
        failed = generator.random(shape) < world.failing
        counts = np.where(failed, np.rint(counts * (1 - 1 / RELATIONS)), counts)
    rates = counts / world.facts
    if world.diverged is not None:
        rates[-1, 0] = generator.binomial(world.facts, world.diverged) / world.facts
    return rates


def curve_of(world: World, truth: Array, generator: np.random.Generator, size: int = 0) -> Curve:
    """Returns the measured curve of one size."""
    matrix = np.full((len(truth), world.seeds), float(world.facts))
    cell = 100_000_000 + size, 2_000_000_000
    return measured_curve(cell, DOSE, seeds_of(world, truth, generator), matrix, 0.25)


def falls(curve: Curve) -> tuple[bool, bool]:
    """Returns whether the test rejects "never falls" at 5%, and whether it does so without any one run too."""
    _, seen = measured(curve, SETTINGS)
    p, null = fall_test(seen.of(seen.rate[0]), SETTINGS.resamples, generator_of(curve, SETTINGS, "fall"))
    if p > SETTINGS.alpha:
        return False, False
    assert curve.dispersion is not None
    critical = critical_value(null, SETTINGS.alpha)
    return True, run_it_rests_on(curve, curve.dispersion, critical, fall_statistic) is None


def rejections(world: World, truth: Array, curves: int, *, sizes: int, seed: int = 0) -> tuple[float, float]:
    """Returns the shares of ``curves`` that are rejected, and that are without any one run too.

    They come in studies of ``sizes`` sizes with one truth.
    """
    generator = np.random.default_rng([seed, world.facts, world.seeds, sizes])
    found = []
    for _ in range(-(-curves // sizes)):
        study = [curve_of(world, truth, generator, size) for size in range(sizes)]
        found += [falls(curve) for curve in with_dispersion(study, SETTINGS)]
    any_, certain = np.mean(found[:curves], axis=0)
    return float(any_), float(certain)


NULLS: dict[str, tuple[Array, World]] = {
    "flat": (FLAT, World()),
    "rising": (RISING, World()),
    "a step that stays up": (STEP, World()),
    "correlation 0, 60 facts": (FLAT, World(icc=0.0, facts=60)),
    "correlation 0.03": (FLAT, World(icc=0.03)),
    "correlation 0.1, 400 facts": (FLAT, World(icc=0.1, facts=400)),
    "one seed, 60 facts": (FLAT, World(seeds=1, facts=60)),
    "one seed, correlation 0.03, 120 facts": (FLAT, World(seeds=1, icc=0.03)),
    "one seed, correlation 0.1, 400 facts": (FLAT, World(seeds=1, icc=0.1, facts=400)),
    "one seed, a step, correlation 0.03": (STEP, World(seeds=1, icc=0.03)),
    "ten seeds, correlation 0.03": (FLAT, World(seeds=10, icc=0.03)),
    "seed effects, 0.3": (FLAT, World(seed_effect=0.3)),
    "dose effects shared by seeds, 0.1": (FLAT, World(shared=0.1)),
    "dose effects shared by seeds, 0.2": (FLAT, World(shared=0.2)),
    "dose effects shared by seeds, 0.3": (FLAT, World(shared=0.3)),
    "relations that fail whole": (FLAT, World(failing=0.05)),
    "one run diverged, one seed": (FLAT, World(seeds=1, diverged=0.3)),
    "one run diverged, three seeds": (FLAT, World(diverged=0.3)),
    "difficulties of facts, 60 facts": (FLAT, World(items=1.5, facts=60)),
    "difficulties of facts, one seed": (FLAT, World(items=1.5, facts=60, seeds=1)),
}
"""Curves without a fall, by name."""


def falling(drop: float, *, rise: bool = True) -> Array:
    """Returns rates [L] that fall by ``drop`` over the last three doses, smoothly and like no hinge."""
    up = np.array([0.5, 0.65, 0.75, 0.8, 0.8, 0.8, 0.8, 0.8]) if rise else np.full(8, 0.8)
    return up - drop * np.array([0, 0, 0, 0, 0, 0.25, 0.75, 1.0])


FALLS: dict[str, tuple[Array, World]] = {
    "0.05, difficulties of facts, 60 facts": (falling(0.054), World(items=1.5, facts=60)),
    "0.08, difficulties of facts, 60 facts": (falling(0.084), World(items=1.5, facts=60)),
    "0.12, difficulties of facts, 60 facts": (falling(0.125), World(items=1.5, facts=60)),
    "0.12, the same, one seed": (falling(0.125), World(items=1.5, facts=60, seeds=1)),
    "0.08, difficulties of facts, 200 facts": (falling(0.085), World(items=1.5, facts=200)),
    "0.12, 60 facts, 3 seeds": (falling(0.12), World(facts=60)),
    "0.12, 60 facts, 20 seeds": (falling(0.12), World(facts=60, seeds=20)),
    "0.08, 60 facts, 20 seeds": (falling(0.08), World(facts=60, seeds=20)),
    "0.3, 120 facts, 1 seed": (falling(0.3), World(seeds=1)),
    "0.3, 120 facts, 3 seeds": (falling(0.3), World()),
}
"""Curves that fall, by how much and in which world."""


def slow(gamma: float) -> Array:
    """Returns rates [L] with a plateau of 0.8 to dose 200 and a slow decline from there."""
    away = np.maximum(np.log(np.maximum(DOSE, 1) / 200), 0.0)
    rates: Array = 1 / (1 + np.exp(-math.log(4) + gamma * away))
    return rates


def rounded(curvature: float) -> Array:
    """Returns rates [L] of a rounded peak of 0.8 at dose 200."""
    away = np.log(np.maximum(DOSE, 12.5) / 200)
    rates: Array = 1 / (1 + np.exp(-math.log(4) + curvature * away**2))
    return rates


BOUNDS: dict[str, tuple[Array, World]] = {
    "slow decline, gamma 0.3, 3 seeds": (slow(0.3), World(facts=60)),
    "slow decline, gamma 0.3, 20 seeds": (slow(0.3), World(facts=60, seeds=20)),
    "rounded peak, 3 seeds": (rounded(0.1), World(facts=200)),
    "a late fall of 0.08, 3 seeds": (falling(0.084), World(items=1.5, facts=60)),
    "a late fall of 0.12, 1 seed": (falling(0.125), World(items=1.5, facts=60, seeds=1)),
}
"""Curves whose bounds may be false, by name."""


def loses_a_tenth(truth: Array) -> float:
    """Returns the first dose after the peak at which a tenth of the highest rate is lost; inf if there is none."""
    top = int(np.argmax(truth))
    (lost,) = np.nonzero(truth[top:] <= 0.9 * truth[top])
    return float(DOSE[top + lost[0]]) if len(lost) else math.inf


def statuses(world: World, truth: Array, curves: int, *, sizes: int = 1, seed: int = 0) -> dict[str, float]:
    """Returns the share of each status by ``hinge``, and of ``false`` bounds, over ``curves`` curves."""
    generator, lost = np.random.default_rng([seed, 7, world.facts, world.seeds]), loses_a_tenth(truth)
    found: dict[str, float] = {"false": 0.0}
    for _ in range(-(-curves // sizes)):
        study = [curve_of(world, truth, generator, size) for size in range(sizes)]
        for curve in with_dispersion(study, SETTINGS):
            point = HingeCollapse().find(curve, SETTINGS)
            found[point.status] = found.get(point.status, 0.0) + 1 / curves
            if point.status == "right_censored" and point.low is not None and point.low >= lost:
                found["false"] += 1 / curves
    return found


def rejection_rows(cases: dict[str, tuple[Array, World]], curves: int) -> Iterator[str]:
    """Yields the rows of a table of the shares that the test rejects."""
    for name, (truth, world) in cases.items():
        alone, study = (rejections(world, truth, curves, sizes=sizes) for sizes in (1, 4))
        yield f"| {name} | {alone[0]:.3f} | {alone[1]:.3f} | {study[0]:.3f} | {study[1]:.3f} |"


def bound_rows(cases: dict[str, tuple[Array, World]], curves: int) -> Iterator[str]:
    """Yields the rows of a table of bounds."""
    for name, (truth, world) in cases.items():
        row = statuses(world, truth, curves)
        said = " | ".join(f"{row.get(status, 0.0):.2f}" for status in ("collapsed", "right_censored", "inconclusive"))
        yield f"| {name} | {said} | {row['false']:.3f} |"


def markdown(curves: int) -> str:
    """Returns the tables as the documentation has them."""
    started = time.perf_counter()
    head = "| {} | one size | and without any one run | of four sizes | and without any one run |"
    tables = [
        ("Share of curves without a fall that are rejected at 5%", head.format("truth"), rejection_rows(NULLS, curves)),
        ("Share of falls that are found", head.format("fall"), rejection_rows(FALLS, curves)),
        (
            "Statuses by `hinge`, and bounds at doses that have lost a tenth",
            "| truth | collapsed | right-censored | inconclusive | false bound |",
            bound_rows(BOUNDS, curves),
        ),
    ]
    lines: list[str] = []
    for title, header, rows in tables:
        lines += [f"{title}; {curves} curves per row:", "", header, "|" + 5 * "---|", *rows, ""]
    lines.append(f"Run time {time.perf_counter() - started:.0f} s on one core.")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Prints or writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curves", type=int, default=200, help="curves per row (200)")
    parser.add_argument("--output", type=Path, help="write the tables here instead of printing them")
    options = parser.parse_args()
    text = markdown(options.curves)
    if options.output:
        options.output.write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
