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

from data_tools.importers.base import Candidate, Dropped, Imported, candidate_or_dropped, parse_json_lines
from megatron_kis.errors import InputError
from megatron_kis.files import read_json_lines

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
    for file in _files(path, "*.jsonl"):
        if file.name != _RELATIONS:
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
    for file in _files(path, "*.json"):
        for number, document in enumerate(_documents(file)):
            try:
                yield from _triples(f"{file}: document {number}", document)
            except InputError:
                if not skip_errors:
                    raise
                yield Dropped("", "malformed document")


def _files(path: Path, pattern: str) -> list[Path]:
    files = [path] if path.is_file() else sorted(path.glob(pattern))
    if not files:
        problem = f"no {pattern} files" if path.is_dir() else "no such file or folder"
        raise InputError(problem, where=str(path), remedy=f"expected a file, or a folder of {pattern}")
    return files


def _candidate(relation: str, where: str, row: dict[str, Any]) -> Imported:
    relation = str(row.get("predicate_id") or row.get("pred") or relation).strip("/").replace("/", ".")
    return candidate_or_dropped(
        Candidate(
            subject=str(row.get("sub_label") or "").strip(),
            relation=relation,
            object=str(row.get("obj_label") or "").strip(),
            where=where,
            subject_id=str(row.get("sub_uri") or row.get("sub") or ""),
            object_id=str(row.get("obj_uri") or row.get("obj") or ""),
            subject_aliases=_aliases(row, "sub_aliases"),
            object_aliases=_aliases(row, "obj_aliases"),
        )
    )


def _aliases(row: dict[str, Any], key: str) -> tuple[str, ...]:
    """Google-RE gives a list, and sometimes null."""
    names = row.get(key) or []
    return tuple(str(name).strip() for name in names if str(name).strip()) if isinstance(names, list) else ()


def _documents(file: Path) -> Iterator[Any]:
    import ijson

    try:
        with open(file, "rb") as content:
            yield from ijson.items(content, "item")
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=str(file)) from None
    except (ijson.JSONError, UnicodeDecodeError) as error:
        problem = str(error).splitlines()[0]
        raise InputError(f"not valid JSON ({problem})", where=str(file), remedy="is the file whole?") from None


def _triples(where: str, document: Any) -> Iterator[Imported]:
    try:
        home = document.get("uri") or document.get("docid")
        for triple in document["triples"]:
            subject, answer = triple["subject"], triple["object"]
            relation = _last(triple["predicate"]["uri"])
            called = document.get("title") if subject["uri"] == home else None
            names = [str(name or "").strip() for name in (called or subject["surfaceform"], answer["surfaceform"])]
            if any(name.casefold() in _PRONOUNS for name in names):
                yield Dropped(relation, "a pronoun for a name")
                continue
            ids = (_last(subject["uri"]), _last(answer["uri"]))
            candidate = Candidate(names[0], relation, names[1], where, subject_id=ids[0], object_id=ids[1])
            yield candidate_or_dropped(candidate)
    except (KeyError, TypeError, AttributeError) as error:
        problem = f"lacks {error}" if isinstance(error, KeyError) else "is not of T-REx's form"
        raise InputError(problem, where=where, remedy="expected triples of subject, predicate and object") from None


def _last(uri: str) -> str:
    """``P19`` of ``http://www.wikidata.org/prop/direct/P19``; dates and numbers, which are no entities, stay whole."""
    return uri if "^^" in uri else uri.rstrip("/").rpartition("/")[2]
