"""BEAR and LM-Pub-Quiz data sets: a folder with ``<relation>.jsonl`` files and ``metadata_relations.json``.

A row is ``{"sub_id", "sub_label", "sub_aliases", "obj_id", "obj_label", "obj_aliases", "answer_idx"}``, of which only
the labels must be there. The metadata maps a relation to ``templates`` with ``[X]`` and ``[Y]`` and to its answer space
(``answer_space_labels``, ``answer_space_ids``). Three fields that ``kis data export`` adds hold the fact's own
``object``, ``subject_id`` and ``object_id``. Format: https://github.com/lm-pub-quiz/lm-pub-quiz, docs/data_files.md.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_kis.common.errors import InputError, nearest
from megatron_kis.common.files import read_text
from megatron_kis.common.parsing import parse_json
from megatron_kis.data_tools.facts.fact import Candidate
from megatron_kis.data_tools.facts.fields import id_field, optional_field, strings_field
from megatron_kis.data_tools.facts.importers.base import (
    Imported,
    candidate_or_dropped,
    parse_json_lines,
    require_keys,
    text_field,
)
from megatron_kis.data_tools.facts.importers.reading import source_files_of

METADATA = "metadata_relations.json"
"""Name of the file with templates and answer spaces."""
_LISTS = (("templates", (str,), "strings"), ("answer_space_labels", (str, int, float), "names"))
"""Lists in the metadata of a relation: key, types of the items, and their name in messages."""
_OWN = {"object", "subject_id", "object_id"}
"""Fields that ``kis data export`` writes next to those of the format."""


def import_bear(path: Path, *, skip_errors: bool = False) -> Iterator[Imported]:
    """Reads all relations of a folder, in the order of their names.

    Raises:
        InputError: no such folder, no relations in it, a relation without metadata, a damaged row (``file:line``), or
            an answer index that does not point at the object.
    """
    files = relation_files(path)
    metadata = _metadata(path)
    for file in files:
        if metadata and file.stem not in metadata:
            remedy = nearest(file.stem, metadata)
            raise InputError(f"does not mention {file.name}", where=str(path / METADATA), remedy=remedy)
        answers = metadata.get(file.stem, {}).get("answer_space_labels")
        parse = functools.partial(_candidate, file.stem, answers)
        yield from parse_json_lines(file, parse, skip_errors=skip_errors)


def bear_templates(path: Path, *, skip_errors: bool = False) -> dict[str, list[str]]:
    """Reads the templates of each relation; empty if the folder has no metadata."""
    return {relation: list(entry.get("templates") or ()) for relation, entry in _metadata(path).items()}


def relation_files(path: Path) -> list[Path]:
    """Returns the ``<relation>.jsonl`` files of a folder.

    Raises:
        InputError: there are none.
    """
    if not path.is_dir():
        remedy = "expected a folder with a .jsonl file per relation"
        raise InputError("not a folder", where=str(path), remedy=remedy)
    return source_files_of(path, "*.jsonl")


def bear_files(path: Path) -> list[Path]:
    """Returns the files of a folder that are read.

    Raises:
        InputError: there are no relations.
    """
    files = relation_files(path)
    return sorted([*files, metadata] if (metadata := path / METADATA).exists() else files)


def _metadata(folder: Path) -> dict[str, dict[str, Any]]:
    """Reads the metadata of each relation; empty if the folder has none.

    Raises:
        InputError: they do not have the format; names file and relation.
    """
    path = folder / METADATA
    if not path.exists():
        return {}
    content = parse_json(read_text(path), where=str(path))
    if not isinstance(content, dict):
        raise InputError("not a JSON object", where=str(path), remedy="expected relation: {templates: [...]}")
    metadata = {str(relation): entry for relation, entry in content.items() if isinstance(entry, dict)}
    for relation in content:
        if relation not in metadata and (folder / f"{relation}.jsonl").exists():
            raise InputError(f"{relation} is not a JSON object", where=str(path))
    for relation, entry in metadata.items():
        for key, kinds, expected in _LISTS:
            value = entry.get(key)
            if value is None:
                continue
            if not isinstance(value, list) or not all(type(item) in kinds for item in value):
                raise InputError(f"{relation}: {key} is not a list of {expected}", where=str(path))
    return metadata


def _candidate(relation: str, answers: list[str | int | float] | None, where: str, row: dict[str, Any]) -> Imported:
    answer, place = row.get("obj_label"), row.get("answer_idx")
    require_keys(row, ("sub_label",) if place is not None else ("sub_label", "obj_label"), where)
    if answers and place is not None and type(place) is not int:
        raise InputError(f"answer_idx is {place!r}", where=where, remedy="expected a whole number, from 0")
    if answers and place is not None and not 0 <= place < len(answers):
        problem = f"answer_idx is {place!r}"
        raise InputError(problem, where=where, remedy=f"the answer space has {len(answers)} entries")
    if answers and place is not None and answer is None:
        answer = answers[place]
    if answers and place is not None and answers[place] != answer:
        problem = f"answer_idx {place} points at {answers[place]!r}, obj_label is {answer!r}"
        raise InputError(problem, where=where, remedy="the rows and the answer space must agree")
    own = row if row.keys() >= _OWN else {}
    return candidate_or_dropped(
        Candidate(
            subject=text_field(row, "sub_label"),
            relation=relation,
            object=text_field(own, "object") or text_field({"answer": answer}, "answer"),
            where=where,
            id=id_field(row, "fact_id", where),
            subject_id=id_field(own, "subject_id", where) if own else id_field(row, "sub_id", where),
            object_id=id_field(own, "object_id", where) if own else id_field(row, "obj_id", where),
            subject_aliases=strings_field(row, "sub_aliases", where),
            object_aliases=strings_field(row, "obj_aliases", where),
            source_object=optional_field(own, "source_object", where),
        )
    )
