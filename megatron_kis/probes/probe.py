"""The probe: scores all options of all questions with a model, and counts right answers by group, split and rule."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_kis.common.files import atomic_path
from megatron_kis.common.terms import BACKGROUND
from megatron_kis.probes.curves import learned_bits
from megatron_kis.probes.prefix_tree import EdgeScores, PackedPrefixTrees, build_prefix_trees
from megatron_kis.probes.questions import QuestionSet
from megatron_kis.probes.ragged import Ragged
from megatron_kis.probes.scoring import RULES, score_rules

PROBE_SCHEMA = "kis.probe/1"
PROBE_NAME = "probe.json"

ROW_WIDTH = 192
"""Largest number of nodes of a row: leaves room to end a row where little is shared."""

_ENDING = 1
"""Number of tokens that may follow an answer which a model is to complete: the full stop."""

_OPTIONS_PER_CHUNK = 1 << 14
"""Number of options whose tokens are summed up at once."""

Score = Callable[[PackedPrefixTrees, int], "EdgeScores | None"]
"""Maps trees and the rows per forward pass to the scores of all edges, or None on ranks without the loss."""


@dataclass(frozen=True)
class ProbeResult:
    """Result of one probe."""

    rows: list[dict[str, Any]]
    """One row per group, split and rule, with the keys of probes.jsonl except step and tokens. Where background facts
    are shown differently often, each strength has rows of its own, too: of the group ``background@60``."""

    correct: NDArray[np.bool_]
    """[questions, rules] whether the right option alone has the largest score."""

    margins: NDArray[np.float32]
    """[questions, rules] score of the right option minus the largest other one, nats (per token, character or byte for
    the mean rules); NaN where a rule does not apply."""

    mean_margins: NDArray[np.float32]
    """[questions, rules] score of the right option minus the mean of the wrong ones, nats as the margins; NaN as
    there."""

    pairwise: NDArray[np.float32]
    """[questions, rules] share of the wrong options that score below the right one; 0.5 by chance, ties count as not
    below; NaN where a rule does not apply."""

    scores: NDArray[np.float32]
    """[questions, rules] score of the right option."""

    generated: NDArray[np.int8]
    """[questions] 1 where greedy decoding gives the answer or an alias, 0 where not, -1 where more text follows."""

    def write_outcomes(self, path: Path) -> None:
        """Writes the record per question (``.npz``)."""
        arrays = {
            "correct": self.correct,
            "margins": self.margins,
            "mean_margins": self.mean_margins,
            "pairwise": self.pairwise,
            "scores": self.scores,
            "generated": self.generated,
            "rules": np.array(RULES),
        }
        with atomic_path(path) as partial, open(partial, "wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


class Probe:
    """Questions laid out once for a model, which is evaluated on them as often as needed."""

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
            questions: the questions; ``questions.first_tokens`` precede each statement and are not scored.
            batch_size: approximate number of options per forward pass.
            branching: whether the model takes rows that hold trees.
            width: largest number of nodes of a row.
        """
        self._questions = questions
        self._first_tokens = questions.first_tokens
        self._table = table = questions.table
        self._owner = np.repeat(np.arange(len(table)), np.diff(table.starts))
        member = np.arange(len(self._owner)) - table.starts[self._owner]
        self._alias = member >= table.sizes[self._owner]
        self._right = table.starts[:-1] + table.answer
        # An option that begins its statement has no prompt.
        bare = (table.spans[:, 0] == 0) & ~self._alias
        self._prompted = np.bincount(self._owner[bare], minlength=len(table)) == 0
        following = table.tokens.lengths[self._right] - table.spans[self._right, 1]
        self._completed = self._prompted & (following <= _ENDING)
        """[questions] Whether a model that writes the answer has written the statement."""
        self._characters = _characters(table.texts)
        first_token, last_token = table.spans.T.astype(np.int64)
        answers = table.tokens.parts(first_token, last_token)
        # Statements that continue after the object are not completed: their aliases would be scored for nothing.
        self._scored = np.flatnonzero(~self._alias | self._completed[self._owner])
        texts = table.tokens.taken(self._scored).joined(answers.taken(self._scored))
        bos_id, *more = self._first_tokens
        self.trees = build_prefix_trees(texts.after(more), bos_id=bos_id, width=width, branching=branching)
        rows = len(self.trees.counts)
        self._rows_per_pass = max(1, round(batch_size * rows / max(1, len(self._scored))))

    def settings(self) -> dict[str, Any]:
        """Returns every choice that decides a score, resolved."""
        return {
            "questions": self._questions.header,
            "asked": len(self._table),
            **({"strengths": self._facts_by_strength()} if self._questions.strengths else {}),
            "rules": list(RULES),
            "first_tokens": list(self._first_tokens),
            "first_tokens_scored": False,
            "ties": "wrong",
            "pmi_prompt": "first tokens alone",
            "generated": f"greedy; answer or alias, and at most {_ENDING} token behind it",
        }

    def evaluate(self, score: Score) -> ProbeResult | None:
        """Evaluates a model on every question; collective: every rank calls this.

        Args:
            score: scores trees with the model, see ``Scorer.score``.

        Returns:
            The result, or None on ranks without the loss (which still take part in the forward passes).
        """
        started = time.perf_counter()
        edges = score(self.trees, self._rows_per_pass)
        if edges is None:
            return None
        scores, greedy = self._option_scores(edges)
        result = self._grade(scores, greedy)
        seconds = round(time.perf_counter() - started, 3)
        result.rows.extend({**row, "seconds": seconds} for row in self._rows(result))
        return result

    def _option_scores(self, edges: EdgeScores) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Returns scores, [options, rules], and whether greedy decoding gives the option and its ending, [options].

        Options and aliases are ordered as in the table; an alias that is not scored has minus infinity.
        """
        table = self._table
        scores = np.full((len(self._owner), len(RULES)), -np.inf)
        greedy = np.zeros(len(self._owner), dtype=bool)
        statements, neutral_paths = np.split(self.trees.path_of, 2)
        for start in range(0, len(self._scored), _OPTIONS_PER_CHUNK):
            part = slice(start, start + _OPTIONS_PER_CHUNK)
            options = self._scored[part]
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
        """Returns log-likelihoods along paths and whether no token is likelier, [paths, T]; 0 and True after the ends.

        The first tokens are left out: they are not scored.
        """
        table = self.trees.paths.taken(paths)
        places = table.padded(int(table.lengths.max(initial=1)))[:, len(self._first_tokens) - 1 :]
        inside = places >= 0
        return np.where(inside, edges.log_probs[places], 0.0), edges.greedy[places] | ~inside

    def _grade(self, scores: NDArray[np.float64], greedy: NDArray[np.bool_]) -> ProbeResult:
        """Compares the right option of each question with the other ones; a tie is wrong."""
        table = self._table
        right = scores[self._right]
        if len(table):
            others = np.where(self._alias[:, None], -np.inf, scores)  # an alias is no option
            others[self._right] = -np.inf
            margins = right - np.maximum.reduceat(others, table.starts[:-1], axis=0)
            mean_margins, pairwise = self._against_all(scores, right)
            accepted = greedy & self._alias  # and wrong options are not accepted
            accepted[self._right] = greedy[self._right]
            generated = np.where(self._completed, np.logical_or.reduceat(accepted, table.starts[:-1]), -1)
        else:
            margins, mean_margins, pairwise = right, right.copy(), right.copy()
            generated = np.zeros(0)
        correct = margins > 0
        for values in (margins, mean_margins, pairwise):
            values[~self._prompted, RULES.index("pmi")] = np.nan
        return ProbeResult(
            rows=[],
            correct=correct,
            margins=margins.astype(np.float32),
            mean_margins=mean_margins.astype(np.float32),
            pairwise=pairwise.astype(np.float32),
            scores=right.astype(np.float32),
            generated=generated.astype(np.int8),
        )

    def _against_all(
        self, scores: NDArray[np.float64], right: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Compares right options with all wrong ones: mean margins and shares below, [questions, rules].

        Rules are taken one at a time, so that no array of all options and rules is made.
        """
        starts, count = self._table.starts[:-1], self._table.sizes - 1
        wrong = ~self._alias
        wrong[self._right] = False
        mean_margins, pairwise = np.empty_like(right), np.empty_like(right)
        for column in range(right.shape[1]):
            own, best = scores[:, column], right[:, column]
            mean_margins[:, column] = best - np.add.reduceat(np.where(wrong, own, 0.0), starts) / count
            below = wrong & (own < best[self._owner])
            pairwise[:, column] = np.add.reduceat(below, starts, dtype=np.int64) / count
        return mean_margins, pairwise

    def _rows(self, result: ProbeResult) -> Iterator[dict[str, Any]]:
        """Yields the rows of all groups, splits and rules, in the order in which the questions first have them."""
        table = self._table
        splits = len(table.split.names)
        keys = table.group.codes * splits + table.split.codes
        distinct, first = np.unique(keys, return_index=True)
        for key in distinct[np.argsort(first)]:
            group = table.group.names[key // splits]
            split = table.split.names[key % splits]
            members = np.flatnonzero(keys == key)
            for name, some in self._by_strength(group, members):
                for column, rule in enumerate(RULES):
                    chosen = some[self._prompted[some]] if rule == "pmi" else some
                    if len(chosen):
                        yield {"group": name, "split": split, "scoring": rule, **self._row(chosen, column, result)}

    def _by_strength(self, group: str, members: NDArray[np.int64]) -> Iterator[tuple[str, NDArray[np.int64]]]:
        """Yields the questions of a group, and those of each strength of the background by name, ``background@60``."""
        yield group, members
        strengths = self._questions.strengths
        if group != BACKGROUND or not strengths:
            return
        fact = self._table.fact
        of_member = np.array([strengths.get(name, 0) for name in fact.names], dtype=np.int64)[fact.codes[members]]
        for strength in np.unique(of_member[of_member > 0]).tolist():
            yield name_of_strength(strength), members[of_member == strength]

    def _facts_by_strength(self) -> dict[str, list[str]]:
        """Returns the background facts by the names that the rows of their strengths have."""
        found: dict[str, list[str]] = {}
        for fact, strength in sorted(self._questions.strengths.items(), key=lambda entry: entry[1]):
            found.setdefault(name_of_strength(strength), []).append(fact)
        return found

    def _row(self, chosen: NDArray[np.int64], column: int, result: ProbeResult) -> dict[str, Any]:
        """Sums up some questions under one rule."""
        table = self._table
        marks = result.correct[chosen, column]
        correct = int(marks.sum())
        chance = float((1 / table.sizes[chosen]).mean())
        _, fact = np.unique(table.fact.codes[chosen], return_inverse=True)
        asked = np.bincount(fact)  # questions of each fact
        known = np.bincount(fact, weights=marks)
        pairs = np.stack([table.relation.codes[chosen], table.template[chosen]])
        forms, form = np.unique(pairs, axis=1, return_inverse=True)
        counts = zip(np.bincount(form).tolist(), np.bincount(form, weights=marks).astype(int).tolist(), strict=True)
        templates = [
            {"relation": table.relation.names[relation], "template": template, "n": n, "correct": right}
            for (relation, template), (n, right) in zip(forms.T.tolist(), counts, strict=True)
        ]
        mean_margin, mean_margin_sd = _mean_and_spread(result.mean_margins[chosen, column], fact, asked)
        pairwise, pairwise_sd = _mean_and_spread(result.pairwise[chosen, column], fact, asked)
        generated = result.generated[chosen]
        return {
            "n": len(chosen),
            "facts": len(asked),
            "correct": correct,
            "chance": chance,
            "corrected": (correct / len(chosen) - chance) / (1 - chance),
            "bits": learned_bits(marks, table.sizes[chosen], weights=1 / asked[fact]),
            "margin": float(result.margins[chosen, column].mean(dtype=np.float64)),
            "mean_margin": mean_margin,
            "mean_margin_sd": mean_margin_sd,
            "pairwise": pairwise,
            "pairwise_sd": pairwise_sd,
            "facts_always": int((known == asked).sum()),
            "facts_ever": int((known > 0).sum()),
            "generated": {"n": int((generated >= 0).sum()), "correct": int((generated > 0).sum())},
            "templates": sorted(templates, key=lambda entry: (entry["relation"], entry["template"])),
        }


def name_of_strength(exposures: int) -> str:
    """Returns what rows call the background facts of some frequency, where a run has several."""
    return f"{BACKGROUND}@{exposures}"


def finite_rows(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns rows of a probe for JSON, which has no NaN and no infinity: they become None."""
    return [{name: _finite(value) for name, value in row.items()} for row in rows]


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _mean_and_spread(
    values: NDArray[np.float32], fact: NDArray[np.int64], asked: NDArray[np.int64]
) -> tuple[float, float | None]:
    """Returns the mean over questions, and the standard deviation of the facts' means; None for a single fact.

    Args:
        values: [questions].
        fact: [questions] number of the fact that each asks about.
        asked: [facts] questions of each.
    """
    means = np.bincount(fact, weights=values) / asked
    return float(values.mean(dtype=np.float64)), float(means.std(ddof=1)) if len(means) > 1 else None


def _characters(texts: Ragged) -> NDArray[np.int64]:
    """Returns the number of characters of texts in UTF-8, [N]: bytes, without those that continue a character."""
    begins = np.concatenate([[0], np.cumsum((texts.values & 0xC0) != 0x80)])
    counts: NDArray[np.int64] = np.diff(begins[texts.starts])
    return counts
