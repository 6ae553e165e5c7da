"""What was done: text, facts, an example with its question, models, budget, time and place of the runs."""

from __future__ import annotations

import contextlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from megatron_kis.analysis.findings.result import AnalysisResult
from megatron_kis.analysis.report import formatting as fmt
from megatron_kis.analysis.runs.load import Runs
from megatron_kis.common.asked import QUESTIONS_FILE
from megatron_kis.common.errors import InputError, JobError, first_of
from megatron_kis.common.files import naming, open_content, steadily
from megatron_kis.common.units import duration, plural

logger = logging.getLogger(__name__)

_QUESTIONS = "inputs/questions*.jsonl*"
_TOKENIZERS = "inputs/tokenizer*"
_SEARCHED = 20_000  # lines of a file of questions in which an example is looked for
_ASKED = 20  # runs in whose folders one is looked for
_LISTED = 8


@dataclass(frozen=True)
class Example:
    """A fact as the models met it."""

    shown: str
    """A sentence that states it, as in training; empty where none is known."""
    asked: str
    """The beginning of a question, up to where its options differ."""
    options: list[tuple[str, bool]]
    """Each option, and whether it is the right one."""


@dataclass(frozen=True)
class Experiment:
    """What the runs were."""

    rows: list[tuple[str, str]]
    """A heading and a sentence each."""
    example: Example | None


def experiment(result: AnalysisResult) -> Experiment | None:
    """Returns what is known of how the study was made; None of data that are not run folders."""
    runs = result.runs
    if runs is None or not runs.records:
        return None
    records = list(runs.records.values())
    rows = [
        ("General text", _text(result, records)),
        ("Facts", _facts(result, runs)),
        ("Background facts", _background(records)),
        ("Models", _models(records)),
        ("Training", _budget(records)),
        ("When and where", _time_and_place(runs)),
    ]
    example = None
    with contextlib.suppress(InputError, JobError, OSError, ImportError, KeyError, ValueError, TypeError, IndexError):
        example = _example(runs, result.settings.split)
    return Experiment([(head, text) for head, text in rows if text], example)


def _part(record: Any, *keys: str) -> Any:
    """Returns what is at nested keys; None where a part is missing."""
    for key in keys:
        record = record.get(key) if isinstance(record, dict) else None
    return record


def _names(paths: Iterable[Any]) -> list[str]:
    return list(dict.fromkeys(Path(str(path)).name for path in paths if path))


def _text(result: AnalysisResult, records: list[dict[str, Any]]) -> str:
    """Names the sources of the text, and how often they were read."""
    declared = _part(result.study, "data", "text")
    sources = _names(declared if isinstance(declared, list) else [declared])
    read: list[float] = []
    for record in records:
        parts = record.get("general_text")
        for part in parts if isinstance(parts, list) else []:
            if not declared:
                sources += _names([_part(part, "corpus")])
            epochs = _part(part, "epochs")
            if isinstance(epochs, int | float):
                read.append(float(epochs))
    sources = list(dict.fromkeys(sources))
    if not sources and not read:
        return ""
    said = first_of(sources, _LISTED) if sources else "the corpus"
    if read:
        said += f"; read {fmt.span(f'{min(read):.2g}', f'{max(read):.2g}')} times in a run"
    return f"{said}."


def _facts(result: AnalysisResult, runs: Runs) -> str:
    """Counts facts by group, and names their source and relations."""
    if result.curves is None:
        return ""
    counts = result.curves.groupby("group")["facts"].max()
    groups = [f"{int(counts[group]):,} {group}" for group in ("infused", "background", "control") if group in counts]
    said = fmt.listed(groups)
    source = _names([_part(result.study, "data", "facts")])
    if source:
        said += f", from {source[0]}"
    relations = sorted(set(runs.templates["relation"])) if len(runs.templates) else []
    if relations:
        said += f"; {plural(len(relations), 'relation')}: {first_of(relations, _LISTED)}"
    return f"{said}. Control facts are never shown."


def _background(records: list[dict[str, Any]]) -> str:
    """Says what happens to background facts as more is infused: that decides what a collapse means."""
    policies = Counter(str(record["background_policy"]) for record in records if record.get("background_policy"))
    if not policies:
        return ""
    shown = [_part(record, "plan", "background_frequency") for record in records]
    base = [_part(record, "plan", "background_base_frequency") for record in records]
    bases = sorted({float(value) for value in base if isinstance(value, int | float)})
    least = sorted(float(value) for value in shown if isinstance(value, int | float))
    times = f" {fmt.span(fmt.frequency(bases[0]), fmt.frequency(bases[-1]))} times each" if bases else ""
    groups = _strengths(records)
    if groups:
        often = fmt.listed([fmt.frequency(exposures) for exposures in groups])
        times = f" in {len(groups)} groups ({often} times each)"
    if list(policies) == ["displaced"]:
        said = f"They are in the general text and are shown{times} without infusion. Infusion displaces them with it"
        if bases and least and least[0] < bases[0]:
            mean = " on average" if groups else ""
            said += f", down to {fmt.frequency(least[0])} times{mean} at the largest dose"
        return f"{said}. A loss may have two causes: these facts are shown less, or others are learned after them."
    if list(policies) == ["protected"]:
        times = times or " a fixed number of times"
        return f"They are shown{times}, whatever is infused (protected). Lost facts are still shown."
    return f"Their policy differs between runs: {fmt.listed([f'{name} ({n} runs)' for name, n in policies.items()])}."


def _strengths(records: list[dict[str, Any]]) -> list[float]:
    """Returns how often each group of background facts is shown without infusion; empty where there is one group."""
    lists = [listed for record in records if isinstance(listed := record.get("background_groups"), list)]
    found = {_part(group, "frequency") for listed in lists if len(listed) > 1 for group in listed}
    return sorted(float(often) for often in found if isinstance(often, int | float))


def _models(records: list[dict[str, Any]]) -> str:
    found = {}
    for record in sorted(records, key=lambda item: item["params"]):
        model = record.get("model")
        layers, width = _part(model, "layers"), _part(model, "width")
        shape = f", {layers} layers of width {width}" if layers and width else ""
        name = _part(model, "name") if isinstance(model, dict) else model
        found[record["params"]] = f"{name or 'model'} ({record['params']:,} parameters{shape})"
    return f"{first_of(list(found.values()), _LISTED, separator='; ')}."


def _budget(records: list[dict[str, Any]]) -> str:
    said = []
    for tokens in sorted({record["tokens"] for record in records}):
        mine = [record for record in records if record["tokens"] == tokens]
        asked = {_part(record, "config", "training", "token_budget") for record in mine} - {None}
        whole = ""
        if len(asked) == 1 and (wanted := asked.pop()) != tokens and isinstance(wanted, int | float):
            whole = f" ({wanted:,.0f} in whole batches)"
        said.append(f"{tokens:,} tokens{whole}")
    text = f"{first_of(said, _LISTED)} in each run, whatever is infused: infused tokens take the place of general text"
    length = {_part(record, "plan", "sequence_length") for record in records} - {None}
    if len(length) == 1:
        text += f"; sequences of {length.pop()} tokens"
    precision = sorted({str(record["precision"]) for record in records if record.get("precision")})
    return f"{text}{f'; {fmt.listed(precision)}' if precision else ''}."


def _time_and_place(runs: Runs) -> str:
    """Says when the runs were trained, on what, and how long they took."""
    started, ended = [], []
    for name, record in runs.records.items():
        with contextlib.suppress(ValueError, TypeError):
            at = datetime.fromisoformat(str(record["started"])) if record.get("started") else None
            if at is not None:
                started.append(at)
                ended.append(at + timedelta(seconds=runs.seconds.get(name, 0.0)))
    said = []
    if started:
        first, last = min(started).date().isoformat(), max(ended).date().isoformat()
        said.append(f"{plural(len(runs.records), 'run')}, {fmt.span(first, last)}")
    devices = Counter(str(record["device"]) for record in runs.records.values() if record.get("device"))
    hosts = list(dict.fromkeys(str(host) for host in runs.runs["host"].dropna()))
    if devices or hosts:
        place = fmt.listed(sorted(devices)) or "device not recorded"
        said.append(place + (f" ({first_of(hosts, 3)})" if hosts else ""))
    if runs.seconds:
        each, total = sorted(runs.seconds.values()), sum(runs.seconds.values())
        span = fmt.span(duration(each[0]), duration(each[-1]))
        said.append(f"{span} per run, {duration(total)} in all")
    return f"{'; '.join(said)}." if said else ""


def _example(runs: Runs, split: str) -> Example | None:
    """Returns an infused fact with its question, decoded from what a run keeps of its inputs."""
    from megatron_kis.data_tools.tokenizers.registry import load_tokenizer

    found = ((path, runs.folder / name) for name in runs.runs["run"].head(_ASKED) for path in _questions(runs, name))
    questions, folder = next(found, (None, None))
    if questions is None or folder is None:
        return None
    rows = list(_rows_of_a_fact(questions, split))
    asked = next((row for row in rows if row["split"] == split), None)
    if asked is None:
        return None
    models = sorted(folder.glob(_TOKENIZERS))
    model = next(path for path in models if not path.name.endswith(".meta.json"))
    tokenizer = load_tokenizer(model)
    right = asked["options"][asked["answer"]]
    shown = next((row for row in rows if row["split"] == "train"), None)
    return Example(
        shown="" if shown is None else tokenizer.decode(shown["options"][shown["answer"]]["tokens"]).strip(),
        asked=tokenizer.decode(right["tokens"][: right["span"][0]]).strip(),
        options=[(str(option["text"]), at == asked["answer"]) for at, option in enumerate(asked["options"])],
    )


def _questions(runs: Runs, name: str) -> list[Path]:
    """Returns the file with the questions whose answers are used of a run; empty where it was not kept."""
    answers = runs.answers.get(name)
    return sorted((runs.folder / name).glob(_QUESTIONS) if answers is None else answers.glob(QUESTIONS_FILE))


def _rows_of_a_fact(path: Path, split: str) -> Iterator[dict[str, Any]]:
    """Yields the questions of the first infused fact that is asked in a split."""
    wanted, kept = None, []
    with steadily(lambda: open_content(path), path) as file, naming(path):
        for number, line in enumerate(file):
            if number > _SEARCHED:
                return
            row = json.loads(line)
            if row.get("group") != "infused":
                continue
            if wanted is not None and row["fact"] != wanted:
                break
            kept.append(row)
            if wanted is None and len({old["fact"] for old in kept}) > 1:
                kept = [row]
            if wanted is None and row["split"] == split:
                wanted = row["fact"]
    yield from (row for row in kept if row["fact"] == wanted)
