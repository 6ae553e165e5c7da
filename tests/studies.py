"""Studies, and runs of studies, for tests of everything around training."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import yaml

from megatron_kis.common.configuration import parse_config
from megatron_kis.config.run import RunConfig
from tests.sources import Sources

FREQUENCIES = [0, 3, 8]


def write_study(folder: Path, sources: Sources, **changes: Any) -> Path:
    """Writes a study of one size and three frequencies, each run a few seconds long."""
    content: dict[str, Any] = {
        "name": "small",
        "output": str(folder / "out"),
        "device": "cpu",
        "data": {
            "text": [str(sources.text)],
            "facts": str(sources.triples),
            "templates": str(sources.templates),
            "vocab_size": 400,
            "validation_share": 0.05,
            "select": {"infused": 16, "background": 16, "control": 16},
        },
        "ladder": [{"layers": 1, "width": 16, "heads": 2}],
        "token_budgets": [10 * 8 * 64],
        "frequencies": FREQUENCIES,
        "training": {"sequence_length": 64, "global_batch_size": 8},
        "background": {"frequency": 4},
        "probes": {"moments": {"shares": [1.0]}, "templates": {"train": 1, "held_out": 1, "question": 1}},
        "validation": {"moments": {"shares": [1.0]}},
        "executor": {"workers": 2},
        "analysis": {"resamples": 99},
        **changes,
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def processes_naming(text: str) -> list[int]:
    """Returns the live processes whose command line holds ``text``."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in command and int(folder.name) != os.getpid():
            found.append(int(folder.name))
    return found


RUN = "1x16_D5.12k_F8_s0"
"""Name of the only run of a study with the changes ``ONE``."""
ONE = {"frequencies": [8], "output": "out", "executor": {"workers": 1}}


def tree(folder: Path) -> dict[str, str]:
    """Returns the time and the hash of every file and folder, by path."""
    return {
        str(path.relative_to(folder)): f"{path.stat().st_mtime_ns} "
        + (hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder")
        for path in folder.rglob("*")
    }


def edited(study: Path, **changes: Any) -> Path:
    """Changes keys of a study file."""
    study.write_text(yaml.safe_dump(yaml.safe_load(study.read_text()) | changes))
    return study


GRID_STUDY: dict[str, Any] = {
    "name": "s",
    "output": "out",
    "data": {"text": ["text.jsonl"], "facts": "facts.tsv", "templates": "templates.yaml"},
    "ladder": [
        {"preset": "cpu-32", "learning_rate": 0.01},
        {"layers": 3, "width": 32, "heads": 2, "parallel": {"tensor": 2}},
    ],
    "token_budgets": [100_000, 250_000],
    "frequencies": [0, 7],
    "seeds": [0, 4],
    "training": {
        "sequence_length": 32,
        "global_batch_size": 4,
        "micro_batch_size": 2,
        "optimizer": {"learning_rate": 0.5, "schedule": "wsd"},
    },
    "background": {"policy": "protected", "frequency": 9},
    "probes": {"batch_size": 17},
    "validation": {"max_tokens": 640},
    "logging": {"every": 3},
    "device": "cpu",
}


def run_of(folder: Path, name: str, milliseconds: int = 0, **changes: Any) -> RunConfig:
    """Returns a run that nobody can train; its seed tells a stand-in how many milliseconds to take."""
    content: dict[str, Any] = {
        "name": name,
        "output": folder / "runs" / name,
        "data": {"corpus": "c", "validation": "v", "exposures": "e", "tokenizer": "t"},
        "model": {"preset": "cpu-32"},
        "training": {"token_budget": 64, "sequence_length": 8, "global_batch_size": 1, "seed": milliseconds},
        "infusion": {"frequency": 0},
        **changes,
    }
    return parse_config(RunConfig, content, source="test")


def write_log(folder: Path, text: str, metrics: list[Any] = (), *, torn: str = "") -> None:  # type: ignore[assignment]
    """Writes the log and the metrics of a run; ``torn`` is the beginning of a last row."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log.txt").write_text(text)
    lines = [line if isinstance(line, str) else json.dumps(line) for line in metrics]
    if metrics or torn:
        (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines) + torn)


def train_row(step: int, loss: float) -> dict[str, object]:
    return {"kind": "train", "step": step, "loss": loss, "tokens_per_second": 5.0}
