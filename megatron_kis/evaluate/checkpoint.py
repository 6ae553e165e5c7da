"""A checkpoint evaluated after training, on the run's questions or on others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_kis.common.errors import InputError
from megatron_kis.common.terms import SPLITS
from megatron_kis.evaluate.restore import restored
from megatron_kis.probes.forward import Scorer
from megatron_kis.probes.probe import PROBE_SCHEMA, Probe, finite_rows
from megatron_kis.probes.questions import check_lengths
from megatron_kis.training.artifacts import open_run


def evaluate_checkpoint(
    run: Path,
    *,
    step: int | None = None,
    exposures: Path | None = None,
    all_templates: bool = False,
    batch_size: int | None = None,
    device: str = "auto",
    tensor: int = 1,
    pipeline: int = 1,
    outcomes: Path | None = None,
) -> dict[str, Any] | None:
    """Probes a checkpoint; under torchrun every process calls this.

    Args:
        run: the run's folder.
        step: step of the checkpoint; None for the newest.
        exposures: prefix of other questions, made with the run's tokenizer; None for the run's own.
        all_templates: use every template instead of the run's choice.
        batch_size: options per forward pass; None for the run's.
        device: ``auto``, ``cpu`` or ``cuda``.
        tensor: number of ranks that share each layer.
        pipeline: number of stages.
        outcomes: where to write the record per question (``.npz``).

    Returns:
        A mapping of schema ``kis.probe/1`` with the rows of probes.jsonl, on the reporting rank; None on others.

    Raises:
        InputError: no such run, checkpoint or questions, questions of another tokenizer, or a size below one.
    """
    if batch_size is not None and batch_size < 1:
        raise InputError(f"is {batch_size}", where="batch size", remedy="1 or more")
    past = open_run(run)
    config, tokenizer = past.config.model_copy(update={"device": device}), past.tokenizer
    templates = dict.fromkeys(SPLITS) if all_templates else config.probes.templates
    path, questions, sha256 = past.select_questions(exposures, templates)
    check_lengths(questions, config.training.sequence_length, where=str(path))
    size = batch_size or config.probes.batch_size
    with restored(run, config, vocabulary=tokenizer.vocab_size, step=step, tensor=tensor, pipeline=pipeline) as (
        engine,
        checkpoint,
    ):
        past.check_checkpoint(checkpoint)
        scorer = Scorer(engine)
        probe = Probe(questions, batch_size=size, branching=scorer.branching)
        result = probe.evaluate(scorer.score)
        parameters = engine.parameters()
        if result is None or not engine.layout.is_logging_rank:
            return None
    if outcomes is not None:
        result.write_outcomes(outcomes)
    rows = [{**row, "bits_per_parameter": row["bits"] / parameters} for row in finite_rows(result.rows)]
    return {
        "schema": PROBE_SCHEMA,
        "run": config.name,
        "step": checkpoint.step,
        "tokens": checkpoint.manifest["tokens"],
        "parameters": parameters,
        "questions_file": str(path),
        "questions_sha256": sha256,
        **probe.settings(),
        "rows": rows,
    }
