"""The answer in words: what it may recommend."""

from __future__ import annotations

from dataclasses import replace

from megatron_kis.analysis.law.fit import fit_law
from megatron_kis.analysis.law.predict import predict
from megatron_kis.analysis.report import formatting as fmt
from megatron_kis.analysis.report.summary import _sentence, answer
from tests.analysis.test_law import noisy


def test_a_law_of_enough_models_recommends_the_lower_end_of_its_interval():
    assert "infuse each fact at most" in answer(predict(fit_law(noisy()), 1e9))


def test_a_law_of_few_models_recommends_nothing():
    said = answer(predict(fit_law(noisy()[:3]), 1e9))
    assert "no amount can be recommended" in said
    assert "at most" not in said


def test_transitions_that_read_alike_are_not_a_range():
    points = [replace(point, value=value) for point, value in zip(noisy()[:2], (759.1, 759.3), strict=True)]
    assert "F ≈ 759 (" in _sentence("collapse", "background", points)
    apart = [points[0], replace(points[1], value=900.0)]
    assert "F ≈ 759 to 900 (" in _sentence("collapse", "background", apart)


def test_models_are_counted_when_all_agree_and_listed_by_budget_when_not():
    points = [replace(point, value=759.0, tokens=tokens) for tokens in (10**6, 10**7) for point in noisy()[:3]]
    assert "F ≈ 759 (all 6 models)." in _sentence("collapse", "background", points)
    odd = replace(points[0], status="inconclusive", value=None)
    said = _sentence("collapse", "background", [odd, *points[1:]])
    first, second, third = [fmt.size(point.params) for point in points[:3]]
    assert f"seen at F ≈ 759 ({second} and {third} at D = 1M; {first}, {second} and {third} at D = 10M)" in said
    assert f"undecided ({first} at D = 1M)." in said
