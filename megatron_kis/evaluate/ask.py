"""A finished run asked again: other questions, or another choice of them, answered by its last checkpoint.

The answers are kept in the run's folder next to its own (``common.asked``); nothing that is there is changed.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from megatron_kis.common.asked import (
    FILE,
    FOLDER,
    OUTCOMES,
    PROBES,
    QUESTIONS_FILE,
    SCHEMA,
    asking_of,
    check_folder,
    place_of_answers,
)
from megatron_kis.common.errors import InputError
from megatron_kis.common.files import read_json, sha256_content, sha256_file, write_json, write_json_lines
from megatron_kis.config.run import ProbeConfig
from megatron_kis.evaluate.restore import restored
from megatron_kis.probes.forward import Scorer
from megatron_kis.probes.probe import PROBE_NAME, PROBE_SCHEMA, Probe, finite_rows
from megatron_kis.probes.questions import QuestionSet, check_lengths
from megatron_kis.training.artifacts import PastRun, keep_file, open_run
from megatron_kis.training.record import check_closed, code_fingerprint, versions


def ask_again(
    run: Path,
    *,
    questions: Path | None = None,
    probes: ProbeConfig | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    tensor: int = 1,
    pipeline: int = 1,
) -> Path | None:
    """Asks a finished run, and keeps the answers in its folder; under torchrun every process calls this.

    A run that was asked these questions already is left as it is.

    Args:
        run: the run's folder.
        questions: file of the questions, made with the run's tokenizer; None for the run's own.
        probes: which of them are asked (``templates``, ``facts_per_group``); None for the run's choice.
        batch_size: options per forward pass; None for that of ``probes``.
        device: ``auto``, ``cpu`` or ``cuda``.
        tensor: number of ranks that share each layer.
        pipeline: number of stages.

    Returns:
        The folder with the answers, which is the run's own if it was trained with these questions; None on ranks that
        do not report.

    Raises:
        InputError: no finished run, no checkpoint of its last step, questions of another tokenizer or longer than its
            sequences.
    """
    if batch_size is not None and batch_size < 1:
        raise InputError(f"is {batch_size}", where="batch size", remedy="1 or more")
    past = open_run(run)
    if not check_closed(run):
        raise InputError("is not a finished run", where=str(run), remedy="finish it first: kis train, or kis study run")
    probes = probes or past.config.probes
    path = questions or past.questions_path
    sha256 = sha256_content(path)
    chosen = {"templates": dict(probes.templates), "facts_per_group": probes.facts_per_group}
    asking = asking_of(sha256, {"probes": chosen})
    if (there := place_of_answers(run, past.record, asking)) is not None:
        return there
    asked = past.other_questions(path, probes)
    check_folder(run)
    check_lengths(asked, past.config.training.sequence_length, where=str(path))
    config = past.config.replace(device=device)
    last = config.training.steps
    with restored(run, config, vocabulary=past.tokenizer.vocab_size, step=last, tensor=tensor, pipeline=pipeline) as (
        engine,
        checkpoint,
    ):
        past.check_checkpoint(checkpoint)
        scorer = Scorer(engine)
        probe = Probe(asked, batch_size=batch_size or probes.batch_size, branching=scorer.branching)
        result = probe.evaluate(scorer.score)
        if result is None or not engine.layout.is_logging_rank:
            return None
        computed = {"device": engine.device.name, "precision": engine.precision}
    place = run / FOLDER / asking.key
    partial = run / FOLDER / f".{asking.key}.{os.getpid()}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    (partial / OUTCOMES).mkdir(parents=True)
    try:
        tokens = checkpoint.manifest["tokens"]
        rows = [{"step": last, "tokens": tokens, **row} for row in finite_rows(result.rows)]
        write_json_lines(partial / PROBES, rows)
        write_json(partial / OUTCOMES / PROBE_NAME, {"schema": PROBE_SCHEMA, **probe.settings()})
        result.write_outcomes(partial / OUTCOMES / f"step-{last}.npz")
        if path.suffix == ".gz":
            shutil.copyfile(path, partial / QUESTIONS_FILE)
        else:
            keep_file(path, partial / QUESTIONS_FILE, "questions", sha256)
        record = {
            "schema": SCHEMA,
            "run": config.name,
            "questions": sha256,
            "probes": chosen,
            "step": last,
            "tokens": tokens,
            "asked": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            **computed,
            "code": code_fingerprint(),
            "versions": versions(),
            "files": {PROBES: sha256_file(partial / PROBES)},
        }
        write_json(partial / FILE, record)
        if not place.exists():  # another process may have asked the same
            partial.rename(place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return place


def questions_answered(past: PastRun, place: Path) -> QuestionSet:
    """Returns the questions behind a run's answers.

    Args:
        past: the run.
        place: folder of the answers: the run's own, or one that ``ask_again`` made.

    Raises:
        InputError: the questions are missing, or were changed since.
    """
    if place == past.folder:
        return past.questions(past.config.probes.templates)
    record = read_json(place / FILE, SCHEMA, keys=("questions", "probes"))
    path = place / QUESTIONS_FILE
    if sha256_content(path) != record["questions"]:
        remedy = f"remove the folder {place}, and ask again with kis study probe"
        raise InputError("these are not the questions that were asked", where=str(path), remedy=remedy)
    return past.other_questions(path, past.config.probes.replace(**record["probes"]))
