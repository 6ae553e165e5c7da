"""The tables of benchmarks.size_and_power in small: how often a fall is called where there is none, and found."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.size_and_power import (
    BOUNDS,
    FALLS,
    FLAT,
    NULLS,
    World,
    curve_of,
    falling,
    loses_a_tenth,
    rejections,
    statuses,
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["flat", "one seed, correlation 0.03, 120 facts", "dose effects shared by seeds, 0.2", "seed effects, 0.3"]
)
def test_studies_without_a_fall_are_seldom_rejected(name):
    truth, world = NULLS[name]
    rejected, certain = rejections(world, truth, 60, sizes=4)
    assert rejected <= 0.15  # 7% and three standard errors
    assert certain <= rejected


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [1, 3])
def test_a_diverged_run_is_no_collapse(seeds):
    _, certain = rejections(World(seeds=seeds, diverged=0.3), FLAT, 30, sizes=1)
    assert certain <= 0.07


@pytest.mark.slow
def test_facts_that_are_asked_of_every_run_show_falls_that_counts_would_not():
    truth, world = FALLS["0.12, difficulties of facts, 60 facts"]
    assert rejections(world, truth, 40, sizes=4)[1] > 0.8


@pytest.mark.slow
@pytest.mark.parametrize("name", ["slow decline, gamma 0.3, 20 seeds", "a late fall of 0.08, 3 seeds"])
def test_bounds_lie_before_what_is_lost(name):
    truth, world = BOUNDS[name]
    assert statuses(world, truth, 30)["false"] <= 0.17


def test_worlds_differ_as_they_say():
    generator = np.random.default_rng(0)

    def spread(world: World) -> float:
        return float(np.mean([np.std(curve_of(world, FLAT, generator).seed_rates, axis=1) for _ in range(40)]))

    counts, calm, loud = spread(World(icc=0.0)), spread(World(items=3.0)), spread(World(icc=0.1))
    assert calm < 0.9 * counts < counts < 0.7 * loud
    assert loses_a_tenth(falling(0.125)) == 1600
    assert curve_of(World(seeds=1, diverged=0.1), FLAT, generator).rate[-1] < 0.3
