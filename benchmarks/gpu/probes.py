"""Questions per second on the GPU, next to LM-Pub-Quiz and lm-eval (``benchmarks.probes``)."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.commands import Skipped, kis, last_object, run
from benchmarks.gpu.runs import train, write_run

PART = "probes"
TOOLS = ("lm_pub_quiz", "lm_eval")


def probes(bench: Bench) -> None:
    """Of a few steps of the small preset: what it has learned does not change the time."""
    bench.rows.attempt(PART, f"{bench.options.presets[0]} {bench.options.facts} facts", lambda: _measure(bench))


def _measure(bench: Bench) -> dict[str, Any]:
    if importlib.util.find_spec("transformers") is None:
        raise Skipped("transformers is not installed")
    options = bench.options
    data = bench.data("facts", facts=options.facts)
    model = {"preset": options.presets[0], "layers": None, "width": None, "heads": None}
    folder = train(bench, write_run(bench, "asked", data, steps=2, model=model, infusion={"frequency": 1}))
    exported = bench.work / "questions"
    templates = bench.work / "facts" / "sources" / "templates.yaml"
    run(
        kis("data", "export", "--facts", data / "facts.jsonl", "--templates", templates, "--output", exported),
        log=bench.log("probes-export"),
        limit=bench.limit,
    )
    tools = [name for name in TOOLS if importlib.util.find_spec(name)]
    command = [sys.executable, "-m", "benchmarks.probes", str(folder), "--data", str(exported / "infused")]
    command += ["--peer", sys.executable, "--device", options.device, "--turns", str(options.turns)]
    command += ["--templates", "1", "--peer-batch", "128", "--tools", *tools]
    found = last_object(run(command, log=bench.log("probes"), limit=bench.limit))
    missing = [name for name in TOOLS if name not in tools]
    return {**found, **({"not_installed": missing} if missing else {})}
