"""What every importer yields: candidates for facts, and rows that are none, with the reason."""

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
    """A row that cannot be a fact, or several alike. It is counted, not an error."""

    relation: str
    """Key of the relation; empty where it is not known."""
    reason: str
    """Why, in a few words that rows of one kind share."""
    count: int = 1
    """Rows."""
    where: str = field(default="", compare=False)
    """``file:line`` of the first; empty where it is not known."""


Imported = Candidate | Dropped


class Importer(Protocol):
    """Reads a source as a stream: memory does not grow with the number of triples."""

    def __call__(self, path: Path, /, *, skip_errors: bool = False) -> Iterator[Imported]:
        """Yields a source's triples; with ``skip_errors``, malformed rows are dropped and counted."""
        ...


AMBIGUOUS_NAMES = "ambiguous: several entities bear the subject's name"
"""Reason of a triple whose subject's name belongs to another entity too."""
NOT_SAMPLED = "left out by chance: more triples than fit into memory"
"""Reason of a triple whose subject is not in the random sample of a large source."""
EMPTY = "empty name"
"""Reason of a row without a subject or object."""

_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")


def parse_rows(rows: Iterable[Row], parse: Callable[[Row], Imported], *, skip_errors: bool) -> Iterator[Imported]:
    """Yields ``parse(row)`` of each row; with ``skip_errors`` a malformed row is dropped instead of ending the import.

    ``rows`` must not raise for a malformed row, only where nothing more can be read.

    Raises:
        InputError: what ``parse`` raises, or :func:`checked` finds, unless errors are skipped.
    """
    for row in rows:
        try:
            yield checked(parse(row))
        except InputError as error:
            if not skip_errors:
                raise
            yield malformed(error)


def malformed(error: InputError, what: str = "row") -> Dropped:
    """The note of a row that is skipped because of an error."""
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
    """The object that a line of a JSON-lines file holds.

    Raises:
        InputError: it holds none.
    """
    row = parse_json_line(line, where=where)
    if not isinstance(row, dict):
        remedy = "expected an object per line, no array around them" if isinstance(row, list) else None
        raise InputError("not a JSON object", where=where, remedy=remedy)
    return row


def checked(found: Imported) -> Imported:
    """What an importer found, with each name on one line.

    Raises:
        InputError: a name or id that is no text, or a relation whose name is not safe.
    """
    if not isinstance(found, Candidate):
        return found
    told_twice = found.subject in found.subject_aliases or found.object in found.object_aliases
    if told_twice or not is_text(_texts(found)):
        found = _cleaned(found)
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


def _cleaned(found: Candidate) -> Candidate:
    """With each name on one line, and no name among its own aliases."""
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
    """The first of these fields that is there and not empty, as text: numbers are taken, 0 too, but not NaN."""
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
    """The candidate, or the note that one of its names is empty."""
    if not candidate.subject.strip() or not candidate.object.strip():
        return Dropped(candidate.relation, EMPTY, where=candidate.where)
    return candidate
