"""T-REx's aligned documents (https://hadyelsahar.github.io/t-rex).

A file or a folder of JSON arrays of documents, each with ``triples`` of ``subject``, ``predicate`` and ``object``, each
of these with ``uri`` and ``surfaceform``. One document is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_kis.common.errors import InputError
from megatron_kis.common.files import unreadable
from megatron_kis.data_tools.facts.fact import Candidate
from megatron_kis.data_tools.facts.importers.base import (
    Dropped,
    Imported,
    candidate_or_dropped,
    malformed,
    parse_rows,
    text_field,
)
from megatron_kis.data_tools.facts.importers.reading import source_files_of
from megatron_kis.data_tools.readers.base import LONGEST_LINE
from megatron_kis.data_tools.readers.open import open_text

# Surface forms that refer to a name elsewhere in the text.
_PRONOUNS = frozenset(
    [
        "he",
        "she",
        "it",
        "they",
        "him",
        "her",
        "them",
        "his",
        "hers",
        "its",
        "their",
        "theirs",
        "this",
        "that",
        "these",
        "those",
        "who",
        "which",
    ]
)
_ARTICLES = frozenset(("the", "a", "an"))


def import_trex(path: Path, *, skip_errors: bool = False) -> Iterator[Imported]:
    """Reads T-REx's documents as a stream.

    The subject's name is the document's title if it is the document's own entity, else the surface form; a surface form
    that differs from the title is an alias.

    Raises:
        InputError: nothing to read, a file that is not an array of documents, or a malformed document or triple.
    """
    for file in trex_files(path):
        for number, document in enumerate(_documents(file)):
            where = f"{file}: document {number}"
            try:
                triples = _triples(document, where)
            except InputError as error:
                if not skip_errors:
                    raise
                yield malformed(error, "document")
            else:
                own = _DocumentEntity(text_field(document, "uri", "docid"), text_field(document, "title"), where)
                yield from parse_rows(triples, own.parse, skip_errors=skip_errors)


def trex_files(path: Path) -> list[Path]:
    """Returns the files with T-REx's documents.

    Raises:
        InputError: nothing to read.
    """
    return source_files_of(path, "*.json")


class _Object(dict[str, Any]):
    """A JSON object that remembers a repeated key."""

    any_repeated = False
    """Whether any object had a repeated key: otherwise documents need not be searched."""

    __slots__ = ("repeated_key",)

    def __setitem__(self, key: str, value: Any) -> None:
        if key in self:
            self.repeated_key = key
            _Object.any_repeated = True
        super().__setitem__(key, value)


def _repeated(content: Any) -> str | None:
    """Returns a key that is repeated in an object within a document."""
    if isinstance(content, _Object) and hasattr(content, "repeated_key"):
        return str(content.repeated_key)
    inside = content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
    return next((key for part in inside if (key := _repeated(part)) is not None), None)


def _documents(file: Path) -> Iterator[Any]:
    import ijson

    try:
        _refuse_no_array(file)
        with open_text(file) as content:
            yield from ijson.items(content, "item", map_type=_Object)
    except OSError as error:
        raise unreadable(error, file) from None
    except (ijson.JSONError, UnicodeDecodeError) as error:
        problem = str(error).splitlines()[0]
        raise InputError(f"not valid JSON ({problem})", where=str(file), remedy="is the file whole?") from None


def _refuse_no_array(file: Path) -> None:
    """Refuses JSON that is not an array, which would be read as an array without documents.

    Raises:
        InputError: names what it is instead.
    """
    with open_text(file) as content:
        first = content.read(1).strip()
        while not first and (more := content.read(1)):
            first = more.strip()
        if first and first.isascii() and first != b"[":
            one_line = content.readline(LONGEST_LINE).rstrip().endswith(b"}")
            if first == b"{" and one_line and content.readline(LONGEST_LINE).lstrip().startswith(b"{"):
                remedy = "make it one array of documents: jq -s . FILE"
                raise InputError("is JSON lines", where=str(file), remedy=remedy)
            problem = "is one JSON object" if first == b"{" else "is not a JSON array"
            remedy = "expected an array of documents: the list alone, or a single document between [ and ]"
            raise InputError(problem, where=str(file), remedy=remedy)


def _triples(document: Any, where: str) -> list[Any]:
    """Returns a document's triples.

    Raises:
        InputError: it has none, or an object in it has a repeated key.
    """
    if _Object.any_repeated and (key := _repeated(document)) is not None:
        raise InputError(f"the key {key!r} is given twice", where=where, remedy="keep one of them")
    triples = document.get("triples") if isinstance(document, dict) else None
    if not isinstance(triples, list):
        raise InputError("has no list of triples", where=where, remedy="expected T-REx's documents")
    return triples


class _DocumentEntity:
    """The entity that a document is about."""

    def __init__(self, uri: str, title: str, where: str) -> None:
        self._uri = uri
        self._title = title
        self._where = where

    def parse(self, triple: Any) -> Imported:
        """Parses a triple of the document."""
        try:
            subject, answer = triple["subject"], triple["object"]
            relation = _id_of(triple["predicate"]["uri"])
            forms = [text_field({"form": part["surfaceform"]}, "form") for part in (subject, answer)]
            own = self._uri and self._title and self._uri == text_field(subject, "uri")
            names = [self._title if own else forms[0], forms[1]]
            if any(name.casefold() in _PRONOUNS for name in names):
                return Dropped(relation, "a pronoun for a name", where=self._where)
            aliases = (forms[0],) if forms[0] != names[0] and _is_name(forms[0]) else ()
            ids = (_id_of(subject["uri"]), _id_of(answer["uri"]))
        except (KeyError, TypeError, AttributeError) as error:
            problem = f"lacks {error.args[0]}" if isinstance(error, KeyError) else "is not of T-REx's form"
            remedy = "expected triples of subject, predicate and object"
            raise InputError(problem, where=self._where, remedy=remedy) from None
        candidate = Candidate(
            names[0], relation, names[1], self._where, subject_id=ids[0], object_id=ids[1], subject_aliases=aliases
        )
        return candidate_or_dropped(candidate)


def _is_name(form: str) -> bool:
    """Returns whether a surface form is a name, and not a pronoun or a description such as "the city"."""
    words = [word for word in form.split() if word.casefold() not in _ARTICLES]
    return form.casefold() not in _PRONOUNS and any(not word[0].islower() for word in words)


def _id_of(uri: Any) -> str:
    """Returns ``P19`` of ``http://www.wikidata.org/prop/direct/P19``; dates and numbers, not entities, stay whole."""
    if isinstance(uri, int) and not isinstance(uri, bool):
        return str(uri)
    return str(uri if "^^" in uri else uri.rstrip("/").rpartition("/")[2])
