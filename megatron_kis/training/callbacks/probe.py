"""The knowledge probe of a run: rows of ``probes.jsonl``, and one record per question in ``outcomes/``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from megatron_kis.common.files import write_json
from megatron_kis.common.jsonl_log import JsonLines
from megatron_kis.config.run import ProbeConfig
from megatron_kis.probes.forward import Scorer
from megatron_kis.probes.probe import PROBE_NAME, PROBE_SCHEMA, Probe
from megatron_kis.probes.questions import QuestionSet
from megatron_kis.training.callbacks.base import RunState, ScheduledCallback

if TYPE_CHECKING:
    from megatron_kis.engine.forward_pass import ForwardPass


class ProbeCallback(ScheduledCallback):
    """Probes all groups and splits."""

    kind = "probe"

    def __init__(
        self,
        config: ProbeConfig,
        engine: ForwardPass,
        questions: QuestionSet,
        log: JsonLines | None,
        *,
        steps: int,
        step_tokens: int,
        outcomes: Path,
    ) -> None:
        """Lays out the questions.

        Args:
            config: when to probe, and with how many options per forward pass.
            engine: the model.
            questions: questions of the run.
            log: ``probes.jsonl``; None on ranks that do not report.
            steps: total number of optimizer steps.
            step_tokens: tokens per step.
            outcomes: folder of the records per question.
        """
        super().__init__(config.moments, steps, step_tokens)
        self._log = log
        self._outcomes = outcomes
        self._scorer = Scorer(engine)
        self._probe = Probe(questions, batch_size=config.batch_size, branching=self._scorer.branching)

    def on_schedule(self, state: RunState) -> None:
        """Evaluates the probe and logs its rows."""
        result = self._probe.evaluate(self._scorer.score)
        if result is None or self._log is None:
            return
        for row in result.rows:
            self._log.write({"step": state.step, "tokens": state.tokens, **row})
            if row["split"] == "held_out" and row["scoring"] == "statement":
                state.results[row["group"]] = row["correct"] / row["n"]
        self._outcomes.mkdir(exist_ok=True)
        write_json(self._outcomes / PROBE_NAME, {"schema": PROBE_SCHEMA, **self._probe.settings()})
        result.write_outcomes(self._outcomes / f"step-{state.step}.npz")
