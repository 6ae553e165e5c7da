"""The runs that belong together: the settings and data of each, compared with the study's manifest and with the others.

The marks of a run are its settings (``identity.settings_of``), the fingerprints of its data and its resolved precision.
``study.json``, if there is one, lists the runs of the study with their settings and data. Then, with or without it, the
marks of all runs must agree: runs of one size also in the settings that may depend on the size, runs of one curve also
in how their tokens are fed. If they do not agree, the majority stays. A mark that a record does not have is not
compared with other runs. What runs were asked is not a mark: of the answers that a run has, those to the study's
questions are used (`wanted_by`, `majority_asking`).
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson

from megatron_kis.common.asked import Asking, asking_of
from megatron_kis.common.errors import InputError
from megatron_kis.common.files import read_json, steadily
from megatron_kis.common.identity import (
    ASKED,
    CELL,
    DATA,
    OF_THE_SIZE,
    OLDER_TOKENIZER,
    ORDER,
    QUESTIONS,
    RESULTLESS,
    STUDY_FILE,
    STUDY_SCHEMA,
    data_differences,
    differences,
    leaves,
    settings_of,
    within,
)
from megatron_kis.common.units import plural

_SETTINGS = "settings"
_TRAINED_ON = (*(name for name in DATA if name != QUESTIONS), ORDER)
_FINGERPRINTS = (*_TRAINED_ON, "start")
_CANDIDATES = 64  # the most frequent kinds of runs, for which the runs that agree are counted
_ROW = "name, number of its settings, budget, frequency, seed, facts, ratio"
_UNNAMED = "the study does not name it"

Marks = dict[str, Any]
"""Known properties of a run, by name; ``settings`` are leaves by dotted key."""


@dataclass(frozen=True)
class Marked:
    """A run with its settings and data."""

    run: str
    """Name of its folder."""
    params: int
    """N: number of parameters."""
    tokens: int
    """D: token budget."""
    shared: Marks
    """Marks that all runs of a study have in common."""
    of_the_size: Marks
    """Marks that runs of one N have in common."""
    of_the_curve: Marks
    """Marks that runs of one N and D have in common."""
    cell: dict[str, Any] = field(default_factory=dict)
    """Token budget, dose and seed by settings key; only frequency and seed if the record has no settings."""

    @property
    def settings(self) -> dict[str, Any] | None:
        """All settings except those of the cell; None if the record has none."""
        if _SETTINGS not in self.shared:
            return None
        return {**self.shared[_SETTINGS], **self.of_the_size[_SETTINGS]}


@dataclass(frozen=True)
class Manifest:
    """The runs of a study, as ``study.json`` lists them."""

    data: dict[str, str]
    """Fingerprints of the data by name; those not known yet are missing."""
    settings: list[dict[str, Any]]
    """Distinct settings as leaves by dotted key, without those of the cell."""
    runs: dict[str, tuple[int, dict[str, Any]]]
    """Index of the settings, and the settings of the cell, by name of the run."""
    older_tokenizer: str | None = None
    """Fingerprint of the tokenizer in older records, if it differs."""


def marked(records: Mapping[str, Mapping[str, Any]]) -> list[Marked]:
    """Returns the marks of runs, in their order.

    Args:
        records: content of run.json by the name of the run's folder.
    """
    known: dict[tuple[str, bytes], _Leaves] = {}  # thousands of runs share most sections of their configurations
    return [_marked(run, record, known) for run, record in records.items()]


_Leaves = dict[str, dict[str, Any]]
"""Leaves of settings by scope: ``study``, ``size`` or ``cell``."""


def _marked(run: str, record: Mapping[str, Any], known: dict[tuple[str, bytes], _Leaves]) -> Marked:
    shared: Marks = {}
    of_the_size: Marks = {}
    of_the_curve: Marks = {}
    cell: dict[str, Any] = {}
    config = record.get("config")
    settings = record.get("settings") or config
    if isinstance(settings, dict) and settings:
        by_scope = _settings_by_scope(settings, known)
        shared[_SETTINGS] = by_scope["study"]
        of_the_size[_SETTINGS] = by_scope["size"]
        cell = by_scope["cell"]
        if record.get("infusion_frequency"):  # at F = 0 the two cannot be told apart
            one = cell.get("infusion.frequency") is not None or cell.get("infusion.ratio") is not None
            shared["infusion.frequencies"] = "none" if one else "a file"
    else:
        cell = {"infusion.frequency": record.get("infusion_frequency"), "training.seed": record.get("seed")}
    if isinstance(config, dict) and config:
        of_the_curve["extends"] = "none" if config.get("extends") is None else "a finished run"
    policy = record.get("background_policy")
    if policy is not None and "infusion.background.policy" not in shared.get(_SETTINGS, ()):
        shared["background policy"] = str(policy)
    if record.get("precision"):
        shared["precision"] = str(record["precision"])
    prints = record.get("fingerprints")
    if isinstance(prints, dict):
        shared |= {name: str(prints[name]) for name in _TRAINED_ON if prints.get(name)}
        if _SETTINGS in shared:
            of_the_size["start"] = str(prints.get("start") or "none")
    return Marked(run, record["params"], record["tokens"], shared, of_the_size, of_the_curve, cell)


def _settings_by_scope(settings: Mapping[str, Any], known: dict[tuple[str, bytes], _Leaves]) -> _Leaves:
    whole: _Leaves = {"study": {}, "size": {}, "cell": {}}
    for name, section in settings.items():
        if within(name, RESULTLESS) or within(name, ASKED):
            continue
        key = name, _bytes(section)
        if key not in known:
            known[key] = {"study": {}, "size": {}, "cell": {}}
            for leaf, value in leaves(settings_of({name: section})):
                scope = "cell" if within(leaf, CELL) else "size" if within(leaf, OF_THE_SIZE) else "study"
                known[key][scope][leaf] = value
        for scope, found in known[key].items():
            whole[scope].update(found)
    return whole


def _bytes(content: Any) -> bytes:
    """Returns JSON that is the same for the same content."""
    try:
        return orjson.dumps(content, option=orjson.OPT_SORT_KEYS)
    except TypeError:  # numbers and texts that orjson does not support
        return json.dumps(content, sort_keys=True).encode()


def wanted_by(manifest: Manifest, run: str) -> Asking | None:
    """Returns the questions that a study asks a run; None if it does not name the run."""
    if run not in manifest.runs:
        return None
    index, _ = manifest.runs[run]
    return asking_of(manifest.data.get(QUESTIONS), manifest.settings[index])


def majority_asking(askings: Sequence[Sequence[Asking]]) -> Asking | None:
    """Returns the questions to which most runs have answers; of equally frequent ones the latest.

    Args:
        askings: of each run, its own ones first, then those of later times.
    """
    latest = {one: place for own in askings for place, one in enumerate(own) if one != Asking(None, None)}
    if not latest:
        return None
    kinds = Counter(tuple(own) for own in askings)  # thousands of runs were asked the same
    counts = {
        one: sum(count for own, count in kinds.items() if any(other.fits(one) for other in own)) for one in latest
    }
    return max(latest, key=lambda one: (counts[one], latest[one]))


def manifest_near(folder: Path) -> Manifest | None:
    """Returns the manifest of a study's folder, also for its folder ``runs``; None if there is none.

    Raises:
        InputError: it is damaged.
    """
    own = (Path(os.path.abspath(folder)), folder.resolve())  # noqa: PTH100 - the link before its target
    for place in (folder, *(path.parent for path in own if path.name == "runs")):
        path = place / STUDY_FILE
        if steadily(path.is_file, path):
            return parse_manifest(read_json(path, STUDY_SCHEMA), where=str(path))
    return None


def parse_manifest(content: Mapping[str, Any], *, where: str = STUDY_FILE) -> Manifest:
    """Checks the content of a ``study.json``.

    Raises:
        InputError: it is not in the format of ``docs/files.md``; the message names the place.
    """

    def wrong(what: str, problem: str) -> InputError:
        return InputError(problem, where=f"{where}: {what}", remedy="kis study run writes the file again")

    data = content.get("data")
    settings = content.get("settings")
    rows = content.get("runs")
    if not isinstance(data, Mapping):
        raise wrong("data", "not a mapping of fingerprints")
    if not isinstance(settings, list) or not all(isinstance(item, dict) for item in settings):
        raise wrong("settings", "not a list of settings")
    if not isinstance(rows, list):
        raise wrong("runs", "not a list of runs")
    runs: dict[str, tuple[int, dict[str, Any]]] = {}
    for number, row in enumerate(rows):
        if not _is_row(row):
            raise wrong(f"runs.{number}", f"is not [{_ROW}]")
        name, index, budget, frequency, seed, facts, ratio = [*row, None, None][:7]
        if not 0 <= index < len(settings):
            raise wrong(f"runs.{number}", f"there are no settings with the number {index}")
        if name in runs:
            raise wrong(f"runs.{number}", f"names {name!r} again")
        of_cell = {"training.token_budget": budget, "training.seed": seed}
        dose = {"infusion.facts": facts, "infusion.frequency": frequency, "infusion.ratio": ratio}
        runs[name] = index, of_cell | {key: value for key, value in dose.items() if value is not None}
    flat = [{key: value for key, value in leaves(settings_of(item)) if not within(key, CELL)} for item in settings]
    prints = {str(name): str(value) for name, value in data.items() if value}
    older = prints.pop(OLDER_TOKENIZER, None)
    return Manifest(prints, flat, runs, older)


def _is_row(row: Any) -> bool:
    """Returns whether an entry of ``runs`` has the form of ``_ROW``; the last two are left out where both are null."""
    return isinstance(row, list) and len(row) in (5, 7) and isinstance(row[0], str) and type(row[1]) is int


def apart(runs: Sequence[Marked], manifest: Manifest | None) -> dict[str, str]:
    """Returns the runs that do not belong with the others: the difference in words, by name.

    Args:
        runs: all complete runs, ordered by name; of groups of the same number the first stays.
        manifest: the runs of the study, if known.
    """
    reasons: dict[str, str] = {}
    if manifest is not None and manifest.older_tokenizer is not None:
        runs = [_as_today(run, manifest) for run in runs]
    if manifest is not None:
        reasons = {run.run: reason for run in runs if (reason := _from_manifest(run, manifest))}
    runs = [run for run in runs if run.run not in reasons]
    odd: dict[str, tuple[int, list[str]]] = {}
    for marks, together in _LEVELS:
        groups: dict[Any, list[Marked]] = {}
        for run in runs:
            if run.run not in odd:
                groups.setdefault(together(run), []).append(run)
        wanted = {key: _majority_marks(group, marks) for key, group in groups.items()}
        differ = {run.run: _differing(marks(run), wanted.get(together(run), {})) for run in runs}
        for group in groups.values():
            stay = sum(not differ[run.run] for run in group)
            odd |= {run.run: (stay, []) for run in group if differ[run.run]}
        for name, (_, found) in odd.items():  # also further differences of a run that is out already
            found.extend(differ[name])
    for name, (stay, found) in odd.items():
        reasons[name] = f"unlike {plural(stay, 'run')} here: {'; '.join(found)}"
    return reasons


_LEVELS: tuple[tuple[Callable[[Marked], Marks], Callable[[Marked], Any]], ...] = (
    (lambda run: run.shared, lambda run: ()),
    (lambda run: run.of_the_size, lambda run: run.params),
    (lambda run: run.of_the_curve, lambda run: (run.params, run.tokens)),
)
"""Marks, and a key of the runs among which they are compared."""


def _from_manifest(run: Marked, manifest: Manifest) -> str:
    """Returns the reason why a run is not one of the study; empty if it is."""
    settings = run.settings
    data = {name: run.shared.get(name) for name in manifest.data if name != QUESTIONS}
    if settings is None:  # of another trainer: marks that it does not have are not compared
        data = {name: value for name, value in data.items() if value is not None}
    differ = data_differences(data, {name: manifest.data[name] for name in data})
    if run.run not in manifest.runs:
        near = [differences(settings, own, but=ASKED) for own in manifest.settings] if settings is not None else []
        return "; ".join([_UNNAMED, *min(near, key=len, default=[]), *differ])
    index, cell = manifest.runs[run.run]
    stated = {key: value for key, value in run.cell.items() if value is not None}
    wanted = cell
    if settings is None:  # F is recorded also where the ratio was given
        stated = {key: value for key, value in stated.items() if key in cell}
        wanted = {key: value for key, value in cell.items() if key in stated}
    found = differences(settings, manifest.settings[index], but=ASKED) if settings is not None else []
    return "; ".join([*found, *differences(stated, wanted), *differ])


def _as_today(run: Marked, manifest: Manifest) -> Marked:
    """Returns a run with the fingerprint that its tokenizer has today."""
    if run.shared.get("tokenizer") != manifest.older_tokenizer or "tokenizer" not in manifest.data:
        return run
    return replace(run, shared={**run.shared, "tokenizer": manifest.data["tokenizer"]})


def _majority_marks(runs: Sequence[Marked], marks: Callable[[Marked], Marks]) -> Marks:
    """Returns the marks of the majority; of equally frequent ones those of the first run."""
    kinds = [_bytes(marks(run)) for run in runs]
    counts = Counter(kinds)  # in the order of the runs
    if len(counts) == 1:
        return marks(runs[0])
    representatives = {kind: marks(runs[kinds.index(kind)]) for kind in counts}
    with_them = {
        kind: sum(counts[other] for other, one in representatives.items() if _agree(one, representatives[kind]))
        for kind, _ in counts.most_common(_CANDIDATES)
    }
    first = {kind: place for place, kind in enumerate(counts)}
    wanted = dict(representatives[max(with_them, key=lambda kind: (with_them[kind], -first[kind]))])
    for name in sorted({name for one in representatives.values() for name in one} - set(wanted)):
        # The majority does not have it: the majority of the runs that have it and agree otherwise decides.
        stated = [
            (one[name], counts[kind]) for kind, one in representatives.items() if name in one and _agree(one, wanted)
        ]
        if stated:
            wanted[name] = _most_frequent(stated)
    return wanted


def _most_frequent(values: Sequence[tuple[Any, int]]) -> Any:
    """Returns the value with the most runs; of equally frequent ones the first."""
    totals: list[tuple[Any, int]] = []
    for value, count in values:
        at = next((place for place, (other, _) in enumerate(totals) if other == value), None)
        if at is None:
            totals.append((value, count))
        else:
            totals[at] = value, totals[at][1] + count
    return max(totals, key=lambda item: item[1])[0]


def _agree(marks: Marks, wanted: Marks) -> bool:
    """Returns whether the marks that both have are equal."""
    return all(value == wanted[name] for name, value in marks.items() if name in wanted)


def _differing(marks: Marks, wanted: Marks) -> list[str]:
    """Lists the marks that both have and that differ, as ``key then -> now``."""
    found = []
    for name, value in marks.items():
        if name not in wanted or value == wanted[name]:
            continue
        if name == _SETTINGS:
            found += differences(value, wanted[name])
        else:
            compared = data_differences if name in _FINGERPRINTS else differences
            found += compared({name: value}, {name: wanted[name]})
    return found
