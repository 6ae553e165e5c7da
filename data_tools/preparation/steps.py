"""The steps of a study's data in order: facts, tokenizer, corpus, rendering.

For each step there is a function that describes it (everything that decides its bytes, see ``stamps.Step``); ``work``
has those that make the outputs. ``steps_of`` lists the descriptions::

    inputs = StepInputs(settings, seen, progress)
    for describe in steps_of(settings):
        step = describe(inputs)
        folder = ...                    # where its outputs are, after making them if need be; None if they are not made
        inputs.load(step.name, folder)  # what later steps take from it

If a step is not made, the keys of later steps lack what is not known yet.
"""

from __future__ import annotations

import tempfile
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from megatron_kis.common.errors import InputError
from megatron_kis.common.files import fingerprint, read_json
from megatron_kis.data_tools.corpus.build import encoder_for
from megatron_kis.data_tools.corpus.meta import read_corpus_meta
from megatron_kis.data_tools.corpus.part import VALIDATION_SUFFIX
from megatron_kis.data_tools.preparation.inputs import StepInputs, fact_names, made_before, tokenizer_name
from megatron_kis.data_tools.preparation.settings import DataPrepConfig
from megatron_kis.data_tools.preparation.stamps import DISTRACTORS, OLD_VERSION, TEMPLATES, VERSIONS, Step
from megatron_kis.data_tools.preparation.work import make_corpus, make_facts, make_rendering, make_tokenizer
from megatron_kis.data_tools.readers.open import kind_of
from megatron_kis.data_tools.rendering.render import SUFFIXES as RENDER_SUFFIXES
from megatron_kis.data_tools.rendering.render import exposures_fingerprint
from megatron_kis.data_tools.selection.imports import source_files
from megatron_kis.data_tools.storage.exposures import SCHEMA as EXPOSURES_SCHEMA
from megatron_kis.data_tools.tokenizers.base import META_SCHEMA, Tokenizer, side_file
from megatron_kis.data_tools.tokenizers.gigatoken import usable_gigatoken
from megatron_kis.data_tools.tokenizers.reference_encoder import package_version
from megatron_kis.data_tools.tokenizers.training import CHARACTER_COVERAGE

CODE = {"facts": "4", "tokenizer": "3", "corpus": "4", "render": "4"}
"""Versions of our own code. Raise one when its step writes other bytes for the same key: data are then made again, or
kept with a message if runs use them."""

_CORPUS_SUFFIXES = (".bin", ".idx", ".meta.json")
_NAMED_BY_FILE = ("bear", "lama")  # formats in which a file is named after its relation
_SHOWN = "train_templates"
"""Label of the render step: the fingerprint of each relation's train templates, which alone are trained on."""


def steps_of(settings: DataPrepConfig) -> list[Callable[[StepInputs], Step]]:
    """Returns the descriptions of all steps in order; a given tokenizer needs no step."""
    return [_facts_step, *([] if settings.tokenizer else [_tokenizer_step]), _corpus_step, _render_step]


def _facts_step(inputs: StepInputs) -> Step:
    settings = inputs.settings
    files = source_files(settings.facts, settings.facts_format)
    hashes = {path.name: inputs.seen.sha256(path) for path in files}
    named = settings.facts.is_dir() or settings.facts_format in _NAMED_BY_FILE
    select = settings.select.model_dump()
    columns = {"facts_columns": list(settings.facts_columns)} if settings.facts_columns else {}
    old = {
        "source": fingerprint(hashes) if settings.facts.is_dir() else hashes[settings.facts.name],
        "format": settings.facts_format,
        **settings.select.record(),
    }
    return Step(
        name="facts",
        key={
            "data": {"facts_format": settings.facts_format, **columns, "select": select},
            "files": {
                "data.facts": [
                    {"sha256": sha256, **({"name": name} if named else {})} for name, sha256 in hashes.items()
                ]
            },
            "made": {},
            "versions": _versions("facts"),
        },
        outputs=("facts.jsonl", "facts.meta.json"),
        make=partial(make_facts, inputs),
        labels={"data.facts": list(map(str, files))},
        old_fingerprint=_old_fingerprint("facts", old),
        asks_alone=lambda _stamp, changed, _folder: (
            any(one.startswith(DISTRACTORS) for one in changed)
            and all(one.startswith((DISTRACTORS, VERSIONS)) for one in changed)
        ),
    )


def _tokenizer_step(inputs: StepInputs) -> Step:
    settings = inputs.settings
    name = tokenizer_name(settings)
    library = "tokenizers" if name.endswith(".json") else "sentencepiece"
    facts = inputs.facts
    names = fingerprint(fact_names(facts)) if facts else None
    # Only if it counts and is not the default: the key of older data has none.
    rare = settings.tokenizer_model != "byte-bpe" and settings.character_coverage != CHARACTER_COVERAGE
    old = {
        **_old_text(inputs),
        "names": names,
        "vocab_size": settings.vocab_size,
        "model": settings.tokenizer_model,
        "seed": settings.seed,
    }
    return Step(
        name="tokenizer",
        key={
            "data": {
                **_reading(settings),
                "vocab_size": settings.vocab_size,
                "tokenizer_model": settings.tokenizer_model,
                "seed": settings.seed,
                **({"character_coverage": settings.character_coverage} if rare else {}),
            },
            "files": {"data.text": _text(inputs)},
            "made": {"names": names} if names else {},
            "versions": {**_versions("tokenizer"), library: package_version(library)},
        },
        outputs=(name, f"{name}.meta.json"),
        make=partial(make_tokenizer, inputs),
        labels={"data.text": list(map(str, settings.text))},
        known=facts is not None,
        old_fingerprint=_old_fingerprint("tokenizer", old) if facts else None,
        recorded=partial(_recorded_library, name, library),
    )


def _recorded_library(model: str, library: str, folder: Path) -> dict[str, str]:
    """Returns the version of the library that trained the tokenizer of a folder."""
    version = _read(side_file(folder / model), META_SCHEMA).get(f"{library}_version")
    return {library: str(version)} if version else {}


def _corpus_step(inputs: StepInputs) -> Step:
    settings = inputs.settings
    prefixes = ["corpus", *([f"corpus{VALIDATION_SUFFIX}"] if settings.validation_share else [])]
    made, labels, known = _made(inputs)
    old = {
        **_old_text(inputs),
        **made,
        "validation_share": settings.validation_share,
        "seed": settings.seed,
    }
    return Step(
        name="corpus",
        key={
            "data": {
                **_reading(settings),
                "validation_share": settings.validation_share,
                "seed": settings.seed,
            },
            "files": {"data.text": _text(inputs)},
            "made": made,
            "versions": {**_versions("corpus"), **_library(inputs.tokenizer)},
        },
        outputs=tuple(f"{prefix}{suffix}" for prefix in prefixes for suffix in _CORPUS_SUFFIXES),
        make=partial(make_corpus, inputs),
        labels={"data.text": list(map(str, settings.text)), "gigatoken": usable_gigatoken(), **labels},
        known=known,
        **_old_fingerprints("corpus", old, inputs.tokenizer, known),
        settle=partial(_encoder_version, inputs),
        recorded=_recorded_corpus_versions,
    )


def _encoder_version(inputs: StepInputs, stamp: Mapping[str, Any] | None) -> dict[str, str]:
    """Returns the encoder's version: the recorded one if tokenizer and libraries are the same, else found by a trial.

    With another tokenizer the encoder does not count by itself.
    """
    settings = inputs.settings
    tokenizer = inputs.tokenizer
    if tokenizer is None or (stamp and stamp["key"]["made"].get("tokenizer") != tokenizer.fingerprint):
        return {}
    then = stamp["key"]["versions"] if stamp else {}
    tried = stamp is not None and stamp["labels"].get("gigatoken") == usable_gigatoken()
    if tried and "encoder" in then and then.get(tokenizer.library) == package_version(tokenizer.library):
        return {"encoder": then["encoder"]}
    return {"encoder": encoder_for(settings.text, tokenizer, settings.text_key, settings.text_format)[0].name}


def _recorded_corpus_versions(folder: Path) -> dict[str, str]:
    """Returns the versions in the description of a folder's corpus."""
    try:
        versions = read_corpus_meta(folder / "corpus").get("versions", {})
    except InputError:
        return {}
    return {key: version for key, version in versions.items() if key not in ("numpy", "code")}


def _render_step(inputs: StepInputs) -> Step:
    settings = inputs.settings
    made, labels, known = _made(inputs)
    contents = {name: asdict(entry) for name, entry in inputs.templates.items()}
    shown = {name: fingerprint(entry.train) for name, entry in inputs.templates.items()}
    old = {**made, "templates": contents, "distractors": settings.select.distractors, "seed": settings.seed}
    return Step(
        name="render",
        key={
            "data": {"select": {"distractors": settings.select.distractors}, "seed": settings.seed},
            "files": {"data.templates": {name: fingerprint(content) for name, content in contents.items()}},
            "made": made,
            "versions": {**_versions("render"), **_library(inputs.tokenizer)},
        },
        outputs=tuple(f"exposures{suffix}" for suffix in RENDER_SUFFIXES),
        make=partial(make_rendering, inputs),
        labels={**labels, _SHOWN: shown},
        known=known,
        **_old_fingerprints("render", old, inputs.tokenizer, known),
        asks_alone=partial(_asks_alone, inputs, shown),
    )


def _asks_alone(
    inputs: StepInputs, shown: Mapping[str, str], stamp: Mapping[str, Any], changed: Sequence[str], folder: Path
) -> bool:
    """Returns whether the exposures stay the same: the train templates do, whatever else is asked."""
    of_questions = [one for one in changed if one.startswith((DISTRACTORS, TEMPLATES))]
    if not of_questions or not all(one.startswith((DISTRACTORS, TEMPLATES, VERSIONS)) for one in changed):
        return False
    if _SHOWN in stamp["labels"]:
        return bool(stamp["labels"][_SHOWN] == shown)
    if all(one.startswith((DISTRACTORS, VERSIONS)) for one in changed):
        return True
    facts, tokenizer = made_before(inputs.facts), made_before(inputs.tokenizer)
    with tempfile.TemporaryDirectory() as place:  # a stamp of an older version does not say which templates were shown
        again = exposures_fingerprint(facts, inputs.templates, tokenizer, Path(place, "again"))
    return bool(_read(folder / "exposures.json", EXPOSURES_SCHEMA).get("content_fingerprint") == again)


def _made(inputs: StepInputs) -> tuple[dict[str, str], dict[str, str], bool]:
    """Returns fingerprints of what earlier steps made, the origin of the tokenizer, and whether all is known."""
    tokenizer = inputs.tokenizer
    made = {"facts": inputs.facts_sha256, "tokenizer": tokenizer.fingerprint if tokenizer else None}
    known = {key: value for key, value in made.items() if value is not None}
    return known, {"tokenizer": "given" if inputs.settings.tokenizer else "trained"}, len(known) == len(made)


def _versions(step: str) -> dict[str, str]:
    versions = {"code": CODE[step], "unicode": unicodedata.unidata_version}
    return versions if step == "tokenizer" else {**versions, "regex": package_version("regex")}  # scripts of names


def _library(tokenizer: Tokenizer | None) -> dict[str, str]:
    return {tokenizer.library: package_version(tokenizer.library)} if tokenizer else {}


def _reading(settings: DataPrepConfig) -> dict[str, str]:
    """Returns how text is read; the format counts if one is given."""
    given = {"text_format": settings.text_format} if settings.text_format else {}
    return {"text_key": settings.text_key, **given}


def _text(inputs: StepInputs) -> list[dict[str, str]]:
    """Returns kind and content of the text files; a file is read by its kind unless a format is given."""
    settings = inputs.settings
    return [{"kind": _kind(path, settings.text_format), "sha256": inputs.seen.sha256(path)} for path in settings.text]


def _kind(path: Path, text_format: str | None) -> str:
    """Returns the kind by the file's name if it has one, so that a given format is a change of its own."""
    with suppress(InputError):
        return kind_of(path)
    return kind_of(path, text_format)


def _old_text(inputs: StepInputs) -> dict[str, Any]:
    settings = inputs.settings
    return {"text": [inputs.seen.sha256(path) for path in settings.text], "text_key": settings.text_key}


def _old_fingerprint(step: str, key: dict[str, Any]) -> str:
    """Returns the fingerprint of a step in a stamp of the old schema."""
    return fingerprint({"version": int(OLD_VERSION), "step": step, **key})


def _old_fingerprints(step: str, key: dict[str, Any], tokenizer: Tokenizer | None, known: bool) -> dict[str, Any]:
    if tokenizer is None or not known:
        return {}
    older = {**key, "tokenizer": tokenizer.model_sha256}
    return {"old_fingerprint": _old_fingerprint(step, key), "older_fingerprint": _old_fingerprint(step, older)}


def _read(path: Path, schema: str) -> dict[str, Any]:
    try:
        return read_json(path, schema)
    except InputError:
        return {}
