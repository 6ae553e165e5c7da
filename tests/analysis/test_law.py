from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from statsmodels.regression.linear_model import OLS

from megatron_kis.analysis.findings.analyse import fit_laws
from megatron_kis.analysis.law.fit import LawRefused, fit_law
from megatron_kis.analysis.law.law_file import load_law
from megatron_kis.analysis.law.predict import predict
from megatron_kis.analysis.law.prediction import load_predictions
from megatron_kis.analysis.outputs import law_record
from megatron_kis.common.errors import InputError
from megatron_kis.common.files import write_json
from tests.analysis.points import SIZES, noisy, point


def test_a_noise_free_law_is_recovered():
    law = fit_law([point(n, np.exp(0.7 + 0.35 * np.log(n))) for n in SIZES])
    assert law.coefficients["a"].value == pytest.approx(0.7, abs=1e-6)
    assert law.coefficients["b_log_params"].value == pytest.approx(0.35, abs=1e-6)
    assert law.coefficients["c_log_tokens"] is None
    assert law.sigma < 1e-6


def test_a_noise_free_law_in_size_and_budget_is_recovered():
    points = [point(n, np.exp(0.7 + 0.35 * np.log(n) + 0.8 * np.log(d)), d) for n in SIZES for d in (1e6, 1e7)]
    law = fit_law(points)
    values = [law.coefficients[name].value for name in ("a", "b_log_params", "c_log_tokens")]
    assert values == pytest.approx([0.7, 0.35, 0.8], abs=1e-6)
    assert predict(law, 7e9, 1e12).centre == pytest.approx(
        np.exp(0.7 + 0.35 * np.log(7e9) + 0.8 * np.log(1e12)), rel=1e-6
    )


@pytest.mark.parametrize("two_budgets", [False, True])
def test_estimates_and_intervals_equal_ordinary_least_squares(two_budgets):
    points = noisy(two_budgets=two_budgets)
    law = fit_law(points, law="N and D" if two_budgets else "N", bend=0)
    covariates = [[1.0, np.log(p.params)] + ([np.log(p.tokens)] if two_budgets else []) for p in points]
    model = OLS(np.log([p.value for p in points]), np.array(covariates)).fit()
    names = ["a", "b_log_params"] + (["c_log_tokens"] if two_budgets else [])
    ours = [law.coefficients[name] for name in names]
    assert [c.value for c in ours] == pytest.approx(model.params, rel=1e-8)
    assert [c.standard_error for c in ours] == pytest.approx(model.bse, rel=1e-8)
    assert np.array([[c.low, c.high] for c in ours]) == pytest.approx(model.conf_int(), rel=1e-8)
    assert law.sigma == pytest.approx(np.sqrt(model.scale), rel=1e-8)
    target = np.array([[1.0, np.log(7e9)] + ([np.log(5e7)] if two_budgets else [])])
    frame = model.get_prediction(target).summary_frame(alpha=0.05).iloc[0]
    prediction = predict(law, 7e9, 5e7)
    assert np.log(prediction.confidence_interval) == pytest.approx(
        [frame["mean_ci_lower"], frame["mean_ci_upper"]], rel=1e-8
    )
    assert np.log(prediction.prediction_interval) == pytest.approx(
        [frame["obs_ci_lower"], frame["obs_ci_upper"]], rel=1e-8
    )
    assert prediction.recommended == prediction.prediction_interval[0]


def test_rescaling_sizes_changes_only_the_intercept():
    points = noisy()
    scaled = [point(p.params * 1000, p.value, p.tokens) for p in points]
    law, other = fit_law(points), fit_law(scaled)
    assert other.coefficients["b_log_params"].value == pytest.approx(law.coefficients["b_log_params"].value, rel=1e-9)
    assert other.sigma == pytest.approx(law.sigma, rel=1e-9)
    assert predict(other, 7e9).centre == pytest.approx(predict(law, 7e6).centre, rel=1e-9)


def test_row_order_does_not_change_a_byte_of_the_law():
    points = noisy(two_budgets=True)
    backwards = law_record(*fit_laws(points[::-1]))
    assert json.dumps(law_record(*fit_laws(points))) == json.dumps(backwards)


@pytest.mark.parametrize(
    ("points", "code"),
    [
        ([], "no_points"),
        ([point(n, 5, status="right_censored", low=9.0) for n in SIZES], "all_censored"),
        ([point(1e6, 5, d) for d in (1e6, 2e6, 3e6, 4e6)], "one_size"),
        ([point(1e6, 5), point(2e6, 6)], "few_points"),
        ([point(1e6, 5), point(2e6, 6, 3e6), point(5e6, 8, 2e6)], "few_points"),
        ([point(n, n**0.3, 20 * n) for n in SIZES], "collinear"),
        ([*(point(n, n**0.3) for n in SIZES), point(9e7, float("nan"))], "not_finite"),
    ],
    ids=["none", "all censored", "one size", "two sizes", "no degrees of freedom", "D = 20 N", "NaN"],
)
def test_points_that_cannot_support_a_law_are_refused_with_a_type(points, code):
    with pytest.raises(LawRefused) as refusal:
        fit_law(points)
    assert refusal.value.code == code


def test_few_points_make_an_unvalidated_law():
    assert fit_law(noisy()[:4]).unvalidated
    assert "unvalidated" in fit_law(noisy()[:4]).warnings[0]
    assert not fit_law(noisy()[:5]).unvalidated


def test_inconclusive_points_are_left_out_and_listed_with_their_reason():
    law = fit_law([*noisy(), point(1e8, 0, status="inconclusive", reason="flat")])
    assert len(law.points) == 6
    assert [(item["params"], item["reason"]) for item in law.excluded] == [(100_000_000, "inconclusive: flat")]


def test_a_censored_point_moves_the_law_the_way_it_is_open():
    free = fit_law(noisy(), law="N")
    far = predict(free, 1e8).centre
    above = fit_law([*noisy(), point(1e8, 0, status="right_censored", low=far * 1.5)], law="N")
    below = fit_law([*noisy(), point(1e8, 0, status="left_censored", high=far / 1.5)], law="N")
    assert predict(below, 1e8).centre < far < predict(above, 1e8).centre
    satisfied = fit_law([*noisy(), point(1e8, 0, status="right_censored", low=far / 20)], law="N")
    assert predict(satisfied, 1e8).centre == pytest.approx(far, rel=0.01)
    assert len(above.points) == 7


def test_several_groups_need_a_choice():
    points = [*noisy(), *(point(n, 7.0, group="background") for n in SIZES)]
    with pytest.raises(InputError, match="background, infused"):
        fit_law(points, "collapse")
    assert fit_law(points, "collapse", "background").coefficients["b_log_params"].value == pytest.approx(0, abs=1e-9)


def test_a_law_file_gives_the_same_prediction(tmp_path):
    laws, refused = fit_laws(noisy())
    write_json(tmp_path / "law.json", law_record(laws, refused))
    assert predict(load_law(tmp_path / "law.json"), 7e9, 1e6) == predict(laws[0], 7e9, 1e6)


def test_a_file_from_before_sigma_had_a_freedom_of_its_own_is_read(tmp_path):
    record = law_record(*fit_laws(noisy()))
    for law in (record, *record["laws"]):
        del law["scatter_degrees_of_freedom"]
    write_json(tmp_path / "law.json", record)
    assert load_law(tmp_path / "law.json").scatter_degrees_of_freedom == record["degrees_of_freedom"]


def test_a_file_that_records_a_refusal_gives_no_law(tmp_path):
    write_json(tmp_path / "law.json", law_record(*fit_laws(noisy()[:2])))
    with pytest.raises(InputError, match=r"none could be fitted.*2 sizes"):
        load_law(tmp_path / "law.json")


def test_the_collapse_of_infused_facts_comes_before_its_companions():
    points = [*noisy(), *(point(n, 3.0, kind="onset", status="observed") for n in SIZES)]
    record = law_record(*fit_laws(points))
    assert (record["kind"], [law["kind"] for law in record["laws"]]) == ("collapse", ["collapse", "onset"])


def test_a_law_keeps_the_fingerprint_that_older_predictions_name(tmp_path):
    folder = Path(__file__).parents[2] / "docs/study/results/amount"
    named = {item["law"]["fingerprint"] for item in load_predictions(folder / "prediction.json")}
    now = set()
    for record in json.loads((folder / "law.json").read_text())["laws"]:
        write_json(tmp_path / "law.json", record)
        law = load_law(tmp_path / "law.json")
        now.add(law.fingerprint)
        assert "foretells" in law.selection or "by design" in law.selection
        assert replace(law, selection=law.selection.replace("foretells", "predicts")).fingerprint == law.fingerprint
    assert now == named
    assert "predicts the largest N" in fit_law(noisy()).selection


def test_of_laws_that_predict_alike_the_one_with_fewest_coefficients_is_taken():
    measured = {599_040: (115.8, 103.6, 89.0, 77.4, 60.1), 1_199_104: (151.2, 135.8, 114.2)}
    sizes = (121_800, 153_840, 231_744, 322_960, 664_192)
    points = [
        point(n, value, tokens=d) for d, values in measured.items() for n, value in zip(sizes, values, strict=False)
    ]
    law = fit_law(points)
    scores = {row["law"]: row["log_score"] for row in law.candidates}
    assert scores["D/N + offset"] > scores["D/N"] > scores["N and D"] + 1
    assert law.law == "D/N"


def test_criteria_of_laws_that_do_not_fit_are_not_shown(monkeypatch):
    """Of six points, an offset law's correction for small samples alone is 40."""
    rows = {row["law"]: row["aicc"] for row in fit_law(noisy()).candidates}
    assert rows["N"] is not None
    assert rows.get("N + offset") is None
    sizes = np.geomspace(1e6, 1e9, 8)
    floored = [point(n, 200 + 0.1 * n**0.4) for n in sizes]
    assert {r["law"]: r["aicc"] for r in fit_law(floored).candidates}["N + offset"] is not None
    monkeypatch.setattr("megatron_kis.analysis.law.candidates._SHORT", -1e3)  # as if it fell short
    assert {r["law"]: r["aicc"] for r in fit_law(floored).candidates}["N + offset"] is None
