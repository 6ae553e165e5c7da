"""The messages that the planner counts are those that a step of the engine sends, to the byte."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from megatron_kis.config.ladder import PRESETS
from megatron_kis.planning.communication import Passes, messages
from megatron_kis.planning.split import Split

STAGES = {"tensor": 4, "pipeline": 2, "layers": 4, "micro_batches": 2}
CHUNKS = {"tensor": 2, "pipeline": 2, "virtual": 2, "layers": 8, "micro_batches": 4}
LAYOUTS: dict[str, dict[str, Any]] = {
    "first stage": {"preset": "7b", **STAGES},
    "last stage": {"preset": "7b", **STAGES, "rank": 4},
    "replicas share sequences, first stage": {"preset": "7b", **STAGES, "data": 2, "sequence": True},
    "replicas share sequences, last stage": {"preset": "7b", **STAGES, "data": 2, "sequence": True, "rank": 8},
    "a middle stage": {
        "preset": "1b",
        "tensor": 2,
        "pipeline": 3,
        "layers": 6,
        "sequence": True,
        "micro_batches": 4,
        "rank": 2,
    },
    "layers computed again": {"preset": "7b", "tensor": 2, "layers": 2, "micro_batches": 2, "recompute": "full"},
    "layers with shared sequences computed again": {
        "preset": "7b",
        "tensor": 2,
        "layers": 2,
        "micro_batches": 2,
        "sequence": True,
        "recompute": "full",
    },
    "feed-forward blocks with shared sequences computed again": {
        "preset": "1b",
        "tensor": 2,
        "layers": 2,
        "sequence": True,
        "recompute": "selective",
    },
    "chunks, first stage": {"preset": "1b", **CHUNKS},
    "chunks, last stage": {"preset": "1b", **CHUNKS, "sequence": True, "rank": 2},
    "tied embeddings, first stage": {"preset": "410m", **STAGES, "tensor": 2},
    "tied embeddings, last stage": {"preset": "410m", **STAGES, "tensor": 2, "rank": 2},
    "many replicas": {"preset": "410m", "tensor": 2, "data": 4, "layers": 2, "sequence": True, "micro_batches": 2},
    "shared sequences": {"preset": "1b", "context": 2, "layers": 2, "micro_batches": 2},
    "shared sequences computed again": {
        "preset": "3b",
        "tensor": 2,
        "context": 2,
        "data": 2,
        "layers": 2,
        "sequence": True,
        "recompute": "full",
    },
}

SHARED = {
    "tp": "tensor",
    "cp": "context",
    "pp": "pipeline",
    "embedding": "pipeline",
    "dp_cp": "data",
    "world": "pipeline",
}
"""What the planner calls a group of the dry device. Interleaved stages talk over ``world``, too."""

SMALL = 64
"""Bytes up to which a message is a few numbers: losses, counts, the gradient's norm."""


def planned(options: dict[str, Any], stage: int) -> dict[tuple[str, str], float]:
    sizes = {name: options.get(name, 1) for name in ("tensor", "pipeline", "virtual", "context", "data")}
    split = Split(
        **sizes,
        sequence=options.get("sequence", False),
        recompute=options.get("recompute", "none"),
        distributed_optimizer=sizes["data"] * sizes["context"] > 1,
    )
    shape = replace(PRESETS[options["preset"]], layers=options["layers"])
    total: Counter[tuple[str, str]] = Counter()
    for message in messages(shape, 32_000, split, stage, Passes(2048, 1, options.get("micro_batches", 1))):
        total[message.kind, message.operation] += message.total  # type: ignore[assignment]
    return dict(total)


def sent(found: list[dict[str, Any]]) -> dict[tuple[str, str], float]:
    total: Counter[tuple[str, str]] = Counter()
    for message in found:
        ranks, operator = len(message["ranks"]), message["operator"].replace("_", "")
        if ranks == 1 or message["bytes"] <= SMALL or message["group"] not in SHARED or operator.startswith("recv"):
            continue
        operation = next(
            name for name in ("reduce_scatter", "all_gather", "all_reduce", "send") if name.replace("_", "") in operator
        )
        # those that gather and scatter are counted with both the whole and this rank's part of it
        whole = 1 + 1 / ranks if operation in ("reduce_scatter", "all_gather") else 1
        total[SHARED[message["group"]], operation] += message["bytes"] / whole  # type: ignore[assignment]
    return dict(total)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_step_sends_what_the_plan_says(run_case: Callable[..., dict[str, Any]], layout: str) -> None:
    options = LAYOUTS[layout]
    case = run_case(**options, parts="step")
    assert case["problems"] == {}
    found = sent(case["parts"]["step"]["messages"])
    assert found == pytest.approx(planned(options, case["layout"]["pipeline_rank"]), rel=1e-3)
