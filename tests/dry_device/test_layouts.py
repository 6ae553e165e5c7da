"""Every layout runs through on the fake device: start, two steps, validation, probe, what a checkpoint copies, load."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

LAYOUTS: dict[str, dict[str, Any]] = {
    "one GPU": {"preset": "70m"},
    "fp32": {"preset": "70m", "precision": "fp32", "layers": 2},
    "1b, full recomputation": {"preset": "1b", "layers": 2, "recompute": "full"},
    "1b, selective recomputation": {"preset": "1b", "layers": 2, "recompute": "selective"},
    "grouped queries": {"preset": "3b", "layers": 2, "length": 4096},
    "replicas": {"preset": "70m", "data": 4, "layers": 2, "rank": 1},
    "first stage": {"preset": "7b", "tensor": 4, "pipeline": 2, "layers": 4, "micro_batches": 4},
    "last stage": {"preset": "7b", "tensor": 4, "pipeline": 2, "layers": 4, "micro_batches": 4, "rank": 5},
    "interleaved stages": {"preset": "7b", "tensor": 4, "pipeline": 2, "virtual": 2, "data": 2, "sequence": True,
                           "layers": 4, "micro_batches": 4},
    "70b, first stage": {"preset": "70b", "tensor": 8, "pipeline": 4, "data": 8, "sequence": True, "layers": 8,
                         "micro_batches": 4},
    "70b, last stage": {"preset": "70b", "tensor": 8, "pipeline": 4, "data": 8, "sequence": True, "layers": 8,
                        "micro_batches": 4, "rank": 192},
    "shared sequences": {"preset": "1b", "context": 2, "layers": 2, "length": 4096},
}  # fmt: skip


SHARED = ("replicas", "interleaved stages", "70b, first stage", "70b, last stage", "shared sequences")
"""Those with the distributed optimizer."""


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_runs(run_case: Callable[..., dict[str, Any]], layout: str) -> None:
    case = run_case(**LAYOUTS[layout])
    assert {part: why for part, why in case["problems"].items() if part != "load"} == {}
    assert set(case["peaks"]) >= {"passes", "update", "validation", "probe", "save"}


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param(
            name,
            marks=[
                pytest.mark.xfail(name in SHARED, strict=True, reason="PyTorch's AdamW has a `step` that it misses")
            ],
        )
        for name in LAYOUTS
    ],
)
def test_a_layout_loads_what_it_saved(run_case: Callable[..., dict[str, Any]], layout: str) -> None:
    assert "load" not in run_case(**LAYOUTS[layout])["problems"]
