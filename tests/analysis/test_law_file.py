"""Damaged ``law.json``: each field is refused by its name, and whole files are read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_kis.analysis import AnalysisConfig
from megatron_kis.analysis.findings.analyse import fit_laws
from megatron_kis.analysis.law.law_file import load_law, load_laws
from megatron_kis.analysis.outputs import law_record
from megatron_kis.analysis.runs.slices import Slice
from megatron_kis.cli.main import main
from megatron_kis.common.errors import InputError
from tests.analysis.points import SIZES, noisy, point

RESULTS = Path(__file__).parents[2] / "docs" / "study" / "results"
MISSING = object()


@pytest.fixture(scope="module")
def record():
    """Laws at two K and one of both, with a calibration and amounts."""
    points = [
        point(n, 3 * n**0.4 / k**0.5, slice=Slice("frequency", "facts", k), exposures=k * 3 * n**0.4 / k**0.5)
        for n in SIZES
        for k in (100.0, 400.0)
    ]
    laws, refused = fit_laws([replace(p, exposure_tokens=12 * p.exposures) for p in points])
    assert len(laws) == 3
    return json.loads(json.dumps(law_record(laws, refused)))


def damaged(record, keys, value):
    """Returns the record with one value replaced or, ``MISSING``, removed; at the top, and in the first law too."""
    content = json.loads(json.dumps(record))
    for top in [content] if keys[0] == "laws" else [content, content["laws"][0]]:
        place = top
        for key in keys[:-1]:
            place = place[key]
        if value is MISSING:
            del place[keys[-1]]
        else:
            place[keys[-1]] = value
    return content


@pytest.mark.parametrize(
    ("keys", "value", "field", "said"),
    [
        (["amounts"], [1, 2], "amounts", r"is \[1, 2\]; an object"),
        (["amounts"], "12", "amounts", "an object"),
        (["amounts", "exposures_per_dose"], "many", "amounts.exposures_per_dose", "is 'many'; a positive number"),
        (["amounts", "exposures_per_dose"], None, "amounts.exposures_per_dose", "is None"),
        (["amounts", "tokens_per_exposure"], -12.0, "amounts.tokens_per_exposure", "is -12.0; a positive number"),
        (["amounts", "tokens_per_exposure"], float("nan"), "amounts.tokens_per_exposure", "is nan"),
        (["amounts", "exposure_per_dose"], 2, "amounts.exposure_per_dose", "did you mean 'exposures_per_dose'"),
        (["kind"], "colapse", "kind", "did you mean 'collapse'"),
        (["kind"], 3, "kind", "a text"),
        (["group"], "infussed", "group", "did you mean 'infused'"),
        (["law"], "n", "law", "is 'n'"),
        (["law"], "N and held", "law", "without a term in what is held"),
        (["selected_law"], 5, "selected_law", "a text"),
        (["sigma"], -0.1, "sigma", "a number of at least 0"),
        (["sigma"], "0.1", "sigma", "a number"),
        (["sigma"], MISSING, "sigma", "is missing"),
        (["sigma"], 10**400, "sigma", "a number"),
        (["degrees_of_freedom"], -4, "degrees_of_freedom", "at least 0"),
        (["scatter_degrees_of_freedom"], None, "scatter_degrees_of_freedom", "is None"),
        (["confidence"], 95, "confidence", "between 0 and 1"),
        (["confidence"], True, "confidence", "a number"),
        (["unvalidated"], "no", "unvalidated", "true or false"),
        (["centre"], [], "centre", "a list of 1 numbers"),
        (["parameters"], [1.0, float("inf")], "parameters", "a list of 2 numbers"),
        (["parameters"], [1.0], "parameters", "a list of 2 numbers"),
        (["covariance"], [[1.0, 0.0]], "covariance", "2 rows of 2 numbers"),
        (["covariance", 0], 3, "covariance", "2 rows of 2 numbers"),
        (["covariance", 0, 0], -1.0, "covariance", "at least 0"),
        (["range_params"], [1e6, 1e5], "range_params", "in rising order"),
        (["range_params"], None, "range_params", "a list"),
        (["range_tokens"], [0, 1e6], "range_tokens", "two positive numbers"),
        (["range_held"], [100, 400], "range_held", "no range_held"),
        (["tokens_per_frequency"], "12", "tokens_per_frequency", "a positive number or null"),
        (["tokens_per_frequency"], MISSING, "tokens_per_frequency", "is missing"),
        (["coefficients"], None, "coefficients", "an object"),
        (["coefficients", "a"], 1.0, "coefficients.a", "an object"),
        (["coefficients", "a", "low"], "1", "coefficients.a.low", "a number"),
        (["coefficients", "a", "standard_error"], -1, "coefficients.a.standard_error", "at least 0"),
        (["points"], {}, "points", "a list"),
        (["points"], [], "points", "no point has a value"),
        (["points", 0], 3, "points[0]", "an object"),
        (["points", 1, "value"], -5.0, "points[1].value", "a positive number or null"),
        (["points", 0, "params"], "1M", "points[0].params", "a positive number"),
        (["points", 0, "status"], "done", "points[0].status", "is 'done'"),
        (["points", 0, "low"], -1, "points[0].low", "at least 0"),
        (["excluded"], 0, "excluded", "a list"),
        (["warnings"], "none", "warnings", "a list"),
        (["warnings"], [1], "warnings", "a list of texts"),
        (["lack_of_fit"], 1, "lack_of_fit", "an object"),
        (["equivalents"], None, "equivalents", "an object"),
        (["calibration"], [], "calibration", "an object"),
        (["calibration", "method"], MISSING, "calibration.method", "is missing"),
        (["calibration", "extrapolation"], [2.0, 1.0], "calibration.extrapolation", "in rising order"),
        (["calibration", "prediction"], [[0.0, 1.0]], "calibration.prediction", "pairs of numbers"),
        (["axis"], "size", "", "axis is 'size'"),
        (["axis"], "", "", "axis is ''"),
        (["held"], -100, "", "held is -100"),
        (["held"], 0.5, "", "held is 0.5; a number of facts, at least 1"),
        (["held"], True, "", "held is True"),
        (["held_by"], None, "", "held without held_by"),
        (["laws"], {}, "laws", "a list of laws"),
        (["laws"], [], "laws", "a list of laws"),
        (["laws", 1], None, "laws[1]", "an object"),
        (["laws", 1, "sigma"], None, "laws[1].sigma", "is None; a number"),
        (["laws", 0, "sigma"], 9.0, "laws[0]", "is not the law at the top"),
        (["laws", 1, "held"], 100.0, "laws[1]", r"same kind, group and slice as laws\[0\]"),
        (["laws", 2, "range_held"], MISSING, "laws[2].range_held", "is missing"),
        (["laws", 2, "range_held"], [400, 100], "laws[2].range_held", "in rising order"),
    ],
)
def test_a_damaged_field_is_named_and_nothing_is_predicted(keys, value, field, said, record, tmp_path, capsys):
    path = tmp_path / "law.json"
    path.write_text(json.dumps(damaged(record, keys, value)))
    with pytest.raises(InputError, match=said) as error:
        load_law(path)
    assert error.value.where == (f"{path}: {field}" if field else str(path))
    output = tmp_path / "prediction.json"
    assert main(["law", "predict", str(path), "--params", "1e7", "--held", "100", "--output", str(output)]) == 2
    assert not output.exists()
    assert f"kis: error: {path}: " in capsys.readouterr().err


def test_a_ratio_above_one_is_refused(record, tmp_path):
    content = damaged(record, ["axis"], "facts")
    content |= {"held_by": "ratio", "held": 2.0}
    del content["laws"]
    path = tmp_path / "law.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"held is 2\.0; a share of the tokens, at most 1"):
        load_law(path)
    path.write_text(json.dumps(content | {"held": None, "range_held": [0.5, 2.0], "law": "N"}))
    with pytest.raises(InputError, match=r"range_held: is \[0\.5, 2\.0\]; shares of the tokens"):
        load_law(path)
    path.write_text(json.dumps(content | {"held": 1.0}))
    assert load_law(path).slice == Slice("facts", "ratio", 1.0)


def test_refusals_that_are_damaged_are_still_no_law(tmp_path):
    path = tmp_path / "law.json"
    for refused, told in ((None, "no reason given"), ([{"kind": "collapse"}, 3], "collapse of None"), (3, "no reason")):
        path.write_text(json.dumps({"schema": "kis.law/1", "selected_law": None, "refused": refused}))
        with pytest.raises(InputError, match=rf"none could be fitted \({told}"):
            load_law(path)


def test_all_laws_of_a_file_come_back(record, tmp_path):
    path = tmp_path / "law.json"
    laws, refused = fit_laws([*noisy(), *(point(n, 7.0, group="background") for n in SIZES)])
    path.write_text(json.dumps(law_record(laws, refused)))
    assert load_laws(path) == laws
    every_form = [
        fit_laws(noisy(two_budgets=True), AnalysisConfig(law=name, law_resamples=0))[0]
        for name in ("C", "N and D", "D/N + offset")
    ]
    for laws in every_form:
        path.write_text(json.dumps(law_record(laws, [])))
        assert load_laws(path) == laws
    for committed in RESULTS.glob("*/law.json"):
        content = json.loads(committed.read_text())
        assert [law.record()["kind"] for law in load_laws(committed)] == [law["kind"] for law in content["laws"]]
