from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from megatron_kis.probes.probe import ProbeResult, run_probe
from megatron_kis.probes.questions import Option, Question, QuestionSet, lay_out, read_questions
from megatron_kis.probes.scoring import RULES

VOCABULARY, FIRST = 50, 1


class PrefixModel:
    """Logits that depend on all tokens before, in their order, and on nothing after: what a causal model gives."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self._inputs, self._outputs = rng.normal(size=(VOCABULARY, 8)), rng.normal(size=(8, VOCABULARY))
        self.shapes: list[tuple[int, ...]] = []

    def logits(self, prefix: NDArray[np.int64]) -> NDArray[np.float64]:
        """[vocabulary] after the prefix [T]."""
        state = np.zeros(8)
        for token in prefix:
            state = np.tanh(0.7 * state + self._inputs[token])
        return state @ self._outputs

    def log_prob(self, prefix: NDArray[np.int64], token: int) -> float:
        values = self.logits(prefix)
        return float(values[token] - np.log(np.exp(values).sum()))

    def __call__(self, inputs: NDArray[np.int64], labels: NDArray[np.int64]) -> NDArray[np.float32]:
        self.shapes.append(inputs.shape)
        losses = [
            [-self.log_prob(row[: at + 1], label) for at, label in enumerate(wanted)]
            for row, wanted in zip(inputs, labels, strict=True)
        ]
        return np.array(losses, dtype=np.float32)


def question_set(seed: int, facts: int = 6) -> QuestionSet:
    """Questions with two to four options of unlike lengths, the answer anywhere in the statement."""
    rng = random.Random(seed)
    questions = []
    for number in range(facts):
        for split, template in (("train", 0), ("train", 1), ("held_out", 0)):
            options = []
            for _ in range(rng.randint(2, 4)):
                tokens = tuple(rng.randrange(2, VOCABULARY) for _ in range(rng.randint(2, 9)))
                start = rng.randrange(len(tokens))
                text = "".join(rng.choice("abcäöü") for _ in range(rng.randint(1, 9)))
                options.append(Option(text, tokens, (start, rng.randint(start + 1, len(tokens)))))
            group = ("infused", "background", "control")[number % 3]
            answer = rng.randrange(len(options))
            questions.append(Question(f"f{number}", group, f"r{number % 2}", split, template, answer, tuple(options)))
    return QuestionSet(header={"tokenizer_fingerprint": "t"}, questions=tuple(questions))


def expected_scores(model: PrefixModel, option: Option) -> dict[str, float]:
    """Of one option, token by token, from the logits."""
    sequence = np.array([FIRST, *option.tokens])
    values = [model.log_prob(sequence[: at + 1], token) for at, token in enumerate(option.tokens)]
    answer = sum(values[option.span[0] : option.span[1]])
    return {
        "statement": sum(values),
        "sum": answer,
        "mean_token": answer / (option.span[1] - option.span[0]),
        "mean_char": answer / len(option.text),
        "mean_byte": answer / len(option.text.encode()),
    }


def probe(questions: QuestionSet, model: PrefixModel, batch_size: int = 7) -> ProbeResult:
    result = run_probe(questions, model, first=FIRST, batch_size=batch_size)
    assert result is not None
    return result


@pytest.mark.parametrize("seed", range(3))
def test_a_probe_finds_what_scoring_each_option_alone_finds(seed: int) -> None:
    model, questions = PrefixModel(seed), question_set(seed)
    result = probe(questions, model)
    for number, question in enumerate(questions.questions):
        scores = [expected_scores(model, option) for option in question.options]
        for column, rule in enumerate(RULES):
            values = [score[rule] for score in scores]
            others = max(value for index, value in enumerate(values) if index != question.answer)
            margin = values[question.answer] - others
            assert result.margins[number, column] == pytest.approx(margin, abs=1e-4)
            assert result.correct[number, column] == (margin > 0)
    by_rule = [result.correct[:, column].tolist() for column in range(len(RULES))]
    assert by_rule[RULES.index("statement")] != by_rule[RULES.index("sum")] != by_rule[RULES.index("mean_char")]


def test_rows_sum_up_the_questions_of_a_group_and_split() -> None:
    questions = question_set(4)
    result = probe(questions, PrefixModel(4))
    keys = [(row["group"], row["split"], row["scoring"]) for row in result.rows]
    groups = ("infused", "background", "control")
    assert sorted(keys) == sorted((g, s, rule) for g in groups for s in ("train", "held_out") for rule in RULES)
    for row in result.rows:
        column = RULES.index(row["scoring"])
        members = [
            number
            for number, question in enumerate(questions.questions)
            if (question.group, question.split) == (row["group"], row["split"])
        ]
        asked = [questions.questions[number] for number in members]
        assert row["n"] == len(members)
        assert row["facts"] == len({question.fact for question in asked}) == 2
        assert row["correct"] == sum(result.correct[number, column] for number in members)
        assert row["chance"] == pytest.approx(sum(1 / len(question.options) for question in asked) / len(asked))
        assert row["margin"] == pytest.approx(np.mean([result.margins[number, column] for number in members]), abs=1e-5)
        spread = defaultdict(lambda: [0, 0])
        for number, question in zip(members, asked, strict=True):
            spread[question.relation, question.template][0] += 1
            spread[question.relation, question.template][1] += int(result.correct[number, column])
        assert [(t["relation"], t["template"], t["n"], t["correct"]) for t in row["templates"]] == [
            (*key, n, correct) for key, (n, correct) in sorted(spread.items())
        ]


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 1000), st.integers(1, 80))
def test_batches_and_padding_change_nothing(seed: int, batch_size: int) -> None:
    questions = question_set(seed, facts=3)
    whole, parts, model = probe(questions, PrefixModel(), 1000), None, PrefixModel()
    parts = probe(questions, model, batch_size)
    assert max(rows for rows, _ in model.shapes) <= batch_size
    np.testing.assert_allclose(parts.margins, whole.margins, atol=1e-5)
    assert (parts.correct == whole.correct).all()


def test_the_order_of_questions_and_of_options_changes_nothing() -> None:
    questions = question_set(9)
    turned = QuestionSet(
        questions.header,
        tuple(
            replace(question, options=question.options[::-1], answer=len(question.options) - 1 - question.answer)
            for question in questions.questions[::-1]
        ),
    )
    there, back = probe(questions, PrefixModel()), probe(turned, PrefixModel())
    np.testing.assert_allclose(back.margins[::-1], there.margins, atol=1e-5)

    def summed(result: ProbeResult) -> dict[tuple[str, ...], tuple[int, int]]:
        return {(r["group"], r["split"], r["scoring"]): (r["n"], r["correct"]) for r in result.rows}

    assert summed(back) == summed(there)


def test_two_equal_options_are_a_tie_and_wrong() -> None:
    option = Option("a", (5, 6), (1, 2))
    question = Question("f", "infused", "r", "train", 0, 0, (option, option))
    result = probe(QuestionSet({}, (question,)), PrefixModel())
    assert not result.correct.any()
    assert (result.margins == 0).all()


def test_a_rank_without_the_loss_takes_part_in_every_batch_and_reports_nothing() -> None:
    calls = []
    questions = question_set(1)
    options = sum(len(question.options) for question in questions.questions)
    result = run_probe(questions, lambda inputs, labels: calls.append(inputs.shape), first=FIRST, batch_size=10)
    assert result is None
    assert len(calls) == -(-options // 10)


def test_options_are_laid_out_behind_the_first_token_and_padded_on_the_right() -> None:
    inputs, labels = lay_out([Option("a", (7, 8, 9), (0, 1)), Option("b", (5,), (0, 1))], FIRST)
    assert inputs.tolist() == [[1, 7, 8], [1, 5, 1]]
    assert labels.tolist() == [[7, 8, 9], [5, 1, 1]]


@pytest.mark.parametrize(("known", "share"), [("answer", 1.0), ("distractor", 0.0)])
def test_what_the_model_knows_is_found_by_every_rule(tiny_data: Path, known: str, share: float) -> None:
    """On real questions, a model that finds one option of each likely and all others unlikely."""
    questions = read_questions(tiny_data / "exposures.questions.jsonl", {"held_out": None, "question": None})
    likely = set()
    for question in questions.questions:
        chosen = question.answer if known == "answer" else question.answer - 1
        likely.add(question.options[chosen].tokens)

    def losses(inputs: NDArray[np.int64], labels: NDArray[np.int64]) -> NDArray[np.float32]:
        found = np.full(labels.shape, 50.0, dtype=np.float32)
        for row, tokens in enumerate(labels.tolist()):
            if any(tuple(tokens[:end]) in likely for end in range(len(tokens) + 1)):
                found[row] = 0.01
        return found

    result = run_probe(questions, losses, first=1, batch_size=64)
    assert result is not None
    assert len(result.rows) == 3 * 2 * len(RULES)
    for row in result.rows:
        assert row["correct"] / row["n"] == share
        assert row["chance"] == 0.25
        assert row["facts"] == 16
