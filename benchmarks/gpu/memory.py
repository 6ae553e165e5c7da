"""Memory by part of a run, next to ``kis plan``: which cases, and one row each."""

from __future__ import annotations

from typing import Any

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.checks import te_problem
from benchmarks.gpu.commands import Failed, Skipped, run, worker

PART = "memory"
LARGE_VOCABULARY = 128_256  # Llama 3's


ALONE: dict[str, Any] = {"tensor": 1, "pipeline": 1, "sequence": False, "ranks": 1}
LAYOUTS: tuple[dict[str, Any], ...] = (
    {"ranks": 2},
    {"ranks": 2, "tensor": 2, "sequence": True},
    {"ranks": 2, "pipeline": 2},
    {"ranks": 8, "tensor": 4, "pipeline": 2},
)
"""Measured as far as there are GPUs; what tensor and pipeline leave of the ranks are replicas."""


def cases(bench: Bench) -> list[dict[str, Any]]:
    """What is measured, one size after the other; the last ones show what a setting or a layout changes."""
    options = bench.options
    usual = {
        "length": options.lengths[0],
        "micro_batch": options.micro_batch,
        "recompute": "none",
        "implementation": "auto",
        "precision": "fp32" if bench.on_host else "bf16",
        "vocabulary": options.vocabulary,
        **ALONE,
    }
    middle = options.presets[min(1, len(options.presets) - 1)]
    changes: list[dict[str, Any]] = [{"recompute": "full"}, {"micro_batch": 1}]
    changes.append({"vocabulary": LARGE_VOCABULARY, "micro_batch": 1})
    if not bench.on_host:
        changes.append({"precision": "fp8", "implementation": "transformer_engine"})
        if te_problem(bench) is None:
            changes.insert(0, {"implementation": "sdpa"})
    there = options.devices or bench.machine["devices"]
    changes += [layout for layout in LAYOUTS if layout["ranks"] <= there]
    return [{**usual, "preset": name} for name in options.presets] + [
        {**usual, "preset": middle, **change} for change in changes
    ]


def label(case: dict[str, Any]) -> str:
    """A case in a few words."""
    words = [
        case["preset"],
        f"L={case['length']}",
        f"mb={case['micro_batch']}",
        case["implementation"],
        case["precision"],
        f"V={case['vocabulary']}",
    ]
    if case["recompute"] != "none":
        words.append(f"recompute={case['recompute']}")
    if case["ranks"] > 1:
        replicas = case["ranks"] // (case["tensor"] * case["pipeline"])
        words.append(f"TP{case['tensor']} PP{case['pipeline']} DP{replicas}" + (" SP" if case["sequence"] else ""))
    return " ".join(words)


def memory(bench: Bench) -> None:
    """Each case in a process of its own, as far as it fits."""
    data = bench.data("small")
    for name, case in {label(case): case for case in cases(bench)}.items():
        bench.rows.attempt(PART, name, lambda c=case: _measure(bench, c, str(data)))  # type: ignore[misc]


def _measure(bench: Bench, case: dict[str, Any], data: str) -> dict[str, Any]:
    """The parts, with the rank that holds most; results before a failure are in its message."""
    if case["precision"] == "fp8" and (problem := te_problem(bench)):
        raise Skipped(problem)
    bench.limit.need(5.0)
    parts: list[dict[str, Any]] = []
    try:
        command = worker("memory", ranks=case["ranks"], case=case, device=bench.device, data=data)
        run(command, log=bench.log(f"memory-{label(case)}"), limit=bench.limit, line=parts.append)
    except Failed as reason:
        had = ", ".join(f"{part['name']} {part['bytes']:,}" for part in parts if "name" in part) or "nothing"
        raise Failed(f"{reason} (measured before: {had})") from None
    found: dict[str, Any] = {}
    for part in parts:
        if "too_large" in part:
            raise Skipped(part["too_large"])
        name = part.pop("name")
        if part["bytes"] > found.get(name, {"bytes": -1})["bytes"]:  # of the fullest rank
            found[name] = part
    return {**case, "parts": found}
