"""JSON lines of triples, in the field names of ``facts.jsonl``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_tools.facts import id_field, string_field, strings_field
from data_tools.importers.base import Candidate, Imported, parse_json_lines


def import_jsonl(path: Path, *, skip_errors: bool = False) -> Iterator[Imported]:
    """Reads rows with ``subject``, ``relation``, ``object``; ids and aliases as in ``facts.jsonl`` where given.

    Raises:
        InputError: with ``file:line``, where a line is malformed or lacks a field.
    """

    def parse(where: str, row: dict[str, Any]) -> Imported:
        return Candidate(
            subject=string_field(row, "subject", where),
            relation=string_field(row, "relation", where),
            object=string_field(row, "object", where),
            where=where,
            id=id_field(row, "id", where),
            subject_id=id_field(row, "subject_id", where),
            object_id=id_field(row, "object_id", where),
            subject_aliases=strings_field(row, "subject_aliases", where),
            object_aliases=strings_field(row, "object_aliases", where),
        )

    return parse_json_lines(path, parse, skip_errors=skip_errors)
