"""Which runs belong together: what each was made with, compared with the study's manifest and with one another.

One mechanism for all. A run is marked with its settings (``identity.settings_of``), the fingerprints of its data and
its resolved precision. ``study.json``, where there is one, names the runs of the study and what they are made with.
Then, with or without it, the marks of all runs must agree, those of one size also in what a size may have of its own,
and those of one curve also in how their tokens are fed; where they do not, the most runs stay. What a record does not
say is not compared with other runs.
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

from megatron_kis.common.errors import InputError
from megatron_kis.common.files import read_json, steadily
from megatron_kis.common.identity import (
    CELL,
    DATA,
    OF_THE_SIZE,
    OLDER_TOKENIZER,
    RESULTLESS,
    STUDY_FILE,
    STUDY_SCHEMA,
    data_differences,
    differences,
    leaves,
    settings_of,
    within,
)

_SETTINGS = "settings"
_FINGERPRINTS = (*DATA, "start")
_CANDIDATES = 64  # kinds of runs, of those with the most, for which it is counted how many go with them
_UNNAMED = "the study does not name it"

Marks = dict[str, Any]
"""What is known of a run, by name; ``settings`` are leaves by dotted key."""


@dataclass(frozen=True)
class Marked:
    """A run and what it was made with."""

    run: str
    """Name of its folder."""
    params: int
    """N."""
    tokens: int
    """D."""
    shared: Marks
    """What all runs of a study have in common."""
    of_the_size: Marks
    """What runs of one N have in common."""
    of_the_curve: Marks
    """What runs of one N and D have in common."""
    cell: dict[str, Any] = field(default_factory=dict)
    """Budget, frequency and seed as the settings say them; frequency and seed alone where there are none."""

    @property
    def settings(self) -> dict[str, Any] | None:
        """All settings but those of the cell; None if the record has none."""
        if _SETTINGS not in self.shared:
            return None
        return {**self.shared[_SETTINGS], **self.of_the_size[_SETTINGS]}


@dataclass(frozen=True)
class Manifest:
    """Which runs are a study's."""

    data: dict[str, str]
    """Fingerprints by what they are of; those not known yet are missing."""
    settings: list[dict[str, Any]]
    """Distinct settings as leaves by dotted key, without those of the cell."""
    runs: dict[str, tuple[int, dict[str, Any]]]
    """By name: which of the settings, and those of the cell."""
    older_tokenizer: str | None = None
    """What older records have as the fingerprint of the tokenizer, where that is another one."""


def marked(records: Mapping[str, Mapping[str, Any]]) -> list[Marked]:
    """The marks of runs, in their order.

    Args:
        records: run.json of each, by the name of its folder.
    """
    known: dict[tuple[str, bytes], _Placed] = {}  # thousands of runs share most sections of their configurations
    return [_marked(run, record, known) for run, record in records.items()]


_Placed = dict[str, dict[str, Any]]
"""Leaves of settings by what they belong to: ``study``, ``size`` or ``cell``."""


def _marked(run: str, record: Mapping[str, Any], known: dict[tuple[str, bytes], _Placed]) -> Marked:
    shared: Marks = {}
    of_the_size: Marks = {}
    of_the_curve: Marks = {}
    cell: dict[str, Any] = {}
    config, said = record.get("config"), record.get("settings") or record.get("config")
    if isinstance(said, dict) and said:
        own = _own_settings(said, known)
        shared[_SETTINGS], of_the_size[_SETTINGS], cell = own["study"], own["size"], own["cell"]
        if record.get("infusion_frequency"):  # with none, nothing tells the two apart
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
        shared |= {name: str(prints[name]) for name in DATA if prints.get(name)}
        if _SETTINGS in shared:
            of_the_size["start"] = str(prints.get("start") or "none")
    return Marked(run, record["params"], record["tokens"], shared, of_the_size, of_the_curve, cell)


def _own_settings(said: Mapping[str, Any], known: dict[tuple[str, bytes], _Placed]) -> _Placed:
    whole: _Placed = {"study": {}, "size": {}, "cell": {}}
    for name, section in said.items():
        if within(name, RESULTLESS):
            continue
        key = name, _bytes(section)
        if key not in known:
            known[key] = {"study": {}, "size": {}, "cell": {}}
            for leaf, value in leaves(settings_of({name: section})):
                place = "cell" if within(leaf, CELL) else "size" if within(leaf, OF_THE_SIZE) else "study"
                known[key][place][leaf] = value
        for place, found in known[key].items():
            whole[place].update(found)
    return whole


def _bytes(content: Any) -> bytes:
    """JSON, the same for the same content."""
    try:
        return orjson.dumps(content, option=orjson.OPT_SORT_KEYS)
    except TypeError:  # numbers and texts that it does not know
        return json.dumps(content, sort_keys=True).encode()


def manifest_near(folder: Path) -> Manifest | None:
    """The manifest of a study's folder, or of the one that holds a folder ``runs``; None where there is none.

    Raises:
        InputError: it is damaged.
    """
    own = (Path(os.path.abspath(folder)), folder.resolve())  # noqa: PTH100 - a link's own place first
    for place in (folder, *(path.parent for path in own if path.name == "runs")):
        path = place / STUDY_FILE
        if steadily(path.is_file, path):
            return parse_manifest(read_json(path, STUDY_SCHEMA), where=str(path))
    return None


def parse_manifest(content: Mapping[str, Any], *, where: str = STUDY_FILE) -> Manifest:
    """Checks the content of a ``study.json``.

    Raises:
        InputError: something in it is not as ``docs/files.md`` says, with its place.
    """

    def wrong(what: str, problem: str) -> InputError:
        return InputError(problem, where=f"{where}: {what}", remedy="kis study run writes the file again")

    data, settings, rows = (content.get(name) for name in ("data", "settings", "runs"))
    if not isinstance(data, Mapping):
        raise wrong("data", "not a mapping of fingerprints")
    if not isinstance(settings, list) or not all(isinstance(item, dict) for item in settings):
        raise wrong("settings", "not a list of settings")
    if not isinstance(rows, list):
        raise wrong("runs", "not a list of runs")
    runs: dict[str, tuple[int, dict[str, Any]]] = {}
    for number, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != 5 or not isinstance(row[0], str) or type(row[1]) is not int:
            raise wrong(f"runs.{number}", "is not [name, number of its settings, budget, frequency, seed]")
        name, index, budget, frequency, seed = row
        if not 0 <= index < len(settings):
            raise wrong(f"runs.{number}", f"there are no settings {index}")
        if name in runs:
            raise wrong(f"runs.{number}", f"names {name!r} again")
        of_cell = {"training.token_budget": budget, "training.seed": seed}
        runs[name] = index, of_cell | ({} if frequency is None else {"infusion.frequency": frequency})
    flat = [{key: value for key, value in leaves(settings_of(item)) if not within(key, CELL)} for item in settings]
    prints = {str(name): str(value) for name, value in data.items() if value}
    older = prints.pop(OLDER_TOKENIZER, None)
    return Manifest(prints, flat, runs, older)


def apart(runs: Sequence[Marked], manifest: Manifest | None) -> dict[str, str]:
    """The runs that do not belong with the others, by name, and what differs.

    Args:
        runs: all complete runs, ordered by name; of equally many the first stay.
        manifest: which runs are the study's, if that is known.
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
        wanted = {key: _of_most(group, marks) for key, group in groups.items()}
        differ = {run.run: _differing(marks(run), wanted.get(together(run), {})) for run in runs}
        for group in groups.values():
            stay = sum(not differ[run.run] for run in group)
            odd |= {run.run: (stay, []) for run in group if differ[run.run]}
        for name, (_, found) in odd.items():  # also what else differs in a run that is out already
            found.extend(differ[name])
    for name, (stay, found) in odd.items():
        reasons[name] = f"unlike {stay} run{'s' * (stay != 1)} here: {'; '.join(found)}"
    return reasons


_LEVELS: tuple[tuple[Callable[[Marked], Marks], Callable[[Marked], Any]], ...] = (
    (lambda run: run.shared, lambda run: ()),
    (lambda run: run.of_the_size, lambda run: run.params),
    (lambda run: run.of_the_curve, lambda run: (run.params, run.tokens)),
)
"""Marks, and the runs among which they are compared."""


def _from_manifest(run: Marked, manifest: Manifest) -> str:
    """Why a run is not the study's; empty if it is."""
    settings, data = run.settings, {name: run.shared.get(name) for name in manifest.data}
    if settings is None:  # of another trainer: what it does not say is not compared
        data = {name: value for name, value in data.items() if value is not None}
    differ = data_differences(data, {name: manifest.data[name] for name in data})
    if run.run not in manifest.runs:
        near = [differences(settings, own) for own in manifest.settings] if settings is not None else []
        return "; ".join([_UNNAMED, *min(near, key=len, default=[]), *differ])
    index, cell = manifest.runs[run.run]
    said = {key: value for key, value in run.cell.items() if value is not None}
    wanted = cell if settings is not None else {key: value for key, value in cell.items() if key in said}
    found = differences(settings, manifest.settings[index]) if settings is not None else []
    return "; ".join([*found, *differences(said, wanted), *differ])


def _as_today(run: Marked, manifest: Manifest) -> Marked:
    """A run with the fingerprint that its tokenizer has today."""
    if run.shared.get("tokenizer") != manifest.older_tokenizer or "tokenizer" not in manifest.data:
        return run
    return replace(run, shared={**run.shared, "tokenizer": manifest.data["tokenizer"]})


def _of_most(runs: Sequence[Marked], marks: Callable[[Marked], Marks]) -> Marks:
    """The marks that the most runs have; of equally many those of the first."""
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
        # The most do not say it: of those that do and agree otherwise, the most again.
        said = [
            (one[name], counts[kind]) for kind, one in representatives.items() if name in one and _agree(one, wanted)
        ]
        if said:
            wanted[name] = _most_said(said)
    return wanted


def _most_said(values: Sequence[tuple[Any, int]]) -> Any:
    """The value with the most runs; of equally many the first."""
    totals: list[tuple[Any, int]] = []
    for value, count in values:
        at = next((place for place, (other, _) in enumerate(totals) if other == value), None)
        if at is None:
            totals.append((value, count))
        else:
            totals[at] = value, totals[at][1] + count
    return max(totals, key=lambda item: item[1])[0]


def _agree(marks: Marks, wanted: Marks) -> bool:
    """Whether what both say is the same."""
    return all(value == wanted[name] for name, value in marks.items() if name in wanted)


def _differing(marks: Marks, wanted: Marks) -> list[str]:
    """``key then -> now`` of what both say and say differently."""
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
