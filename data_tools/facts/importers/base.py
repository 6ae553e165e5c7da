"""Output of all importers: candidates for facts, and dropped rows with the reason."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from megatron_kis.common.errors import InputError, first_of
from megatron_kis.common.files import parse_json_line
from megatron_kis.common.identifiers import is_name
from megatron_kis.data_tools.facts.fact import Candidate
from megatron_kis.data_tools.facts.fields import check_relation, check_text, is_text, one_line
from megatron_kis.data_tools.facts.importers.reading import source_lines

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Dropped:
    """A row that cannot be a fact, or several for one reason. Such rows are counted; they are not errors."""

    relation: str
    """Key of the relation; empty if unknown."""
    reason: str
    """Reason, in words that rows of one kind share."""
    count: int = 1
    """Number of rows that this reason excludes."""
    where: str = field(default="", compare=False)
    """``file:line`` of the first row; empty if unknown."""


Imported = Candidate | Dropped


class Importer(Protocol):
    """Reads a source as a stream: memory does not grow with the number of triples."""

    def __call__(self, path: Path, /, *, skip_errors: bool = False) -> Iterator[Imported]:
        """Yields a source's triples; with ``skip_errors``, malformed rows are dropped and counted."""
        ...


AMBIGUOUS_NAMES = "ambiguous: several entities have the subject's name"
"""Reason for a triple whose subject shares its name with another entity."""
NOT_SAMPLED = "left out by chance: more triples than fit into memory"
"""Reason for a triple whose subject is not in the random sample of a large source."""
EMPTY = "empty name"
"""Reason for a row without a subject or object."""

_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")


def parse_rows(rows: Iterable[Row], parse: Callable[[Row], Imported], *, skip_errors: bool) -> Iterator[Imported]:
    """Yields ``parse(row)`` of each row; with ``skip_errors`` a malformed row is dropped instead of ending the import.

    ``rows`` must not raise for a malformed row, only where nothing more can be read.

    Raises:
        InputError: raised by ``parse`` or :func:`validated`, unless errors are skipped.
    """
    for row in rows:
        try:
            yield validated(parse(row))
        except InputError as error:
            if not skip_errors:
                raise
            yield malformed(error)


def malformed(error: InputError, what: str = "row") -> Dropped:
    """Returns the record of a row that is skipped because of an error."""
    kind = re.split(r"[:([{]", _QUOTED.sub("...", error.problem))[0].strip()
    return Dropped("", f"malformed {what} ({kind})", where=error.where or "")


def parse_json_lines(
    path: Path, parse: Callable[[str, dict[str, Any]], Imported], *, skip_errors: bool
) -> Iterator[Imported]:
    """Yields ``parse(where, row)`` of each line of a JSON-lines file.

    Raises:
        InputError: an unreadable file; with ``file:line``, a malformed line, unless errors are skipped.
    """

    def parse_line(entry: tuple[int, bytes]) -> Imported:
        number, line = entry
        where = f"{path}:{number}"
        return parse(where, json_object(line, where))

    yield from parse_rows(source_lines(path), parse_line, skip_errors=skip_errors)


def json_object(line: bytes, where: str) -> dict[str, Any]:
    """Parses a line of a JSON-lines file that must be an object.

    Raises:
        InputError: it is none.
    """
    row = parse_json_line(line, where=where)
    if not isinstance(row, dict):
        remedy = "expected an object per line, no array around them" if isinstance(row, list) else None
        raise InputError("not a JSON object", where=where, remedy=remedy)
    return row


def validated(found: Imported) -> Imported:
    """Validates the output of an importer and puts each name on one line.

    Raises:
        InputError: a name or id that is not text, or a relation with an unsafe name.
    """
    if not isinstance(found, Candidate):
        return found
    repeats_name = found.subject in found.subject_aliases or found.object in found.object_aliases
    if repeats_name or not is_text(_texts(found)):
        found = _normalized(found)
        for key in ("subject", "object", "id", "subject_id", "object_id"):
            check_text(getattr(found, key), key, found.where)
        for key in ("subject_aliases", "object_aliases"):
            check_text(" ".join(getattr(found, key)), key, found.where)
    if not _is_name(found.relation):
        check_relation(found.relation, found.where)
    return found


_is_name = functools.lru_cache(1 << 12)(is_name)  # a source has few relations


def _texts(found: Candidate) -> str:
    ids = (found.id, found.subject_id, found.object_id)
    return " ".join((found.subject, found.object, *ids, *found.subject_aliases, *found.object_aliases))


def _normalized(found: Candidate) -> Candidate:
    """Puts each name on one line, and removes names from their own aliases."""
    names = (one_line(found.subject), one_line(found.object))
    aliases = [
        tuple(alias for alias in map(one_line, others) if alias not in ("", name))
        for name, others in zip(names, (found.subject_aliases, found.object_aliases), strict=True)
    ]
    return replace(found, subject=names[0], object=names[1], subject_aliases=aliases[0], object_aliases=aliases[1])


def require_keys(row: Mapping[str, Any], keys: Sequence[str], where: str) -> None:
    """Checks that a row has the fields of its format.

    Raises:
        InputError: it lacks one.
    """
    for key in keys:
        if key not in row:
            remedy = "is it of another format?"
            raise InputError(f"{key} is missing (keys: {first_of(list(row), 20)})", where=where, remedy=remedy)


def text_field(row: Mapping[str, Any], *keys: str) -> str:
    """Returns the first of these fields that is not empty, as text; numbers are accepted, 0 too, but not NaN."""
    for key in keys:
        value = row.get(key)
        if isinstance(value, bool) or value is None or isinstance(value, list | dict) or value != value:  # noqa: PLR0124
            continue
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if text := str(value).strip():
            return text
    return ""


def candidate_or_dropped(candidate: Candidate) -> Imported:
    """Returns the candidate, or a dropped row if one of its names is empty."""
    if not candidate.subject.strip() or not candidate.object.strip():
        return Dropped(candidate.relation, EMPTY, where=candidate.where)
    return candidate
