"""Which background facts survive: for each fact and each cell of a study, how many runs still know it, as a CSV file.

A cell is a model size N, a token budget D and what is infused: K facts, F exposures each. Its runs differ in their
seed. Next to the share of runs that know a fact are what may decide it: its exposures, its relation, and its similarity
to the infused facts that these runs show.
"""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_kis.common.errors import InputError
from megatron_kis.common.files import atomic_write, read_json
from megatron_kis.common.terms import BACKGROUND, INFUSED
from megatron_kis.data.ledger import LEDGER_SCHEMA
from megatron_kis.data_tools.facts.fact import Fact
from megatron_kis.data_tools.facts.names import name_key
from megatron_kis.evaluate.ask import questions_answered
from megatron_kis.evaluate.history import check_asked
from megatron_kis.evaluate.similarity import OtherFacts, Pieces, Similarity
from megatron_kis.probes.curves import LastOutcomes, read_last_outcomes
from megatron_kis.probes.questions import QuestionSet
from megatron_kis.training.artifacts import PastRun, open_run

COLUMNS = (
    "fact",
    "subject",
    "relation",
    "object",
    "exposures",
    "params",
    "tokens",
    "infused_facts",
    "infusion_frequency",
    "infusion_ratio",
    "prefix",
    "overlap",
    "same_object",
    "runs",
    "known",
    "right",
    "mean_margin",
)
"""Columns of the file."""


@dataclass(slots=True)
class _Cell:
    """The runs of one cell, summed up."""

    shown: frozenset[str]
    """Ids of the infused facts that they show."""
    runs: int = 0
    frequency: float = 0.0
    ratio: float = 0.0
    facts: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    """By fact: runs that ask for it, runs that know it, share of right answers, mean margin, exposures; each summed."""


def write_survival(
    runs: Sequence[Path],
    facts: Sequence[Fact],
    output: Path,
    *,
    split: str,
    rule: str,
    answers: Mapping[str, Path] | None = None,
) -> int:
    """Writes a CSV file with one row per background fact and cell.

    A run knows a fact if it answers more than half of the questions about it rightly at its last probe.

    Args:
        runs: folders of runs that have reached their end.
        facts: the facts of their data.
        output: the CSV file.
        split: split of the templates with which the facts are asked for.
        rule: scoring rule.
        answers: folders of the answers to use, by name of the run, of those whose own are to other questions.

    Returns:
        The number of rows.

    Raises:
        InputError: a run without outcomes, other facts than the runs', or no background facts among what was asked.
    """
    by_id = {fact.id: fact for fact in facts}
    cells: dict[tuple[Any, ...], _Cell] = {}
    questions: dict[str, QuestionSet] = {}
    past: PastRun | None = None
    for folder in runs:
        past = open_run(folder)
        place = (answers or {}).get(folder.name, folder)
        _add_run(cells, past, place, _questions(past, place, questions), by_id, split=split, rule=rule)
    if past is None or not any(cell.facts for cell in cells.values()):
        problem = f"no run asked about background facts with templates of split {split!r}"
        raise InputError(problem, where="split", remedy="choose another split, or probe with its templates")
    rows = 0
    with atomic_write(output) as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        for row in _rows(cells, past, by_id):
            table.writerow(row)
            rows += 1
    return rows


def _questions(past: PastRun, place: Path, known: dict[str, QuestionSet]) -> QuestionSet:
    """Returns the questions behind a run's answers; runs that are asked the same ones share them."""
    config = past.config
    choice = {
        "questions": past.record["fingerprints"].get("questions"),
        "asked since": None if place == past.folder else place.name,
        "probes": config.probes.model_dump(mode="json"),
        "infusion": config.infusion.model_dump(mode="json", exclude={"frequency", "ratio"}),
    }
    key = json.dumps(choice, sort_keys=True)
    if key not in known:
        known[key] = questions_answered(past, place)
    return known[key]


def _add_run(
    cells: dict[tuple[Any, ...], _Cell],
    past: PastRun,
    place: Path,
    questions: QuestionSet,
    facts: Mapping[str, Fact],
    *,
    split: str,
    rule: str,
) -> None:
    """Adds a run, whose answers are in the folder ``place``, to its cell."""
    outcomes = read_last_outcomes(place / "outcomes", rule)
    check_asked(past, len(outcomes.correct), len(questions.questions))
    path = past.folder / "exposures.json"
    received = read_json(path, LEDGER_SCHEMA, keys=("received",))["received"]
    record, infusion = past.record, past.config.infusion
    shown = frozenset(fact for fact, count in received[INFUSED].items() if count)
    count = (infusion.facts or record["plan"]["infused_facts"]) if shown else 0
    key = (record["params"], record["tokens"], count, infusion.frequency, infusion.ratio)
    cell = cells.setdefault(key, _Cell(shown))
    cell.runs += 1
    cell.frequency += record["infusion_frequency"]
    cell.ratio += record["infusion_ratio"]
    for fact, answer, asked, right, margin in _by_fact(questions, outcomes, split):
        if fact not in facts or facts[fact].object != answer:
            has = f"has {facts[fact].object!r}" if fact in facts else "has no such fact"
            remedy = "give the facts.jsonl that the data of these runs were made from"
            raise InputError(f"{has}; {past.folder} asks for {fact!r} with {answer!r}", where="facts", remedy=remedy)
        sums = cell.facts.setdefault(fact, np.zeros(5))
        sums += (1, right > asked / 2, right / asked, margin, received[BACKGROUND].get(fact, 0))


def _by_fact(
    questions: QuestionSet, outcomes: LastOutcomes, split: str
) -> Iterator[tuple[str, str, int, float, float]]:
    """Yields each background fact with its object, its number of questions, right answers, and mean margin."""
    table = questions.table
    if BACKGROUND not in table.group.names or split not in table.split.names:
        return
    chosen = (table.group.codes == table.group.names.index(BACKGROUND)) & ~np.isnan(outcomes.margins)
    rows = np.flatnonzero(chosen & (table.split.codes == table.split.names.index(split)))
    codes, first, place = np.unique(table.fact.codes[rows], return_index=True, return_inverse=True)
    objects = table.starts[rows[first]] + table.answer[rows[first]]
    asked = np.bincount(place)
    right = np.bincount(place, weights=outcomes.correct[rows])
    margin = np.bincount(place, weights=outcomes.mean_margins[rows]) / np.maximum(1, asked)
    for number, (code, at) in enumerate(zip(codes.tolist(), objects.tolist(), strict=True)):
        answer = table.texts[at].tobytes().decode("utf-8")
        yield table.fact.names[code], answer, int(asked[number]), float(right[number]), float(margin[number])


def _rows(cells: Mapping[tuple[Any, ...], _Cell], past: PastRun, facts: Mapping[str, Fact]) -> Iterator[list[Any]]:
    """Yields the rows of all cells, by size, budget and what is infused; facts in the order of their file."""
    wanted = {fact for cell in cells.values() for fact in (*cell.facts, *cell.shown)}
    pieces = _pieces(past, [fact for fact in facts.values() if fact.id in wanted])
    similar: dict[frozenset[str], dict[str, Similarity]] = defaultdict(dict)
    for key in sorted(cells, key=lambda key: (*key[:3], cells[key].frequency / cells[key].runs)):
        cell = cells[key]
        if cell.shown not in similar:
            shown = [fact for fact in facts.values() if fact.id in cell.shown]
            others = OtherFacts([pieces[fact.id] for fact in shown], [name_key(fact.object) for fact in shown])
            asked = {identifier for one in cells.values() if one.shown == cell.shown for identifier in one.facts}
            similar[cell.shown] = {
                identifier: others.nearest(pieces[identifier], name_key(facts[identifier].object))
                for identifier in asked
            }
        cell_values = (*key[:3], _short(cell.frequency / cell.runs), _short(cell.ratio / cell.runs))
        for fact in facts.values():
            if fact.id in cell.facts:
                runs, *sums = cell.facts[fact.id].tolist()
                known, right, margin, exposures = (value / runs for value in sums)
                prefix, overlap, same = similar[cell.shown][fact.id]
                names = (fact.id, fact.subject, fact.relation, fact.object)
                likeness = (prefix, _short(overlap), same)
                shares = (_short(known), _short(right), "" if np.isnan(margin) else _short(margin))
                yield [*names, _short(exposures), *cell_values, *likeness, int(runs), *shares]


def _pieces(past: PastRun, facts: Iterable[Fact]) -> dict[str, Pieces]:
    """Returns the token pieces of the facts' subjects by id."""
    listed = list(facts)
    encoded = past.tokenizer.encode_batch([fact.subject for fact in listed])
    return {fact.id: tuple(pieces) for fact, pieces in zip(listed, encoded, strict=True)}


def _short(value: float) -> str:
    return f"{value:.6g}"
