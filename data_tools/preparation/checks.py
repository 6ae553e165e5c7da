"""Checks of what data are prepared from, before any long work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from glob import has_magic
from pathlib import Path

from megatron_kis.common.errors import InputError, nearest, placed
from megatron_kis.data_tools.facts.importers import IMPORTERS
from megatron_kis.data_tools.preparation.inputs import training
from megatron_kis.data_tools.preparation.settings import DataPrepConfig
from megatron_kis.data_tools.readers.files import check_text_files, expand
from megatron_kis.data_tools.readers.open import FORMATS
from megatron_kis.data_tools.rendering.templates import load_templates
from megatron_kis.data_tools.selection.imports import check_source, source_files
from megatron_kis.data_tools.selection.select import check_settings
from megatron_kis.data_tools.tokenizers.registry import load_tokenizer


def checked(settings: DataPrepConfig) -> DataPrepConfig:
    """Returns the settings with each text file named, after all checks that need no long work."""
    if not settings.text:
        raise InputError("is an empty list", where="data.text", remedy="name at least one file of general text")
    _check_sources(settings)
    with placed("data.text"):
        settings = settings.replace(text=tuple(expand(settings.text)))
    if settings.text_format not in (None, *FORMATS):
        raise InputError(
            f"is {settings.text_format!r}", where="data.text_format", remedy=f"valid: {', '.join(FORMATS)}"
        )
    check_text_files(settings.text, settings.text_format)
    if settings.facts_format not in IMPORTERS:
        raise InputError(
            f"is {settings.facts_format!r}", where="data.facts_format", remedy=f"valid: {', '.join(IMPORTERS)}"
        )
    check_select(settings)
    if settings.tokenizer is None:
        training(settings).check()
    if not 0 <= settings.validation_share < 1:
        raise InputError(f"is {settings.validation_share}", where="data.validation_share", remedy="a share in [0, 1)")
    try:
        check_source(settings.facts, settings.facts_format, settings.facts_columns)
    except InputError as error:
        where = "data.facts_columns" if error.where == "columns" else error.where
        raise InputError(error.problem, where=where, remedy=error.remedy) from None
    source_files(settings.facts, settings.facts_format)
    check_templates(settings)
    if settings.tokenizer is not None:
        load_tokenizer(settings.tokenizer)
    return settings


def _check_sources(settings: DataPrepConfig) -> None:
    """Refuses a source that is not there, by its key; what matches a pattern of names is seen later."""
    text: list[Path | None] = [path for path in settings.text if not has_magic(str(path))]
    named: dict[str, Sequence[Path | None]] = {
        "text": text,
        "facts": [settings.facts],
        "templates": [settings.templates],
        "tokenizer": [settings.tokenizer],
    }
    check_there(named)


def check_there(named: Mapping[str, Sequence[Path | None]]) -> None:
    """Refuses sources that are not there.

    Args:
        named: paths by their key in the section ``data``.

    Raises:
        InputError: names the key.
    """
    for key, paths in named.items():
        for path in paths:
            if path is not None and not path.exists():
                remedy = "a relative path starts at the folder of the study file"
                if key == "tokenizer":
                    remedy += "; it is a file or a folder here, not the name of a model elsewhere"
                raise InputError(f"there is no {path}", where=f"data.{key}", remedy=remedy)


def check_select(settings: DataPrepConfig) -> None:
    """Refuses a wrong selection of facts, by its key."""
    try:
        check_settings(settings.select)
    except InputError as error:
        raise InputError(error.problem, where=f"data.select.{error.where}", remedy=error.remedy) from None


def check_templates(settings: DataPrepConfig) -> None:
    """Refuses damaged templates, and relations that have none."""
    templates = load_templates(settings.templates)
    select = settings.select
    used = {relation for group, count in select.counts().items() if count for relation in select.relations_of(group)}
    for key, relations in select.named_relations().items():
        for relation in relations:
            if relation in used and relation not in templates:
                raise InputError(
                    f"no templates for relation {relation!r} in {settings.templates}",
                    where=f"data.select.{key}",
                    remedy=nearest(relation, templates),
                )
