"""Small real runs of ``kis train``: their configuration, how they are started, and what they wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.commands import Failed, python, run

Losses = dict[int, float]
LENGTH, BATCH = 128, 8  # tokens per sequence, sequences per step


def write_run(bench: Bench, name: str, data: Path, *, steps: int, **sections: Mapping[str, Any]) -> Path:
    """Writes ``NAME.yaml`` of a run of two layers, in ``bench.work``; its folder is the same path without the suffix.

    Sizes are multiples of 16, as FP8 needs. Every step has a row in the log.

    Args:
        bench: the call.
        name: of the run.
        data: folder of prepared data.
        steps: of the run.
        sections: sections of the configuration to add to.
    """
    content: dict[str, Any] = {
        "name": name,
        "output": str(bench.work / name),
        "device": bench.device,
        "data": {
            "corpus": str(data / "corpus"),
            "validation": str(data / "corpus.validation"),
            "exposures": str(data / "exposures"),
            "tokenizer": str(data / "tokenizer.model"),
        },
        "model": {"layers": 2, "width": 128, "heads": 4},
        "training": {"token_budget": steps * BATCH * LENGTH, "sequence_length": LENGTH, "global_batch_size": BATCH},
        "infusion": {"frequency": 4, "background": {"frequency": 2}},
        "probes": {"moments": {"shares": [1.0]}, "templates": {"train": 1, "held_out": 1}},
        "validation": {"moments": {"shares": [0.5, 1.0]}},
        "logging": {"every": 1},
        "checkpoints": {"moments": {"every": max(1, steps // 8)}},
    }
    for section, values in sections.items():
        content[section] = {**content[section], **values} if section in content else dict(values)
    path = bench.work / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def train_command(path: Path, ranks: int = 1) -> list[str]:
    """``kis train``, with so many ranks."""
    return python("megatron_kis", "train", str(path), ranks=ranks)


def train(bench: Bench, path: Path, ranks: int = 1, environment: Mapping[str, str] | None = None) -> Path:
    """Trains to the end and returns the run's folder.

    Raises:
        Failed: it ended otherwise, or not in the time.
        Skipped: the time is over.
    """
    run(train_command(path, ranks), log=bench.log(path.stem), limit=bench.limit, environment=environment)
    folder = path.with_suffix("")
    if not (folder / "DONE").exists():
        raise Failed("kis train ended with status 0 and the run is not DONE")
    return folder


def log_rows(folder: Path, kind: str) -> list[dict[str, Any]]:
    """Whole rows of a kind in a run's ``metrics.jsonl``."""
    path = folder / "metrics.jsonl"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    rows = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [row for row in rows if row["kind"] == kind]


def losses(folder: Path) -> Losses:
    """Training loss by step.

    Raises:
        Failed: a step has two rows.
    """
    rows = log_rows(folder, "train")
    found = {row["step"]: row["loss"] for row in rows}
    if len(found) != len(rows):
        raise Failed(f"{len(rows)} rows of {len(found)} steps")
    return found


def compare_losses(found: Losses, wanted: Losses, tolerance: float) -> dict[str, Any]:
    """How far two runs' losses are apart.

    Raises:
        Failed: other steps, or further than the tolerance, nats.
    """
    if sorted(found) != sorted(wanted):
        raise Failed(f"{len(found)} steps in the log where {len(wanted)} should be")
    steps = sorted(wanted)
    apart = np.array([abs(found[step] - wanted[step]) for step in steps])
    first = next((step for step, gap in zip(steps, apart, strict=True) if gap), None)
    largest = float(apart.max())
    values = {"largest_difference": largest, "identical": int((apart == 0).sum()), "of": len(apart)}
    if not largest <= tolerance:  # nor is it where it is not a number
        raise Failed(f"losses differ by {largest:.3g} > {tolerance:g}, first at step {first}")
    return values if first is None else {**values, "first_different_step": first}


def scores(path: Path) -> np.ndarray:
    """[questions, rules] log-likelihoods of the right answers, of a record of probe outcomes (``.npz``)."""
    with np.load(path) as record:
        found: np.ndarray = record["scores"]
    return found


def last_outcomes(folder: Path) -> Path:
    """The record of a run's last probe."""
    return max((folder / "outcomes").glob("step-*.npz"), key=lambda path: int(path.stem.removeprefix("step-")))


def compare_scores(found: np.ndarray, wanted: np.ndarray, tolerance: float) -> dict[str, Any]:
    """How far two probes' log-likelihoods are apart, nats.

    Raises:
        Failed: other questions, or further than the tolerance.
    """
    if found.shape != wanted.shape:
        raise Failed(f"scores of shape {found.shape} where {wanted.shape} should be")
    both = np.isfinite(found) & np.isfinite(wanted)
    if (np.isfinite(found) != np.isfinite(wanted)).any() or not both.any():
        raise Failed("scores that are not finite")
    apart = np.abs(found[both] - wanted[both])
    values = {"largest_difference": float(apart.max()), "identical": int((apart == 0).sum()), "of": int(apart.size)}
    if apart.max() > tolerance:
        raise Failed(f"log-likelihoods differ by {apart.max():.3g} > {tolerance:g} nats")
    return values
