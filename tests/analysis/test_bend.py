"""A law from points that may bend in log N."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.bent_laws import covered
from megatron_kis.analysis.findings.analyse import fit_laws
from megatron_kis.analysis.law.bend import bend_of, fit_bend, record_of
from megatron_kis.analysis.law.fit import fit_law
from megatron_kis.analysis.law.law_file import load_law, load_laws
from megatron_kis.analysis.law.predict import predict
from megatron_kis.analysis.outputs import law_record
from megatron_kis.common.errors import InputError
from megatron_kis.config.analysis import AnalysisConfig
from tests.analysis.points import SIZES, noisy, point


@pytest.mark.parametrize("beyond", [10, 70])
@pytest.mark.parametrize("scatter", [0.05, 0.15])
@pytest.mark.parametrize("truth", ["straight", "saturating at 900", "bent by -.034 (log N)^2", "floor of 150"])
def test_the_interval_holds_where_the_truth_bends_moderately(truth, scatter, beyond):
    found = covered(truth, scatter, beyond, 400)
    assert found.bent > 0.92
    assert found.below < 0.08
    if truth == "straight":
        assert found.straight == pytest.approx(0.95, abs=0.03)
    else:
        assert found.straight < 0.88


def exact(spread, bend=-0.03, noise=1e-3):
    generator = np.random.default_rng(0)
    log_n = np.log(np.geomspace(1e6, 1e9, 7))
    slope = np.column_stack([np.ones(7), log_n - log_n.mean()])
    y = 5 + 0.3 * slope[:, 1] + bend * slope[:, 1] ** 2 + noise * generator.normal(size=7)
    beta = np.linalg.lstsq(slope, y, rcond=None)[0]
    residual = y - slope @ beta
    sigma = np.array(max(noise, 1e-9))
    return fit_bend(spread, slope, log_n, (residual, residual, np.zeros(7)), sigma, np.ones(7)), slope, residual


def test_it_is_the_normal_posterior_of_ridge_regression():
    found, slope, residual = exact(0.02, noise=0.05)
    square = slope[:, 1] ** 2
    x = np.column_stack([slope, square - slope @ found.projection])
    known = np.diag([0, 0, 0.02**-2])
    inverse = np.linalg.inv(x.T @ x / 0.05**2 + known)
    assert found.shift == pytest.approx(inverse @ x.T @ residual / 0.05**2, rel=1e-3)
    whole = found.covariance + np.outer(found.lean, found.lean)
    assert whole == pytest.approx(inverse, rel=1e-3, abs=1e-9)


def test_points_that_show_a_bend_are_believed():
    found, _, _ = exact(0.025)
    assert found.shift[-1] == pytest.approx(-0.03, rel=0.05)
    assert found.lean[-1] < 1e-3 * 0.025


def test_points_that_say_little_leave_the_bend_to_its_prior():
    points = [point(n, 3 * n**0.4, low=0.1 * n**0.4, high=90 * n**0.4, interval="profile") for n in SIZES[::2]]
    bend = bend_of(fit_law(points, law="N").bend)
    assert bend.lean[-1] == pytest.approx(0.025, rel=0.03)
    assert bend.covariance[-1, -1] < 0.05 * 0.025**2
    assert bend.shift[-1] == pytest.approx(0, abs=1e-4)


def test_the_headline_may_bend_and_the_straight_one_stands_beside_it():
    law = fit_law(noisy())
    told = predict(law, 7e9)
    assert told.interval_method == "t and bend"
    assert told.straight_interval == predict(replace(law, bend=None), 7e9).prediction_interval
    low, high = told.prediction_interval
    assert math.log(high / low) > 1.1 * math.log(told.straight_interval[1] / told.straight_interval[0])
    assert low < told.confidence_interval[0] < told.centre < told.confidence_interval[1] < high
    straight = predict(fit_law(noisy(), bend=0), 7e9)
    assert straight.interval_method == "t"
    assert straight.straight_interval is None


def test_the_setting_says_how_much_a_law_may_bend():
    (law,), _ = fit_laws(noisy(), AnalysisConfig(bend=0.1, law_resamples=0))
    (straight,), _ = fit_laws(noisy(), AnalysisConfig(bend=0, law_resamples=0))
    assert law.bend["spread"] == 0.1
    assert straight.bend is None
    assert "bend" not in straight.record()


def test_censored_cells_and_floors_bend_too():
    generator = np.random.default_rng(0)
    sizes = np.geomspace(1e6, 1e9, 8)
    values = 200 + np.exp(-2 + 0.4 * np.log(sizes) + 0.02 * generator.normal(size=8))
    points = [point(n, value) for n, value in zip(sizes, values, strict=True)]
    for name, more in (("N", []), ("N", [point(4e9, 0, status="right_censored", low=900.0)]), ("N + offset", [])):
        told = predict(fit_law([*points, *more], law=name), 1e11)
        assert told.straight_interval is not None
        bent, straight = (math.log(high / low) for low, high in (told.prediction_interval, told.straight_interval))
        assert bent > 1.02 * straight


def test_a_file_keeps_the_bend_and_one_without_is_straight(tmp_path):
    path = tmp_path / "law.json"
    laws, refused = fit_laws(noisy(), AnalysisConfig(law_resamples=0))
    record = json.loads(json.dumps(law_record(laws, refused)))
    path.write_text(json.dumps(record))
    assert load_laws(path) == laws
    assert predict(load_law(path), 7e9).prediction_interval == predict(laws[0], 7e9).prediction_interval
    older = record | {"laws": [{k: v for k, v in record["laws"][0].items() if k != "bend"}]}
    del older["bend"]
    path.write_text(json.dumps(older))
    told = predict(load_law(path), 7e9)
    assert told.straight_interval is None
    assert told.prediction_interval == predict(laws[0], 7e9).straight_interval
    assert record_of(bend_of(laws[0].bend)) == laws[0].bend


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("spread", 0, "a positive number"),
        ("spread", None, "a positive number"),
        ("centre", "17", "a number"),
        ("projection", [1.0], "a list of 2 numbers"),
        ("shift", [1.0, 2.0], "a list of 3 numbers"),
        ("lean", [1.0, 2.0, None], "a list of 3 numbers"),
        ("covariance", [[1.0]], "3 rows of 3 numbers"),
        ("more", 1, "is not known"),
    ],
)
def test_a_damaged_bend_is_named(key, value, said, tmp_path):
    path = tmp_path / "law.json"
    content = json.loads(json.dumps(fit_law(noisy()).record()))
    content["bend"][key] = value
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=said) as error:
        load_law(path)
    assert error.value.where == f"{path}: bend.{key}"
    del content["bend"][key]
    if key != "more":
        path.write_text(json.dumps(content))
        with pytest.raises(InputError, match="is missing"):
            load_law(path)
