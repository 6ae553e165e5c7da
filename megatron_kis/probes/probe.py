"""The probe: all options of all questions through a model, graded and summed up by group, split and rule."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_kis.probes.curves import learned_bits
from megatron_kis.probes.prefix_tree import EdgeScores, Forest, plant
from megatron_kis.probes.questions import QuestionSet
from megatron_kis.probes.ragged import Ragged
from megatron_kis.probes.scoring import RULES, score_rules

PROBE_SCHEMA = "kis.probe/1"
PROBE_NAME = "probe.json"

ROW_WIDTH = 192
"""Nodes of a row at most: room to end a row where little is shared."""

_ENDING = 1
"""Tokens that may follow an answer which a model is to complete: the full stop."""

_OPTIONS_AT_ONCE = 1 << 14
"""Options whose tokens are summed up in one go."""

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
        batch_size: int,
        branching: bool = True,
        width: int = ROW_WIDTH,
    ) -> None:
        """Lays the questions out.

        Args:
            questions: what is asked, each statement after ``questions.first_tokens``, which are not scored.
            batch_size: options in one forward pass, about.
            branching: whether the model takes rows that hold trees.
            width: tokens of a row.
        """
        self._questions, self._first, self._table = questions, questions.first_tokens, questions.table
        table = self._table
        self._owner = np.repeat(np.arange(len(table)), np.diff(table.starts))
        member = np.arange(len(self._owner)) - table.starts[self._owner]
        self._alias = member >= table.sizes[self._owner]
        self._right = table.starts[:-1] + table.answer
        # An option that begins its statement has no prompt.
        bare = (table.spans[:, 0] == 0) & ~self._alias
        self._prompted = np.bincount(self._owner[bare], minlength=len(table)) == 0
        behind = table.tokens.lengths[self._right] - table.spans[self._right, 1]
        self._completed = self._prompted & (behind <= _ENDING)
        """Whether a model that writes the answer has written the statement."""
        self._characters = _characters(table.texts)
        first_token, last_token = table.spans.T.astype(np.int64)
        answers = table.tokens.parts(first_token, last_token)
        # Statements that go on behind the object are not completed: their other names would be scored for nothing.
        self._asked = np.flatnonzero(~self._alias | self._completed[self._owner])
        asked = table.tokens.taken(self._asked).joined(answers.taken(self._asked))
        root, *more = self._first
        self.forest = plant(asked.after(more), first=root, width=width, branching=branching)
        rows = len(self.forest.counts)
        self._rows_a_pass = max(1, round(batch_size * rows / max(1, len(self._asked))))

    def settings(self) -> dict[str, Any]:
        """Every choice that decides a score, resolved."""
        return {
            "questions": self._questions.header,
            "asked": len(self._table),
            "rules": list(RULES),
            "first_tokens": list(self._first),
            "first_tokens_scored": False,
            "ties": "wrong",
            "pmi_prompt": "first tokens alone",
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
        """[options, rules] scores, and [options] whether greedy decoding gives the option to its statement's end.

        Options and aliases lie as in the table; an alias that is not asked has scores of minus infinity.
        """
        table = self._table
        scores = np.full((len(self._owner), len(RULES)), -np.inf)
        greedy = np.zeros(len(self._owner), dtype=bool)
        statements, neutral_paths = np.split(self.forest.path_of, 2)
        for start in range(0, len(self._asked), _OPTIONS_AT_ONCE):
            part = slice(start, start + _OPTIONS_AT_ONCE)
            options = self._asked[part]
            spans, lengths = table.spans[options], table.tokens.lengths[options]
            log_probs, likeliest = self._along(edges, statements[part])
            neutral, _ = self._along(edges, neutral_paths[part])
            scores[options] = score_rules(
                log_probs,
                lengths=lengths,
                spans=spans,
                characters=self._characters[options],
                byte_counts=table.texts.lengths[options],
                neutral=neutral.sum(axis=1),
            )
            columns = np.arange(log_probs.shape[1])
            greedy[options] = (likeliest | (columns < spans[:, :1])).all(axis=1)
        return scores, greedy

    def _along(self, edges: EdgeScores, paths: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """[paths, T] log-likelihoods along paths, and whether no token is likelier; 0 and True after their ends.

        The first tokens are left out: they are not scored.
        """
        table = self.forest.paths.taken(paths)
        places = table.padded(int(table.lengths.max(initial=1)))[:, len(self._first) - 1 :]
        inside = places >= 0
        return np.where(inside, edges.log_probs[places], 0.0), edges.greedy[places] | ~inside

    def _graded(self, scores: NDArray[np.float64], greedy: NDArray[np.bool_], started: float) -> ProbeResult:
        table, right = self._table, scores[self._right]
        if len(table):
            others = np.where(self._alias[:, None], -np.inf, scores)  # an alias is no option
            others[self._right] = -np.inf
            margins = right - np.maximum.reduceat(others, table.starts[:-1], axis=0)
            accepted = greedy & self._alias  # and wrong options are not accepted
            accepted[self._right] = greedy[self._right]
            generated = np.where(self._completed, np.logical_or.reduceat(accepted, table.starts[:-1]), -1)
        else:
            margins, generated = right, np.zeros(0)
        correct = margins > 0
        margins[~self._prompted, RULES.index("pmi")] = np.nan
        result = ProbeResult([], correct, margins.astype(np.float32), right.astype(np.float32),
                             generated.astype(np.int8))  # fmt: skip
        seconds = round(time.perf_counter() - started, 3)
        splits = len(table.split.names)
        cells, first = np.unique(table.group.codes * splits + table.split.codes, return_index=True)
        for cell in cells[np.argsort(first)]:  # in the order in which they are first asked
            group, split = table.group.names[cell // splits], table.split.names[cell % splits]
            members = np.flatnonzero((table.group.codes * splits + table.split.codes) == cell)
            for column, rule in enumerate(RULES):
                asked = members[self._prompted[members]] if rule == "pmi" else members
                if len(asked):
                    row = {"group": group, "split": split, "scoring": rule, **self._row(asked, column, result)}
                    result.rows.append({**row, "seconds": seconds})
        return result

    def _row(self, chosen: NDArray[np.int64], column: int, result: ProbeResult) -> dict[str, Any]:
        table, marks = self._table, result.correct[chosen, column]
        correct, chance = int(marks.sum()), float((1 / table.sizes[chosen]).mean())
        _, fact = np.unique(table.fact.codes[chosen], return_inverse=True)
        asked, known = np.bincount(fact), np.bincount(fact, weights=marks)
        pairs = np.stack([table.relation.codes[chosen], table.template[chosen]])
        forms, form = np.unique(pairs, axis=1, return_inverse=True)
        counts = zip(np.bincount(form).tolist(), np.bincount(form, weights=marks).astype(int).tolist(), strict=True)
        templates = [
            {"relation": table.relation.names[relation], "template": template, "n": n, "correct": right}
            for (relation, template), (n, right) in zip(forms.T.tolist(), counts, strict=True)
        ]
        generated = result.generated[chosen]
        return {
            "n": len(chosen),
            "facts": len(asked),
            "correct": correct,
            "chance": chance,
            "corrected": (correct / len(chosen) - chance) / (1 - chance),
            "bits": learned_bits(marks, table.sizes[chosen], weights=1 / asked[fact]),
            "margin": float(result.margins[chosen, column].mean(dtype=np.float64)),
            "facts_always": int((known == asked).sum()),
            "facts_ever": int((known > 0).sum()),
            "generated": {"n": int((generated >= 0).sum()), "correct": int((generated > 0).sum())},
            "templates": sorted(templates, key=lambda entry: (entry["relation"], entry["template"])),
        }


def _characters(texts: Ragged) -> NDArray[np.int64]:
    """[N] characters of texts in UTF-8: its bytes but those that continue one."""
    begins = np.concatenate([[0], np.cumsum((texts.values & 0xC0) != 0x80)])
    counts: NDArray[np.int64] = np.diff(begins[texts.starts])
    return counts
