"""LAMA's JSON lines, and T-REx's aligned documents.

LAMA (https://github.com/facebookresearch/LAMA): a file or a folder of ``<relation>.jsonl`` with ``sub_label``,
``obj_label``, ``predicate_id`` (or ``pred``), ``sub_uri``/``obj_uri`` (or ``sub``/``obj``); ``relations.jsonl``, in the
folder or the one above it, holds a template a relation.

T-REx (https://hadyelsahar.github.io/t-rex): a file or a folder of JSON arrays of documents, each with ``triples`` of
``subject``, ``predicate`` and ``object``, each of these with ``uri`` and ``surfaceform``. A document is in memory at a
time.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_tools.importers.base import (
    Candidate,
    Dropped,
    Imported,
    candidate_or_dropped,
    checked,
    parse_json_lines,
    text_field,
)
from megatron_kis.errors import InputError
from megatron_kis.files import read_json_lines, unreadable

_RELATIONS = "relations.jsonl"
_SPACE_BEFORE_MARK = re.compile(r"\s+(?=[.,;:!?])")  # LAMA's templates are tokenized: "[X] was born in [Y] ."
# Surface forms that stand for a name found elsewhere in T-REx's text.
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


def import_lama(path: Path, *, skip_errors: bool = False) -> Iterator[Imported]:
    """Reads LAMA's relations.

    Raises:
        InputError: nothing to read, or a damaged row (``file:line``).
    """
    for file in lama_files(path):
        yield from parse_json_lines(file, functools.partial(_candidate, file.stem), skip_errors=skip_errors)


def lama_templates(path: Path) -> dict[str, list[str]]:
    """The template of each relation in ``relations.jsonl``; empty where there is no such file."""
    folder = path if path.is_dir() else path.parent
    found = next((file for file in (folder / _RELATIONS, folder.parent / _RELATIONS) if file.exists()), None)
    if found is None:
        return {}
    return {
        str(row["relation"]): [_SPACE_BEFORE_MARK.sub("", str(row["template"])).strip()]
        for _, row in read_json_lines(found)
        if row.get("relation") and row.get("template")
    }


def import_trex(path: Path, *, skip_errors: bool = False) -> Iterator[Imported]:
    """Reads T-REx's documents as a stream.

    The subject is called by the document's title where it is the document's own entity, else as the text calls it.

    Raises:
        InputError: nothing to read, a file that is not an array of documents, or a document without triples.
    """
    for file in trex_files(path):
        for number, document in enumerate(_documents(file)):
            where = f"{file}: document {number}"
            try:
                if _Object.any_twice and (key := _repeated(document)) is not None:
                    raise InputError(f"the key {key!r} is given twice", where=where, remedy="keep one of them")
                yield from map(checked, _triples(where, document))
            except InputError:
                if not skip_errors:
                    raise
                yield Dropped("", "malformed document")


def lama_files(path: Path) -> list[Path]:
    """The files with LAMA's triples.

    Raises:
        InputError: nothing to read.
    """
    return [file for file in _files(path, "*.jsonl") if file.name != _RELATIONS]


def trex_files(path: Path) -> list[Path]:
    """The files with T-REx's documents.

    Raises:
        InputError: nothing to read.
    """
    return _files(path, "*.json")


def _files(path: Path, pattern: str) -> list[Path]:
    files = [path] if path.is_file() else sorted(path.glob(pattern))
    if not files:
        problem = f"no {pattern} files" if path.is_dir() else "no such file or folder"
        raise InputError(problem, where=str(path), remedy=f"expected a file, or a folder of {pattern}")
    return files


def _candidate(relation: str, where: str, row: dict[str, Any]) -> Imported:
    relation = (text_field(row, "predicate_id", "pred") or relation).strip("/").replace("/", ".")
    return candidate_or_dropped(
        Candidate(
            subject=text_field(row, "sub_label"),
            relation=relation,
            object=text_field(row, "obj_label"),
            where=where,
            subject_id=text_field(row, "sub_uri", "sub"),
            object_id=text_field(row, "obj_uri", "obj"),
            subject_aliases=_aliases(row, "sub_aliases"),
            object_aliases=_aliases(row, "obj_aliases"),
        )
    )


def _aliases(row: dict[str, Any], key: str) -> tuple[str, ...]:
    """Google-RE gives a list, and sometimes null."""
    names = row.get(key) or []
    return tuple(str(name).strip() for name in names if str(name).strip()) if isinstance(names, list) else ()


class _Object(dict[str, Any]):
    """A JSON object that knows of a key which it was given twice."""

    any_twice = False
    """Whether there has been such an object at all: others are not searched for one."""

    __slots__ = ("twice",)

    def __setitem__(self, key: str, value: Any) -> None:
        if key in self:
            self.twice = key
            _Object.any_twice = True
        super().__setitem__(key, value)


def _repeated(content: Any) -> str | None:
    """A key that an object within a document has twice."""
    if isinstance(content, _Object) and hasattr(content, "twice"):
        return str(content.twice)
    inside = content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
    return next((key for part in inside if (key := _repeated(part)) is not None), None)


def _documents(file: Path) -> Iterator[Any]:
    import ijson

    try:
        with open(file, "rb") as content:
            yield from ijson.items(content, "item", map_type=_Object)
    except OSError as error:
        raise unreadable(error, file) from None
    except (ijson.JSONError, UnicodeDecodeError) as error:
        problem = str(error).splitlines()[0]
        raise InputError(f"not valid JSON ({problem})", where=str(file), remedy="is the file whole?") from None


def _triples(where: str, document: Any) -> Iterator[Imported]:
    try:
        home = text_field(document, "uri", "docid")
        for triple in document["triples"]:
            subject, answer = triple["subject"], triple["object"]
            relation = _last(triple["predicate"]["uri"])
            own = home and home == text_field(subject, "uri")
            called = text_field(document, "title") if own else ""
            forms = [{"form": part["surfaceform"]} for part in (subject, answer)]
            names = [called or text_field(forms[0], "form"), text_field(forms[1], "form")]
            if any(name.casefold() in _PRONOUNS for name in names):
                yield Dropped(relation, "a pronoun for a name")
                continue
            ids = (_last(subject["uri"]), _last(answer["uri"]))
            candidate = Candidate(names[0], relation, names[1], where, subject_id=ids[0], object_id=ids[1])
            yield candidate_or_dropped(candidate)
    except (KeyError, TypeError, AttributeError) as error:
        problem = f"lacks {error}" if isinstance(error, KeyError) else "is not of T-REx's form"
        raise InputError(problem, where=where, remedy="expected triples of subject, predicate and object") from None


def _last(uri: Any) -> str:
    """``P19`` of ``http://www.wikidata.org/prop/direct/P19``; dates and numbers, which are no entities, stay whole."""
    if isinstance(uri, int) and not isinstance(uri, bool):
        return str(uri)
    return str(uri if "^^" in uri else uri.rstrip("/").rpartition("/")[2])
