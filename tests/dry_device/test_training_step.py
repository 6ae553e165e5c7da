"""What a training step asks of CUDA: memory of the update, waits of the host, messages of the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.dry_device.cases import ENGINE_CASES, LAYOUTS

RunCase = Callable[..., dict[str, Any]]
SHARED = [name for name, asked in LAYOUTS.items() if asked.get("data", 1) * asked.get("context", 1) > 1]
ALL = LAYOUTS | {
    f"Transformer Engine, {name}": {**asked, "transformer_engine": True} for name, asked in ENGINE_CASES.items()
}


@pytest.mark.parametrize("layout", ["one GPU", "fp32", "replicas", "last stage"])
def test_an_update_holds_next_to_nothing_more(run_case: RunCase, layout: str) -> None:
    """PyTorch's AdamW, unless fused, takes the roots of all second moments at once: 4 bytes per weight it updates."""
    case = run_case(**LAYOUTS[layout])
    updated = case["parameters"] / (LAYOUTS[layout].get("data", 1))
    assert case["peaks"]["update"] < 0.05 * 4 * updated
    steps = case["steps_of_adam"]
    assert steps["devices"] == ["cuda"]
    assert steps["tensors"] == steps["weights"] > 0


@pytest.mark.parametrize("layout", ALL)
def test_the_host_waits_twice_per_step_at_most(run_case: RunCase, layout: str) -> None:
    """For the loss, and for the norm of the gradients; what the saver asks is there by then."""
    syncs = run_case(**ALL[layout])["parts"]["step"]["syncs"]
    assert sum(syncs.values()) <= 2, syncs


@pytest.mark.parametrize("layout", ["replicas", "interleaved stages"])
def test_weights_are_gathered_during_the_next_forward_pass(run_case: RunCase, layout: str) -> None:
    case = run_case(**LAYOUTS[layout])
    gathers = [said for said in case["parts"]["step"]["messages"] if said["operator"].startswith("allgather_into")]
    weights = [said for said in gathers if said["dtype"] == "torch.bfloat16" and "dp" in said["group"]]
    assert {said["part"] for said in weights} == {"passes"}
    both = 1 + 1 / LAYOUTS[layout]["data"]  # whole, and this rank's part
    assert sum(said["bytes"] for said in weights) == pytest.approx(2 * both * case["parameters"], rel=0.01)


@pytest.mark.parametrize("layout", SHARED)
def test_a_pass_after_a_step_has_its_weights(run_case: RunCase, layout: str) -> None:
    """The first pass of validation gathers them whole, and nothing gathers them again until the next step."""
    parts = run_case(**LAYOUTS[layout])["parts"]
    assert parts["validation"]["sent"]["dp_cp"]["allgather_into_tensor_coalesced"]
    for part in ("probe", "save"):
        assert "allgather_into_tensor_coalesced" not in parts[part]["sent"].get("dp_cp", {})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_group_sends_over_the_hosts_network(run_case: RunCase, layout: str) -> None:
    assert not any("gloo" in backend for backend in run_case(**LAYOUTS[layout])["groups"])


def test_each_recomputation_saves_more_memory_for_more_work(run_case: RunCase) -> None:
    cases = {
        way: run_case("1b", layers=2, micro_batch=4, recompute=way, parts="step")
        for way in ("none", "selective", "full")
    }
    passes = {way: case["peaks"]["passes"] for way, case in cases.items()}
    work = {way: sum(case["parts"]["step"]["flops"].values()) for way, case in cases.items()}
    logits = 6 * 32000 * 2048 * 4  # bf16 and fp32, whatever is computed again
    assert passes["selective"] - logits < 0.7 * (passes["none"] - logits)
    assert passes["full"] < passes["selective"]
    assert work["none"] < work["selective"] < work["full"] < 1.34 * work["none"]
