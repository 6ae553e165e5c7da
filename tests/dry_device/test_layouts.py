"""Every layout runs through on the fake device: start, two steps, validation, probe, what a checkpoint copies, load."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from megatron_kis.config.ladder import PRESETS

LAYOUTS: dict[str, dict[str, Any]] = {
    "one GPU": {"preset": "70m"},
    "fp32": {"preset": "70m", "precision": "fp32", "layers": 2},
    "1b, full recomputation": {"preset": "1b", "layers": 2, "recompute": "full"},
    "1b, selective recomputation": {"preset": "1b", "layers": 2, "recompute": "selective"},
    "grouped queries": {"preset": "3b", "layers": 2, "length": 4096},
    "replicas": {"preset": "70m", "data": 4, "layers": 2, "rank": 1},
    "first stage": {"preset": "7b", "tensor": 4, "pipeline": 2, "layers": 4, "micro_batches": 4},
    "last stage": {"preset": "7b", "tensor": 4, "pipeline": 2, "layers": 4, "micro_batches": 4, "rank": 5},
    "interleaved stages": {
        "preset": "7b",
        "tensor": 4,
        "pipeline": 2,
        "virtual": 2,
        "data": 2,
        "sequence": True,
        "layers": 4,
        "micro_batches": 4,
    },
    "70b, first stage": {
        "preset": "70b",
        "tensor": 8,
        "pipeline": 4,
        "data": 8,
        "sequence": True,
        "layers": 8,
        "micro_batches": 4,
    },
    "70b, last stage": {
        "preset": "70b",
        "tensor": 8,
        "pipeline": 4,
        "data": 8,
        "sequence": True,
        "layers": 8,
        "micro_batches": 4,
        "rank": 192,
    },
    "shared sequences": {"preset": "1b", "context": 2, "layers": 2, "length": 4096},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_runs(run_case: Callable[..., dict[str, Any]], layout: str) -> None:
    case = run_case(**LAYOUTS[layout])
    assert {part: why for part, why in case["problems"].items() if part != "load"} == {}
    assert set(case["peaks"]) >= {"passes", "update", "validation", "probe", "save"}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_loads_what_it_saved(run_case: Callable[..., dict[str, Any]], layout: str) -> None:
    assert "load" not in run_case(**LAYOUTS[layout])["problems"]


@pytest.mark.parametrize("layout", ["one GPU", "fp32", "grouped queries", "replicas"])
def test_flops_are_those_of_the_model(run_case: Callable[..., dict[str, Any]], layout: str) -> None:
    case = run_case(**LAYOUTS[layout])
    assert sum(case["parts"]["step"]["flops"].values()) == pytest.approx(case["flops_of_the_model"], rel=1e-4)


def test_flops_of_all_stages_and_tensor_ranks_are_those_of_the_model(run_case: Callable[..., dict[str, Any]]) -> None:
    first, last = (run_case(**LAYOUTS[layout]) for layout in ("first stage", "last stage"))
    done = sum(sum(case["parts"]["step"]["flops"].values()) for case in (first, last))
    assert 4 * done == pytest.approx(first["flops_of_the_model"], rel=1e-4)


def test_full_recomputation_repeats_the_layers_forward_passes(run_case: Callable[..., dict[str, Any]]) -> None:
    case = run_case(**LAYOUTS["1b, full recomputation"])
    shape = PRESETS["1b"]
    head = 6 * 32000 * shape.width * 2048  # of the output layer, which is not repeated
    layers = case["flops_of_the_model"] - head
    assert sum(case["parts"]["step"]["flops"].values()) == pytest.approx(head + layers * 4 / 3, rel=1e-3)


@pytest.mark.parametrize("layout", ["70b, first stage", "70b, last stage"])
def test_a_checkpoint_copies_a_replicas_share_and_gathers_no_optimizer(
    run_case: Callable[..., dict[str, Any]], layout: str
) -> None:
    case = run_case(**LAYOUTS[layout])
    save = case["parts"]["save"]
    share = (2 + 12) * case["parameters"] / LAYOUTS[layout]["data"]  # weights; main weights and two moments
    assert 0.8 * share < save["copied_to_host"] < 1.1 * share
    assert save["sent"] == {}


def test_an_engine_that_only_answers_holds_its_weights_alone(run_case: Callable[..., dict[str, Any]]) -> None:
    case = run_case("70m", answers=True, parts="validation,probe", tensor=2, layers=2)
    assert case["problems"] == {}
    weights = 2 * case["parameters"]  # bf16; with gradients and main weights it would be nine times as much
    assert weights <= case["bytes_at_the_end"] < 1.2 * weights
