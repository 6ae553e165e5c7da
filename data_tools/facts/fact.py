"""Facts and triples: the records, and the file ``facts.jsonl``.

A row is ``{"id", "subject", "relation", "object", "group", "subject_aliases", "object_aliases", "subject_id",
"object_id", "source_object"}``, the last five optional; the group is ``infused`` (the domain knowledge under study),
``background`` (earlier knowledge whose retention is watched) or ``control`` (never shown).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatron_kis.common.errors import InputError
from megatron_kis.common.files import read_json_lines, write_json_lines
from megatron_kis.common.terms import GROUPS
from megatron_kis.data_tools.facts.fields import (
    check_relation,
    check_text,
    has_content,
    id_field,
    one_line,
    optional_field,
    string_field,
    strings_field,
)


@dataclass(frozen=True, slots=True)
class Fact:
    """A fact of the study."""

    id: str
    """Id, unique within a file."""
    subject: str
    """Name of the subject."""
    relation: str
    """Key of the relation, as in ``templates.yaml``."""
    object: str
    """Name of the object: the right answer."""
    group: str
    """``infused``, ``background`` or ``control``."""
    subject_aliases: tuple[str, ...] = ()
    """Other names of the subject; used in decontamination."""
    object_aliases: tuple[str, ...] = ()
    """Other names of the object; used in decontamination, and never distractors."""
    subject_id: str = ""
    """Id of the subject's entity in the source, such as a Wikidata item; empty if it has none."""
    object_id: str = ""
    """Id of the object's entity; empty if the source has none."""
    source_object: str = ""
    """The object in the source, if the objects were permuted (empty otherwise). It is never a distractor."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """An imported triple: a candidate for a fact of a study."""

    subject: str
    """Name of the subject."""
    relation: str
    """Key of the relation."""
    object: str
    """Name of the object."""
    where: str
    """Place of origin, ``file:line``."""
    id: str = ""
    """Id of the triple; empty if the source has none."""
    subject_id: str = ""
    """Id of the subject's entity if the source has one: distinguishes two entities of one name."""
    object_id: str = ""
    """Id of the object's entity if the source has one: identifies two names of one entity."""
    subject_aliases: tuple[str, ...] = ()
    """Other names of the subject."""
    object_aliases: tuple[str, ...] = ()
    """Other names of the object."""
    source_object: str = ""
    """The object in the source, if the objects were permuted; empty otherwise."""


def load_facts(path: Path) -> list[Fact]:
    """Reads ``facts.jsonl``.

    Raises:
        InputError: with ``file:line``, where a fact lacks a field, has an unknown group, a name without a letter,
            number or symbol, an invalid relation, or a repeated id.
    """
    facts: list[Fact] = []
    seen: dict[str, str] = {}
    for number, row in read_json_lines(path):
        where = f"{path}:{number}"
        subject = string_field(row, "subject", where)
        relation = string_field(row, "relation", where)
        answer = string_field(row, "object", where)
        check_relation(relation, where)
        subject, answer = one_line(subject), one_line(answer)
        check_text(subject, "subject", where)
        check_text(answer, "object", where)
        for key, name in (("subject", subject), ("object", answer)):
            if not has_content(name):
                remedy = "a name has a letter, number or symbol"
                raise InputError(f"{key} is not a name: {name!r}", where=where, remedy=remedy)
        identifier = id_field(row, "id", where)
        if not identifier:
            raise InputError("id is missing", where=where, remedy="every fact needs an id of its own")
        group = string_field(row, "group", where)
        if group not in GROUPS:
            raise InputError(f"group is {group!r}", where=where, remedy=f"valid: {', '.join(GROUPS)}")
        if identifier in seen:
            raise InputError(f"id {identifier!r} is taken by {seen[identifier]}", where=where)
        seen[identifier] = where
        aliases = (strings_field(row, "subject_aliases", where), strings_field(row, "object_aliases", where))
        entities = (id_field(row, "subject_id", where), id_field(row, "object_id", where))
        source_object = optional_field(row, "source_object", where)
        facts.append(Fact(identifier, subject, relation, answer, group, *aliases, *entities, source_object))
    if not facts:
        raise InputError("no facts", where=str(path))
    return facts


def write_facts(path: Path, facts: Iterable[Fact]) -> int:
    """Writes ``facts.jsonl`` and returns the number of facts."""
    return write_json_lines(path, map(fact_row, facts))


def fact_row(fact: Fact) -> dict[str, Any]:
    """Returns a fact as a row of ``facts.jsonl``; ``source_object`` is there only if the objects were permuted."""
    row = asdict(fact)
    if not fact.source_object:
        del row["source_object"]
    return row
