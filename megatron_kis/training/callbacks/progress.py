"""The progress of a run on standard error: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from megatron_kis.training.callbacks.base import Callback, RunState

logger = logging.getLogger(__name__)

_LINE_SECONDS = 5.0  # between plain lines


class ProgressCallback(Callback):
    """Shows steps, loss, tokens per second and the latest results."""

    def __init__(self, name: str, *, every: int) -> None:
        """Shows the progress of the run ``name``, refreshed every ``every`` steps."""
        self._name = name
        self._every = every
        self._last_line = 0.0
        self._bar: Progress | None = None

    def before_training(self, state: RunState) -> None:
        """Opens the progress bar on a terminal."""
        console = Console(stderr=True)
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[numbers]}"),
                console=console,
            )
            self._bar.start()
            self._task = self._bar.add_task(self._name, total=state.steps, numbers="")

    def after_step(self, state: RunState) -> None:
        """Refreshes the bar, or writes a line."""
        if not state.is_due(self._every):
            return
        if self._bar:
            self._bar.update(self._task, completed=state.step, numbers=_numbers(state))
        elif time.monotonic() - self._last_line >= _LINE_SECONDS or state.step == state.steps:
            self._last_line = time.monotonic()
            logger.info(f"{self._name}: step {state.step}/{state.steps} {_numbers(state)}")

    def after_training(self, state: RunState) -> None:
        """Closes the progress bar, if there is one."""
        if self._bar:
            self._bar.stop()


def _numbers(state: RunState) -> str:
    results = " ".join(f"{name}={value:.3f}" for name, value in state.results.items())
    return f"loss={state.loss:.3f} {state.tokens_per_second:.0f} tok/s rho={state.infusion_ratio:.3f} {results}"
