"""The answer in words: what it may recommend."""

from __future__ import annotations

from analysis.law import fit_law
from analysis.predict import predict
from analysis.report.summary import answer
from tests.analysis.test_law import noisy


def test_a_law_of_enough_models_recommends_the_lower_end_of_its_interval():
    assert "infuse each fact at most" in answer(predict(fit_law(noisy()), 1e9))


def test_a_law_of_few_models_recommends_nothing():
    said = answer(predict(fit_law(noisy()[:3]), 1e9))
    assert "no amount can be recommended" in said
    assert "at most" not in said
