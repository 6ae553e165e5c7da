"""Exports facts to other tools: data sets in the format of BEAR and LM-Pub-Quiz.

``OUTPUT/<group>/<relation>.jsonl`` and ``OUTPUT/<group>/metadata_relations.json``: one data set per group, because an
option must be an object of the fact's own group (see ``rendering.questions``) and the format has one answer space per
relation. ``lm_pub_quiz.Dataset.from_path(OUTPUT/<group>)`` reads it; so does the importer ``bear``.

An object has one label in the answer space, whatever names and ids its facts have. Fields of our own hold what
the format has no place for; other readers ignore them and the importer ``bear`` reads them: ``object``, the fact's own
name for it, ``subject_id`` and ``object_id``, which are empty where the source has none, and ``source_object`` if the
objects were permuted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

from megatron_kis.common.errors import InputError, nearest
from megatron_kis.common.files import write_json, write_json_lines
from megatron_kis.common.identifiers import is_name, same_place
from megatron_kis.common.terms import GROUPS, SPLITS
from megatron_kis.data_tools.facts.fact import Fact
from megatron_kis.data_tools.facts.importers.bear import METADATA
from megatron_kis.data_tools.facts.names import Entities, named_entities
from megatron_kis.data_tools.rendering.templates import Templates, plain


def export_bear(
    facts: Sequence[Fact],
    templates: Templates,
    output: Path,
    *,
    split: str = "held_out",
    groups: Sequence[str] | None = None,
) -> list[Path]:
    """Writes one folder per group.

    Args:
        facts: the facts.
        templates: templates of at least their relations.
        output: parent of the folders.
        split: templates to ask with: ``train``, ``held_out`` or ``question``.
        groups: groups to write, each of which must have facts; None for all that have some.

    Returns:
        The folders, one per group.

    Raises:
        InputError: an unknown split or group, a group without facts, a relation without templates of the split, or
            whose name is no file name.
    """
    if split not in SPLITS:
        raise InputError(f"unknown split {split!r}", where="split", remedy=nearest(split, SPLITS))
    for group in groups or ():
        if group not in GROUPS:
            raise InputError(f"unknown group {group!r}", where="groups", remedy=nearest(group, GROUPS))
        if group not in {fact.group for fact in facts}:
            raise InputError(f"no facts of group {group!r}", where="groups", remedy="leave it out")
    by_group: dict[str, dict[str, list[Fact]]] = defaultdict(lambda: defaultdict(list))
    for fact in facts:
        if groups is None or fact.group in groups:
            by_group[fact.group][fact.relation].append(fact)
    files: dict[str, str] = {}
    for relation in sorted({relation for by_relation in by_group.values() for relation in by_relation}):
        if not is_name(relation) or "." in relation:  # LM-Pub-Quiz takes what follows a dot for the format
            remedy = "letters, digits, _, - and + only"
            raise InputError(f"relation {relation!r} cannot name a file of this format", remedy=remedy)
        if not templates[relation].split(split):
            raise InputError(f"relation {relation!r} has no {split} templates", remedy="choose another split")
        if (other := files.setdefault(same_place(relation), relation)) != relation:
            problem = f"relations {other!r} and {relation!r} may name one file"
            raise InputError(problem, remedy="names that differ in more than case")
    entities = Entities(facts)
    folders = []
    for group, by_relation in by_group.items():
        metadata: dict[str, Any] = {}
        for relation, members in by_relation.items():
            rows, answers = _rows(members, entities)
            write_json_lines(output / group / f"{relation}.jsonl", rows)
            metadata[relation] = {
                "templates": [plain(template) for template in templates[relation].split(split)],
                "answer_space_labels": list(answers.values()),
                "answer_space_ids": list(answers),
            }
        write_json(output / group / METADATA, metadata)
        folders.append(output / group)
    return folders


def _rows(facts: Sequence[Fact], entities: Entities) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Returns the rows of a relation, and its answer space: label by id, each object once under one name."""
    answers: dict[str, str] = {}
    known: dict[str, str] = {}  # id in the answer space by every entity key of an object
    places: dict[str, int] = {}
    given = {fact.object_id for fact in facts}
    made = (identifier for number in count() if (identifier := f"{facts[0].relation}-{number}") not in given)
    rows = []
    for fact in facts:
        called = entities.entities(named_entities(fact)[1])
        identifier = next((known[one] for one in sorted(called) if one in known), None) or fact.object_id or next(made)
        for one in called:
            known.setdefault(one, identifier)
        answers.setdefault(identifier, fact.object)
        rows.append(
            {
                "fact_id": fact.id,
                "predicate_id": fact.relation,
                "sub_id": fact.subject_id or fact.id,
                "sub_label": fact.subject,
                "sub_aliases": list(fact.subject_aliases),
                "obj_id": identifier,
                "obj_label": answers[identifier],
                "obj_aliases": list(fact.object_aliases),
                "answer_idx": places.setdefault(identifier, len(places)),
                "object": fact.object,
                "subject_id": fact.subject_id,
                "object_id": fact.object_id,
                **({"source_object": fact.source_object} if fact.source_object else {}),
            }
        )
    return rows, answers
