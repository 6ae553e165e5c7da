"""JSON lines of triples, with the field names of ``facts.jsonl`` or other given ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from megatron_kis.common.errors import InputError, first_of
from megatron_kis.data_tools.facts.fact import Candidate
from megatron_kis.data_tools.facts.fields import id_field, optional_field, string_field, strings_field
from megatron_kis.data_tools.facts.importers.base import Imported, parse_json_lines
from megatron_kis.data_tools.facts.importers.columns import FIELDS, NEEDED, columns_flag


def import_jsonl(
    path: Path, *, skip_errors: bool = False, columns: Mapping[str, str] | None = None
) -> Iterator[Imported]:
    """Reads rows with ``subject``, ``relation``, ``object``; ids and aliases are optional, as in ``facts.jsonl``.

    Args:
        path: the file.
        skip_errors: drop malformed rows instead of ending.
        columns: key of a field, if it has another name.

    Raises:
        InputError: a line is malformed or lacks a field (``file:line``).
    """
    keys = {field: field for field in FIELDS} | dict(columns or {})

    def parse(where: str, row: dict[str, Any]) -> Imported:
        lacking = next((field for field in NEEDED if keys[field] not in row), None)
        if lacking is not None and (flag := columns_flag(list(row))):
            raise InputError(
                f"{lacking} is missing (keys: {first_of(list(row), 20)})", where=where, remedy=f"add {flag}"
            )
        return Candidate(
            subject=string_field(row, keys["subject"], where),
            relation=string_field(row, keys["relation"], where),
            object=string_field(row, keys["object"], where),
            where=where,
            id=id_field(row, keys["id"], where),
            subject_id=id_field(row, keys["subject_id"], where),
            object_id=id_field(row, keys["object_id"], where),
            subject_aliases=strings_field(row, keys["subject_aliases"], where),
            object_aliases=strings_field(row, keys["object_aliases"], where),
            source_object=optional_field(row, "source_object", where),
        )

    return parse_json_lines(path, parse, skip_errors=skip_errors)
