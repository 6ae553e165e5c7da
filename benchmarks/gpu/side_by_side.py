"""Small runs that share one GPU: tokens per second of 1, 2, 4, ... processes, and runs per hour."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.commands import Command, Failed, last_object, worker
from benchmarks.gpu.speed import settings

PART = "side-by-side"


def side_by_side(bench: Bench) -> None:
    """Each number of processes; they start together, and the first and last seconds of each may have no neighbour."""
    for count in bench.options.together:
        item = f"{count} x {bench.options.presets[0]}"
        bench.rows.attempt(PART, item, lambda n=count: _together(bench, n))  # type: ignore[misc]


def _together(bench: Bench, count: int) -> dict[str, Any]:
    options = bench.options
    bench.limit.need(1.5 * options.seconds)
    length = options.lengths[0]
    cell = {
        "kind": "ours",
        "preset": options.presets[0],
        "length": length,
        "batch": options.micro_batch,
        "micro_batch": options.micro_batch,
    }
    command = worker("speed", **settings(bench, **cell))
    with ExitStack() as stack:
        running = [
            stack.enter_context(Command(command, log=bench.log(f"together-{count}-{number}"), limit=bench.limit))
            for number in range(count)
        ]
        for process in running:
            if process.wait():
                raise Failed(process.reason())
        rate = sum(last_object(process.output())["tokens_per_second"] for process in running)
    return {
        "processes": count,
        "preset": options.presets[0],
        "length": length,
        "tokens_per_second": rate,
        "run_tokens": options.run_tokens,
        "runs_per_hour": round(3600 * rate / options.run_tokens, 3),
    }
