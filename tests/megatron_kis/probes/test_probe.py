from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from megatron_kis.probes.prefix_tree import EdgeScores, PackedPrefixTrees
from megatron_kis.probes.probe import Probe, ProbeResult
from megatron_kis.probes.questions import Option, Question, QuestionSet, read_questions
from megatron_kis.probes.scoring import RULES

VOCABULARY, FIRST = 50, 1


class PrefixModel:
    """Logits that depend on all tokens before, in their order, and on nothing after: what a causal model gives."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self._inputs, self._outputs = rng.normal(size=(VOCABULARY, 8)), rng.normal(size=(8, VOCABULARY))
        self.rows_per_pass = 0

    def logits(self, prefix: NDArray[np.int64]) -> NDArray[np.float64]:
        """[vocabulary] after the prefix [T]."""
        state = np.zeros(8)
        for token in prefix:
            state = np.tanh(0.7 * state + self._inputs[token])
        return state @ self._outputs

    def log_prob(self, prefix: NDArray[np.int64], token: int) -> float:
        values = self.logits(prefix)
        return float(values[token] - np.log(np.exp(values).sum()))

    def __call__(self, trees: PackedPrefixTrees, rows_per_pass: int) -> EdgeScores:
        """Each edge under the tokens that its node may see, in the order of their depths."""
        self.rows_per_pass = rows_per_pass
        found, greedy = [], []
        for row in range(len(trees.counts)):
            for edge in range(trees.edge_starts[row], trees.edge_starts[row + 1]):
                place = trees.places[edge]
                seen = [at for at in range(place + 1) if place < trees.ends[row, at]]
                assert trees.depths[row, seen].tolist() == list(range(len(seen)))
                prefix = trees.tokens[row, seen]
                found.append(self.log_prob(prefix, trees.labels[edge]))
                greedy.append(self.logits(prefix).argmax() == trees.labels[edge])
        return EdgeScores(np.array(found), np.array(greedy, dtype=bool))


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
    return QuestionSet(header={"tokenizer_fingerprint": "t", "eod_id": FIRST}, questions=tuple(questions))


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
        "pmi": answer - expected_start(model, option),
    }


def expected_start(model: PrefixModel, option: Option) -> float:
    """Log-likelihood of the answer's tokens at the start of a document."""
    answer = [FIRST, *option.tokens[slice(*option.span)]]
    return sum(model.log_prob(np.array(answer[:at]), answer[at]) for at in range(1, len(answer)))


def probe(questions: QuestionSet, model: PrefixModel, batch_size: int = 7, **layout: Any) -> ProbeResult:
    result = Probe(questions, batch_size=batch_size, **layout).evaluate(model)
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
            assert result.scores[number, column] == pytest.approx(values[question.answer], abs=1e-4)
            if rule == "pmi" and any(option.span[0] == 0 for option in question.options):
                assert np.isnan(result.margins[number, column])
                continue
            assert result.margins[number, column] == pytest.approx(margin, abs=1e-4)
            assert result.correct[number, column] == (margin > 0)
            wrong = [value for index, value in enumerate(values) if index != question.answer]
            assert result.mean_margins[number, column] == pytest.approx(
                values[question.answer] - np.mean(wrong), abs=1e-4
            )
            below = np.mean([value < values[question.answer] for value in wrong])
            assert result.pairwise[number, column] == pytest.approx(below)
    by_rule = [result.correct[:, column].tolist() for column in range(len(RULES))]
    assert by_rule[RULES.index("statement")] != by_rule[RULES.index("sum")] != by_rule[RULES.index("mean_char")]


def test_rows_sum_up_the_questions_of_a_group_and_split() -> None:
    questions = question_set(4)
    result = probe(questions, PrefixModel(4))
    keys = [(row["group"], row["split"], row["scoring"]) for row in result.rows]
    groups = ("infused", "background", "control")
    assert sorted(keys) == sorted((g, s, rule) for g in groups for s in ("train", "held_out") for rule in RULES)
    for row in result.rows:
        if row["scoring"] == "pmi":
            continue  # of some questions only, below
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
        for name, values in (("mean_margin", result.mean_margins), ("pairwise", result.pairwise)):
            own = defaultdict(list)
            for number, question in zip(members, asked, strict=True):
                own[question.fact].append(float(values[number, column]))
            assert row[name] == pytest.approx(np.mean([one for values in own.values() for one in values]), abs=1e-6)
            assert row[f"{name}_sd"] == pytest.approx(
                np.std([np.mean(values) for values in own.values()], ddof=1), abs=1e-6
            )
        chance = row["chance"]
        assert row["corrected"] == pytest.approx((row["correct"] / row["n"] - chance) / (1 - chance))
        by_fact = defaultdict(list)
        for number, question in zip(members, asked, strict=True):
            by_fact[question.fact].append(result.correct[number, column])
        assert row["facts_always"] == sum(all(marks) for marks in by_fact.values())
        assert row["facts_ever"] == sum(any(marks) for marks in by_fact.values())
        spread = defaultdict(lambda: [0, 0])
        for number, question in zip(members, asked, strict=True):
            spread[question.relation, question.template][0] += 1
            spread[question.relation, question.template][1] += int(result.correct[number, column])
        assert [(t["relation"], t["template"], t["n"], t["correct"]) for t in row["templates"]] == [
            (*key, n, correct) for key, (n, correct) in sorted(spread.items())
        ]


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 1000), st.integers(1, 80), st.integers(1, 60), st.booleans())
def test_rows_and_batches_change_nothing(seed: int, batch_size: int, width: int, branching: bool) -> None:
    questions = question_set(seed, facts=3)
    whole, alone = probe(questions, PrefixModel(), 1000, width=10_000), PrefixModel()
    parts = probe(questions, alone, batch_size, width=width, branching=branching)
    assert alone.rows_per_pass >= 1
    np.testing.assert_allclose(parts.margins, whole.margins, atol=1e-5)
    assert (parts.correct == whole.correct).all()
    assert (parts.generated == whole.generated).all()


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
    result = probe(QuestionSet({"eod_id": FIRST}, (question,)), PrefixModel())
    assert not result.correct.any()
    assert (result.margins == 0).all()
    assert (result.mean_margins == 0).all()
    assert (result.pairwise == 0).all()
    assert result.rows[0]["mean_margin_sd"] is None  # of one fact there is no spread


def test_a_rank_without_the_loss_takes_part_and_reports_nothing() -> None:
    calls = []
    found = Probe(question_set(1), batch_size=10).evaluate(lambda trees, rows: calls.append(trees))
    assert found is None
    assert len(calls) == 1


def statement(text: str, tokens: tuple[int, ...], start: int, stop: int) -> Option:
    return Option(text, tokens, (start, stop))


class Oracle:
    """Says of each token under each prefix what it is told, and that all others are 2 nats away."""

    def __init__(self, told: dict[tuple[int, ...], float]) -> None:
        self._told = told

    def __call__(self, trees: PackedPrefixTrees, rows_per_pass: int) -> EdgeScores:
        values = []
        for row in range(len(trees.counts)):
            for edge in range(trees.edge_starts[row], trees.edge_starts[row + 1]):
                place = trees.places[edge]
                seen = [at for at in range(1, place + 1) if place < trees.ends[row, at]]
                values.append(self._told.get((*trees.tokens[row, seen].tolist(), int(trees.labels[edge])), -2.0))
        found = np.array(values)
        return EdgeScores(found, found > -0.5)


@pytest.mark.parametrize(
    ("options", "told", "expected"),
    [
        pytest.param(  # "The city is Rom" against "The city is Rom a"
            [statement("Rom", (5, 6, 7), 2, 3), statement("Rom a", (5, 6, 7, 8), 2, 4)],
            {(5, 6, 7): -1.0, (5, 6, 7, 8): -0.5, (7,): -3.0, (7, 8): -0.25},
            {
                "statement": (-5, -5.5),
                "sum": (-1, -1.5),
                "mean_token": (-1, -0.75),
                "mean_char": (-1 / 3, -0.3),
                "mean_byte": (-1 / 3, -0.3),
                "pmi": (2.0, 1.75),
            },
            id="last, one a prefix of the other",
        ),
        pytest.param(  # "... Zürich lies", "... Köln lies"
            [statement("Zürich", (5, 7, 8, 9), 1, 3), statement("Köln", (5, 10, 9), 1, 2)],
            {(5, 7): -1.0, (5, 7, 8): -2.0, (5, 7, 8, 9): -4.0, (5, 10): -2.5, (7,): -8.0, (10,): -1.0},
            {
                "statement": (-9, -6.5),
                "sum": (-3, -2.5),
                "mean_token": (-1.5, -2.5),
                "mean_char": (-0.5, -0.625),
                "mean_byte": (-3 / 7, -0.5),
                "pmi": (7.0, -1.5),
            },
            id="middle, unicode, several tokens",
        ),
        pytest.param(
            [statement("Rom", (7, 5, 6), 0, 1), statement("Ulm", (8, 5, 6), 0, 1)],
            {(7,): -4.0, (7, 5): -0.5, (7, 5, 6): -0.5, (8,): -1.0},
            {
                "statement": (-5, -5),
                "sum": (-4, -1),
                "mean_token": (-4, -1),
                "mean_char": (-4 / 3, -1 / 3),
                "mean_byte": (-4 / 3, -1 / 3),
            },
            id="first",
        ),
    ],
)
def test_every_rule_gives_what_is_known_by_hand(
    options: list[Option], told: dict[tuple[int, ...], float], expected: dict[str, tuple[float, float]]
) -> None:
    for answer in (0, 1):
        question = Question("f", "infused", "r", "train", 0, answer, tuple(options))
        result = Probe(QuestionSet({"eod_id": FIRST}, (question,)), batch_size=8).evaluate(Oracle(told))
        assert result is not None
        for rule, scores in expected.items():
            column, margin = RULES.index(rule), scores[answer] - scores[1 - answer]
            assert result.scores[0, column] == pytest.approx(scores[answer], abs=1e-6)
            assert result.margins[0, column] == pytest.approx(margin, abs=1e-6)
            assert result.correct[0, column] == (margin > 0)
        assert {row["scoring"] for row in result.rows} == set(expected)


def test_a_completion_counts_if_greedy_decoding_gives_the_answer_or_an_alias_and_the_full_stop() -> None:
    rom, ulm, alias = (statement(name, (5, token, 9), 1, 2) for name, token in (("Rom", 7), ("Ulm", 8), ("Roma", 10)))
    middle = replace(rom, tokens=(5, 7, 9, 9))
    cases = {
        ((5, 7), (5, 7, 9)): (rom, 1),
        ((5, 7),): (rom, 0),
        ((5, 8), (5, 8, 9)): (rom, 0),
        ((5, 10), (5, 10, 9)): (rom, 1),
        ((5, 7), (5, 7, 9), (5, 7, 9, 9)): (middle, -1),
    }
    for greedy, (right, expected) in cases.items():
        question = Question("f", "infused", "r", "train", 0, 1, (ulm, right), (alias,))
        questions = QuestionSet({"eod_id": FIRST}, (question,))
        result = Probe(questions, batch_size=8).evaluate(Oracle(dict.fromkeys(greedy, -0.1)))
        assert result is not None
        assert result.generated.tolist() == [expected]
        np.testing.assert_array_equal(result.mean_margins, result.margins)  # of two options; an alias is none
        assert result.rows[0]["generated"] == {"n": int(expected >= 0), "correct": int(expected > 0)}


@pytest.mark.parametrize(("known", "share"), [("answer", 1.0), ("distractor", 0.0)])
def test_what_the_model_knows_is_found_by_every_rule(tiny_data: Path, known: str, share: float) -> None:
    """On real questions, a model that finds one option of each likely and all others unlikely."""
    questions = read_questions(tiny_data / "exposures.questions.jsonl", {"held_out": None, "question": None})
    for question in questions.questions[::7]:  # one at a time: its options are right elsewhere
        tokens = question.options[question.answer if known == "answer" else question.answer - 1].tokens
        told = {tokens[:end]: -0.01 for end in range(1, len(tokens) + 1)}
        result = Probe(replace(questions, questions=(question,)), batch_size=64).evaluate(Oracle(told))
        assert result is not None
        for row in result.rows:
            if row["scoring"] != "pmi":  # the answers' own likelihoods take part
                assert (row["correct"], row["n"], row["chance"]) == (share, 1, 0.25)
