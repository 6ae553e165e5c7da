"""What a run shows while it trains: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from megatron_kis.training.callbacks.base import Hook, State

_LINE_SECONDS = 5.0  # between plain lines


class ProgressHook(Hook):
    """Steps, loss, speed and what the probes found."""

    def __init__(self, name: str, *, every: int) -> None:
        """Shows the progress of the run ``name``, refreshed every ``every`` steps."""
        self._name, self._every, self._last_line = name, every, 0.0
        self._bar: Progress | None = None

    def before_training(self, state: State) -> None:
        """Opens the bar."""
        console = Console(stderr=True)
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                TextColumn("{task.fields[found]}"), console=console,
            )  # fmt: skip
            self._bar.start()
            self._task = self._bar.add_task(self._name, total=state.steps, found="")

    def after_step(self, state: State) -> None:
        """Refreshes."""
        if state.step % self._every and state.step != state.steps:
            return
        if self._bar:
            self._bar.update(self._task, completed=state.step, found=_found(state))
        elif time.monotonic() - self._last_line >= _LINE_SECONDS or state.step == state.steps:
            self._last_line = time.monotonic()
            print(f"{self._name}: step {state.step}/{state.steps} {_found(state)}", file=sys.stderr, flush=True)

    def after_training(self, state: State) -> None:
        """Closes the bar."""
        if self._bar:
            self._bar.stop()


def _found(state: State) -> str:
    found = " ".join(f"{name}={value:.3f}" for name, value in state.results.items())
    return f"loss={state.loss:.3f} {state.tokens_per_second:.0f} tok/s rho={state.infusion_ratio:.3f} {found}"
