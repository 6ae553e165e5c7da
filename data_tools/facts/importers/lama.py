"""LAMA's JSON lines (https://github.com/facebookresearch/LAMA), and those of mLAMA, a folder per language.

A file or a folder of ``<relation>.jsonl`` with ``sub_label``, ``obj_label``, ``predicate_id`` (or ``pred``),
``sub_uri``/``obj_uri`` (or ``sub``/``obj``). ConceptNet's part has the names themselves in ``sub`` and ``obj``.
``relations.jsonl``, in the folder or the one above it, or mLAMA's ``templates.jsonl`` holds a template per relation.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_kis.common.errors import InputError
from megatron_kis.data_tools.facts.fact import Candidate
from megatron_kis.data_tools.facts.fields import id_field
from megatron_kis.data_tools.facts.importers.base import (
    Imported,
    candidate_or_dropped,
    json_object,
    parse_json_lines,
    require_keys,
    text_field,
)
from megatron_kis.data_tools.facts.importers.reading import relation_of, source_files_of, source_lines

_TEMPLATES = ("relations.jsonl", "templates.jsonl")
_SPACE_BEFORE_MARK = re.compile(r"\s+(?=[.,;:!?])")  # LAMA's templates are tokenized: "[X] was born in [Y] ."


def import_lama(path: Path, *, skip_errors: bool = False) -> Iterator[Imported]:
    """Reads LAMA's relations.

    Raises:
        InputError: nothing to read, or a damaged row (``file:line``).
    """
    for file in lama_files(path):
        yield from parse_json_lines(file, functools.partial(_candidate, relation_of(file)), skip_errors=skip_errors)


def lama_templates(path: Path, *, skip_errors: bool = False) -> dict[str, list[str]]:
    """Reads the template of each relation in ``relations.jsonl`` or ``templates.jsonl``; empty without such a file.

    Raises:
        InputError: a damaged row (``file:line``), unless errors are skipped.
    """
    folder = path if path.is_dir() else path.parent
    places = [place / name for place in (folder, folder.parent) for name in _TEMPLATES]
    found = next((file for file in places if file.is_file()), None)
    templates = {}
    for number, line in source_lines(found) if found is not None else ():
        try:
            row = json_object(line, f"{found}:{number}")
        except InputError:
            if not skip_errors:
                raise
            continue
        if row.get("relation") and row.get("template"):
            templates[str(row["relation"])] = [_SPACE_BEFORE_MARK.sub("", str(row["template"])).strip()]
    return templates


def lama_files(path: Path) -> list[Path]:
    """Returns the files with LAMA's triples.

    Raises:
        InputError: nothing to read.
    """
    files = source_files_of(path, "*.jsonl", but=_TEMPLATES)
    if files == [path] and path.name in _TEMPLATES:
        raise InputError("holds templates, not triples", where=str(path), remedy="give the folder of the relations")
    return files


def _candidate(relation: str, where: str, row: dict[str, Any]) -> Imported:
    relation = (text_field(row, "predicate_id", "pred") or relation).strip("/").replace("/", ".")
    if row.get("sub_label") == "Squad" and "predicate_id" not in row and "pred" not in row:
        remedy = "LAMA's Squad asks about sentences; take TREx, Google_RE or ConceptNet"
        raise InputError("no triple: the subject of every row is 'Squad'", where=where, remedy=remedy)
    by_label = "sub_label" in row  # not so in ConceptNet, whose names are in the fields of ids
    require_keys(row, ("sub_label" if by_label or "sub" not in row else "sub", "obj_label"), where)
    for key in ("sub_label", "obj_label"):
        if isinstance(row.get(key), list | dict):
            raise InputError(f"{key} is not a name", where=where, remedy="expected one row per object")
    return candidate_or_dropped(
        Candidate(
            subject=text_field(row, "sub_label") if by_label else text_field(row, "sub"),
            relation=relation,
            object=text_field(row, "obj_label"),
            where=where,
            subject_id=_id(row, where, "sub_uri", "sub") if by_label else "",
            object_id=_id(row, where, "obj_uri", "obj") if by_label else "",
            subject_aliases=_aliases(row, "sub_aliases"),
            object_aliases=_aliases(row, "obj_aliases"),
        )
    )


def _id(row: dict[str, Any], where: str, *keys: str) -> str:
    """Returns the first of these ids that is given."""
    return next((found for key in keys if (found := id_field(row, key, where))), "")


def _aliases(row: dict[str, Any], key: str) -> tuple[str, ...]:
    """Returns the aliases; Google-RE gives a list, and sometimes null."""
    names = row.get(key) or []
    return tuple(str(name).strip() for name in names if str(name).strip()) if isinstance(names, list) else ()
