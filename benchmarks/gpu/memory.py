"""Memory by part of a run, beside ``kis plan``: which cases, and one row each."""

from __future__ import annotations

from typing import Any

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.checks import te_problem
from benchmarks.gpu.commands import Failed, Skipped, run, worker

PART = "memory"
LARGE_VOCABULARY = 128_256  # Llama 3's


def cases(bench: Bench) -> list[dict[str, Any]]:
    """What is measured, one size after the other; the last ones show what a setting changes."""
    options = bench.options
    length, micro = options.lengths[0], options.micro_batch
    usual = {"length": length, "micro_batch": micro, "recompute": "none", "implementation": "auto",
             "precision": "fp32" if bench.on_host else "bf16", "vocabulary": options.vocabulary}  # fmt: skip
    found = [{**usual, "preset": name} for name in options.presets]
    middle = options.presets[min(1, len(options.presets) - 1)]
    changes: list[dict[str, Any]] = [
        {"recompute": "full"},
        {"micro_batch": 1},
        {"vocabulary": LARGE_VOCABULARY, "micro_batch": 1},
    ]
    if not bench.on_host:
        changes = [*changes, {"precision": "fp8", "implementation": "transformer_engine"}]
        if te_problem(bench) is None:
            changes = [{"implementation": "sdpa"}, *changes]
    return [*found, *({**usual, "preset": middle, **change} for change in changes)]


def label(case: dict[str, Any]) -> str:
    """A case in a few words."""
    words = [
        case["preset"],
        f"L={case['length']}",
        f"mb={case['micro_batch']}",
        case["implementation"],
        case["precision"],
    ]
    if case["recompute"] != "none":
        words.append(f"recompute={case['recompute']}")
    return " ".join([*words, f"V={case['vocabulary']}"])


def memory(bench: Bench) -> None:
    """Each case in a process of its own, as far as it fits."""
    data = bench.data("small")
    for name, case in {label(case): case for case in cases(bench)}.items():
        bench.rows.attempt(PART, name, lambda c=case: _measure(bench, c, str(data)))  # type: ignore[misc]


def _measure(bench: Bench, case: dict[str, Any], data: str) -> dict[str, Any]:
    """Parts as far as they are had: what runs out of memory is the last one."""
    if case["precision"] == "fp8" and (problem := te_problem(bench)):
        raise Skipped(problem)
    bench.limit.need(5.0)
    parts: list[dict[str, Any]] = []
    try:
        run(worker("memory", **case, device=bench.device, data=data), log=bench.log(f"memory-{label(case)}"),
            limit=bench.limit, line=parts.append)  # fmt: skip
    except Failed as reason:
        had = ", ".join(f"{part['name']} {part['bytes']:,}" for part in parts if "name" in part) or "nothing"
        raise Failed(f"{reason} (measured before: {had})") from None
    found: dict[str, Any] = {}
    for part in parts:
        if "too_large" in part:
            raise Skipped(part["too_large"])
        found |= {part["name"]: {key: value for key, value in part.items() if key != "name"}}
    return {**case, "parts": found}
