"""The memory that ``kis plan`` says against what is alive on the fake device, part by part of a run."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from megatron_kis.config.ladder import preset
from megatron_kis.config.vocabulary import padded_vocabulary
from megatron_kis.planning.hardware import GPUS
from megatron_kis.planning.layouts import Job, find_layouts
from megatron_kis.planning.memory import Memory, groups, stage_memory
from megatron_kis.planning.parts import EvaluationLoad
from megatron_kis.planning.split import Split
from megatron_kis.planning.work import Layers, Work
from tests.dry_device import VALIDATED
from tests.dry_device.cases import ENGINE_CASES, LAYOUTS

Case = dict[str, Any]

CASES: dict[str, Case] = LAYOUTS | {
    "interleaved, last stage": {
        "preset": "7b",
        "tensor": 4,
        "pipeline": 2,
        "virtual": 2,
        "sequence": True,
        "layers": 4,
        "micro_batches": 4,
        "rank": 4,
    },
    "four chunks": {
        "preset": "7b",
        "tensor": 4,
        "pipeline": 2,
        "virtual": 4,
        "sequence": True,
        "layers": 8,
        "micro_batches": 4,
    },
    "recomputed stage": {
        "preset": "7b",
        "tensor": 4,
        "pipeline": 2,
        "sequence": True,
        "recompute": "full",
        "layers": 4,
        "micro_batches": 4,
        "vocabulary": 128_256,
        "rank": 4,
    },
    "few logits": {"preset": "70b", "tensor": 8, "layers": 2, "vocabulary": 3000, "parts": "step,validation,save"},
    "few logits, shared sequences": {
        "preset": "1b",
        "context": 4,
        "layers": 2,
        "length": 4096,
        "vocabulary": 3000,
        "parts": "step,validation,save",
    },
    "fp32, shared sequences, grouped queries": {
        "preset": "3b",
        "context": 2,
        "layers": 2,
        "precision": "fp32",
        "parts": "step,validation,save",
    },
    "own mask, grouped queries": {
        "preset": "70b",
        "tensor": 8,
        "sequence": True,
        "layers": 2,
        "set": {"documents.reset_attention": True},
        "parts": "step,validation,save",
    },
}

CASES["normed queries and biases"] = ENGINE_CASES["normed queries and biases"]
for _name, _case in ENGINE_CASES.items():
    CASES[f"Transformer Engine, {_name}"] = {**_case, "transformer_engine": True}

_LAST_FIRST = list(reversed(CASES))
"""Not in the order of ``test_layouts``, for which another worker may run the same cases at this moment."""

_STATIC = ("weights", "gradients", "optimizer")


def work_of(asked: Case) -> Work:
    """What the planner is told of a case."""
    given = {"length": 2048, "micro_batch": 1, "precision": "bf16", "vocabulary": 32_000, "recompute": "none"} | asked
    shape = preset(given["preset"])
    data, context = given.get("data", 1), given.get("context", 1)
    split = Split(
        tensor=given.get("tensor", 1),
        pipeline=given.get("pipeline", 1),
        virtual=given.get("virtual", 1),
        data=data,
        context=context,
        recompute=given["recompute"],
        distributed_optimizer=data * context > 1,
        sequence=given.get("sequence", False),
    )
    layers: Layers = "transformer_engine" if given.get("transformer_engine") else "sdpa"
    own = {key.removeprefix("model."): value for key, value in given.get("set", {}).items() if key.startswith("model.")}
    return Work(
        replace(shape, layers=given.get("layers", shape.layers), **own),
        padded_vocabulary(given["vocabulary"]),
        split,
        given["length"],
        given["micro_batch"],
        given["precision"],
        layers,
        own_mask=given.get("set", {}).get("documents.reset_attention", False),
    )


def plan_of(asked: Case, case: Case) -> Memory:
    """What ``kis plan`` says of the rank of a case, with the texts that the case validated and the rows it probed.

    Its passes and its update came before the first probe.
    """
    work, stage, count = work_of(asked), case["layout"]["pipeline_rank"], asked.get("micro_batches", 1)
    before = EvaluationLoad(validation_tokens=VALIDATED * work.length, probe_rows=1, probe_width=1)
    found = (re.search(r"q=\(([\d, ]+)\)", words) for words in case["parts"].get("probe", {}).get("attention", ()))
    shapes = [[int(size) for size in match[1].split(",")] for match in found if match]
    if not shapes:
        return stage_memory(work, stage, count, before)
    # [rows, heads, width, ...]; with Transformer Engine's layers [width, rows, ...]
    passes = [(size[1], size[0]) if work.engine else (size[0], size[2]) for size in shapes]
    rows, width = max(passes, key=lambda sizes: sizes[0] * sizes[1])
    nodes = None if work.engine else case["probe_nodes"]
    probed = replace(before, probe_rows=rows, probe_width=width * work.split.context, probe_nodes=nodes)
    told, first = stage_memory(work, stage, count, probed), stage_memory(work, stage, count, before)
    return replace(told, parts={**told.parts, **{part: first.parts[part] for part in ("passes", "update")}})


@pytest.mark.parametrize("name", _LAST_FIRST)
def test_no_part_of_a_run_takes_more_than_the_plan_says(run_case: Callable[..., Case], name: str) -> None:
    case = run_case(**CASES[name])
    told = plan_of(CASES[name], case)
    remains = sum(size for kind, size in case["static"].items() if kind not in _STATIC)
    real = {part: size + remains for part, size in case["peaks"].items() if part in told.parts}
    assert set(real) >= {"passes", "update", "validation", "save"}
    assert {part: (told.parts[part], size) for part, size in real.items() if told.parts[part] < size} == {}


@pytest.mark.parametrize("name", _LAST_FIRST)
def test_the_peak_of_a_run_is_the_plans_to_two_percent(run_case: Callable[..., Case], name: str) -> None:
    case = run_case(**CASES[name])
    told = plan_of(CASES[name], case)
    for kind in _STATIC:
        assert getattr(told, kind) == pytest.approx(case["static"][kind], rel=1e-4)
    real = sum(case["static"].values()) + max(size for part, size in case["peaks"].items() if part in told.parts)
    assert real <= told.total - told.context + 1e6 <= 1.02 * real


@pytest.mark.parametrize(
    "asked", [CASES["one GPU"], {**CASES["replicas"], "rank": 0, "parts": "step,save"}, CASES["70b, first stage"]]
)
def test_a_checkpoint_takes_of_the_host_what_the_plan_says(run_case: Callable[..., Case], asked: Case) -> None:
    """The plan is of the replica that writes the largest weight, here the embedding or (70b) another's feed-forward."""
    case = run_case(**asked)
    told = plan_of(asked, case).host
    assert 0.85 * told < case["parts"]["save"]["copied_to_host"] < 1.01 * told


@pytest.mark.parametrize(("name", "gpus", "length", "vocabulary"), [("3b", 1, 4096, 32_000), ("7b", 8, 2048, 128_256)])
def test_a_layout_that_the_plan_offers_fits(
    run_case: Callable[..., Case], name: str, gpus: int, length: int, vocabulary: int
) -> None:
    """These two were offered and did not fit while a validation made the logits of 32 sequences at once."""
    job = Job(preset(name), padded_vocabulary(vocabulary), 1e11, length, 512)
    offered = find_layouts(job, gpus=gpus, kind=GPUS["h100"])
    option = next(found for found in offered if found.split.tensor == found.split.pipeline == 1)
    case = run_case(
        name,
        data=option.split.data,
        micro_batch=option.micro_batch,
        micro_batches=2,
        length=length,
        vocabulary=vocabulary,
        recompute=option.split.recompute,
        parts="step,validation",
    )
    real = sum(case["static"].values()) + max(case["peaks"][part] for part in ("passes", "update", "validation"))
    assert 0.95 * (option.memory.total - option.memory.context) <= real <= 0.94 * 80e9 - option.memory.context


@pytest.mark.parametrize("name", ["70b, first stage", "interleaved stages", "replicas"])
def test_the_groups_that_talk_are_the_plans(run_case: Callable[..., Case], name: str) -> None:
    case = run_case(**CASES[name])
    assert len(case["parts"]["step"]["sent"]) == len(groups(work_of(CASES[name]))), case["parts"]["step"]["sent"]
