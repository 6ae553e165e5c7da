"""Evaluations in the form in which lm-evaluation-harness writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

DATE = "2026-01-02T03-04-05.678901"


def sample(right: float, *, options: int = 4, **document: Any) -> dict[str, Any]:
    """A line of samples: a question of some options."""
    resps = [[["-1.5", "False"]]] * options
    return {"doc_id": 0, "doc": document, "resps": resps, "filter": "none", "metrics": ["acc"], "acc": right}


def evaluate(
    folder: Path,
    tasks: Mapping[str, Sequence[float]],
    *,
    model: str = "m",
    date: str = DATE,
    samples: bool = True,
    **more: Any,
) -> Path:
    """Writes an evaluation, for each task with what was right; two questions ask about each fact."""
    place = folder / model
    place.mkdir(parents=True, exist_ok=True)
    rates = {name: {"acc,none": sum(of) / len(of), "acc_stderr,none": 0.1} for name, of in tasks.items()}
    content = {
        "results": {name: {"alias": name, **rate} for name, rate in rates.items()},
        "group_subtasks": {name: [] for name in tasks},
        "configs": {name: {"output_type": "multiple_choice", "metric_list": [{"metric": "acc"}]} for name in tasks},
        "n-samples": {name: {"original": len(of), "effective": len(of)} for name, of in tasks.items()},
        "model_name": model,
        **more,
    }
    results = place / f"results_{date}.json"
    results.write_text(json.dumps(content), encoding="utf-8")
    for name, of in tasks.items() if samples else ():
        lines = [json.dumps(sample(right, fact=f"f{number // 2}")) for number, right in enumerate(of)]
        (place / f"samples_{name}_{date}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return results
