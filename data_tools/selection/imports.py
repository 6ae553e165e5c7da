"""From a source of triples to ``facts.jsonl``: import, select, describe."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from megatron_kis.common.errors import InputError, first_of, nearest
from megatron_kis.common.files import fingerprint, sha256_file, write_json, write_text
from megatron_kis.common.progress import Progress
from megatron_kis.data_tools.facts.fact import write_facts
from megatron_kis.data_tools.facts.importers import (
    IMPORTERS,
    SOURCE_FILES,
    TEMPLATE_READERS,
    WITH_COLUMNS,
    Candidate,
    Imported,
    import_wikidata5m,
    malformed,
    parse_columns,
)
from megatron_kis.data_tools.readers.files import refuse_own_outputs
from megatron_kis.data_tools.rendering.templates import wording
from megatron_kis.data_tools.selection.pool import Pool
from megatron_kis.data_tools.selection.select import (
    SelectConfig,
    Selection,
    check_relations,
    check_settings,
    select_facts,
)


def import_facts(
    source: Path,
    kind: str,
    output: Path,
    settings: SelectConfig,
    *,
    columns: Sequence[str] = (),
    skip_errors: bool = False,
    progress: Progress | None = None,
) -> Selection:
    """Imports triples, selects a study's facts, and writes ``output`` with ``facts.meta.json`` next to it.

    Args:
        source: a file or folder of triples.
        kind: its format, a key of ``IMPORTERS``.
        output: the facts file to write.
        settings: which facts, and how many.
        columns: ``field=column`` for columns of a table or JSON lines whose names do not say what they hold.
        skip_errors: drop and count malformed rows instead of ending.
        progress: where to report.

    Raises:
        InputError: a damaged row or an id for the second time (``file:line``), or too few facts for the groups,
            with counts of and reasons for dropped triples.
    """
    check_import(source, kind, settings, columns)
    refuse_own_outputs(source_files(source, kind), [output, output.with_suffix(".meta.json")])
    triples = read_triples(source, kind, settings, columns=columns, skip_errors=skip_errors)
    triples = _without_repeated_ids(triples, settings, skip_errors=skip_errors)
    pools: list[Pool] = []
    first: list[Candidate] = []

    def seen(pool: Pool) -> None:
        pools.append(pool)
        if not any(pool.imported) and not settings.relations_of_all_groups():
            raise InputError("holds no triples that can be read", where=str(source))
        if not pool.seen:
            raise InputError("holds no triples", where=str(source))

    try:
        tracked = _noting_the_first((progress or Progress()).track(triples, description="triples"), first)
        selection = select_facts(tracked, settings, on_pool=seen)
    except InputError as error:
        if not pools:
            raise
        problem = f"{error.problem}{_drop_reasons(pools[0], error)}"
        if header := _like_a_header(first, pools[0]):
            remedy = "if it is the header, call its columns subject, relation and object"
            raise InputError(
                f"would be read as a fact ({header}), and {problem}", where=first[0].where, remedy=remedy
            ) from None
        raise InputError(problem, where=error.where or str(source), remedy=error.remedy) from None
    write_facts(output, selection.facts)
    described = {"path": str(source), "format": kind, "sha256": source_fingerprint(source, kind)}
    meta = {
        "schema": "kis.facts/1",
        "source": {**described, "columns": list(columns)} if columns else described,
        "settings": settings.record(),
        "imported": dict(selection.imported),
        "dropped": {reason: dict(counts) for reason, counts in selection.dropped.items() if counts},
        "relations": [asdict(relation) for relation in selection.relations],
        "facts": len(selection.facts),
    }
    write_json(output.with_suffix(".meta.json"), meta)
    return selection


def check_import(source: Path, kind: str, settings: SelectConfig, columns: Sequence[str] = ()) -> None:
    """Checks what can be checked without reading the triples, the numbers first; see ``import_facts``.

    Raises:
        InputError: names the setting, or the source.
    """
    check_settings(settings)
    check_relations(settings)
    check_source(source, kind, columns)


def _noting_the_first(triples: Iterable[Imported], first: list[Candidate]) -> Iterator[Imported]:
    for triple in triples:
        if not first and isinstance(triple, Candidate):
            first.append(triple)
        yield triple


def _like_a_header(first: Sequence[Candidate], pool: Pool) -> str | None:
    """Returns the first row if it has a relation of its own, which no other row has, and stands at the file's top."""
    if not first or not first[0].where.endswith(":1"):
        return None
    alone = pool.imported[first[0].relation] == 1 and pool.imported.total() > 1
    return ", ".join(_fact_of(first[0])) if alone else None


def _without_repeated_ids(
    triples: Iterable[Imported], settings: SelectConfig, *, skip_errors: bool
) -> Iterator[Imported]:
    """Yields the triples without later ones that reuse an id for another fact.

    Ids are remembered for as many triples as fit into memory.
    """
    seen: dict[str, Candidate] = {}
    wanted = set(settings.relations_of_all_groups())
    for triple in triples:
        if isinstance(triple, Candidate) and triple.id and (not wanted or triple.relation in wanted):
            first = seen.get(triple.id)
            if first is None and len(seen) < settings.memory_limit:
                seen[triple.id] = triple
            elif first is not None and _fact_of(first) != _fact_of(triple):
                problem = f"id {triple.id!r} is taken (by {first.where})"
                error = InputError(problem, where=triple.where, remedy="ids must be unique, or left out")
                if not skip_errors:
                    raise error
                yield malformed(error)
                continue
        yield triple


def _fact_of(triple: Candidate) -> tuple[str, str, str]:
    return triple.subject, triple.relation, triple.object


def _drop_reasons(pool: Pool, error: InputError) -> str:
    """Lists why triples were dropped: those of the relation that an error names, or all."""
    named = {relation for relation in pool.imported if f"relation {relation!r}" in error.problem}
    counts = {
        reason: Counter({name: count for name, count in of.items() if not name or not named or name in named})
        for reason, of in pool.dropped.items()
    }
    ranked = sorted((-of.total(), reason) for reason, of in counts.items() if of.total())
    if not ranked:
        return ""
    lines = []
    for negative, reason in ranked:
        where = next((pool.examples[reason, name] for name in counts[reason] if pool.examples.get((reason, name))), "")
        lines.append(f"{-negative} {reason}" + (f", first {where}" if where else ""))
    return f" (dropped: {first_of(lines, 6, separator='; ')})"


def read_triples(
    source: Path,
    kind: str,
    settings: SelectConfig,
    *,
    columns: Sequence[str] = (),
    skip_errors: bool = False,
) -> Iterator[Imported]:
    """Reads the triples of a source.

    Raises:
        InputError: an unknown format, no such source, or columns of a format that has none.
    """
    check_source(source, kind, columns)
    if kind in WITH_COLUMNS:
        return WITH_COLUMNS[kind](source, skip_errors=skip_errors, columns=parse_columns(columns))
    if kind == "wikidata5m":  # names of other relations, or beyond the memory limit, are not looked up
        limit, seed = settings.memory_limit, settings.seed
        relations = settings.relations_of_all_groups()
        return import_wikidata5m(source, skip_errors=skip_errors, relations=relations, limit=limit, seed=seed)
    return IMPORTERS[kind](source, skip_errors=skip_errors)


def check_source(source: Path, kind: str, columns: Sequence[str] = ()) -> None:
    """Checks what can be checked of a source without reading it.

    Raises:
        InputError: an unknown format, no such source, a folder where the format is a file, or wrong columns.
    """
    if kind not in IMPORTERS:
        raise InputError(f"unknown format {kind!r}", where="facts_format", remedy=nearest(kind, IMPORTERS))
    if columns and kind not in WITH_COLUMNS:
        raise InputError(f"{kind} has no columns to name", where="columns", remedy=f"{', '.join(WITH_COLUMNS)} do")
    parse_columns(columns)
    if not source.exists():
        raise InputError("no such file or folder", where=str(source))
    if kind in WITH_COLUMNS and source.is_dir():
        folders = ", ".join(name for name in IMPORTERS if name not in WITH_COLUMNS)
        raise InputError("is a folder", where=str(source), remedy=f"{kind} is one file; folders are {folders}")


def read_source_templates(source: Path, kind: str, *, skip_errors: bool = False) -> dict[str, list[str]]:
    """Reads the templates of a source, by relation; those without one [X] and one [Y] are left out.

    Raises:
        InputError: the format has none.
    """
    if kind not in TEMPLATE_READERS:
        remedy = f"these do: {', '.join(TEMPLATE_READERS)}; write templates.yaml for the others"
        raise InputError(f"{kind} brings no templates", where=str(source), remedy=remedy)
    found = TEMPLATE_READERS[kind](source, skip_errors=skip_errors)
    return {
        relation: [one for one in templates if one.count("[X]") == one.count("[Y]") == 1]
        for relation, templates in found.items()
    }


def write_source_templates(found: Mapping[str, list[str]], output: Path, relations: Sequence[str]) -> int:
    """Writes the templates of a source as ``templates.yaml``: the last one of a relation held out, the others train.

    They are a start: a relation needs more sentences than the one to three that BEAR and LAMA have.

    Args:
        found: result of :func:`read_source_templates`.
        output: the file to write.
        relations: relations to write.

    Returns:
        The number of relations that have templates.
    """
    import yaml

    content = {}
    for relation in relations:
        # BEAR's P103 has one sentence twice
        templates = list({wording(template): template for template in found.get(relation, ())}.values())
        if templates:
            content[relation] = {"train": templates[:-1] or templates, "held_out": templates[1:][-1:]}
    write_text(output, yaml.safe_dump(content, allow_unicode=True, sort_keys=False, width=1000))
    return len(content)


def source_files(source: Path, kind: str) -> list[Path]:
    """Returns the files of a source that its format reads; others in its folder do not count.

    Raises:
        InputError: there is no such file or folder, or none of the format's files in it.
    """
    check_source(source, kind)
    return SOURCE_FILES[kind](source) if kind in SOURCE_FILES else [source]


def source_fingerprint(source: Path, kind: str) -> str:
    """Returns the SHA-256 of a file; for a folder, of the names and hashes of the files that are read."""
    files = source_files(source, kind)
    if not source.is_dir():
        return sha256_file(source)
    return fingerprint({path.name: sha256_file(path) for path in files})
