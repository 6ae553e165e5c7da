"""Wikidata5M: triples of ids, and files that give each id its names.

A folder holds ``*_entity.txt`` and ``*_relation.txt`` (id, then names, between tabs; the first name counts, the
others are aliases) and ``*_triplet.txt`` or, where there is none, the splits ``*_train.txt``, ``*_valid.txt``,
``*_test.txt`` (subject id, relation id, object id). Relations keep their ids (``P19``).

Where there are more triples than are wanted, subjects are drawn by their ids before a name is looked up. Memory
holds an index of the names and one block of triples, whatever the number of triples.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

from megatron_kis.common.errors import InputError, nearest
from megatron_kis.data_tools.facts.fact import Candidate
from megatron_kis.data_tools.facts.importers.base import AMBIGUOUS_NAMES, NOT_SAMPLED, Dropped, Imported, malformed
from megatron_kis.data_tools.facts.importers.reading import source_lines, visible_files
from megatron_kis.data_tools.facts.importers.wikidata5m_names import EntityNames, Names
from megatron_kis.data_tools.facts.importers.wikidata5m_triples import (
    SubjectSample,
    TripleBlock,
    parse_id_line,
    triple_blocks,
)

_BATCH = 1 << 16  # triples whose names are looked up together

NO_NAME = "an id without a name"
"""Reason for a triple whose subject or object is not in ``*_entity.txt``, or has control characters for a name."""


def import_wikidata5m(
    path: Path,
    *,
    skip_errors: bool = False,
    relations: Collection[str] = (),
    limit: int | None = None,
    seed: int = 0,
) -> Iterator[Imported]:
    """Reads a folder's triples as a stream, with their names.

    Args:
        path: the folder.
        skip_errors: drop malformed triples instead of ending.
        relations: ids of the relations to read; empty means all.
        limit: most triples to look up; if there are more, those of a random sample of the subjects. None for all.
        seed: seed of the sample.

    Raises:
        InputError: a file is missing, a line malformed (``file:line``), or a relation not in ``*_relation.txt``.
    """
    known, dropped = _relations(_single(path, "*_relation.txt"), skip_errors=skip_errors)
    for relation in relations:
        if relation not in known:
            raise InputError(f"no relation {relation!r}", where=str(path), remedy=nearest(relation, known))
    wanted = [int(relation[1:]) for relation in relations]
    files = _triple_files(path)

    def blocks() -> Iterator[TripleBlock]:
        for file in files:
            yield from triple_blocks(file, wanted, skip_errors=skip_errors)

    with EntityNames(_single(path, "*_entity.txt"), skip_errors=skip_errors) as entities:
        yield from [*dropped, *entities.dropped]
        sample = None if limit is None else SubjectSample(blocks(), limit, seed)
        for block in blocks():
            yield from block.malformed
            if sample is None:
                yield from _resolved(block, entities)
                continue
            kept = sample.contains(block.subjects)
            left_out, counts = np.unique(block.relations[~kept], return_counts=True)
            for number, count in zip(left_out.tolist(), counts.tolist(), strict=True):
                yield Dropped(f"P{number}", NOT_SAMPLED, count=count)
            yield from _resolved(block.select(kept), entities)


def wikidata5m_files(path: Path) -> list[Path]:
    """Returns the files of a folder that are read.

    Raises:
        InputError: one is missing.
    """
    return sorted({*(_single(path, f"*_{kind}.txt") for kind in ("relation", "entity")), *_triple_files(path)})


def _resolved(block: TripleBlock, entities: EntityNames) -> Iterator[Imported]:
    """Yields the triples of a block with their names."""
    columns = (block.lines, block.subjects, block.relations, block.objects)
    for start in range(0, len(block.lines), _BATCH):
        batch = slice(start, start + _BATCH)
        names = entities.look_up(np.unique(np.concatenate([block.subjects[batch], block.objects[batch]])))
        for triple in zip(*(column[batch].tolist() for column in columns), strict=True):
            yield _resolve(block.file, triple, names)


def _resolve(file: Path, triple: tuple[int, int, int, int], names: dict[int, Names]) -> Imported:
    line, subject, number, answer = triple
    relation = f"P{number}"
    where = f"{file}:{line}"
    if subject not in names or answer not in names:
        return Dropped(relation, NO_NAME, where=where)
    subject_name, subject_aliases, shared = names[subject]
    object_name, object_aliases, _ = names[answer]
    if shared:
        return Dropped(relation, AMBIGUOUS_NAMES, where=where)
    return Candidate(
        subject=subject_name,
        relation=relation,
        object=object_name,
        where=where,
        subject_id=f"Q{subject}",
        object_id=f"Q{answer}",
        subject_aliases=subject_aliases,
        object_aliases=object_aliases,
    )


def _relations(path: Path, *, skip_errors: bool = False) -> tuple[dict[str, str], list[Dropped]]:
    """Reads the name of each relation, and the malformed lines if errors are skipped."""
    known: dict[str, str] = {}
    dropped: list[Dropped] = []
    for number, line in source_lines(path):
        try:
            identifier, names = parse_id_line(line, b"P", f"{path}:{number}")
        except InputError as error:
            if not skip_errors:
                raise
            dropped.append(malformed(error, "line of names"))
        else:
            known[f"P{identifier}"] = names.partition("\t")[0].strip()
    return known, dropped


def _single(folder: Path, pattern: str) -> Path:
    found = visible_files(folder, pattern)
    if len(found) != 1:
        problem = f"{len(found)} files {pattern}" if folder.is_dir() else "not a folder"
        raise InputError(problem, where=str(folder), remedy=f"expected a folder with one {pattern}")
    return found[0]


def _triple_files(folder: Path) -> list[Path]:
    splits = [path for split in ("train", "valid", "test") for path in visible_files(folder, f"*_{split}.txt")]
    files = visible_files(folder, "*_triplet.txt") or splits
    if not files:
        raise InputError(
            "no *_triplet.txt", where=str(folder), remedy="expected lines of subject, relation, object ids"
        )
    return files
