"""Numbers as tables and messages show them."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_kis.common.units import in_table, plural


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"),
        (0.123456, "0.1235"),
        (999.94, "999.9"),
        (999.96, "1,000"),
        (83_984.6, "83,985"),
        (1.2e6, "1,200,000"),
        (-20_000.0, "-20,000"),
        (1_200_000, "1,200,000"),
        ("done", "done"),
    ],
)
def test_a_table_groups_digits_and_shows_no_power_of_ten_for_usual_numbers(value: Any, shown: str) -> None:
    assert in_table(value) == shown


def test_a_count_has_its_noun() -> None:
    assert [plural(n, noun) for n, noun in ((0, "run"), (1, "run"), (2000, "process"))] == [
        "0 runs",
        "1 run",
        "2,000 processes",
    ]
