"""The answer in words: what it may recommend."""

from __future__ import annotations

from dataclasses import replace

from analysis.law import fit_law
from analysis.predict import predict
from analysis.report.summary import _sentence, answer
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
