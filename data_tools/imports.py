"""From a source of triples to ``facts.jsonl``: import, choose, describe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from data_tools.facts import write_facts
from data_tools.importers import IMPORTERS, SOURCE_FILES, TEMPLATE_READERS, Imported, import_wikidata5m
from data_tools.progress import Progress
from data_tools.select import Selection, SelectSettings, select_facts
from data_tools.templates import wording
from megatron_kis.errors import InputError, nearest
from megatron_kis.files import fingerprint, sha256_file, write_json, write_text


def import_facts(
    source: Path,
    kind: str,
    output: Path,
    settings: SelectSettings,
    *,
    skip_errors: bool = False,
    progress: Progress | None = None,
) -> Selection:
    """Imports triples, chooses a study's facts, writes ``output`` and, beside it, ``facts.meta.json``.

    Args:
        source: a file or folder of triples.
        kind: its format, a key of ``IMPORTERS``.
        output: the facts file to write.
        settings: which facts, and how many.
        skip_errors: drop and count malformed rows instead of ending.
        progress: where to report.

    Raises:
        InputError: a damaged row (``file:line``), or too few facts for what is asked.
    """
    triples = read_triples(source, kind, settings, skip_errors=skip_errors)
    selection = select_facts((progress or Progress()).track(triples, description="triples"), settings)
    write_facts(output, selection.facts)
    meta = {
        "schema": "kis.facts/1",
        "source": {"path": str(source), "format": kind, "sha256": source_fingerprint(source, kind)},
        "settings": asdict(settings),
        "imported": dict(selection.imported),
        "dropped": {reason: dict(counts) for reason, counts in selection.dropped.items() if counts},
        "relations": [asdict(relation) for relation in selection.relations],
        "facts": len(selection.facts),
    }
    write_json(output.with_suffix(".meta.json"), meta)
    return selection


def read_triples(source: Path, kind: str, settings: SelectSettings, *, skip_errors: bool = False) -> Iterator[Imported]:
    """The triples of a source.

    Raises:
        InputError: an unknown format, or no such source.
    """
    if kind not in IMPORTERS:
        raise InputError(f"unknown format {kind!r}", where="facts_format", remedy=nearest(kind, IMPORTERS))
    if not source.exists():
        raise InputError("no such file or folder", where=str(source))
    if kind == "wikidata5m":  # names that nobody asked for, or that will not fit into memory, are not looked up
        limit, seed = settings.memory_limit, settings.seed
        relations = settings.relations
        return import_wikidata5m(source, skip_errors=skip_errors, relations=relations, limit=limit, seed=seed)
    return IMPORTERS[kind](source, skip_errors=skip_errors)


def write_source_templates(source: Path, kind: str, output: Path, relations: Sequence[str]) -> int:
    """Writes the templates that a source brings as ``templates.yaml``: the last of a relation held out, the rest train.

    They are a start: a relation needs more sentences than the one to three that BEAR and LAMA have.

    Args:
        source: the file or folder that was imported.
        kind: its format.
        output: the file to write.
        relations: relations to write.

    Returns:
        The number of relations that have templates.

    Raises:
        InputError: the format brings none, or ``output`` exists.
    """
    import yaml

    if kind not in TEMPLATE_READERS:
        remedy = f"these do: {', '.join(TEMPLATE_READERS)}; write templates.yaml for the others"
        raise InputError(f"{kind} brings no templates", where=str(source), remedy=remedy)
    if output.exists():
        raise InputError("exists", where=str(output), remedy="templates that may have been edited are not overwritten")
    found = TEMPLATE_READERS[kind](source)
    content = {}
    for relation in relations:
        # BEAR's P103 has one sentence twice
        templates = list({wording(template): template for template in found.get(relation, ())}.values())
        if templates:
            content[relation] = {"train": templates[:-1] or templates, "held_out": templates[1:][-1:]}
    write_text(output, yaml.safe_dump(content, allow_unicode=True, sort_keys=False, width=1000))
    return len(content)


def source_files(source: Path, kind: str) -> list[Path]:
    """The files of a source of triples that its format reads; others in its folder do not count.

    Raises:
        InputError: there is no such file or folder, or none of the format's files in it.
    """
    if not source.exists():
        raise InputError("no such file or folder", where=str(source))
    if kind in SOURCE_FILES:
        return SOURCE_FILES[kind](source)
    return sorted(path for path in source.iterdir() if path.is_file()) if source.is_dir() else [source]


def source_fingerprint(source: Path, kind: str) -> str:
    """SHA-256 of a file; of a folder, over the names and hashes of the files that are read."""
    files = source_files(source, kind)
    if not source.is_dir():
        return sha256_file(source)
    return fingerprint({path.name: sha256_file(path) for path in files})
