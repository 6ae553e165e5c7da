"""Evaluations of lm-evaluation-harness as a curve table.

An evaluation is a file ``results_<date>.json``, with ``samples_<task>_<date>.jsonl`` next to it if the harness was told
``--log_samples``. Samples have the counts, the number of options of each question and the fact that it asks about. Of
results alone a count is rate * n, which must be whole.

The user's table says which evaluation belongs to which run: ``results,params,tokens,frequency,seed``.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from megatron_kis.analysis.runs.csv_table import CsvLine, read_table
from megatron_kis.analysis.runs.elsewhere import RUN_NEEDED, RUN_OPTIONAL, Asked, not_whole, whole_count
from megatron_kis.analysis.runs.load_csv import table_of_lines
from megatron_kis.common.errors import InputError, first_of, nearest
from megatron_kis.common.files import read_json_lines, read_text
from megatron_kis.common.parsing import parse_json
from megatron_kis.common.paths import expanded
from megatron_kis.common.terms import GROUPS, LM_EVAL_RULES, SPLITS

_DATED = re.compile(r"(?P<stem>.*)_(?P<date>\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:\.\d+)?)\.json")
_OUR_TASK = re.compile(rf"kis_({'|'.join(GROUPS)})_({'|'.join(SPLITS)})_({'|'.join(LM_EVAL_RULES)})")
_FACT = "fact"
_SHOWN = 12
_SAME = 1e-6  # a mean of single precision


@dataclass(frozen=True)
class Choices:
    """How tasks that are not of ``kis export lm-eval`` are read."""

    groups: tuple[Asked, ...] = ()
    """Groups and their tasks, or groups of tasks."""
    metrics: tuple[str, ...] = ("acc", "exact_match")
    """The first that a task has is read: ``acc`` or, with a filter, ``exact_match,strict-match``."""
    fact: str | None = None
    """Key of the documents that names their fact; None: ``fact``, if they have it, else each is one of its own."""
    chance: float | None = None
    """Rate of guessing, of evaluations without samples."""


@dataclass
class Imported:
    """What was read."""

    table: pd.DataFrame
    tasks: dict[tuple[str, str, str], set[str]] = field(default_factory=lambda: defaultdict(set))
    """(group, split, scoring rule) -> ``metric of task``."""
    left_out: set[str] = field(default_factory=set)
    """Tasks that are of no group."""
    questions: dict[str, tuple[int, Path]] = field(default_factory=dict)
    """Task -> number of its questions, and where that was read first."""


@dataclass(frozen=True)
class _Task:
    """One task of an evaluation."""

    name: str
    path: Path
    """The file of results."""
    content: Mapping[str, Any]
    samples: Path | None

    @property
    def results(self) -> Mapping[str, Any]:
        return _mapping(self.content, "results", self.path).get(self.name, {})  # type: ignore[no-any-return]


def import_lm_eval(runs: Path, choices: Choices) -> Imported:
    """Reads evaluations.

    Args:
        runs: a CSV file with one row per evaluated model: ``results``, the folder or file of its evaluation (from the
            file's own folder), params, tokens, frequency, seed, and others of ``RUN_OPTIONAL``.
        choices: which tasks ask about which group.

    Returns:
        The curve table, one row per model, group, split and scoring rule. Tasks of one group and split are summed.

    Raises:
        InputError: no evaluation, an unknown task or metric, or a value that is wrong; the message names the file.
    """
    imported = Imported(pd.DataFrame())
    known = ("results", *RUN_NEEDED, *RUN_OPTIONAL)
    rows: list[CsvLine] = []
    used: dict[Path, int] = {}
    for line in read_table(runs, ("results", *RUN_NEEDED), known):
        tasks = _evaluation(line)
        for path in {task.path.resolve() for task in tasks.values()}:
            if (before := used.setdefault(path, line.line)) != line.line:
                remedy = "the evaluation of this run's own model"
                raise line.error("results", f"{line.cells['results']} is also read in line {before}", remedy)
        rows += _rows(line, tasks, choices, imported)
    imported.table = table_of_lines(rows)
    return imported


def _rows(line: CsvLine, tasks: Mapping[str, _Task], choices: Choices, imported: Imported) -> Iterator[CsvLine]:
    """Yields the rows of one model."""
    sums: dict[tuple[str, str, str], list[_Count]] = defaultdict(list)
    taken: set[str] = set()

    def take(key: tuple[str, str, str], name: str, metric: str) -> None:
        count = _count(tasks[name], metric, choices)
        n, path = imported.questions.setdefault(name, (count.n, tasks[name].path))
        if n != count.n:
            problem = f"task {name!r} has {count.n} questions, and {n} in {path}"
            raise InputError(problem, where=str(tasks[name].path), remedy="ask all models the same questions (--limit)")
        sums[key].append(count)
        imported.tasks[key].add(f"{metric.removesuffix(',none')} of {name}")
        taken.add(name)

    for name, task in tasks.items():
        if (ours := _OUR_TASK.fullmatch(name)) is None:
            continue
        group, split, kind = ours.groups()
        for metric, rule in LM_EVAL_RULES[kind].items():
            if f"{metric},none" in _rates(task):
                take((group, split, rule), name, f"{metric},none")
    for asked in choices.groups:
        members = [name for wanted in asked.sources for name in _members(wanted, tasks, line)]
        for name in members:
            if members.count(name) > 1 or name in taken:
                where = f"--group {asked.group}/{asked.split}"
                raise InputError(f"counts task {name!r} twice", where=where, remedy="name it once")
        for name in members:
            take((asked.group, asked.split, "statement"), name, _metric(tasks[name], choices.metrics))
    if not sums:
        remedy = f"name the group of its tasks: --group infused TASK; it has {first_of(sorted(tasks), _SHOWN)}"
        raise line.error("results", f"{line.cells['results']} has no task of kis export lm-eval", remedy)
    imported.left_out |= {name for name, task in tasks.items() if name not in taken and not _subtasks(task, name)}
    about = {name: text for name, text in line.cells.items() if name != "results"}
    for (group, split, rule), counts in sums.items():
        cells = {"group": group, "split": split, "scoring": rule, **_joined(counts)}
        yield CsvLine(line.path, line.line, {**about, **cells})


@dataclass(frozen=True)
class _Count:
    """The answers to the questions of one task."""

    n: int
    correct: int
    chances: float
    """Sum of the rates of guessing; NaN if they are not known."""
    facts: frozenset[str] | None
    """None: each question asks about a fact of its own."""


def _joined(counts: Sequence[_Count]) -> dict[str, str]:
    """Returns the cells of the tasks of one group together."""
    n = sum(count.n for count in counts)
    chance = sum(count.chances for count in counts) / n
    cells = {"n": str(n), "correct": str(sum(count.correct for count in counts))}
    cells["chance"] = "" if math.isnan(chance) else repr(round(chance, 12))
    facts = {fact for count in counts for fact in count.facts or ()}
    cells["facts"] = str(len(facts) + sum(count.n for count in counts if count.facts is None))
    return cells


def _evaluation(line: CsvLine) -> dict[str, _Task]:
    """Returns the tasks of an evaluation by name; of a task that was evaluated several times the latest."""
    try:
        place = line.path.parent / expanded(line.cells["results"])
    except InputError as error:
        raise line.error("results", error.problem, error.remedy or "") from None
    if not line.cells["results"] or not place.exists():
        problem = f"{line.cells['results']}: no such file or folder" if line.cells["results"] else "is empty"
        raise line.error("results", problem, "the folder of an evaluation, or its results_<date>.json")
    found = [place] if place.is_file() else [path for path in place.rglob("*.json") if _DATED.fullmatch(path.name)]
    tasks: dict[str, _Task] = {}
    models: dict[str, Path] = {}
    for path in sorted(found, key=lambda path: ((match := _DATED.fullmatch(path.name)) and match["date"]) or ""):
        content = parse_json(read_text(path), where=str(path))
        if not isinstance(content, dict) or not isinstance(content.get("results"), dict):
            if place.is_file():
                raise InputError("has no 'results'", where=str(path), remedy="name a results_<date>.json")
            continue
        models[str(content.get("model_name"))] = path
        if len(models) > 1:
            remedy = f"name one of them: {', '.join(str(path) for path in models.values())}"
            raise line.error("results", f"{line.cells['results']} has evaluations of several models", remedy)
        for name in content["results"]:
            _mapping(content["results"], name, path)
            if name in tasks and tasks[name].path.parent != path.parent:
                remedy = f"name one of them: {tasks[name].path.parent} or {path.parent}"
                raise line.error("results", f"{line.cells['results']} has {name!r} in several folders", remedy)
            tasks[name] = _Task(name, path, content, _samples(path, name))
    if not tasks:
        remedy = "the folder that lm-eval wrote with --output_path"
        raise line.error("results", f"{line.cells['results']} has no results_<date>.json", remedy)
    return tasks


def _samples(results: Path, task: str) -> Path | None:
    match = _DATED.fullmatch(results.name)
    path = results.with_name(f"samples_{task}_{match['date']}.jsonl") if match else None
    return path if path is not None and path.is_file() else None


def _members(wanted: str, tasks: Mapping[str, _Task], line: CsvLine) -> list[str]:
    """Returns the tasks that a name stands for: itself, or those of a group of tasks."""
    if wanted not in tasks:
        problem = f"{line.cells['results']} has no task {wanted!r}"
        raise line.error("results", problem, nearest(wanted, tasks))
    inside = _subtasks(tasks[wanted], wanted)
    return [name for part in inside for name in _members(part, tasks, line)] if inside else [wanted]


def _subtasks(task: _Task, name: str) -> list[str]:
    groups = task.content.get("group_subtasks")
    inside = groups.get(name) if isinstance(groups, dict) else None
    return [part for part in inside if part != name] if isinstance(inside, list) else []


def _rates(task: _Task) -> list[str]:
    """Returns the metrics, with their filters, that a task has a number of."""
    rates = [name for name, value in task.results.items() if isinstance(value, int | float) and "," in name]
    return [name for name in rates if "_stderr," not in name]


def _metric(task: _Task, wanted: Sequence[str]) -> str:
    """Returns the metric, with its filter, that a task is read by: ``acc,none``."""
    rates = _rates(task)
    for metric in wanted:
        found = [name for name in rates if metric in (name, name.partition(",")[0])]
        if len(found) == 1:
            return found[0]
        if found:
            problem = f"task {task.name!r} has {metric} by several filters"
            raise InputError(problem, where=str(task.path), remedy=f"--metric {' or '.join(found)}")
    problem = f"task {task.name!r} has no metric {' or '.join(wanted)}"
    remedy = f"--metric {' or '.join(rates)}" if rates else "name another task: this one has no metric at all"
    raise InputError(problem, where=str(task.path), remedy=remedy)


def _count(task: _Task, metric: str, choices: Choices) -> _Count:
    """Returns the right answers of a task: from its samples, or else from its rate."""
    rate = float(task.results[metric])
    n = _mapping(_mapping(task.content, "n-samples", task.path), task.name, task.path).get("effective")
    if not isinstance(n, int) or n < 1:
        raise InputError(f"does not say how many questions {task.name!r} has", where=str(task.path))
    if task.samples is not None:
        count = _counted(task, task.samples, metric, choices.fact)
        if count.n != n or abs(count.correct / n - rate) > _SAME:
            problem = f"has {count.correct} right answers to {count.n} questions; {task.path.name} has {rate:g} of {n}"
            raise InputError(problem, where=str(task.samples), remedy="evaluate again: one of the files is not whole")
        return count
    if choices.fact is not None:
        remedy = "evaluate with --log_samples, or leave out --fact"
        raise InputError(f"no samples of task {task.name!r}", where=str(task.path), remedy=remedy)
    correct = whole_count(rate, n)
    if correct is None:
        remedy = "evaluate with --log_samples, or choose a metric that is right or wrong for each question"
        raise InputError(f"{metric} of task {task.name!r}: {not_whole(rate, n)}", where=str(task.path), remedy=remedy)
    chance = math.nan if choices.chance is None else choices.chance
    return _Count(n, correct, chance * n, None)


def _counted(task: _Task, path: Path, metric: str, key: str | None) -> _Count:
    """Returns the answers in a file of samples, one line for each question and filter."""
    name, _, only = metric.partition(",")
    settings = _mapping(_mapping(task.content, "configs", task.path), task.name, task.path)
    metrics = settings.get("metric_list")
    listed = [one.get("metric") for one in metrics if isinstance(one, dict)] if isinstance(metrics, list) else []
    twice = 2 if "acc_mutual_info" in listed else 1  # each option is scored without its context, too
    chosen = settings.get("output_type") == "multiple_choice"
    n, correct, chances, facts = 0, 0, 0.0, set()
    for number, sample in read_json_lines(path):
        if sample.get("filter", only) != only:
            continue
        where, value = f"{path}:{number}", sample.get(name)
        if value not in (0, 1):
            problem = f"{name} is {value!r}, neither right (1) nor wrong (0)"
            raise InputError(problem, where=where, remedy="choose another --metric")
        n, correct = n + 1, correct + int(value)
        if chosen:
            answers = sample.get("resps")
            options = len(answers) // twice if isinstance(answers, list) else 0
            if not options:
                raise InputError("has no list 'resps'", where=where, remedy="evaluate again with --log_samples")
            chances += 1 / options
        document = sample.get("doc")
        fact = document.get(key or _FACT) if isinstance(document, dict) else None
        if fact is None and key is not None:
            there = sorted(document) if isinstance(document, dict) else []
            raise InputError(f"its 'doc' has no {key!r}", where=where, remedy=f"--fact: {nearest(key, there)}")
        facts.add(None if fact is None else str(fact))
    known = None if None in facts or not facts else frozenset(str(fact) for fact in facts)
    return _Count(n, correct, chances, known)


def _mapping(content: Mapping[str, Any], key: str, path: Path) -> Mapping[str, Any]:
    value = content.get(key)
    if not isinstance(value, dict):
        raise InputError(
            f"has no {key!r}", where=str(path), remedy="name a results_<date>.json of lm-eval 0.4.3 or newer"
        )
    return value
