"""When a run is saved, and what happens if that fails or a signal asks the run to stop."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from megatron_kis.checkpoint.folders import CheckpointWriter
from megatron_kis.common.errors import JobError, Stopped
from megatron_kis.common.jsonl_log import JsonLines
from megatron_kis.config.run import CheckpointConfig
from megatron_kis.distributed.collectives import gather, largest
from megatron_kis.training.callbacks.base import RunState
from megatron_kis.training.faults import StopRequest

logger = logging.getLogger(__name__)

Contents = Callable[[], tuple[dict[str, Any], dict[str, Any] | None]]
"""Returns this rank's sharded tensors, and on the reporting rank the content of ``checkpoint.json``."""


class Checkpointer:
    """Saves a run at its moments. Every rank calls ``before_step`` and ``after_step`` around every step."""

    def __init__(
        self,
        config: CheckpointConfig,
        run: Path,
        *,
        steps: int,
        step_tokens: int,
        device: torch.device,
        logs: Mapping[str, JsonLines],
    ) -> None:
        """Prepares for a run in the folder ``run``.

        Args:
            config: when to save, and which checkpoints to keep.
            run: the run's folder.
            steps: total number of optimizer steps.
            step_tokens: tokens per step.
            device: this rank's device.
            logs: open logs by name, of which checkpoints keep copies; empty on ranks that do not report.
        """
        self._config = config
        self._device = device
        self._logs = logs
        self._at = config.moments.steps(steps, step_tokens=step_tokens)
        milestones = config.moments.model_copy(update={"every": None})
        self._milestones = milestones.steps(steps, step_tokens=step_tokens)
        self._writer = CheckpointWriter(run, keep_last=config.keep_last, keep_best=config.keep_best)
        self._last_time = time.monotonic()
        self._answer: Callable[[], list[int]] | None = None

    def before_step(self, request: StopRequest) -> None:
        """On CUDA, asks the other ranks before a step what ``after_step`` is to act on.

        The answer is there when the step's loss has been read. Asking after the step would wait for the update of
        the weights while the device is idle. On a CPU the ranks ask after the step: a signal stops the
        run sooner.
        """
        early = self._device.type == "cuda" and torch.distributed.get_world_size() > 1
        self._answer = self._ask(request) if early else None

    def _ask(self, request: StopRequest) -> Callable[[], list[int]]:
        """Starts the maxima over all ranks: number of the signal, whether a save is overdue, whether one is running."""
        minutes = self._config.moments.minutes
        overdue = minutes is not None and time.monotonic() - self._last_time >= 60 * minutes
        return largest([request.number, int(overdue), int(self._writer.writing)], self._device)

    def after_step(self, state: RunState, request: StopRequest, contents: Contents) -> None:
        """Saves if it is time, and stops the run if a signal on any rank asked for it (on CUDA: before the step).

        Raises:
            JobError: what must be saved cannot be.
            Stopped: a signal asked to stop; all is saved.
            KeyboardInterrupt: the same for Ctrl-C.
        """
        stop_signal, overdue, writing = (self._answer or self._ask(request))()
        must = bool(stop_signal) or state.step == state.steps
        wanted = must or bool(overdue) or state.step in self._at
        if self._writer.pending and (wanted or not writing):
            self._complete(must=False)
        if wanted:
            self._begin(state, contents)
            if must or not self._config.asynchronous:
                self._complete(must=must)
        if stop_signal:
            name = signal.Signals(stop_signal).name
            if stop_signal == signal.SIGINT:
                raise KeyboardInterrupt
            raise Stopped(f"stopped by {name} after step {state.step} of {state.steps}; run the same command to resume")

    def _begin(self, state: RunState, contents: Contents) -> None:
        self._last_time = time.monotonic()
        sharded, own_manifest = contents()
        manifest = next(found for found in gather(own_manifest) if found is not None)
        self._writer.begin(sharded, {**manifest, "milestone": state.step in self._milestones}, self._logs)

    def _complete(self, *, must: bool) -> None:
        problem = self._writer.complete()
        if problem is None:
            return
        message = f"a checkpoint could not be written ({problem}); the ones before it are untouched"
        if must:
            raise JobError(message)
        if torch.distributed.get_rank() == 0:
            logger.warning(f"kis: {message}")
