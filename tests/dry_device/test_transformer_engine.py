"""Transformer Engine's layers, which `auto` takes where it is installed, in bf16 and FP8."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

CASES: dict[str, dict[str, Any]] = {
    "one GPU": {"preset": "70m", "layers": 2},
    "tensor, last stage": {
        "preset": "7b",
        "tensor": 4,
        "pipeline": 2,
        "layers": 4,
        "micro_batches": 2,
        "rank": 5,
        "sequence": True,
    },
    "replicas": {"preset": "3b", "layers": 2, "data": 2},
    "FP8": {"preset": "70m", "layers": 2, "precision": "fp8"},
    "FP8, shared out sequences": {"preset": "1b", "layers": 2, "tensor": 2, "sequence": True, "precision": "fp8"},
}


@pytest.fixture
def case(request: pytest.FixtureRequest, run_case: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    return run_case(**CASES[request.param], transformer_engine=True)


@pytest.mark.parametrize("case", CASES, indirect=True)
def test_every_part_runs(case: dict[str, Any]) -> None:
    """A load meets extra states that no checkpoint has, and FP8 wants 8 to divide the tokens of every pass."""
    assert case["problems"] == {}
    assert any(chosen.startswith("transformer engine") for chosen in case["parts"]["step"]["attention"])


@pytest.mark.parametrize("case", ["one GPU", "FP8"], indirect=True)
def test_flops_are_those_of_the_model(case: dict[str, Any]) -> None:
    assert sum(case["parts"]["step"]["flops"].values()) == pytest.approx(case["flops_of_the_model"], rel=1e-4)


def test_a_run_that_repeats_its_bits_runs(run_case: Callable[..., dict[str, Any]]) -> None:
    """Megatron-Core wants Transformer Engine told so, by a variable, before it makes a layer."""
    case = run_case("70m", layers=2, transformer_engine=True, set={"training.deterministic": True})
    assert case["problems"] == {}
