"""The loss on held-out general text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from megatron_kis.common.jsonl_log import JsonLines
from megatron_kis.config.run import ValidationConfig
from megatron_kis.data.general_text import ValidationText
from megatron_kis.training.callbacks.base import RunState, ScheduledCallback

if TYPE_CHECKING:
    from megatron_kis.engine.engine import Engine


class ValidationCallback(ScheduledCallback):
    """Writes the ``validation`` rows of ``metrics.jsonl``."""

    kind = "validation"

    def __init__(
        self,
        config: ValidationConfig,
        engine: Engine,
        text: ValidationText,
        log: JsonLines | None,
        *,
        steps: int,
        step_tokens: int,
        rows_per_pass: int,
    ) -> None:
        """Prepares the sequences.

        Args:
            config: when to validate.
            engine: the model.
            text: held-out general text.
            log: ``metrics.jsonl``; None on ranks that do not report.
            steps: total number of optimizer steps.
            step_tokens: tokens per step.
            rows_per_pass: sequences per forward pass. With a training step's micro-batch a pass needs less memory than
                the step.
        """
        super().__init__(config.moments, steps, step_tokens)
        self._engine = engine
        self._log = log
        self._rows_per_pass = rows_per_pass
        rows = np.stack([text[number] for number in range(len(text))]).astype(np.int64)  # [rows, T + 1]
        self._inputs = rows[:, :-1]
        self._labels = rows[:, 1:]

    def on_schedule(self, state: RunState) -> None:
        """Measures and logs the loss."""
        losses = self._engine.token_losses(self._inputs, self._labels, rows_per_pass=self._rows_per_pass)
        if losses is None:
            return
        loss = float(losses.mean(dtype=np.float64))
        state.results["validation_loss"] = loss
        state.validated_at = state.step
        if self._log:
            self._log.write({"kind": "validation", "step": state.step, "tokens": state.tokens, "loss": loss})
