"""The loss tolerance: where the excess of the loss crosses it, with an interval that the scatter of the runs gives."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.loss_tolerance import Design, row
from megatron_kis.analysis.criteria import LossTolerance, Transition, find_transitions
from megatron_kis.analysis.criteria.loss_noise import noise_of
from megatron_kis.analysis.law.fit import fit_law
from megatron_kis.analysis.law.predict import predict
from megatron_kis.analysis.runs.curves import curves
from megatron_kis.analysis.runs.load_csv import load_curves_csv
from megatron_kis.analysis.runs.noise import LossNoise
from megatron_kis.config.analysis import AnalysisConfig
from tests.analysis.synthetic import curve_rows

RESULTS = Path(__file__).parents[2] / "docs/study/results"
NOISE = (-0.004, 0.001, 0.003)


def table(levels: dict[float, list[float]], params: int = 100_000) -> pd.DataFrame:
    """A curve table of losses: dose -> losses of seeds 0, 1, ..."""
    rows = curve_rows({dose: [50] * len(losses) for dose, losses in levels.items()}, params=params)
    return rows.assign(validation_loss=[loss for losses in levels.values() for loss in losses])


def three_seeds(levels: dict[float, float]) -> dict[float, list[float]]:
    """Losses of three seeds about each level's loss, with other errors at each level."""
    return {
        dose: [loss * (1 + NOISE[(seed * (level % 2 + 1) + level) % 3]) for seed in range(3)]
        for level, (dose, loss) in enumerate(levels.items())
    }


def points_of(rows: pd.DataFrame) -> list[Transition]:
    return find_transitions(rows, criteria=(LossTolerance(),))


def point_of(levels: dict[float, list[float]]) -> Transition:
    (point,) = points_of(table(levels))
    return point


POWER = {dose: 4.0 * (1 + 0.05 * (dose / 150) ** 1.5) for dose in (0.0, 25.0, 50.0, 100.0, 200.0, 400.0, 800.0)}


def test_the_crossing_is_interpolated_and_its_interval_lies_within_the_levels_around_it():
    point = point_of(three_seeds(POWER))
    assert (point.status, point.interval, point.group, point.split) == ("observed", "profile", "general", None)
    assert point.value == pytest.approx(150, rel=0.05)
    assert 100 < point.low < 150 < point.high < 200
    assert point.flags == ""


def test_a_curve_without_its_study_has_the_scatter_of_the_prior():
    (curve,) = curves(table(three_seeds(POWER)))
    alone = LossTolerance().find(curve, AnalysisConfig())
    known = point_of(three_seeds(POWER))
    assert alone.value == pytest.approx(known.value)
    assert alone.low < known.low < known.high < alone.high
    assert "scatter of a run's loss assumed" in alone.flags


def test_more_scatter_between_seeds_widens_the_interval_beyond_the_bracket():
    wide = {dose: [np.mean(v) + 5 * (loss - np.mean(v)) for loss in v] for dose, v in three_seeds(POWER).items()}
    point = point_of(wide)
    assert point.low < 100
    assert point.high > 200


def test_a_loss_within_the_tolerance_is_right_censored_where_it_may_be_beyond_it():
    small = {0.0: 4.0, 64.0: 4.02, 256.0: 4.03, 1024.0: 4.04}
    point = point_of(three_seeds(small))
    assert (point.status, point.low, point.value, point.high) == ("right_censored", 1024, None, None)
    assert "at most 5% over the loss at F = 0 up to 1024; +1.0% at 1024" in point.reason
    almost = point_of(three_seeds(small | {1024.0: 4.19}))  # 4.75%, not reliably below 5%
    assert almost.status == "right_censored"
    assert 256 < almost.low < 1024


def test_an_excess_that_is_not_reliably_beyond_the_tolerance_is_right_censored():
    point = point_of(three_seeds({0.0: 4.0, 64.0: 4.02, 256.0: 4.03, 1024.0: 4.21}))  # 5.25%
    assert point.status == "right_censored"
    assert 256 < point.low < 1024
    assert "not reliably beyond it" in point.reason


def test_a_loss_beyond_the_tolerance_at_the_first_dose_is_left_censored():
    point = point_of(three_seeds({0.0: 4.0, 64.0: 5.0}))
    assert (point.status, point.low, point.high) == ("left_censored", None, 64)
    near = point_of(three_seeds({0.0: 4.0, 64.0: 4.205, 128.0: 4.4}))  # 5.1%: perhaps only after it
    assert near.status == "left_censored"
    assert 64 < near.high < 128


def test_without_a_run_at_dose_zero_the_tolerance_has_no_reference():
    point = point_of({16.0: [4.0], 64.0: [5.0]})
    assert (point.status, point.reason) == ("inconclusive", "no validation loss at F = 0 to compare with")
    assert point_of({0.0: [4.0]}).reason == "no validation loss at F > 0"
    assert point_of({0.0: [math.nan], 64.0: [math.nan]}).reason == "no validation loss"


# runs that stand alone


def test_a_diverged_run_is_named_and_moves_nothing():
    losses = three_seeds(POWER)
    clean = points_of(pd.concat([table(losses, 100_000), table(losses, 200_000)]))
    losses_of_one = losses | {25.0: [5.2, *losses[25.0][1:]]}
    points = points_of(pd.concat([table(losses, 100_000), table(losses_of_one, 200_000)]))
    assert points[1].flags == "the run of seed 0 at F = 25 is far from the other runs and is left out"
    for point, before in zip(points, clean, strict=True):
        assert point.status == "observed"
        assert [point.value, point.low, point.high] == pytest.approx([before.value, before.low, before.high], rel=0.03)


@pytest.mark.parametrize("dose", [25.0, 100.0, 200.0])
def test_a_diverged_run_of_a_level_with_one_seed_is_named(dose):
    losses = {d: [loss] for d, loss in POWER.items()}
    point = point_of(losses | {dose: [POWER[dose] * 1.4]})
    assert point.status == "observed"
    assert point.flags.startswith(f"the run of seed 0 at F = {dose:g} is far from the other runs and is left out")
    assert point.low < 150 < point.high


def test_a_diverged_run_without_infusion_leaves_nothing_to_compare_with():
    losses = {d: [loss] for d, loss in POWER.items()}
    point = point_of(losses | {0.0: [6.0]})
    assert point.status == "inconclusive"
    assert "the run of seed 0 at F = 0 stands alone" in point.reason


def test_of_two_seeds_that_disagree_the_one_that_the_neighbours_contradict_is_left_out():
    losses = {d: v[:2] for d, v in three_seeds(POWER).items()}
    point = point_of(losses | {100.0: [losses[100.0][0], 5.5]})
    assert "the run of seed 1 at F = 100 is far from the other runs and is left out" in point.flags
    assert point.value == pytest.approx(150, rel=0.1)


def test_a_run_that_alone_exceeds_the_tolerance_is_named():
    point = point_of({0.0: [4.0], 50.0: [4.0], 100.0: [4.0], 200.0: [4.01], 400.0: [5.0]})
    assert point.status == "observed"
    assert "rests on the run of seed 0 at F = 400" in point.flags


def test_a_loss_that_falls_and_rises_with_all_seeds_has_no_outlier():
    dip = {0.0: 4.0, 50.0: 3.7, 100.0: 3.7, 200.0: 3.8, 400.0: 4.4, 800.0: 5.0}
    point = point_of(three_seeds(dip))
    assert point.flags == ""
    assert 200 < point.low < point.value < point.high < 400


# the scatter of the runs


def noise(*tables: pd.DataFrame) -> LossNoise:
    return noise_of(curves(pd.concat(tables)), 0.05)


def drawn(sd: float, seeds: int, sizes: int, generator: np.random.Generator, shift: float = 0.0) -> list[pd.DataFrame]:
    found = []
    for size in range(sizes):
        own = shift * generator.standard_normal(seeds)
        losses = {
            dose: (loss * np.exp(own + sd * generator.standard_normal(seeds))).tolist() for dose, loss in POWER.items()
        }
        found.append(table(losses, 100_000 * (size + 1)))
    return found


def test_the_scatter_is_pooled_over_sizes_and_one_diverged_run_does_not_change_it():
    tables = drawn(0.005, 3, 6, np.random.default_rng(0))
    seen = noise(*tables)
    assert seen.infused == pytest.approx(0.005, rel=0.15)
    assert seen.freedom == 6 * 7 * 2
    assert not seen.paired
    tables[0].loc[4, "validation_loss"] *= 1.3
    assert noise(*tables).infused == pytest.approx(seen.infused, rel=0.1)


def test_groups_that_share_their_runs_add_no_degrees_of_freedom():
    (one,) = drawn(0.005, 3, 1, np.random.default_rng(1))
    assert noise(one, one.assign(group="control")) == noise(one)


def test_runs_at_dose_zero_have_a_scatter_of_their_own():
    generator = np.random.default_rng(2)
    tables = drawn(0.004, 3, 8, generator)
    for one in tables:
        zero = one["frequency"] == 0
        one.loc[zero, "validation_loss"] *= np.exp(0.012 * generator.standard_normal(int(zero.sum())))
    seen = noise(*tables)
    assert seen.infused == pytest.approx(0.004, rel=0.2)
    assert seen.zero > 2 * seen.infused


def test_with_one_seed_there_is_a_prior_that_uneven_levels_widen():
    calm, rough = (noise(*drawn(sd, 1, 5, np.random.default_rng(3))) for sd in (0.001, 0.02))
    assert calm.assumed
    assert calm.freedom < 12
    assert calm.infused < 0.006 < rough.infused


def test_what_a_seed_shifts_at_all_levels_is_taken_out_where_the_study_shows_it():
    tables = drawn(0.002, 3, 3, np.random.default_rng(4), shift=0.05)
    # The seed with the lowest loss is missing at the last level: without the shift there seems to be more excess.
    last = tables[0][tables[0]["frequency"] == 800]
    tables[0] = tables[0].drop(index=last["validation_loss"].idxmin())
    seen = noise(*tables)
    assert seen.paired
    assert seen.infused < 0.004
    point = points_of(pd.concat(tables))[0]
    assert point.drop == pytest.approx(POWER[800.0] / 4.0 - 1, abs=0.01)
    assert point.low < 150 < point.high
    assert not noise(*drawn(0.005, 3, 3, np.random.default_rng(4))).paired


# the interval


@pytest.mark.parametrize(
    ("design", "least"),
    [
        (Design(1.0, 0.006, 3), 0.91),
        (Design(2.0, 0.013, 3), 0.91),
        (Design(1.5, 0.010, 1), 0.91),
        (Design(1.5, 0.006, 3, diverged=True), 0.91),
        (Design(2.0, 0.006, 3, zero=2.0), 0.91),
    ],
    ids=["linear", "square", "one seed", "one run diverged", "more scatter at zero"],
)
def test_the_interval_holds_the_truth(design, least):
    assert row(design, 20, 5)["coverage"] >= least


def test_the_law_of_the_reference_study_predicts_the_larger_model_from_crossings():
    points = points_of(load_curves_csv(RESULTS / "reference/curves.csv"))
    law = fit_law(points, "tolerance")
    (large,) = points_of(load_curves_csv(RESULTS / "large/curves.csv"))
    assert all(math.log(p.high / p.low) < math.log(320 / 200) for p in points)  # narrower than the levels around it
    made = predict(law, params=large.params, tokens=large.tokens)
    low, high = made.prediction_interval
    assert low < large.value < high
