"""The folder of a run: what lies there before the first step, and the logs that a checkpoint knows the ends of."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from megatron_kis.files import write_json
from megatron_kis.training.branch import adopt
from megatron_kis.training.checkpoint import FOLDER, Checkpoint
from megatron_kis.training.logs import JsonLines
from megatron_kis.training.resume import forget_later_outcomes

METRICS, PROBES = "metrics.jsonl", "probes.jsonl"


class RunFolder:
    """A run's folder. Only the rank that reports writes there, but for checkpoints and stacks."""

    def __init__(self, path: Path) -> None:
        """Touches nothing yet."""
        self.path = path
        self.outcomes = path / "outcomes"
        """Where probes leave their outcomes by question."""
        self._logs: dict[str, JsonLines] = {}
        self._origin: dict[str, Any] = {}

    def clear(self) -> None:
        """Makes room for a run that begins, or begins anew."""
        for name in ("run.json", METRICS, PROBES, "exposures.json", self.outcomes.name, FOLDER):
            path = self.path / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def adopt(self, source: Checkpoint, *, steps: int, identity: dict[str, Any]) -> None:
        """Makes a trunk's checkpoint this run's own, see ``branch.adopt``."""
        self.clear()
        adopt(source, self.path, steps=steps, identity=identity)

    def prepare(self, checkpoint: Checkpoint | None, record: dict[str, Any]) -> None:
        """Clears the folder, or brings it back to a checkpoint, and writes ``run.json``.

        Args:
            checkpoint: with which the run goes on.
            record: the content of ``run.json``, without the sessions and the branch.
        """
        sessions: list[dict[str, Any]] = []
        step, branched = 0, None
        if checkpoint is None:
            self.clear()
        else:
            forget_later_outcomes(self.outcomes, checkpoint.step)
            (self.path / "exposures.json").unlink(missing_ok=True)
            step, sessions = checkpoint.step, checkpoint.manifest["sessions"]
            branched = checkpoint.manifest.get("branched_from")
        self._origin = {
            "sessions": [*sessions, {"from_step": step, **_session(record)}],
            "branched_from": branched,
        }
        write_json(self.path / "run.json", record | {name: said for name, said in self._origin.items() if said})

    def open_logs(self, checkpoint: Checkpoint | None) -> tuple[JsonLines, JsonLines]:
        """``metrics.jsonl`` and ``probes.jsonl``, without what was written behind the checkpoint."""
        for name in (METRICS, PROBES):
            keep = 0 if checkpoint is None else int(checkpoint.manifest["logs"][name])
            self._logs[name] = JsonLines(self.path / name, keep=keep)
        return self._logs[METRICS], self._logs[PROBES]

    def manifest(self) -> dict[str, Any]:
        """What a checkpoint keeps of the folder; the logs have reached the disk up to there when this returns."""
        return {**self._origin, "logs": {name: log.position() for name, log in self._logs.items()}}

    def close_logs(self) -> None:
        """Closes what ``open_logs`` opened."""
        for log in self._logs.values():
            log.close()


def _session(record: dict[str, Any]) -> dict[str, Any]:
    """What computed a part of a run."""
    return {
        "started": record["started"],
        "parallel": {name: size for name, size in record["parallel"].items() if name.endswith("_size")},
        "device": record["device"],
        "code": record["fingerprints"]["code"],
        "versions": record["versions"],
    }
