"""Importers: one module per format of triples; each yields candidates for facts, and records of dropped rows."""

from collections.abc import Callable
from pathlib import Path

from megatron_kis.data_tools.facts.fact import Candidate
from megatron_kis.data_tools.facts.importers.base import (
    AMBIGUOUS_NAMES,
    NOT_SAMPLED,
    Dropped,
    Imported,
    Importer,
    malformed,
)
from megatron_kis.data_tools.facts.importers.bear import bear_files, bear_templates, import_bear
from megatron_kis.data_tools.facts.importers.columns import parse_columns
from megatron_kis.data_tools.facts.importers.json_lines import import_jsonl
from megatron_kis.data_tools.facts.importers.lama import import_lama, lama_files, lama_templates
from megatron_kis.data_tools.facts.importers.table import import_csv, import_tsv
from megatron_kis.data_tools.facts.importers.trex import import_trex, trex_files
from megatron_kis.data_tools.facts.importers.wikidata5m import import_wikidata5m, wikidata5m_files

IMPORTERS: dict[str, Importer] = {
    "tsv": import_tsv,
    "csv": import_csv,
    "jsonl": import_jsonl,
    "bear": import_bear,
    "lama": import_lama,
    "trex": import_trex,
    "wikidata5m": import_wikidata5m,
}
"""Importer of each format."""

WITH_COLUMNS = {"tsv": import_tsv, "csv": import_csv, "jsonl": import_jsonl}
"""Importers of single files, whose columns can be named."""

SOURCE_FILES: dict[str, Callable[[Path], list[Path]]] = {
    "bear": bear_files,
    "lama": lama_files,
    "trex": trex_files,
    "wikidata5m": wikidata5m_files,
}
"""For the formats that are folders, the function that lists the files that are read."""

TEMPLATE_READERS = {"bear": bear_templates, "lama": lama_templates}
"""Reader of the templates, for the formats that have some."""

__all__ = [
    "AMBIGUOUS_NAMES",
    "IMPORTERS",
    "NOT_SAMPLED",
    "SOURCE_FILES",
    "TEMPLATE_READERS",
    "WITH_COLUMNS",
    "Candidate",
    "Dropped",
    "Imported",
    "Importer",
    "bear_templates",
    "import_bear",
    "import_csv",
    "import_jsonl",
    "import_lama",
    "import_trex",
    "import_tsv",
    "import_wikidata5m",
    "lama_templates",
    "malformed",
    "parse_columns",
]
