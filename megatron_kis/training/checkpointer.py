"""When a run is saved, what is saved, and what happens if that fails or the run is asked to stop."""

from __future__ import annotations

import signal
import sys
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
from megatron_kis.training.callbacks.base import State
from megatron_kis.training.signals import StopRequest

Contents = Callable[[], tuple[dict[str, Any], dict[str, Any] | None]]
"""Gives this rank's sharded tensors, and on the reporting rank what ``checkpoint.json`` should say."""


class Saver:
    """Saves a run at its moments. Every rank calls ``before_step`` and ``after_step`` around every step."""

    def __init__(
        self,
        settings: CheckpointConfig,
        run: Path,
        *,
        steps: int,
        step_tokens: int,
        device: torch.device,
        logs: Mapping[str, JsonLines],
    ) -> None:
        """Prepares for a run in the folder ``run``.

        Args:
            settings: when to save, and what stays.
            run: the run's folder.
            steps: of the run.
            step_tokens: tokens of a step.
            device: of this rank.
            logs: open logs by name, of which checkpoints keep copies; none on ranks that do not report.
        """
        self._settings, self._device, self._logs = settings, device, logs
        self._at = settings.moments.steps(steps, step_tokens=step_tokens)
        lasting = settings.moments.model_copy(update={"every": None})
        self._milestones = lasting.steps(steps, step_tokens=step_tokens)
        self._writer = CheckpointWriter(run, keep_last=settings.keep_last, keep_best=settings.keep_best)
        self._last_time = time.monotonic()
        self._answer: Callable[[], list[int]] | None = None

    def before_step(self, request: StopRequest) -> None:
        """On CUDA, asks the other ranks before a step what ``after_step`` is to act on.

        The answer is there when the step's loss has been read. To ask after the step would be to wait for the update of
        the weights, with nothing left for the device to do. The host asks after the step: a signal stops it sooner.
        """
        together = self._device.type == "cuda" and torch.distributed.get_world_size() > 1
        self._answer = self._ask(request) if together else None

    def _ask(self, request: StopRequest) -> Callable[[], list[int]]:
        minutes = self._settings.moments.minutes
        overdue = minutes is not None and time.monotonic() - self._last_time >= 60 * minutes
        return largest([request.number, int(overdue), int(self._writer.writing)], self._device)

    def after_step(self, state: State, request: StopRequest, contents: Contents) -> None:
        """Saves if it is time, and stops the run if a signal on any rank asked for it (on CUDA: before the step).

        Raises:
            JobError: what must be saved cannot be.
            Stopped: a signal asked to stop; all is saved.
            KeyboardInterrupt: the same for Ctrl-C.
        """
        asked, due, writing = (self._answer or self._ask(request))()
        must = bool(asked) or state.step == state.steps
        wanted = must or bool(due) or state.step in self._at
        if self._writer.pending and (wanted or not writing):
            self._complete(must=False)
        if wanted:
            self._begin(state, contents)
            if must or not self._settings.asynchronous:
                self._complete(must=must)
        if asked:
            name = signal.Signals(asked).name
            if asked == signal.SIGINT:
                raise KeyboardInterrupt
            raise Stopped(f"stopped by {name} after step {state.step} of {state.steps}; run the same command to go on")

    def _begin(self, state: State, contents: Contents) -> None:
        self._last_time = time.monotonic()
        sharded, said = contents()
        manifest = next(said for said in gather(said) if said is not None)
        self._writer.begin(sharded, {**manifest, "milestone": state.step in self._milestones}, self._logs)

    def _complete(self, *, must: bool) -> None:
        problem = self._writer.complete()
        if problem is None:
            return
        message = f"a checkpoint could not be written ({problem}); the ones before it are untouched"
        if must:
            raise JobError(message)
        if torch.distributed.get_rank() == 0:
            print(f"kis: {message}", file=sys.stderr, flush=True)
