"""A law of several slices together: F* at several K, or K* at several F, with a term in what is held."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from megatron_kis.analysis import AnalysisConfig, LawRefused, fit_law, predict
from megatron_kis.analysis.findings.analyse import fit_laws
from megatron_kis.analysis.law.bootstrap_points import bootstrap_points
from megatron_kis.analysis.law.law_file import load_law
from megatron_kis.analysis.law.prediction import prediction_record
from megatron_kis.analysis.law.validate import validate
from megatron_kis.analysis.outputs import law_record
from megatron_kis.analysis.runs.slices import Slice
from megatron_kis.common.errors import InputError
from tests.analysis.points import SIZES, point

TOGETHER = Slice("frequency", "facts")
FACTS = (100.0, 400.0, 1600.0)
COST = 12.0  # tokens of an exposure


def points(
    *, a: float = 1.0, b: float = 0.4, d: float = -0.7, scatter: float = 0.05, seed: int = 0, axis: str = "frequency"
):
    """F* = exp(a) N^b K^d at three K and six sizes (or K* at three F), with scatter."""
    generator = np.random.default_rng(seed)
    held_by = "facts" if axis == "frequency" else "frequency"
    found = []
    for n in SIZES:
        for held in FACTS:
            value = math.exp(a + b * math.log(n) + d * math.log(held) + scatter * generator.normal())
            found.append(
                point(
                    n,
                    value,
                    slice=Slice(axis, held_by, held),
                    exposures=value * held,
                    exposure_tokens=value * held * COST,
                    low=value / 1.05,
                    high=value * 1.05,
                    interval="profile",
                )
            )
    return found


def test_the_exponent_of_the_number_of_facts_is_found():
    law = fit_law(points(seed=1), "collapse", along=TOGETHER)
    assert law.law == "N and held"
    assert law.selected_law == "log F* = a + b log N + d log K"
    for name, truth in (("a", 1.0), ("b_log_params", 0.4), ("d_log_held", -0.7)):
        assert law.coefficients[name].low <= truth <= law.coefficients[name].high
    assert law.coefficients["d_log_held"].value == pytest.approx(-0.7, abs=0.05)
    assert law.range_held == (100, 1600)
    assert len(law.points) == 18
    rows = {row["law"]: row for row in law.candidates}
    assert {"constant", "N", "N and held"} <= set(rows)
    assert rows["N and held"]["log_score"] > rows["N"]["log_score"] + 5
    assert rows["N and held"]["selected"]


def test_along_the_number_of_facts_the_symbols_change_places():
    law = fit_law(points(axis="facts"), "collapse", along=Slice("facts", "frequency"))
    assert law.selected_law == "log K* = a + b log N + d log F"


def test_intervals_of_the_exponent_cover_it():
    hits = 0
    for seed in range(60):
        law = fit_law(points(scatter=0.2, seed=seed), "collapse", along=TOGETHER, law="N and held", compare_laws=False)
        d = law.coefficients["d_log_held"]
        hits += d.low <= -0.7 <= d.high
    assert hits >= 52


def test_the_law_predicts_at_a_number_of_facts_that_was_not_tried():
    law = fit_law(points(), "collapse", along=TOGETHER)
    found = predict(law, 1e9, 1e6, held=6400.0)
    truth = math.exp(1.0 + 0.4 * math.log(1e9) - 0.7 * math.log(6400))
    assert found.prediction_interval[0] <= truth <= found.prediction_interval[1]
    assert found.slice == Slice("frequency", "facts", 6400.0)
    assert found.extrapolation["held"] == 4
    assert found.exposures == pytest.approx(6400 * found.centre)
    assert found.exposure_tokens == pytest.approx(6400 * found.centre * COST)
    with pytest.raises(InputError, match=r"held: the law depends on the facts held.*100 or 1600"):
        predict(law, 1e9, 1e6)
    alone = fit_law(points(), "collapse", along=Slice("frequency", "facts", 100.0))
    with pytest.raises(InputError, match="held: the law holds K = 100"):
        predict(alone, 1e9, 1e6, held=400)


def test_the_law_and_its_predictions_come_back_from_files(tmp_path):
    law = fit_law(points(), "collapse", along=TOGETHER)
    law = bootstrap_points(law, points(), AnalysisConfig(law_resamples=99), resamples=99)
    assert law.calibration["refused"] < 50
    (tmp_path / "law.json").write_text(json.dumps(law_record([law], [])))
    assert load_law(tmp_path / "law.json") == law
    record = json.loads(json.dumps(prediction_record(predict(law, SIZES[0], 1e6, held=400))))
    (score,) = validate([record], points())
    assert score.slice == Slice("frequency", "facts", 400.0)


def test_a_study_of_several_slices_has_their_own_laws_and_one_of_all():
    settings = AnalysisConfig(law_resamples=0)
    laws, refused = fit_laws(points(), settings)
    assert [law.slice for law in laws] == [*(Slice("frequency", "facts", held) for held in FACTS), TOGETHER]
    assert refused == []
    one = [p for p in points() if p.slice.held == 100]
    beyond = [replace(p, slice=Slice("frequency", "facts", 400.0), status="right_censored", value=None) for p in one]
    laws, _ = fit_laws([*one, *beyond], settings)
    assert [law.slice for law in laws] == [Slice("frequency", "facts", 100.0)]


def test_what_is_held_must_differ_and_not_grow_with_the_size():
    one = [p for p in points() if p.slice.held == 100]
    with pytest.raises(LawRefused, match="one slice only") as error:
        fit_law(one, "collapse", along=TOGETHER)
    assert error.value.code == "one_slice"
    grown = [replace(p, slice=Slice("frequency", "facts", p.params / 1000)) for p in one]
    with pytest.raises(LawRefused, match="what is held grow together") as error:
        fit_law(grown, "collapse", along=TOGETHER)
    assert error.value.code == "collinear"
    with pytest.raises(LawRefused, match="what is held grow together"):
        fit_law(grown, "collapse", along=TOGETHER, law="N")  # the term in what is held was not asked for by name
    assert fit_law(grown, "collapse", along=TOGETHER, law="constant").law == "constant"  # has no such term


@pytest.mark.parametrize("budgets", [1, 2])
def test_one_declared_form_is_that_of_one_slice_and_of_several(budgets):
    later = [replace(p, tokens=8 * p.tokens, value=2 * p.value, low=2 * p.low, high=2 * p.high) for p in points(seed=1)]
    mine = [*points(), *later][: 18 * budgets]
    alone, together = (("N", "N and held"), ("N and D", "N, D and held"))[budgets - 1]
    for name in (alone, together):
        laws, refused = fit_laws(mine, AnalysisConfig(law=name, law_resamples=0))
        assert refused == []
        assert [law.law for law in laws] == [alone] * len(FACTS) + [together]
        assert [law.selection == "declared" for law in laws] == [name == law.law for law in laws]
        assert laws[-1].coefficients["d_log_held"].value == pytest.approx(-0.7, abs=0.05)
        assert all(law.slice.held is None or law.coefficients.get("d_log_held") is None for law in laws)


def test_the_report_shows_the_law_of_all_slices(tmp_path):
    from megatron_kis.analysis import report

    page = report(points(), tmp_path / "r.html", AnalysisConfig(law_resamples=0), predict_params=[1e9]).read_text()
    assert "Collapse of infused facts, F over K" in page
    assert "d (log held)" in page
