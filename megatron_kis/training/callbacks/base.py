"""Hooks: what happens besides the training steps, at named moments."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megatron_kis.common.errors import InputError
from megatron_kis.common.files import atomic_path, write_json
from megatron_kis.common.jsonl_log import JsonLines
from megatron_kis.config.run import MomentsConfig, ProbeConfig, ValidationConfig
from megatron_kis.data.general_text import ValidationText
from megatron_kis.engine.throughput import Speed
from megatron_kis.probes.forward import Scorer
from megatron_kis.probes.probe import PROBE_NAME, PROBE_SCHEMA, Probe
from megatron_kis.probes.questions import QuestionSet

if TYPE_CHECKING:
    from megatron_kis.engine.engine import Engine


_KEPT = (
    "step", "tokens", "loss", "gradient_norm", "learning_rate", "infusion_ratio", "seconds", "tokens_per_second",
    "results", "validated_at",
)  # fmt: skip


@dataclass
class State:
    """Where a run stands."""

    steps: int
    """Of the whole run."""

    resumed: bool = False
    """Whether the run goes on from a checkpoint: what belongs to its step has been done."""

    step: int = 0
    """Steps done."""

    tokens: int = 0
    """Tokens trained on."""

    loss: float = float("nan")
    """Of the last step, nats a token."""

    gradient_norm: float = float("nan")
    """Of the last step, before clipping."""

    learning_rate: float = 0.0
    """Of the last step."""

    infusion_ratio: float = 0.0
    """Share of the tokens so far."""

    seconds: float = 0.0
    """Spent in training steps; hooks are not counted."""

    tokens_per_second: float = 0.0
    """Since the last row of the log."""

    results: dict[str, float] = field(default_factory=dict)
    """What hooks found last, for the progress line."""

    validated_at: int = -1
    """The step at which the validation loss among the results was measured."""

    def record(self) -> dict[str, Any]:
        """What a checkpoint keeps, in JSON's types."""
        kept = {name: getattr(self, name) for name in _KEPT}
        return {name: None if isinstance(value, float) and isnan(value) else value for name, value in kept.items()}

    def load(self, record: dict[str, Any]) -> None:
        """Takes over what ``record`` gave."""
        for name in _KEPT:
            setattr(self, name, float("nan") if record[name] is None else record[name])
        self.resumed = True


class Hook:
    """A hook does nothing at every moment; a subclass overrides the moments it wants."""

    @property
    def name(self) -> str:
        """Under which a checkpoint keeps the hook's state: one of its own for each hook of a run that has a state."""
        return type(self).__name__

    def before_training(self, state: State) -> None:
        """Before the first step, of a resumed run too."""

    def after_step(self, state: State) -> None:
        """After each step."""

    def after_training(self, state: State) -> None:
        """After the last step, or where the run was cut off."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint should keep of this hook, in JSON's types."""
        return {}

    def load(self, state: dict[str, Any]) -> None:
        """Takes over what ``state`` gave."""


def check_names(hooks: Iterable[Hook]) -> None:
    """Refuses hooks that would keep their states in one place.

    Raises:
        InputError: two that have a state bear one name.
    """
    seen: set[str] = set()
    for hook in hooks:
        if type(hook).state is Hook.state:
            continue
        if hook.name in seen:
            raise InputError(
                f"two hooks with a state are called {hook.name!r}", where="hooks", remedy="give each a name of its own"
            )
        seen.add(hook.name)


class LoggingHook(Hook):
    """A hook whose rows can be made again where a log has lost them."""

    kind: str
    """Of its rows: ``train``, ``validation`` or ``probe``."""

    lost = False
    """Whether the rows of the step from which the run resumes are no longer in the log."""


class AtMoments(LoggingHook):
    """A hook that acts at the moments of its settings."""

    def __init__(self, moments: MomentsConfig, steps: int, step_tokens: int) -> None:
        """Resolves the moments for a run of ``steps`` of ``step_tokens`` each."""
        self._at = moments.steps(steps, step_tokens=step_tokens)

    def before_training(self, state: State) -> None:
        """Acts if the moments include the start, and this is the start; or if the log has lost what belongs here."""
        if not state.resumed or self.lost:
            self.after_step(state)

    def after_step(self, state: State) -> None:
        """Acts if this step is one of the moments."""
        if state.step in self._at:
            self.act(state)

    def act(self, state: State) -> None:
        """What to do at a moment."""
        raise NotImplementedError


class ValidationHook(AtMoments):
    """The loss on held-out general text."""

    kind = "validation"

    def __init__(
        self,
        settings: ValidationConfig,
        engine: Engine,
        text: ValidationText,
        log: JsonLines | None,
        *,
        steps: int,
        step_tokens: int,
        rows_a_pass: int,
    ) -> None:
        """Prepares; ``log`` is None on ranks that do not report.

        A pass takes ``rows_a_pass`` sequences. With a training step's micro-batch it needs less memory than the step.
        """
        super().__init__(settings.moments, steps, step_tokens)
        self._engine, self._log, self._rows_a_pass = engine, log, rows_a_pass
        rows = np.stack([text[number] for number in range(len(text))]).astype(np.int64)
        self._inputs, self._labels = rows[:, :-1], rows[:, 1:]

    def act(self, state: State) -> None:
        """Measures and logs."""
        losses = self._engine.token_losses(self._inputs, self._labels, rows_a_pass=self._rows_a_pass)
        if losses is None:
            return
        loss = float(losses.mean(dtype=np.float64))
        state.results["validation_loss"], state.validated_at = loss, state.step
        if self._log:
            self._log.write({"kind": "validation", "step": state.step, "tokens": state.tokens, "loss": loss})


class ProbeHook(AtMoments):
    """The knowledge probe of all groups and splits."""

    kind = "probe"

    def __init__(
        self,
        settings: ProbeConfig,
        engine: Engine,
        questions: QuestionSet,
        log: JsonLines | None,
        *,
        steps: int,
        step_tokens: int,
        outcomes: Path,
    ) -> None:
        """Prepares; ``log`` is None on ranks that do not report; outcomes a question go to the folder ``outcomes``."""
        super().__init__(settings.moments, steps, step_tokens)
        self._log, self._outcomes = log, outcomes
        self._scorer = Scorer(engine)
        self._probe = Probe(questions, batch_size=settings.batch_size, branching=self._scorer.branching)

    def act(self, state: State) -> None:
        """Probes and logs."""
        result = self._probe.ask(self._scorer.score)
        if result is None or self._log is None:
            return
        for row in result.rows:
            self._log.write({"step": state.step, "tokens": state.tokens, **row})
            if row["split"] == "held_out" and row["scoring"] == "statement":
                state.results[row["group"]] = row["correct"] / row["n"]
        self._outcomes.mkdir(exist_ok=True)
        write_json(self._outcomes / PROBE_NAME, {"schema": PROBE_SCHEMA, **self._probe.settings()})
        with atomic_path(self._outcomes / f"step-{state.step}.npz") as partial, open(partial, "wb") as file:
            np.savez_compressed(file, **result.outcomes())  # type: ignore[arg-type]


class MetricsHook(LoggingHook):
    """Rows of metrics.jsonl, and the clock."""

    kind = "train"

    def __init__(self, log: JsonLines | None, *, every: int, speed: Speed) -> None:
        """Writes a row each ``every`` steps and at the end."""
        self._log, self._every, self._speed = log, every, speed
        self._seconds, self._tokens = 0.0, 0

    def before_training(self, state: State) -> None:
        """Starts the clock."""
        self._seconds, self._tokens = state.seconds, state.tokens
        if self.lost and self._due(state):
            self._write(state)

    def _due(self, state: State) -> bool:
        return state.step % self._every == 0 or state.step == state.steps

    def after_step(self, state: State) -> None:
        """Writes a row if it is time."""
        if not self._due(state):
            return
        state.tokens_per_second = (state.tokens - self._tokens) / max(state.seconds - self._seconds, 1e-9)
        self._write(state)
        self._seconds, self._tokens = state.seconds, state.tokens

    def _write(self, state: State) -> None:
        if self._log:
            self._log.write(
                {
                    "kind": "train",
                    "step": state.step,
                    "tokens": state.tokens,
                    "loss": state.loss,
                    "lr": state.learning_rate,
                    "grad_norm": state.gradient_norm,
                    "tokens_per_second": round(state.tokens_per_second, 1),
                    "infusion_ratio": state.infusion_ratio,
                    **self._speed.measure(state.tokens_per_second),
                }
            )
