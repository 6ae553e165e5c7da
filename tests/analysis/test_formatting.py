from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_kis.analysis.report import formatting as fmt


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0"),
        (0.0471, "0.0471"),
        (14.123, "14.1"),
        (758.9, "759"),
        (40895.3, "40,900"),
        (653_897.2, "654,000"),
        (12_288.0, "12,288"),  # a level that was tried
        (1.7e6, "1.7 × 10⁶"),
        (1e6, "10⁶"),
        (2e-5, "2 × 10⁻⁵"),
        (None, "–"),
        (float("inf"), "–"),
    ],
)
def test_a_frequency_shows_what_is_known_of_it(value: float | None, shown: str) -> None:
    assert fmt.frequency(value) == shown


@pytest.mark.parametrize(
    ("estimate", "shown"),
    [
        ((6.63, -29.6, 42.9), "6.6 [−29.6, 42.9]"),
        ((9.16e-17, -2.891, 2.891), "0.00 [−2.89, 2.89]"),
        ((-1e-17, -0.02, 0.02), "0.0000 [−0.0200, 0.0200]"),
        ((0.25, 0.25, 0.25), "0.25 [0.25, 0.25]"),
        ((float("nan"), 0.0, float("inf")), "– [0, –]"),
    ],
)
def test_an_estimate_has_no_more_decimals_than_its_interval_supports(
    estimate: tuple[float, float, float], shown: str
) -> None:
    assert fmt.estimate(*estimate) == shown


@given(st.floats(-50, 50), st.floats(1e-3, 100), st.floats(0, 1))
def test_an_estimate_stays_inside_its_interval(low: float, width: float, share: float) -> None:
    value = low + share * width
    numbers = [float(x) for x in re.findall(r"-?[\d.]+", fmt.estimate(value, low, low + width).replace("−", "-"))]
    assert numbers[1] <= numbers[0] <= numbers[2]
    assert numbers == pytest.approx([value, low, low + width], abs=0.005 * width + 1e-9)


def test_a_symbol_and_its_number_stay_on_one_line() -> None:
    assert fmt.unbroken("seen at F ≈ 71 to 141 (N = 154k)") == "seen at F\u00a0≈\u00a071 to 141 (N\u00a0=\u00a0154k)"
    assert fmt.unbroken("b (log N)") == "b\u00a0(log\u00a0N)"
    assert fmt.unbroken("F = many") == "F = many"


@pytest.mark.parametrize(
    ("ratio", "shown"), [(0.9545, "0.95"), (0.0604, "0.060"), (0.0025, "0.0025"), (8.8e-5, "8.8 × 10⁻⁵"), (0.0, "0")]
)
def test_an_infusion_ratio_is_short_at_every_size(ratio: float, shown: str) -> None:
    assert fmt.ratio(ratio) == shown


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0.4, "0"), (36.9, "36"), (999.9, "999"), (2439, "2,430"), (2.8e6, "2.8 million"), (1.2349e9, "1.23 billion")],
)
def test_a_number_of_facts_is_never_rounded_up(count: float, shown: str) -> None:
    assert fmt.facts(count) == shown
