"""Callbacks: what happens apart from the training steps, before the first, after each, and after the last."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import isnan
from typing import Any

from megatron_kis.common.errors import InputError
from megatron_kis.config.run import EvalScheduleConfig

_SAVED = (
    "step",
    "tokens",
    "loss",
    "gradient_norm",
    "learning_rate",
    "infusion_ratio",
    "seconds",
    "tokens_per_second",
    "results",
    "validated_at",
)


@dataclass
class RunState:
    """How far a run has come, and the numbers of its last step."""

    steps: int
    """Total number of optimizer steps."""

    resumed: bool = False
    """Whether the run resumes from a checkpoint: callbacks have done their work at its step."""

    step: int = 0
    """Number of optimizer steps done."""

    tokens: int = 0
    """Number of tokens trained on."""

    loss: float = float("nan")
    """Loss of the last step, nats per token."""

    gradient_norm: float = float("nan")
    """Norm of the last step's gradient, before clipping."""

    learning_rate: float = 0.0
    """Learning rate of the last step."""

    infusion_ratio: float = 0.0
    """Infused share of the tokens so far."""

    seconds: float = 0.0
    """Time spent in training steps, without callbacks."""

    tokens_per_second: float = 0.0
    """Throughput since the last row of the log."""

    results: dict[str, float] = field(default_factory=dict)
    """Latest results of callbacks, for the progress line."""

    validated_at: int = -1
    """Step at which the validation loss among the results was measured."""

    def record(self) -> dict[str, Any]:
        """Returns what a checkpoint saves, in JSON's types."""
        saved = {name: getattr(self, name) for name in _SAVED}
        return {name: None if isinstance(value, float) and isnan(value) else value for name, value in saved.items()}

    def load(self, record: dict[str, Any]) -> None:
        """Restores what ``record`` returned."""
        for name in _SAVED:
            setattr(self, name, float("nan") if record[name] is None else record[name])
        self.resumed = True

    def is_due(self, every: int) -> bool:
        """Returns whether something is due that is done every ``every`` steps and after the last one."""
        return self.step % every == 0 or self.step == self.steps


class Callback:
    """Base class: does nothing. A subclass overrides the methods that it needs."""

    @property
    def name(self) -> str:
        """Key under which a checkpoint saves this callback's state; unique among the callbacks that have a state."""
        return type(self).__name__

    def before_training(self, state: RunState) -> None:
        """Runs before the first step, also when a run resumes."""

    def after_step(self, state: RunState) -> None:
        """Runs after each step."""

    def after_training(self, state: RunState) -> None:
        """Runs after the last step, or where the run was interrupted."""

    def state(self) -> dict[str, Any]:
        """Returns what a checkpoint should save of this callback, in JSON's types."""
        return {}

    def load(self, state: dict[str, Any]) -> None:
        """Restores what ``state`` returned."""


def check_names(callbacks: Iterable[Callback]) -> None:
    """Refuses callbacks that would save their states under one key.

    Raises:
        InputError: two callbacks that have a state share a name.
    """
    seen: set[str] = set()
    for callback in callbacks:
        if type(callback).state is Callback.state:
            continue
        if callback.name in seen:
            raise InputError(
                f"two callbacks with a state are called {callback.name!r}",
                where="callbacks",
                remedy="give each a name of its own",
            )
        seen.add(callback.name)


class LoggingCallback(Callback):
    """A callback whose rows can be written again where a log has lost them."""

    kind: str
    """Kind of its rows: ``train``, ``validation`` or ``probe``."""

    lost = False
    """Whether the log has lost the rows of the step from which the run resumes."""


class ScheduledCallback(LoggingCallback):
    """A callback that runs at the moments of its configuration."""

    def __init__(self, moments: EvalScheduleConfig, steps: int, step_tokens: int) -> None:
        """Resolves the moments for a run of ``steps`` steps of ``step_tokens`` tokens each."""
        self._at = moments.steps(steps, step_tokens=step_tokens)

    def before_training(self, state: RunState) -> None:
        """Runs at the start if the moments include it, and again where the log has lost the rows of this step."""
        if not state.resumed or self.lost:
            self.after_step(state)

    def is_due_at(self, step: int) -> bool:
        """Returns whether a step is one of the moments."""
        return step in self._at

    def after_step(self, state: RunState) -> None:
        """Calls ``on_schedule`` if this step is one of the moments."""
        if self.is_due_at(state.step):
            self.on_schedule(state)

    def on_schedule(self, state: RunState) -> None:
        """Does the work of a moment."""
        raise NotImplementedError
