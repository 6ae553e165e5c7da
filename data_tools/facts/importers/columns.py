"""Assigns the columns of a table to fields: by its header, by a user's choice, or by their order."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence

from megatron_kis.common.errors import InputError, first_of, nearest

NEEDED = ("subject", "relation", "object")
"""Fields that every row must have."""
ALIASES = ("subject_aliases", "object_aliases")
"""Fields of several names."""
FIELDS = (*NEEDED, "id", "subject_id", "object_id", *ALIASES)
"""Fields of a triple that columns can be assigned to."""

_NEXT = re.compile(f",(?=(?:{'|'.join(FIELDS)})=)")
_EXAMPLE = "for example subject=city"

# Headers of published tables: LAMA, PopQA, KAMEL, and what knowledge graphs call their columns.
_ALSO = {
    field: tuple(words.split())
    for field, words in {
        "subject": """
            subject_label subject_name sub_label sub_name subj_label subj_name head_label head_name subj sub
            head head_entity s_label s_name h_label h_name s h
        """,
        "relation": """
            predicate property relation_label predicate_label property_label prop_label relation_name
            predicate_name property_name predicate_id relation_id property_id prop_id rel_id prop pred rel p r
        """,
        "object": """
            object_label object_name obj_label obj_name tail_label tail_name obj tail tail_entity o_label o_name
            t_label t_name o t
        """,
        "id": "fact_id",
        "subject_id": "sub_id subj_id sub_uri subj_uri subject_uri head_id head_uri s_id s_uri",
        "object_id": "obj_id obj_uri object_uri tail_id tail_uri o_id o_uri",
        "subject_aliases": "sub_aliases subj_aliases s_aliases",
        "object_aliases": "obj_aliases o_aliases possible_answers",
    }.items()
}
# Words of headers in some large languages that are too vague to assign a column.
_VAGUE = {
    field: frozenset(words.split())
    for field, words in {
        "subject": """
            subjekt sujet sujeto soggetto sujeito onderwerp субъект entity item name label title 主語 主语 主体 주어
        """,
        "relation": """
            attribute prädikat praedikat prédicat predicado predicato relación relazione relação beziehung
            eigenschaft propriété propiedad предикат отношение 述語 谓语 关系 関係 관계
        """,
        "object": "objekt objet objeto oggetto объект value answer target 目的語 宾语 客体 목적어",
    }.items()
}


def parse_columns(columns: Sequence[str]) -> dict[str, str]:
    """Parses choices such as ``subject=city``, also several with commas between them, to column by field.

    Raises:
        InputError: one is not of this form, names no field of a triple, or is the second of a field or column.
    """
    found: dict[str, str] = {}
    for choice in (one for part in columns for one in _NEXT.split(part)):
        field, _, column = choice.partition("=")
        if not field or not column:
            raise InputError(f"{choice!r} is not of the form FIELD=COLUMN", where="columns", remedy=_EXAMPLE)
        if field not in FIELDS:
            raise InputError(f"unknown field {field!r}", where="columns", remedy=nearest(field, FIELDS))
        if field in found:
            raise InputError(f"{field} is given twice", where="columns", remedy="one column per field")
        if column in found.values():
            raise InputError(f"{column!r} is given for two fields", where="columns", remedy="one column per field")
        found[field] = column
    return found


def column_layout(first: Sequence[str], columns: Mapping[str, str], where: str) -> tuple[dict[str, int], bool]:
    """Returns the index of each field in a table's rows, and whether the first line is a header.

    Args:
        first: the fields of the first line.
        columns: a user's choices by field: the name of a column, or its number from 1.
        where: place of the line.

    Raises:
        InputError: a column is missing or repeated, or the line looks like a header that is not understood.
    """
    header = [field.strip() for field in first]
    folded = list(map(_folded, header))
    if columns and all(column.isdecimal() and column not in header for column in columns.values()):
        return _by_number(len(header), columns, where), _folded_header(folded)
    places = {field: _column_index(column, header, where) for field, column in columns.items()}
    for field in FIELDS:
        if field not in places:
            names = (field, *_ALSO[field])
            found = next((name for name in names if name in folded), None)
            if found is not None and (place := folded.index(found)) not in places.values():
                places[field] = place
    lacking = [field for field in NEEDED if field not in places]
    if not lacking:
        twice = next((place for place in places.values() if folded.count(folded[place]) > 1), None)
        if twice is not None:
            raise InputError(f"the column {header[twice]!r} is there twice", where=where, remedy="rename one")
        return places, True
    if columns:
        there = first_of(header, 20)
        remedy = f"name it, for example {lacking[0]}={header[0]!r}"
        raise InputError(f"no column of {lacking[0]} among {there}", where=where, remedy=remedy)
    if _folded_header(folded):
        problem = f"looks like a header ({first_of(header, 20)}) without {', '.join(lacking)}"
        remedy = "call the columns subject, relation and object, or name them with --columns subject=NAME ..."
        raise InputError(problem, where=where, remedy=remedy)
    return dict(zip(NEEDED, range(3), strict=True)), False


def columns_flag(names: Sequence[str]) -> str:
    """Returns the option that assigns the columns ``names``; empty if unknown."""
    folded = list(map(_folded, names))
    found = {
        field: next((names[folded.index(name)] for name in (field, *_ALSO[field]) if name in folded), None)
        for field in FIELDS
    }
    if not all(found[field] for field in NEEDED):
        return ""
    return "--columns " + " ".join(f"{field}={name}" for field, name in found.items() if name not in (None, field))


def _by_number(width: int, columns: Mapping[str, str], where: str) -> dict[str, int]:
    for field in NEEDED:
        if field not in columns:
            raise InputError(f"no column of {field}", where="columns", remedy=f"for example {field}=1")
    for field, column in columns.items():
        if not 1 <= int(column) <= width:
            raise InputError(f"{width} columns, {field} is column {column}", where=where, remedy=f"1 to {width}")
    return {field: int(column) - 1 for field, column in columns.items()}


def _column_index(column: str, header: Sequence[str], where: str) -> int:
    if column not in header:
        raise InputError(f"no column {column!r}", where=where, remedy=nearest(column, header))
    return header.index(column)


def looks_like_header(fields: Sequence[str]) -> bool:
    """Returns whether a line of a table looks like a header, whether or not its columns are known."""
    return _folded_header(list(map(_folded, fields)))


@functools.lru_cache(1 << 12)  # called with relations, which are few
def is_header_word(word: str) -> bool:
    """Returns whether headers use a word for subject, relation or object."""
    word = _folded(word).strip("\"'")
    return any(word in {field, *_ALSO[field], *_VAGUE[field]} for field in NEEDED)


def _folded_header(folded: Sequence[str]) -> bool:
    """Returns whether a line has words for two of the three columns, or the usual name of the relation's column."""
    folded = [word.strip("\"'") for word in folded]
    words = [word for word in folded if len(word) > 1 or not word.isascii()]
    roles = sum(any(word in {field, *_ALSO[field], *_VAGUE[field]} for word in words) for field in NEEDED)
    relation = {word for word in ("relation", *_ALSO["relation"]) if len(word) > 1} | _VAGUE["relation"]
    return roles >= 2 or (len(folded) == 3 and folded[1] in relation)


def _folded(name: str) -> str:
    return "_".join(name.strip().casefold().replace("-", " ").replace("_", " ").split())
