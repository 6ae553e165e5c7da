"""What a run was asked: which questions, and which of them.

A run's own logs hold the answers to the questions that it was trained with. Answers to others are kept next to them, in
a folder for each set of questions:

| file in ``RUN/asked/<key>/`` | content |
|---|---|
| ``probes.jsonl`` | rows as in the run's own file, of its last step |
| ``outcomes/`` | one record per question, as the run's own |
| ``questions.jsonl.gz`` | the questions; SHA-256 of what is compressed is their fingerprint |
| ``asked.json`` | written last: ``questions``, ``probes`` (the choice among them), step, time, hashes of the files |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_kis.common.errors import InputError
from megatron_kis.common.files import fingerprint, read_json, steadily
from megatron_kis.common.identity import ASKED, QUESTIONS, leaves, short, within

FOLDER = "asked"
FILE, SCHEMA = "asked.json", "kis.asked/1"
PROBES, OUTCOMES, QUESTIONS_FILE = "probes.jsonl", "outcomes", "questions.jsonl.gz"

CHOICE = ("probes.templates", "probes.facts_per_group")
"""Settings that choose among the questions of a file; the moments of asking and the batches do not count."""


@dataclass(frozen=True)
class Asking:
    """A set of questions."""

    questions: str | None
    """Fingerprint of their file; None where it is not known."""

    choice: tuple[tuple[str, Any], ...] | None
    """Settings that choose among them, as dotted keys and values; None where they are not known."""

    @property
    def key(self) -> str:
        """Name of the folder with the answers."""
        return fingerprint([self.questions, self.choice])[:12]

    def fits(self, wanted: Asking) -> bool:
        """Returns whether these are the questions that are wanted, as far as both are known."""
        pairs = ((self.questions, wanted.questions), (self.choice, wanted.choice))
        return all(None in pair or pair[0] == pair[1] for pair in pairs)

    def differences(self, wanted: Asking) -> list[str]:
        """Returns ``key then -> now`` of what differs from the questions that are wanted."""
        found = []
        if None not in (self.questions, wanted.questions) and self.questions != wanted.questions:
            found.append(f"{QUESTIONS} {short(self.questions)} -> {short(wanted.questions)}")
        then, now = dict(self.choice or ()), dict(wanted.choice or ())
        if self.choice is not None and wanted.choice is not None:
            keys = [key for key in {**then, **now} if then.get(key, _NONE) != now.get(key, _NONE)]
            found += [f"{key} {_shown(then, key)} -> {_shown(now, key)}" for key in keys]
        return found


_NONE = object()


def _shown(choice: Mapping[str, Any], key: str) -> str:
    value = choice.get(key, 0 if key.startswith(CHOICE[0]) else None)
    return "all" if value is None else str(value)


def asking_of(questions: str | None, settings: Mapping[str, Any] | None) -> Asking:
    """Returns what a run with these settings is asked.

    Args:
        questions: fingerprint of the file of questions.
        settings: settings of a run, nested, or with dotted keys; None if they are not known.
    """
    flat = {key: value for key, value in leaves(settings or {}) if within(key, ASKED)}
    if not flat:
        return Asking(questions, None)
    flat = {key: value for key, value in flat.items() if within(key, CHOICE)}
    # No template of a split is as if the split were not named; all facts are the default.
    choice = {key: value for key, value in flat.items() if value != (0 if within(key, CHOICE[:1]) else None)}
    return Asking(questions, tuple(sorted(choice.items())))


def own_asking(record: Mapping[str, Any]) -> Asking:
    """Returns what a run was asked while it was trained, as its ``run.json`` says."""
    prints = record.get("fingerprints")
    found = prints.get(QUESTIONS) if isinstance(prints, dict) else None
    settings = record.get("settings") or record.get("config")
    return asking_of(None if found is None else str(found), settings if isinstance(settings, dict) else None)


def check_folder(run: Path) -> None:
    """Refuses a run whose folder has no place for answers, or answers with a damaged record.

    Raises:
        InputError: a file has the folder's name, or a record is damaged.
    """
    folder = run / FOLDER
    if folder.exists() and not folder.is_dir():
        raise InputError(
            "is a file, not a folder", where=str(folder), remedy="move it away, then run the command again"
        )
    answers_of(run)


def answers_of(run: Path) -> dict[Asking, Path]:
    """Returns what a run was asked since it ended, and the folders of the answers; the latest comes last.

    Raises:
        InputError: a record is damaged.
    """
    folder = run / FOLDER
    if not folder.is_dir():
        return {}

    def names() -> list[str]:
        return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))

    found: list[tuple[str, Asking, Path]] = []
    for name in steadily(names, folder):
        path = folder / name / FILE
        try:
            record = read_json(path, SCHEMA, keys=(QUESTIONS, "probes", "asked", "files"))
            if not isinstance(record["probes"], dict):
                raise InputError("'probes' is not an object", where=str(path))
        except InputError as error:
            remedy = f"remove the folder {folder / name}, and ask again with kis study probe"
            raise InputError(error.problem, where=error.where, remedy=remedy) from None
        asking = asking_of(str(record[QUESTIONS]), {"probes": record["probes"]})
        found.append((str(record["asked"]), asking, folder / name))
    return {asking: place for _, asking, place in sorted(found, key=lambda one: (one[0], one[2].name))}


def place_of_answers(run: Path, record: Mapping[str, Any], wanted: Asking) -> Path | None:
    """Returns the folder with a run's answers to these questions: its own, or one in ``asked``; None if it has none.

    Raises:
        InputError: a record is damaged.
    """
    if own_asking(record).fits(wanted):
        return run
    return next((place for asking, place in answers_of(run).items() if asking.fits(wanted)), None)


def has_answers(run: Path, record: Mapping[str, Any], wanted: Asking) -> bool:
    """Returns whether a run has answers to these questions; not if a record of answers is damaged."""
    try:
        return place_of_answers(run, record, wanted) is not None
    except InputError:  # asking the run, and its analysis, name the record
        return False
