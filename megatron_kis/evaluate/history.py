"""The history of each question over a run's probes: first right, wrong again, right again; as a CSV file."""

from __future__ import annotations

import csv
from pathlib import Path

from megatron_kis.common.errors import InputError
from megatron_kis.common.files import atomic_write
from megatron_kis.common.terms import BACKGROUND
from megatron_kis.probes.curves import NEVER, histories, read_outcomes
from megatron_kis.probes.probe import name_of_strength
from megatron_kis.training.artifacts import PastRun, open_run

COLUMNS = (
    "fact",
    "group",
    "relation",
    "split",
    "template",
    "learned",
    "forgotten",
    "learned_again",
    "changes",
    "score",
)
"""Columns of the file; ``score`` is the right option's at the last moment, nats."""


def write_histories(run: Path, output: Path, *, rule: str) -> int:
    """Writes a CSV file with one row per question; steps are empty where nothing happened.

    Args:
        run: the run's folder.
        output: the CSV file.
        rule: scoring rule.

    Returns:
        The number of moments at which the run was probed.

    Raises:
        InputError: no such run, no outcomes, or the questions have changed since.
    """
    past = open_run(run)
    questions = past.questions(past.config.probes.templates)
    outcomes = read_outcomes(run / "outcomes", rule)
    check_asked(past, outcomes.correct.shape[1], len(questions.questions))
    found = histories(outcomes.steps, outcomes.correct)
    events = zip(found.learned, found.forgotten, found.learned_again, strict=True)
    with atomic_write(output) as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        for question, steps, changes, score in zip(
            questions.questions, events, found.changes, outcomes.scores[-1], strict=True
        ):
            strength = questions.strengths.get(question.fact) if question.group == BACKGROUND else None
            group = question.group if strength is None else name_of_strength(strength)
            names = (question.fact, group, question.relation, question.split, question.template)
            table.writerow([*names, *("" if step == NEVER else step for step in steps), changes, f"{score:.5g}"])
    return len(outcomes.steps)


def check_asked(run: PastRun, asked: int, questions: int) -> None:
    """Refuses outcomes that are not those of a run's questions.

    Args:
        run: the run.
        asked: number of questions that its outcomes have.
        questions: number of questions that it has.

    Raises:
        InputError: they differ.
    """
    if asked != questions:
        problem = f"the run was asked {asked} questions, now there are {questions}"
        raise InputError(problem, where=str(run.questions_path), remedy="restore the questions of the run")
