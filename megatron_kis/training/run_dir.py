"""The folder of a run: its content before the first step, and the logs whose ends a checkpoint records."""

from __future__ import annotations

import logging
import secrets
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from megatron_kis.checkpoint.folders import FOLDER, Checkpoint, left_there
from megatron_kis.checkpoint.log_repair import METRICS, PROBES, RepairedLogs, repair_logs
from megatron_kis.common.asked import FOLDER as ASKED
from megatron_kis.common.errors import InputError
from megatron_kis.common.files import fingerprint, write_json
from megatron_kis.common.identity import RUN_FILE
from megatron_kis.common.jsonl_log import JsonLines
from megatron_kis.training.artifacts import FOLDER as INPUTS
from megatron_kis.training.branch import import_trunk
from megatron_kis.training.callbacks.trackers import TRACKED
from megatron_kis.training.resume import remove_later_outcomes

logger = logging.getLogger(__name__)


class RunDir:
    """A run's folder. Only the rank that reports writes there, except for checkpoints and stacks."""

    def __init__(self, path: Path) -> None:
        """Keeps the path; nothing is read or written yet."""
        self.path = path
        self.outcomes = path / "outcomes"
        """Folder of the probes' records per question."""
        self.logs: dict[str, JsonLines] = {}
        """Open logs by name."""
        self.inputs: dict[str, str] = {}
        """Kept inputs, as ``run.json`` names them."""
        self._repaired = RepairedLogs()
        self._origin: dict[str, Any] = {}

    @property
    def lost(self) -> set[str]:
        """Kinds of rows that belong to the step of the checkpoint and are no longer in the logs."""
        return self._repaired.lost

    @property
    def beginning(self) -> str:
        """A random name of this start of the run: the same when it resumes, another after a restart."""
        return str(self._origin["beginning"])

    def clear(self, *, restart: bool) -> None:
        """Removes what an earlier start of the run has left.

        Args:
            restart: whether to remove checkpoints too.

        Raises:
            InputError: there are checkpoints, and ``restart`` is False.
        """
        if not restart and (names := left_there(self.path)):
            problem = f"holds {', '.join(names)}, and no checkpoint with which the run can be resumed"
            remedy = "restore or move away what is there, or begin again with --restart"
            raise InputError(problem, where=str(self.path / FOLDER), remedy=remedy)
        leftovers = (RUN_FILE, METRICS, PROBES, "exposures.json", self.outcomes.name, FOLDER, INPUTS, ASKED, *TRACKED)
        for name in leftovers:
            path = self.path / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def import_trunk(self, source: Checkpoint, *, steps: int, identity: dict[str, Any], restart: bool) -> None:
        """Takes over a trunk's checkpoint as this run's own, see ``branch.import_trunk``."""
        self.clear(restart=restart)
        import_trunk(source, self.path, steps=steps, identity=identity, beginning=secrets.token_hex(8))

    def prepare(
        self,
        checkpoint: Checkpoint | None,
        record: dict[str, Any],
        *,
        restart: bool,
        keep: Callable[[], Mapping[str, str]],
    ) -> None:
        """Clears the folder, or brings it back to a checkpoint, and writes the inputs and ``run.json``.

        Args:
            checkpoint: the checkpoint from which the run resumes; None if it starts at step 0.
            record: the content of ``run.json``, without the inputs, the sessions and the branch.
            restart: whether checkpoints may be removed.
            keep: copies the inputs to the folder, see ``artifacts.keep_inputs``.
        """
        sessions: list[dict[str, Any]] = []
        step, branched, beginning = 0, None, secrets.token_hex(8)
        if checkpoint is None:
            self.clear(restart=restart)
        else:
            self._repaired = repair_logs(checkpoint, self.path)
            remove_later_outcomes(self.outcomes, checkpoint.step)
            (self.path / "exposures.json").unlink(missing_ok=True)
            step, sessions = checkpoint.step, checkpoint.manifest["sessions"]
            branched = checkpoint.manifest.get("branched_from")
            if branched and branched["step"] == step and not self._repaired.sizes[PROBES]:
                self._repaired.lost.add("probe")  # the trunk was asked nothing, or something else
            older = fingerprint([record["study"], record["run"], str(self.path)])[:16]
            beginning = checkpoint.manifest.get("beginning", older)
        session = {"from_step": step, **_session(record)}
        if self._repaired.problems:
            session["logs"] = self._repaired.problems
            for name, problem in self._repaired.problems.items():
                logger.warning(f"kis: {self.path / name} {problem}")
        self._origin = {"beginning": beginning, "sessions": [*sessions, session], "branched_from": branched}
        self.inputs = dict(keep())
        origin = {name: value for name, value in self._origin.items() if value}
        write_json(self.path / RUN_FILE, record | {"inputs": self.inputs} | origin)

    def open_logs(self) -> tuple[JsonLines, JsonLines]:
        """Opens ``metrics.jsonl`` and ``probes.jsonl``, without what was written after the checkpoint."""
        for name in (METRICS, PROBES):
            self.logs[name] = JsonLines(self.path / name, keep=self._repaired.sizes.get(name, 0))
        return self.logs[METRICS], self.logs[PROBES]

    def manifest(self) -> dict[str, Any]:
        """Returns what a checkpoint records of the folder, after bringing the logs to the disk up to there."""
        return {**self._origin, "logs": {name: log.position() for name, log in self.logs.items()}}

    def close_logs(self) -> None:
        """Closes what ``open_logs`` opened."""
        for log in self.logs.values():
            log.close()


def _session(record: dict[str, Any]) -> dict[str, Any]:
    """Returns which machine, layout and code compute a part of a run."""
    return {
        "started": record["started"],
        "parallel": {name: size for name, size in record["parallel"].items() if name.endswith("_size")},
        "device": record["device"],
        "code": record["fingerprints"]["code"],
        "versions": record["versions"],
    }
