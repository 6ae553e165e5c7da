"""Findings in words: ranges, and which models they are of."""

from __future__ import annotations

from dataclasses import replace

from megatron_kis.analysis.report import formatting as fmt
from megatron_kis.analysis.report.summary import _sentence
from tests.analysis.points import noisy


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
    assert f"cannot be determined ({first} at D = 1M)." in said
