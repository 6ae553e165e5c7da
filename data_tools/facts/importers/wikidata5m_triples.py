"""The triples of Wikidata5M as arrays, one block of lines at a time, and the sample of the subjects that are kept.

A block of well-formed lines is parsed at once (0.5 us per line), any other line by line.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from megatron_kis.common.errors import InputError
from megatron_kis.common.files import unreadable
from megatron_kis.data_tools.facts.importers.base import Dropped, malformed
from megatron_kis.data_tools.facts.importers.reading import BOM, decoded, refuse_packed
from megatron_kis.data_tools.readers.open import check_head

Ints = npt.NDArray[np.int64]

_BLOCK = 1 << 22  # bytes, about 200,000 triples
_WELL_FORMED = re.compile(rb"(?:Q\d{1,18}[\t ]P\d{1,18}[\t ]Q\d{1,18}\r?\n)*+")
_BUCKETS = 1 << 20  # resolution of the share of subjects that are kept


@dataclass(frozen=True, slots=True)
class TripleBlock:
    """Triples of neighbouring lines."""

    file: Path
    """File of the lines."""
    lines: Ints
    """Line numbers, ``[n]``, from 1."""
    subjects: Ints
    """Numbers of the subjects' ids, ``[n]``."""
    relations: Ints
    """Numbers of the relations' ids, ``[n]``."""
    objects: Ints
    """Numbers of the objects' ids, ``[n]``."""
    malformed: tuple[Dropped, ...] = ()
    """Lines that were skipped, one record per kind."""

    def select(self, chosen: npt.NDArray[np.bool_]) -> TripleBlock:
        """Returns the triples for which ``chosen``, ``[n]``, is true."""
        return replace(
            self,
            lines=self.lines[chosen],
            subjects=self.subjects[chosen],
            relations=self.relations[chosen],
            objects=self.objects[chosen],
        )


def id_number(identifier: bytes, letter: bytes, where: str) -> int:
    """Returns the number of an id such as ``Q42``.

    Raises:
        InputError: it is none.
    """
    digits = identifier.strip()
    if not digits.startswith(letter) or not digits[1:].isdigit() or len(digits) > 19:
        shown = digits[:20].decode("utf-8", "replace")
        raise InputError(f"not an id: {shown!r}", where=where, remedy=f"expected {letter.decode()} and a number")
    return int(digits[1:])


def parse_id_line(line: bytes, letter: bytes, where: str) -> tuple[int, str]:
    """Returns the number of a line's id, and the names after it, between tabs.

    Raises:
        InputError: it begins with no such id, or is not UTF-8.
    """
    identifier, _, names = line.removeprefix(BOM).partition(b"\t")
    return id_number(identifier, letter, where), decoded(names, where)


def triple_blocks(file: Path, relations: Collection[int] = (), *, skip_errors: bool = False) -> Iterator[TripleBlock]:
    """Reads a file of triples.

    Args:
        file: lines of subject, relation and object ids.
        relations: numbers of the relations to read; empty means all.
        skip_errors: count malformed lines instead of ending.

    Raises:
        InputError: an unreadable file, or a malformed line (``file:line``).
    """
    wanted = np.array(sorted(relations), np.int64)
    first = 1
    try:
        with open(file, "rb") as stream:
            while data := stream.read(_BLOCK) + stream.readline():
                if first == 1:
                    refuse_packed(data, file)
                    check_head(file, ".txt")
                    data = data.removeprefix(BOM)
                block = _block(file, data, first, skip_errors)
                yield block.select(np.isin(block.relations, wanted)) if len(wanted) else block
                first += data.count(b"\n")
    except OSError as error:
        raise unreadable(error, file) from None


def _block(file: Path, data: bytes, first: int, skip_errors: bool) -> TripleBlock:
    if data.endswith(b"\n") and _WELL_FORMED.fullmatch(data):
        subjects, relations, objects = np.fromstring(data.translate(None, b"QP"), np.int64, sep=" ").reshape(-1, 3).T
        return TripleBlock(file, np.arange(first, first + len(subjects)), subjects, relations, objects)
    found: list[tuple[int, int, int, int]] = []
    skipped: dict[str, Dropped] = {}
    for number, line in enumerate(data.split(b"\n"), start=first):
        if not (fields := line.split()):
            continue
        where = f"{file}:{number}"
        try:
            if len(fields) != 3:
                remedy = "expected the ids of subject, relation and object"
                raise InputError(f"{len(fields)} fields", where=where, remedy=remedy)
            subject, relation, answer = map(id_number, fields, (b"Q", b"P", b"Q"), (where,) * 3)
            found.append((number, subject, relation, answer))
        except InputError as error:
            if not skip_errors:
                raise
            note = malformed(error)
            known = skipped.setdefault(note.reason, replace(note, count=0))
            skipped[note.reason] = replace(known, count=known.count + 1)
    lines, subjects, relations, objects = np.array(found, np.int64).reshape(-1, 4).T
    return TripleBlock(file, lines, subjects, relations, objects, tuple(skipped.values()))


class SubjectSample:
    """A random sample of subjects with at most so many triples in all; it depends on ids and seed only."""

    def __init__(self, blocks: Iterable[TripleBlock], limit: int, seed: int) -> None:
        """Counts the triples of ``blocks`` and determines which subjects are kept."""
        self._seed = seed
        counts = np.zeros(_BUCKETS, np.int64)
        for block in blocks:
            counts += np.bincount(self._buckets(block.subjects), minlength=_BUCKETS)
        self._kept = int(np.searchsorted(np.cumsum(counts), limit, side="right"))

    def contains(self, subjects: Ints) -> npt.NDArray[np.bool_]:
        """Returns whether each subject, ``[n]``, is kept."""
        result: npt.NDArray[np.bool_] = self._buckets(subjects) < self._kept
        return result

    def _buckets(self, subjects: Ints) -> Ints:
        """Returns a random bucket in [0, _BUCKETS) for each subject: the finaliser of SplitMix64, seeded by adding."""
        with np.errstate(over="ignore"):
            mixed = subjects.astype(np.uint64) + np.uint64((self._seed * 0x9E3779B97F4A7C15 + 1) % (1 << 64))
            for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
                mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
            mixed ^= mixed >> np.uint64(31)
        return (mixed % np.uint64(_BUCKETS)).astype(np.int64)
