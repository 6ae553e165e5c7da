"""What attention does on CUDA: the kernels, their share of the work, and what a probe makes the host wait for."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

RunCase = Callable[..., dict[str, Any]]
CALL = re.compile(r"(\w+) q=\((.*?)\) k=\((.*?)\) \S+ mask=(\w+) causal=(\w+)")


def calls(case: dict[str, Any], part: str) -> list[tuple[Any, ...]]:
    """Kernel, shapes of queries and keys, whether there is a mask, whether it is causal."""
    found = []
    for said in case["parts"][part]["attention"]:
        match = CALL.match(said)
        assert match is not None, said
        kernel, queries, keys, masked, causal = match.groups()
        shapes = ([int(size) for size in shape.split(",")] for shape in (queries, keys))
        found.append((kernel, *shapes, masked == "True", causal == "True"))
    return found


@pytest.mark.parametrize("rank", [{}, {"rank": 1, "parts": "step"}], ids=["first", "second"])
def test_ranks_that_share_a_sequence_each_have_their_causal_share_and_no_mask(
    run_case: RunCase, rank: dict[str, Any]
) -> None:
    whole = run_case("1b", layers=2, length=4096)["parts"]["step"]["flops"]
    shared = run_case("1b", layers=2, length=4096, context=2, **rank)
    for way in ("attention.forward", "attention.backward"):
        assert shared["parts"]["step"]["flops"][way] == pytest.approx(whole[way] / 2, rel=1e-3)
    for kernel, queries, _, masked, causal in calls(shared, "step"):
        assert kernel in ("cudnn", "flash")
        assert queries[2] == 1024  # one of four pieces
        assert (masked, causal) == (False, True)
    assert not [place for place in shared["parts"]["step"]["copies"] if "model/" in place]


def test_a_probe_of_shared_keys_has_a_fused_kernel_that_plans_nothing(run_case: RunCase) -> None:
    probed = calls(run_case("3b", layers=2, length=4096), "probe")
    assert probed
    for kernel, queries, keys, masked, _ in probed:
        assert kernel == "efficient"
        assert queries == keys
        assert queries[2] % 32 == 0
        assert masked


def test_grouped_queries_in_fp32_have_a_fused_kernel(run_case: RunCase) -> None:
    case = run_case("3b", layers=2, precision="fp32", parts="step")
    assert {kernel for kernel, *_ in calls(case, "step")} == {"efficient"}


def test_documents_apart_have_a_fused_kernel(run_case: RunCase) -> None:
    settings = {"preset": "3b", "layers": 2, "length": 1024, "context": 2, "parts": "step"}
    trained = calls(run_case(**settings, set={"documents.reset_attention": True}), "step")
    assert trained
    for _, queries, keys, masked, _ in trained:
        assert queries[1] == keys[1]  # no kernel but cuDNN's, which PyTorch may not choose, shares keys under a mask
        assert (queries[2], keys[2], masked) == (512, 1024, True)


@pytest.mark.parametrize("layout", [{}, {"context": 2}], ids=["alone", "shared"])
def test_a_probe_makes_the_host_wait_once(run_case: RunCase, layout: dict[str, int]) -> None:
    probe = run_case("1b", layers=2, length=4096, **layout)["parts"]["probe"]
    assert {place.split(" @ ")[0]: number for place, number in probe["syncs"].items()} == {"copy to the host": 1}
    assert probe["copies"] == {}
