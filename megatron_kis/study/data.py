"""The prepared data of a study: their fingerprints, the folder of ``kis study plan``, and their sources."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_kis.common.errors import InputError
from megatron_kis.common.files import read_text, sha256_file
from megatron_kis.common.identity import DATA, QUESTIONS
from megatron_kis.common.parsing import parse_json
from megatron_kis.common.paths import absolute
from megatron_kis.config.data import DataConfig
from megatron_kis.config.run import RunConfig
from megatron_kis.data_tools.storage.indexed import suffixed
from megatron_kis.data_tools.tokenizers.base import side_file
from megatron_kis.data_tools.tokenizers.registry import model_file

if TYPE_CHECKING:
    from megatron_kis.data_tools.preparation.prepare import DataPrepConfig

_NEXT_TO_A_TOKENIZER = ("tokenizer_config.json", "special_tokens_map.json")
"""Files that decide about a tokenizer.json; ``<model>.meta.json`` decides about the others."""


def fingerprints_of(files: DataConfig) -> dict[str, str]:
    """Returns the fingerprints of the data that are there, by ``identity.DATA``, from their metadata.

    Those of missing or damaged data are left out.
    """
    found: dict[str, Any] = {}
    if isinstance(files.corpus, Path):
        corpus = _metadata(suffixed(files.corpus, ".meta.json"))
        found |= {"corpus": corpus.get("content_fingerprint"), "tokenizer": corpus.get("tokenizer_fingerprint")}
    found["validation"] = _metadata(suffixed(files.validation, ".meta.json")).get("content_fingerprint")
    exposures = _metadata(suffixed(files.exposures, ".json"))
    found["exposures"] = exposures.get("content_fingerprint")
    if "tokenizer" not in found or found["tokenizer"] is None:
        found["tokenizer"] = exposures.get("tokenizer_fingerprint")
    if files.questions.is_file():
        found["questions"] = sha256_file(files.questions)
    return {name: str(found[name]) for name in DATA if found.get(name) is not None}


def same_data(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Tells whether two sets of fingerprints are of the same data, as far as both say; questions do not count."""
    names = [name for name in DATA if name != QUESTIONS and one.get(name) and other.get(name)]
    return all(one[name] == other[name] for name in names)


def with_data(runs: Sequence[RunConfig], fingerprints: Mapping[str, str]) -> list[RunConfig]:
    """Returns the runs with the fingerprints of their data: a run that starts late on other data is refused.

    What it is asked may change until it starts.
    """
    expected = {name: fingerprints[name] for name in DATA if name in fingerprints and name != QUESTIONS}
    return [run.model_copy(update={"data": run.data.model_copy(update={"fingerprints": expected})}) for run in runs]


def planned_folder(output: Path) -> Path:
    """Returns where ``kis study plan`` makes missing data: next to the study's folder, on the same file system."""
    resolved = output.resolve()
    return resolved.parent / f".{resolved.name}.planned"


def source_files(settings: DataPrepConfig) -> list[Path]:
    """Returns every file that a study's data are made from, in a fixed order; missing ones as they are named.

    Raises:
        InputError: a pattern that matches nothing.
    """
    from megatron_kis.data_tools.readers.files import expand

    files = [*expand(settings.text), *_facts(settings.facts), settings.templates]
    if settings.tokenizer is not None:
        model = model_file(settings.tokenizer)
        sides = (*(model.with_name(name) for name in _NEXT_TO_A_TOKENIZER), side_file(model))
        files += [model, *(path for path in sides if path.exists())]
    return [absolute(path) for path in dict.fromkeys(files)]


def check_sources(settings: DataPrepConfig) -> None:
    """Refuses a study whose sources are not there, before anything is made.

    Raises:
        InputError: names the file.
    """
    for path in source_files(settings):
        if not path.exists():
            raise InputError("no such file", where=str(path), remedy="change data: in the study")


def _facts(source: Path) -> Iterator[Path]:
    if source.is_dir():
        yield from sorted(path for path in source.iterdir() if path.is_file())
    else:
        yield source


def _metadata(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(read_text(path), where=str(path))
    except InputError:
        return {}
    return content if isinstance(content, dict) else {}
