"""Facts: the record, its file ``facts.jsonl``, and import from triples.

A row of ``facts.jsonl`` is ``{"id", "subject", "relation", "object", "subject_aliases", "object_aliases", "group"}``;
the group is ``infused`` (the domain knowledge under study), ``background`` (earlier knowledge whose retention is
watched) or ``control`` (never shown).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_tools.text import read_lines
from megatron_kis.errors import InputError
from megatron_kis.files import read_json_lines, write_json_lines

GROUPS = ("infused", "background", "control")
"""The fact groups, in the order of the file."""

_COLUMNS = ("subject", "relation", "object")


@dataclass(frozen=True, slots=True)
class Fact:
    """A fact of the study."""

    id: str
    """Unique within a file."""
    subject: str
    """Name of the subject."""
    relation: str
    """Key of the relation, as in ``templates.yaml``."""
    object: str
    """Name of the object: the right answer."""
    group: str
    """``infused``, ``background`` or ``control``."""
    subject_aliases: tuple[str, ...] = ()
    """Other names of the subject; used to find leaks."""
    object_aliases: tuple[str, ...] = ()
    """Other names of the object; used to find leaks, and never distractors."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """An imported triple, before a study takes it."""

    subject: str
    """Name of the subject."""
    relation: str
    """Key of the relation."""
    object: str
    """Name of the object."""
    where: str
    """``file:line`` it came from."""
    id: str = ""
    """Given id, or empty."""
    entity: str = ""
    """Id of the subject's entity where the source gives one: tells two bearers of a name apart."""
    subject_aliases: tuple[str, ...] = ()
    """Other names of the subject."""
    object_aliases: tuple[str, ...] = ()
    """Other names of the object."""


def import_tsv(path: Path) -> Iterator[Candidate]:
    """Reads ``subject<TAB>relation<TAB>object`` lines; a header line with these names is skipped.

    Raises:
        InputError: with ``file:line``, where a line has another number of fields or an empty one.
    """
    for number, line in read_lines(path):
        where = f"{path}:{number}"
        fields = [field.strip() for field in line.split("\t")]
        if number == 1 and tuple(field.casefold() for field in fields) == _COLUMNS:
            continue
        if len(fields) != len(_COLUMNS):
            missing = "object is missing" if len(fields) == 2 else f"{len(fields)} fields"
            remedy = "expected subject, relation and object between tabs"
            raise InputError(f"{missing}: {line[:60]!r}", where=where, remedy=remedy)
        for name, field in zip(_COLUMNS, fields, strict=True):
            if not field:
                raise InputError(f"{name} is missing", where=where, remedy="every fact needs all three")
        subject, relation, answer = fields
        yield Candidate(subject, relation, answer, where)


def import_jsonl(path: Path) -> Iterator[Candidate]:
    """Reads JSON lines with ``subject``, ``relation``, ``object`` and optionally ``id``, ``subject_id``, aliases.

    Raises:
        InputError: with ``file:line``, where a line is malformed or lacks a field.
    """
    for number, row in read_json_lines(path):
        where = f"{path}:{number}"
        subject, relation, answer = (_string(row, key, where) for key in _COLUMNS)
        yield Candidate(
            subject,
            relation,
            answer,
            where=where,
            id=str(row.get("id") or ""),
            entity=str(row.get("subject_id") or ""),
            subject_aliases=_strings(row, "subject_aliases", where),
            object_aliases=_strings(row, "object_aliases", where),
        )


IMPORTERS = {"tsv": import_tsv, "jsonl": import_jsonl}
"""Reader of each format."""


def load_facts(path: Path) -> list[Fact]:
    """Reads ``facts.jsonl``.

    Raises:
        InputError: with ``file:line``, where a fact lacks a field, has an unknown group or an id for the second time.
    """
    facts: list[Fact] = []
    seen: dict[str, str] = {}
    for number, row in read_json_lines(path):
        where = f"{path}:{number}"
        subject, relation, answer = (_string(row, key, where) for key in _COLUMNS)
        identifier = _string(row, "id", where)
        group = _string(row, "group", where)
        if group not in GROUPS:
            raise InputError(f"group is {group!r}", where=where, remedy=f"valid: {', '.join(GROUPS)}")
        if identifier in seen:
            raise InputError(f"id {identifier!r} is taken by {seen[identifier]}", where=where)
        seen[identifier] = where
        aliases = (_strings(row, "subject_aliases", where), _strings(row, "object_aliases", where))
        facts.append(Fact(identifier, subject, relation, answer, group, *aliases))
    if not facts:
        raise InputError("no facts", where=str(path))
    return facts


def write_facts(path: Path, facts: Iterable[Fact]) -> int:
    """Writes ``facts.jsonl`` and returns the number of facts."""
    return write_json_lines(path, (asdict(fact) for fact in facts))


def _string(row: dict[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if value is None or (isinstance(value, str) and not value.strip()):
        raise InputError(f"{key} is missing", where=where, remedy="every fact needs subject, relation and object")
    if not isinstance(value, str):
        raise InputError(f"{key} is {type(value).__name__}, not a string", where=where)
    return value.strip()


def _strings(row: dict[str, Any], key: str, where: str) -> tuple[str, ...]:
    value = row.get(key) or []
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise InputError(f"{key} is not a list of strings", where=where)
    return tuple(name.strip() for name in value if name.strip())
