"""What must be at chance is at chance: facts that were never shown, and the trap that makes them seem not to be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from megatron_kis.config.run import RunConfig
from megatron_kis.evaluate.checkpoint import evaluate_checkpoint
from megatron_kis.evaluate.restore import restored
from megatron_kis.probes.forward import Scorer
from megatron_kis.probes.probe import Probe, ProbeResult
from megatron_kis.probes.questions import Question, QuestionSet, read_questions
from megatron_kis.probes.scoring import RULES
from megatron_kis.training.artifacts import open_run
from megatron_kis.training.trainer import train
from tests.conftest import TINY_VOCABULARY

pytestmark = pytest.mark.slow

MakeRun = Callable[..., RunConfig]

ASKED = {"train": 1, "held_out": 1, "question": 1}


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Path:
    """A run that has learned its infused facts."""
    from megatron_kis.common.configuration import parse_config

    names = ("corpus", "validation", "exposures", "tokenizer")
    places = ("corpus", "corpus.validation", "exposures", "tokenizer.model")
    content = {
        "name": "known",
        "output": tmp_path_factory.mktemp("known") / "run",
        "device": "cpu",
        "data": {name: tiny_data / place for name, place in zip(names, places, strict=True)},
        "model": {"layers": 2, "width": 64, "heads": 2},
        "training": {
            "token_budget": 200 * 16 * 64,
            "sequence_length": 64,
            "global_batch_size": 16,
            "optimizer": {"learning_rate": 1e-2},
        },
        "infusion": {"frequency": 300, "background": {"frequency": 0}},
        "probes": {"moments": {"shares": [0.0, 1.0]}, "templates": ASKED},
    }
    return train(parse_config(RunConfig, content, source="known"))


def asked(run: Path, questions: QuestionSet) -> ProbeResult:
    with restored(run, open_run(run).config, vocabulary=TINY_VOCABULARY, step=None) as (engine, _):
        scorer = Scorer(engine)
        probe = Probe(questions, batch_size=512, branching=scorer.branching)
        result = probe.evaluate(scorer.score)
    assert result is not None
    return result


def facts_right(correct: np.ndarray, questions: tuple[Question, ...], *, split: str, group: str) -> tuple[int, int]:
    """Right answers and questions under the first template of a split: one trial a fact."""
    marks = [
        bool(correct[number])
        for number, question in enumerate(questions)
        if (question.group, question.split) == (group, split)
    ]
    return sum(marks), len(marks)


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "pmi"])
def test_facts_that_were_never_shown_are_at_chance_untrained_and_trained(known: Path, rule: str) -> None:
    questions = read_questions(open_run(known).config.data.questions, ASKED).questions
    column = RULES.index(rule)
    for step, groups in ((0, ("infused", "background", "control")), (200, ("background", "control"))):
        correct = np.load(known / "outcomes" / f"step-{step}.npz")["correct"][:, column]
        for group in groups:
            for split in ASKED:
                right, count = facts_right(correct, questions, split=split, group=group)
                assert count == 16
                interval = binomtest(right, count, 0.25).proportion_ci(0.999, method="exact")
                assert interval.low <= 0.25 <= interval.high, (step, group, split, right)


def test_what_was_shown_is_known(known: Path) -> None:
    """Without this the test above would hold for a model that learned nothing."""
    found = evaluate_checkpoint(known, device="cpu")
    assert found is not None
    rates = {
        (row["group"], row["split"]): row["correct"] / row["n"]
        for row in found["rows"]
        if row["scoring"] == "statement"
    }
    assert rates["infused", "train"] > 0.8


def test_distractors_that_were_trained_on_make_controls_seem_worse_than_chance(known: Path) -> None:
    """The trap: a model prefers any name it has seen. Our questions take distractors of the fact's own group."""
    questions = read_questions(open_run(known).config.data.questions, {"train": 1})
    names = {
        (question.group, question.relation, option.text)
        for question in questions.questions
        for option in question.options
    }
    seen = {(relation, text) for group, relation, text in names if group == "infused"}
    controls = [question for question in questions.questions if question.group == "control"]
    for question in controls:  # the protection
        assert not {(question.relation, option.text) for option in question.options} & seen
    trapped = []
    for number, question in enumerate(controls):
        shown = [q for q in questions.questions if q.group == "infused" and q.relation == question.relation]
        subject = question.options[question.answer].tokens[: question.options[question.answer].span[0]]
        tail = question.options[question.answer].tokens[question.options[question.answer].span[1] :]
        wrong = []
        for other in shown[number % 5 : number % 5 + 3]:
            option = other.options[other.answer]
            middle = option.tokens[slice(*option.span)]
            span = (len(subject), len(subject) + len(middle))
            wrong.append(replace(option, tokens=(*subject, *middle, *tail), span=span))
        trapped.append(replace(question, options=(question.options[question.answer], *wrong), answer=0))
    honest = asked(known, QuestionSet(questions.header, tuple(controls)))
    trap = asked(known, QuestionSet(questions.header, tuple(trapped)))
    column = RULES.index("sum")
    assert trap.correct[:, column].mean() <= 0.07  # far below a chance of 0.25
    assert trap.margins[:, column].mean() < honest.margins[:, column].mean() - 1
    right = int(honest.correct[:, column].sum())
    assert binomtest(right, len(controls), 0.25).pvalue > 0.001
