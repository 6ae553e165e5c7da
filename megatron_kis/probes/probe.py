"""The probe: all options of all questions through a model, graded and summed up by group, split and rule."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_kis.probes.forest import EdgeScores, Forest, plant
from megatron_kis.probes.questions import Option, Question, QuestionSet
from megatron_kis.probes.scoring import RULES, score_options

PROBE_SCHEMA = "kis.probe/1"
PROBE_NAME = "probe.json"

ROW_WIDTH = 128
"""Nodes of a row: wide enough that little is cut, narrow enough that attention to other branches costs little."""

_ENDING = 1
"""Tokens that may follow an answer which a model is to complete: the full stop."""

Score = Callable[[Forest, int], "EdgeScores | None"]
"""A forest and the rows of a forward pass to its edges' scores, or None on ranks without the loss."""


@dataclass(frozen=True)
class ProbeResult:
    """What one probe found."""

    rows: list[dict[str, Any]]
    """One an entry of group x split x rule, with the keys of probes.jsonl but step and tokens."""

    correct: NDArray[np.bool_]
    """[questions, rules]."""

    margins: NDArray[np.float32]
    """[questions, rules] log-likelihood margins, nats (per token, character or byte for the mean rules); NaN where a
    rule does not apply."""

    scores: NDArray[np.float32]
    """[questions, rules] of the right option."""

    generated: NDArray[np.int8]
    """[questions] 1 where greedy decoding gives the answer or an alias, 0 where not, -1 where more follows."""

    def outcomes(self) -> dict[str, NDArray[Any]]:
        """The record a question, for ``outcomes/step-N.npz``."""
        return {"correct": self.correct, "margins": self.margins, "scores": self.scores, "generated": self.generated,
                "rules": np.array(RULES)}  # fmt: skip


class Probe:
    """Questions laid out for a model, once; asked as often as needed."""

    def __init__(
        self,
        questions: QuestionSet,
        *,
        first: int,
        batch_size: int,
        branching: bool = True,
        width: int = ROW_WIDTH,
    ) -> None:
        """Lays the questions out.

        Args:
            questions: what is asked.
            first: the token before each statement, itself unscored (the end-of-document token, as in training).
            batch_size: options in one forward pass, about.
            branching: whether the model takes rows that hold trees.
            width: tokens of a row.
        """
        self._questions, self._first = questions, first
        asked = questions.questions
        # Statements that go on behind the object are not completed: there other names would be scored for nothing.
        self._completed = np.array([self._completes(question) for question in asked], dtype=bool)
        aliases = [q.aliases if completed else () for q, completed in zip(asked, self._completed, strict=True)]
        options = [o for q, others in zip(asked, aliases, strict=True) for o in (*q.options, *others)]
        places: dict[tuple[int, ...], int] = {}
        self._paths = _ints([places.setdefault(option.tokens, len(places)) for option in options])
        self._neutral = _ints([places.setdefault(_answer(option), len(places)) for option in options])
        self.forest = plant(list(places), first=first, width=width, branching=branching)
        self._rows_a_pass = max(1, round(batch_size * len(self.forest.counts) / max(1, len(options))))
        self._texts = [option.text for option in options]
        self._lengths = _ints([len(option.tokens) for option in options])
        self._spans = _ints([option.span for option in options]).reshape(-1, 2)
        sizes = _ints([len(question.options) for question in asked])
        every = sizes + _ints([len(others) for others in aliases])
        self._starts = np.concatenate([[0], np.cumsum(every)])[:-1].astype(np.int64)
        self._sizes, self._every = sizes, every
        self._right = self._starts + _ints([question.answer for question in asked])
        self._prompted = np.array([all(o.span[0] for o in question.options) for question in asked], dtype=bool)

    @staticmethod
    def _completes(question: Question) -> bool:
        """Whether a model that writes the answer has written the statement."""
        answer = question.options[question.answer]
        return all(o.span[0] for o in question.options) and len(answer.tokens) - answer.span[1] <= _ENDING

    def settings(self) -> dict[str, Any]:
        """Every choice that decides a score, resolved."""
        return {
            "questions": self._questions.header,
            "asked": len(self._questions.questions),
            "rules": list(RULES),
            "first_token": self._first,
            "first_token_scored": False,
            "ties": "wrong",
            "pmi_prompt": "first token alone",
            "generated": f"greedy; answer or alias, and at most {_ENDING} token behind it",
        }

    def ask(self, score: Score) -> ProbeResult | None:
        """Scores every option of every question.

        Args:
            score: the model.

        Returns:
            The result, or None on ranks without the loss (which take part in the forward passes all the same).
        """
        started = time.perf_counter()
        edges = score(self.forest, self._rows_a_pass)
        if edges is None:
            return None
        scores, greedy = self._option_scores(edges)
        return self._graded(scores, greedy, started)

    def _option_scores(self, edges: EdgeScores) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """[options, rules] scores, and [options] whether greedy decoding gives the option to its statement's end."""
        forest = self.forest
        lengths = np.diff(forest.path_starts)
        columns = np.arange(int(lengths.max(initial=1)))
        places = np.minimum(forest.path_starts[:-1, None] + columns, max(0, len(forest.path_edges) - 1))
        path_edges = forest.path_edges[places]
        inside = columns < lengths[:, None]
        log_probs = np.where(inside, edges.log_probs[path_edges], 0.0)
        neutral = log_probs.sum(axis=1)[self._neutral]
        scores = np.stack(
            [
                score_options(
                    log_probs[self._paths],
                    lengths=self._lengths,
                    spans=self._spans,
                    answers=self._texts,
                    rule=rule,
                    neutral=neutral,
                )
                for rule in RULES
            ],
            axis=1,
        )
        awaited = inside[self._paths] & (columns >= self._spans[:, :1])
        return scores, (edges.greedy[path_edges][self._paths] | ~awaited).all(axis=1)

    def _graded(self, scores: NDArray[np.float64], greedy: NDArray[np.bool_], started: float) -> ProbeResult:
        right = scores[self._right]
        if len(right):
            others = scores.copy()
            others[self._right] = -np.inf
            member = np.arange(len(scores)) - np.repeat(self._starts, self._every)
            others[member >= np.repeat(self._sizes, self._every)] = -np.inf  # an alias is no option
            margins = right - np.maximum.reduceat(others, self._starts, axis=0)
            accepted = greedy.copy()
            accepted[member < np.repeat(self._sizes, self._every)] = False  # wrong options are not accepted
            accepted[self._right] = greedy[self._right]
            generated = np.where(self._completed, np.logical_or.reduceat(accepted, self._starts), -1)
        else:
            margins, generated = right, np.zeros(0)
        correct = margins > 0
        margins[~self._prompted, RULES.index("pmi")] = np.nan
        result = ProbeResult([], correct, margins.astype(np.float32), right.astype(np.float32),
                             generated.astype(np.int8))  # fmt: skip
        members: dict[tuple[str, str], list[int]] = defaultdict(list)
        for number, question in enumerate(self._questions.questions):
            members[question.group, question.split].append(number)
        seconds = round(time.perf_counter() - started, 3)
        for (group, split), numbers in members.items():
            for column, rule in enumerate(RULES):
                asked = [n for n in numbers if rule != "pmi" or self._prompted[n]]
                if asked:
                    row = {"group": group, "split": split, "scoring": rule, **self._row(asked, column, result)}
                    result.rows.append({**row, "seconds": seconds})
        return result

    def _row(self, numbers: Sequence[int], column: int, result: ProbeResult) -> dict[str, Any]:
        questions, marks = self._questions.questions, result.correct[:, column].tolist()
        by_template: dict[tuple[str, int], list[bool]] = defaultdict(list)
        by_fact: dict[str, list[bool]] = defaultdict(list)
        for number in numbers:
            question = questions[number]
            by_template[question.relation, question.template].append(marks[number])
            by_fact[question.fact].append(marks[number])
        chosen = np.asarray(numbers)
        correct, chance = int(result.correct[chosen, column].sum()), float((1 / self._sizes[chosen]).mean())
        generated = result.generated[chosen]
        return {
            "n": len(numbers),
            "facts": len(by_fact),
            "correct": correct,
            "chance": chance,
            "corrected": (correct / len(numbers) - chance) / (1 - chance),
            "margin": float(result.margins[chosen, column].mean(dtype=np.float64)),
            "facts_always": sum(all(own) for own in by_fact.values()),
            "facts_ever": sum(any(own) for own in by_fact.values()),
            "generated": {"n": int((generated >= 0).sum()), "correct": int((generated > 0).sum())},
            "templates": [
                {"relation": relation, "template": template, "n": len(own), "correct": sum(own)}
                for (relation, template), own in sorted(by_template.items())
            ],
        }


def _answer(option: Option) -> tuple[int, ...]:
    return option.tokens[option.span[0] : option.span[1]]


def _ints(values: Sequence[Any]) -> NDArray[np.int64]:
    return np.array(values, dtype=np.int64)
