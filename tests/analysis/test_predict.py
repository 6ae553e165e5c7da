from __future__ import annotations

import json
import math
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from scipy import stats

from megatron_kis.analysis.findings.study_file import predicted_before
from megatron_kis.analysis.law.fit import fit_law
from megatron_kis.analysis.law.predict import predict
from megatron_kis.analysis.law.prediction import load_predictions, prediction_record
from megatron_kis.analysis.law.validate import summary, validate
from megatron_kis.analysis.outputs import write_predictions
from megatron_kis.common.errors import InputError
from megatron_kis.common.files import write_json
from tests.analysis.points import SIZES, noisy, point

THEN, LATER = datetime(2026, 1, 2, tzinfo=UTC), datetime(2026, 3, 4, tzinfo=UTC)


@pytest.fixture
def prediction():
    return predict(fit_law(noisy()), 7e9)


def test_extrapolation_is_measured_from_the_fitted_range():
    law = fit_law(noisy())
    assert predict(law, 1e6).extrapolation_factor == 1
    assert predict(law, 6e7).extrapolation_factor == pytest.approx(2)
    assert predict(law, 5e4).extrapolation_factor == pytest.approx(2)
    far = predict(law, 3e9)
    assert any("far extrapolation" in warning for warning in far.warnings)


def test_a_law_of_one_budget_warns_about_another():
    law = fit_law(noisy())
    assert any("says nothing about another D" in warning for warning in predict(law, 1e6, 1e12).warnings)
    assert not any("another D" in warning for warning in predict(law, 1e6, 1e6).warnings)


def test_a_law_in_the_budget_wants_one():
    with pytest.raises(InputError, match="--tokens"):
        predict(fit_law(noisy(two_budgets=True)), 7e9)


@pytest.mark.parametrize("params", [0, -7e9, float("nan"), float("inf")])
def test_sizes_that_are_none_are_refused(params):
    with pytest.raises(InputError, match="--params"):
        predict(fit_law(noisy()), params)


def test_an_onset_recommends_the_upper_end():
    points = [point(n, p.value, kind="onset", status="observed") for n, p in zip(SIZES, noisy(), strict=True)]
    prediction = predict(fit_law(points, "onset"), 7e9)
    assert prediction.recommended == prediction.prediction_interval[1]


def test_more_exposures_than_the_budget_holds_are_said_to_be_out_of_reach():
    points = [point(p.params, p.value, exposure_tokens=p.value * 100.0) for p in noisy()]
    prediction = predict(fit_law(points), 7e9)
    assert prediction.infusion_ratio == pytest.approx(prediction.centre * 100 / 1e6)
    assert prediction.infusion_ratio > 1
    assert any("cannot be reached" in warning for warning in prediction.warnings)


def test_a_changed_prediction_file_is_refused(tmp_path, prediction):
    record = prediction_record(prediction, THEN)
    write_json(tmp_path / "p.json", record)
    assert load_predictions(tmp_path / "p.json")[0]["created"] == "2026-01-02T00:00:00+00:00"
    for change in ({"centre": record["centre"] * 1.01}, {"created": "2025-01-02T00:00:00+00:00"}):
        write_json(tmp_path / "p.json", record | change)
        with pytest.raises(InputError, match="changed after it was written"):
            load_predictions(tmp_path / "p.json")


def test_the_same_prediction_keeps_the_date_it_was_first_made(tmp_path, prediction):
    path = tmp_path / "prediction.json"
    write_predictions([prediction], path, now=THEN)
    first = path.read_bytes()
    write_predictions([prediction], path, now=LATER)
    assert path.read_bytes() == first
    write_predictions([predict(fit_law(noisy(seed=1)), 7e9)], path, now=LATER)
    assert json.loads(path.read_text())["predictions"][0]["created"].startswith("2026-03-04")


def test_a_prediction_is_scored_against_what_was_measured(prediction):
    record = prediction_record(prediction, THEN)
    measured = point(7e9, prediction.centre * 1.1)
    (score,) = validate([record], [measured, point(1e6, 5.0)])
    assert score.hit
    assert score.abs_log_ratio == pytest.approx(0.0953, abs=1e-4)
    low, high = prediction.prediction_interval
    (miss,) = validate([record], [point(7e9, high * 2)])
    assert not miss.hit
    assert miss.interval_score > score.interval_score
    assert summary([score, miss])["hits"] == 1
    (open_end,) = validate([record], [point(7e9, 0, status="right_censored", low=low / 2)])
    assert (open_end.hit, open_end.decided, open_end.abs_log_ratio) == (True, True, None)
    (beyond,) = validate([record], [point(7e9, 0, status="right_censored", low=high * 2)])
    assert (beyond.hit, beyond.decided) == (False, True)


@pytest.mark.parametrize(
    ("status", "end", "share", "hit", "decided"),
    [
        ("right_censored", "low", 0.5, True, False),
        ("right_censored", "low", -0.1, True, True),
        ("right_censored", "low", 1.1, False, True),
        ("left_censored", "high", 0.5, True, False),
        ("left_censored", "high", 1.1, True, True),
        ("left_censored", "high", -0.1, False, True),
    ],
)
def test_a_censored_measurement_counts_only_where_its_interval_could_have_missed(
    prediction, status, end, share, hit, decided
):
    low, high = np.log(prediction.prediction_interval)
    bound = math.exp(low + share * (high - low))
    (score,) = validate([prediction_record(prediction, THEN)], [point(7e9, 0, status=status, **{end: bound})])
    assert (score.hit, score.decided) == (hit, decided)
    counted = summary([score])
    assert (counted["hits"], counted["undecided"], counted["predictions"]) == (hit and decided, not decided, 1)


def test_points_of_other_models_do_not_validate(prediction):
    with pytest.raises(InputError, match=r"no measured point.*params 7000000000"):
        validate([prediction_record(prediction, THEN)], [point(7.5e9, 900.0)])


def test_other_facts_are_read_both_ways_and_the_safe_one_is_the_smaller():
    law = fit_law([point(p.params, p.value, exposure_tokens=p.value * 100.0) for p in noisy()])
    domain = predict(law, 1e7, facts=1000, fact_tokens=20).domain
    assert domain["tokens"] == pytest.approx(domain["copies_per_fact"] * 20_000)
    assert domain["copies_per_fact_by_tokens"] == pytest.approx(domain["copies_per_fact"] * 100 / 20_000)
    assert domain["copies_safe"] == domain["copies_per_fact_by_tokens"]
    with pytest.raises(InputError, match="--facts"):
        predict(law, 1e7, facts=1000)


def test_few_measured_points_leave_the_mean_more_uncertain_than_the_scatter():
    points = [replace(p, low=p.value / 1.3, high=p.value * 1.3, interval="profile") for p in noisy()[:3]]
    law = fit_law(points, law="N", bend=0)
    predicted = predict(law, 7e9)
    _, error = law.at(7e9, 1e6)
    half = math.hypot(stats.t.ppf(0.975, 1) * error, stats.t.ppf(0.975, 4) * law.sigma)
    assert [math.log(end / predicted.centre) for end in predicted.prediction_interval] == pytest.approx([-half, half])
    assert predicted.prediction_interval[0] < predicted.confidence_interval[0]


def test_an_unvalidated_law_recommends_nothing():
    points = [point(p.params, p.value, exposure_tokens=p.value * 0.1) for p in noisy()]
    few = predict(fit_law(points[:4]), 1e7, facts=1000, fact_tokens=20)
    enough = predict(fit_law(points[:5]), 1e7, facts=1000, fact_tokens=20)
    assert (few.recommended, few.domain) == (None, None)
    assert enough.recommended == enough.prediction_interval[0]
    assert enough.domain is not None
    assert few.recommended_note == "the law is unvalidated"
    assert enough.recommended_note is None


def test_a_law_that_its_points_do_not_fit_recommends_nothing():
    """The lower end of a straight law through points that level off lies above all of them."""
    saturating = [
        point(n, f, 2e9) for n, f in zip((1e6, 3e6, 1e7, 3e7, 1e8, 3e8), (100, 200, 330, 420, 460, 470), strict=True)
    ]
    law = fit_law(saturating, law="N")
    assert law.lack_of_fit["flag"]
    assert not law.unvalidated
    told = predict(law, 70e9, facts=1000, fact_tokens=20)
    assert told.straight_interval[0] > 470
    assert told.prediction_interval[0] < 100
    assert (told.recommended, told.domain) == (None, None)
    assert "bend in log N" in told.recommended_note


def test_no_more_is_recommended_than_all_tokens_allow():
    points = [point(p.params, p.value, exposure_tokens=p.value * 100.0) for p in noisy()]
    told = predict(fit_law(points), 3e7, facts=1000, fact_tokens=20)
    assert told.prediction_interval[0] > 1e4
    assert told.recommended == pytest.approx(1e4)  # of 100 tokens each in a budget of 1M
    assert told.domain["copies_per_fact"] == told.recommended
    assert "would take more" in told.recommended_note


def test_a_new_model_is_never_known_better_than_the_law_whatever_the_bootstrap_says():
    law = fit_law(noisy(), bend=0)
    narrow = {
        "method": "drawn",
        "extrapolation": [1.0, 1000.0],
        "confidence": [[-9.0, 9.0]] * 2,
        "prediction": [[-0.5, 1.0]] * 2,
    }
    plain, checked = predict(law, 7e9), predict(replace(law, calibration=narrow), 7e9)
    assert checked.prediction_interval == plain.prediction_interval
    low, high = checked.prediction_interval
    assert low < checked.confidence_interval[0] < checked.confidence_interval[1] < high
    assert checked.bootstrap_interval is not None
    below, above = np.log(np.array(checked.bootstrap_interval) / checked.centre)
    assert above == pytest.approx(-2 * below)
    assert plain.bootstrap_interval is plain.bootstrap_method is None
    assert not any("bootstrap" in warning for warning in checked.warnings)
    wide = narrow | {"prediction": [[-90.0, 90.0]] * 2}
    assert any("bootstrap asks for a wider" in w for w in predict(replace(law, calibration=wide), 7e9).warnings)


def test_a_study_without_a_law_has_predicted_nothing_before(tmp_path):
    (tmp_path / "prediction.json").write_text(json.dumps({"schema": "kis.prediction/1", "predictions": []}))
    assert predicted_before(tmp_path) == ([], None)
    with pytest.raises(InputError, match="holds no prediction"):
        load_predictions(tmp_path / "prediction.json")
