"""Wikidata5M: triples of ids, and files that give each id its names.

A folder holds ``*_entity.txt`` and ``*_relation.txt`` (id, then names, between tabs; the first name is taken, the
others are aliases) and ``*_triplet.txt`` or, where there is none, the splits ``*_train.txt``, ``*_valid.txt``,
``*_test.txt`` (subject id, relation id, object id). Relations keep their ids (``P19``).

Memory holds 28 bytes an entity (place and length of its line, a hash of its name) and one block of triples: about
130 MB for the 4.8 million entities of the published set, whatever the number of triples. Names are read where they
stand on the disk.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_tools.importers.base import Candidate, Dropped, Imported
from data_tools.names import name_words
from megatron_kis.errors import InputError, nearest

_BLOCK = 1 << 16  # triples whose names are in memory together
_Names = tuple[str, tuple[str, ...], bool]

NO_NAME = "an id without a name"
"""Reason of a triple whose subject or object is not in ``*_entity.txt``."""
SHARED_NAME = "ambiguous: several entities bear the subject's name"
"""Reason of a triple whose subject's name belongs to another entity too, by the whole of ``*_entity.txt``."""


def import_wikidata5m(path: Path, *, skip_errors: bool = False, relations: Collection[str] = ()) -> Iterator[Imported]:
    """Reads a folder's triples as a stream, with their names.

    Args:
        path: the folder.
        skip_errors: drop malformed triples instead of ending.
        relations: ids of the relations to read; empty means all. Others are passed over before names are looked up.

    Raises:
        InputError: a file is missing, a line malformed (``file:line``), or a relation not in ``*_relation.txt``.
    """
    known = _relations(_single(path, "*_relation.txt"))
    for relation in relations:
        if relation not in known:
            raise InputError(f"no relation {relation!r}", where=str(path), remedy=nearest(relation, known))
    with EntityNames(_single(path, "*_entity.txt")) as entities:
        for file in _triple_files(path):
            triples = _triples(file, set(relations), skip_errors)
            while block := list(islice(triples, _BLOCK)):
                ids = {identifier for triple in block if len(triple) == 4 for identifier in (triple[1], triple[3])}
                names = entities.look_up(sorted(ids))
                for triple in block:
                    yield _resolve(file, triple, names) if len(triple) == 4 else Dropped("", triple[0])


def relation_names(path: Path) -> dict[str, str]:
    """The name of each relation's id: to write templates by."""
    return _relations(_single(path, "*_relation.txt"))


class EntityNames:
    """Names of entities, looked up in the file that holds them; a context manager."""

    def __init__(self, path: Path) -> None:
        """Indexes ``path``.

        Raises:
            InputError: an unreadable file, or a malformed or repeated id (``file:line``).
        """
        self._path = path
        ids, offsets, lengths, hashes = array("q"), array("q"), array("i"), array("Q")
        offset = 0
        try:
            with open(path, "rb") as file:
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        identifier, _, rest = line.partition(b"\t")
                        ids.append(_number(identifier, b"Q", f"{path}:{number}"))
                        offsets.append(offset)
                        lengths.append(len(line))
                        hashes.append(_hash(rest.partition(b"\t")[0].decode("utf-8", "replace")))
                    offset += len(line)
            self._file = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise InputError(f"cannot be read ({error.strerror})", where=str(path)) from None
        order = np.argsort(np.frombuffer(ids, np.int64), kind="stable") if ids else np.empty(0, np.int64)
        self._ids: npt.NDArray[np.int64] = np.array(ids, np.int64)[order]
        self._offsets, self._lengths = np.array(offsets, np.int64)[order], np.array(lengths, np.int32)[order]
        repeated = np.flatnonzero(self._ids[1:] == self._ids[:-1])
        if len(repeated):
            raise InputError(f"Q{self._ids[repeated[0]]} stands in two lines", where=str(path))
        self._shared = _repeated(np.array(hashes, np.uint64)[order])

    def __enter__(self) -> EntityNames:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def __len__(self) -> int:
        """Number of entities."""
        return len(self._ids)

    def look_up(self, identifiers: list[int]) -> dict[int, _Names]:
        """Name, aliases, and whether another entity has the name too, of those ids that have a name."""
        wanted = np.array(identifiers, np.int64)
        places = np.searchsorted(self._ids, wanted)
        found: dict[int, _Names] = {}
        for identifier, place in zip(identifiers, places.tolist(), strict=True):
            if place == len(self._ids) or self._ids[place] != identifier:
                continue
            line = os.pread(self._file, int(self._lengths[place]), int(self._offsets[place]))
            _, *fields = line.decode("utf-8", "replace").rstrip("\r\n").split("\t")
            names = list(dict.fromkeys(name.strip() for name in fields if name.strip()))
            if names:
                found[identifier] = (names[0], tuple(names[1:]), bool(self._shared[place]))
        return found


def _repeated(hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Whether each hash stands in the array more than once."""
    _, inverse, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    result: npt.NDArray[np.bool_] = (counts > 1)[inverse]
    return result


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(" ".join(name_words(name)).encode(), digest_size=8).digest(), "little")


def _number(identifier: bytes, letter: bytes, where: str) -> int:
    digits = identifier.strip()
    if not digits.startswith(letter) or not digits[1:].isdigit() or len(digits) > 19:
        shown = digits[:20].decode("utf-8", "replace")
        raise InputError(f"not an id: {shown!r}", where=where, remedy=f"expected {letter.decode()} and a number")
    return int(digits[1:])


def _triples(file: Path, relations: set[str], skip_errors: bool) -> Iterator[Any]:
    """(line number, subject, relation, object) of each line, or (reason,) of a malformed one that is skipped."""
    try:
        with open(file, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                fields = line.split()
                if not fields:
                    continue
                try:
                    where = f"{file}:{number}"
                    if len(fields) != 3:
                        remedy = "expected the ids of subject, relation and object"
                        raise InputError(f"{len(fields)} fields", where=where, remedy=remedy)
                    relation = f"P{_number(fields[1], b'P', where)}"
                    if not relations or relation in relations:
                        yield number, _number(fields[0], b"Q", where), relation, _number(fields[2], b"Q", where)
                except InputError:
                    if not skip_errors:
                        raise
                    yield ("malformed row",)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=str(file)) from None


def _resolve(file: Path, triple: tuple[int, int, str, int], names: dict[int, _Names]) -> Imported:
    number, subject, relation, answer = triple
    if subject not in names or answer not in names:
        return Dropped(relation, NO_NAME)
    subject_name, subject_aliases, shared = names[subject]
    object_name, object_aliases, _ = names[answer]
    if shared:
        return Dropped(relation, SHARED_NAME)
    return Candidate(
        subject=subject_name,
        relation=relation,
        object=object_name,
        where=f"{file}:{number}",
        subject_id=f"Q{subject}",
        object_id=f"Q{answer}",
        subject_aliases=subject_aliases,
        object_aliases=object_aliases,
    )


def _relations(path: Path) -> dict[str, str]:
    known: dict[str, str] = {}
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                identifier, _, rest = line.partition(b"\t")
                if line.strip():
                    relation = f"P{_number(identifier, b'P', f'{path}:{number}')}"
                    known[relation] = rest.decode("utf-8", "replace").partition("\t")[0].strip()
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=str(path)) from None
    return known


def _single(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        problem = f"{len(found)} files {pattern}" if folder.is_dir() else "not a folder"
        raise InputError(problem, where=str(folder), remedy=f"expected a folder with one {pattern}")
    return found[0]


def _triple_files(folder: Path) -> list[Path]:
    splits = [path for split in ("train", "valid", "test") for path in sorted(folder.glob(f"*_{split}.txt"))]
    files = sorted(folder.glob("*_triplet.txt")) or splits
    if not files:
        raise InputError(
            "no *_triplet.txt", where=str(folder), remedy="expected lines of subject, relation, object ids"
        )
    return files
