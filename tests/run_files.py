"""What a run has written: rows of its logs, losses by step, shapes of its checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    """Returns the whole rows of a JSON-lines file."""
    path = folder / name
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def tensor_shapes(checkpoint: Path) -> dict[str, tuple[int, ...]]:
    """Returns the names and whole shapes of the tensors in a checkpoint."""
    index = json.loads((checkpoint / "index.json").read_text(encoding="utf-8"))
    return {name: tuple(tensor["shape"]) for name, tensor in index["tensors"].items()}


def losses(folder: Path) -> dict[int, float]:
    """Returns the training loss by step; a step that is reported twice is an error."""
    found = [(row["step"], row["loss"]) for row in rows(folder, "metrics.jsonl") if row["kind"] == "train"]
    assert len(dict(found)) == len(found), "a step is reported twice"
    return dict(found)
