"""The steps of a study's data: what decides the bytes of each, and how they are made.

``steps`` yields them in order. Whoever runs them sends back the folder in which a step's outputs are, or None where
they are not made yet: the keys of later steps then lack what is not known.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Generator, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from megatron_kis.common.errors import InputError
from megatron_kis.common.files import fingerprint, read_json
from megatron_kis.common.known_files import Seen
from megatron_kis.common.progress import Progress
from megatron_kis.data_tools.corpus.build import VALIDATION_SUFFIX, CorpusBuildConfig, build_corpus, encoder_for
from megatron_kis.data_tools.corpus.meta import read_corpus_meta
from megatron_kis.data_tools.facts.fact import Fact, load_facts
from megatron_kis.data_tools.preparation.settings import DataPrepConfig
from megatron_kis.data_tools.preparation.stamps import OLD_VERSION, Step
from megatron_kis.data_tools.readers.documents import iter_documents
from megatron_kis.data_tools.readers.open import kind_of
from megatron_kis.data_tools.rendering.render import SUFFIXES as RENDER_SUFFIXES
from megatron_kis.data_tools.rendering.render import render
from megatron_kis.data_tools.rendering.templates import RelationTemplates, load_templates
from megatron_kis.data_tools.selection.imports import import_facts, source_files
from megatron_kis.data_tools.tokenizers.base import (
    CHARACTER_COVERAGE,
    META_SCHEMA,
    Tokenizer,
    Training,
    load_tokenizer,
    side_file,
)
from megatron_kis.data_tools.tokenizers.gigatoken import usable_gigatoken
from megatron_kis.data_tools.tokenizers.reference_encoder import package_version
from megatron_kis.data_tools.tokenizers.training import train

CODE = {"facts": "4", "tokenizer": "3", "corpus": "4", "render": "4"}
"""Versions of our own code. Raise one when its step writes other bytes for the same key: data are then made again, or
kept with a word where runs hold them."""

_CORPUS_SUFFIXES = (".bin", ".idx", ".meta.json")
_TOKENIZER_NAMES = ("tokenizer.model", "tokenizer.json")
_NAMED = ("bear", "lama")  # formats in which the relation is the file's name
_OF_VERSION_2 = (
    "infused", "background", "control", "relations", "distractors", "facts_per_object", "longest_name",
    "keep_telling_names", "seed", "spread", "memory_limit",
)  # fmt: skip

Steps = Generator[Step, Path | None, None]
_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class Context:
    """What the steps are made with."""

    settings: DataPrepConfig
    """Its text is expanded: each file by its name."""
    seen: Seen
    """Knows the content of the sources."""
    progress: Progress


def tokenizer_name(settings: DataPrepConfig) -> str:
    """Name of the model file of a tokenizer that is trained here."""
    return _TOKENIZER_NAMES[settings.tokenizer_model == "byte-bpe"]


def training(settings: DataPrepConfig) -> Training:
    """How a tokenizer is trained here."""
    return Training(
        vocab_size=settings.vocab_size,
        kind=settings.tokenizer_model,
        seed=settings.seed,
        character_coverage=settings.character_coverage,
        option=lambda name: "data.tokenizer_model" if name == "model" else f"data.{name}",
    )


def fact_names(facts: Iterable[Fact]) -> list[str]:
    """Subjects and objects of facts of all groups, each once, sorted: what a tokenizer is trained on next to text."""
    return sorted({name for fact in facts for name in (fact.subject, fact.object)})


def steps(context: Context) -> Steps:
    """Yields facts, tokenizer (where one is trained), corpus and render; see the module's docstring.

    Raises:
        InputError: a source is missing, or lacks templates for a relation of the facts.
    """
    settings = context.settings
    place = yield _facts(context)
    facts = load_facts(place / "facts.jsonl") if place else None
    facts_sha256 = context.seen.sha256(place / "facts.jsonl") if place else None
    relations = sorted({fact.relation for fact in facts}) if facts else None
    templates = load_templates(settings.templates, relations=relations)
    tokenizer = load_tokenizer(settings.tokenizer) if settings.tokenizer else None
    if tokenizer is None:
        place = yield _tokenizer(context, facts)
        tokenizer = load_tokenizer(place / tokenizer_name(settings)) if place else None
    yield _corpus(context, facts, facts_sha256, tokenizer)
    chosen = {name: templates[name] for name in relations} if relations else templates
    yield _render(context, facts, facts_sha256, tokenizer, chosen)


def _facts(context: Context) -> Step:
    settings, seen = context.settings, context.seen
    files = source_files(settings.facts, settings.facts_format)
    hashes = {path.name: seen.sha256(path) for path in files}
    named = settings.facts.is_dir() or settings.facts_format in _NAMED
    select = settings.select.model_dump()
    columns = {"facts_columns": list(settings.facts_columns)} if settings.facts_columns else {}

    def make(folder: Path) -> None:
        selection = import_facts(
            settings.facts,
            settings.facts_format,
            folder / "facts.jsonl",
            settings.select,
            columns=settings.facts_columns,
            progress=context.progress,
        )
        for line in selection.summary():
            context.progress.say(f"  {line}")

    old = {
        "source": fingerprint(hashes) if settings.facts.is_dir() else hashes[settings.facts.name],
        "format": settings.facts_format,
        **{name: select[name] for name in _OF_VERSION_2},
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
        make=make,
        labels={"data.facts": list(map(str, files))},
        old_fingerprint=_old("facts", old),
    )


def _tokenizer(context: Context, facts: list[Fact] | None) -> Step:
    settings = context.settings
    name = tokenizer_name(settings)
    library = "tokenizers" if name.endswith(".json") else "sentencepiece"

    def make(folder: Path) -> None:
        documents = iter_documents(settings.text, text_key=settings.text_key, text_format=settings.text_format)
        train(
            (document.text for document in context.progress.track(documents, description="documents")),
            folder / name,
            training(settings),
            names=fact_names(_known(facts)),
            say=context.progress.say,
        )

    def recorded(folder: Path) -> dict[str, str]:
        version = _read(side_file(folder / name), META_SCHEMA).get(f"{library}_version")
        return {library: str(version)} if version else {}

    names = fingerprint(fact_names(facts)) if facts else None
    # Only where it counts and is not the default: data of older versions have none in their key.
    rare = settings.tokenizer_model != "byte-bpe" and settings.character_coverage != CHARACTER_COVERAGE
    old = {
        **_old_text(context),
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
            "files": {"data.text": _text(context)},
            "made": {"names": names} if names else {},
            "versions": {**_versions("tokenizer"), library: package_version(library)},
        },
        outputs=(name, f"{name}.meta.json"),
        make=make,
        labels={"data.text": list(map(str, settings.text))},
        known=facts is not None,
        old_fingerprint=_old("tokenizer", old) if facts else None,
        recorded=recorded,
    )


def _corpus(context: Context, facts: list[Fact] | None, facts_sha256: str | None, tokenizer: Tokenizer | None) -> Step:
    settings = context.settings

    def make(folder: Path) -> None:
        summary = build_corpus(
            settings.text,
            _known(tokenizer),
            folder / "corpus",
            text_key=settings.text_key,
            facts=_known(facts),
            validation_share=settings.validation_share,
            seed=settings.seed,
            progress=context.progress,
            options=CorpusBuildConfig(text_format=settings.text_format),
        )
        context.progress.say(
            f"  {summary.documents} documents, {summary.tokens} tokens; validation {summary.validation_documents}"
            f" documents, {summary.validation_tokens} tokens; left out {summary.leaked_documents} documents that state"
            f" {summary.leaked_facts} of the facts"
        )
        for line in (_known(tokenizer).frame_line(), *_known(tokenizer).remarks):
            context.progress.say(f"  {line}")

    def settle(stamp: Mapping[str, Any] | None) -> dict[str, str]:
        """The encoder: the same again where tokenizer and both libraries are the same, else by a trial.

        With another tokenizer it does not count by itself.
        """
        if tokenizer is None or (stamp and stamp["key"]["made"].get("tokenizer") != tokenizer.fingerprint):
            return {}
        then = stamp["key"]["versions"] if stamp else {}
        tried = stamp is not None and stamp["labels"].get("gigatoken") == usable_gigatoken()
        if tried and "encoder" in then and then.get(tokenizer.library) == package_version(tokenizer.library):
            return {"encoder": then["encoder"]}
        return {"encoder": encoder_for(settings.text, tokenizer, settings.text_key, settings.text_format)[0].name}

    def recorded(folder: Path) -> dict[str, str]:
        try:
            versions = read_corpus_meta(folder / "corpus").get("versions", {})
        except InputError:
            return {}
        return {key: version for key, version in versions.items() if key not in ("numpy", "code")}

    prefixes = ["corpus", *([f"corpus{VALIDATION_SUFFIX}"] if settings.validation_share else [])]
    made, labels, known = _made(context, facts_sha256, tokenizer)
    old = {
        **_old_text(context),
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
            "files": {"data.text": _text(context)},
            "made": made,
            "versions": {**_versions("corpus"), **_library(tokenizer)},
        },
        outputs=tuple(f"{prefix}{suffix}" for prefix in prefixes for suffix in _CORPUS_SUFFIXES),
        make=make,
        labels={"data.text": list(map(str, settings.text)), "gigatoken": usable_gigatoken(), **labels},
        known=known,
        **_both("corpus", old, tokenizer, known),
        settle=settle,
        recorded=recorded,
    )


def _render(
    context: Context,
    facts: list[Fact] | None,
    facts_sha256: str | None,
    tokenizer: Tokenizer | None,
    templates: Mapping[str, RelationTemplates],
) -> Step:
    settings = context.settings

    def make(folder: Path) -> None:
        summary = render(
            _known(facts),
            templates,
            _known(tokenizer),
            folder / "exposures",
            distractors=settings.select.distractors,
            seed=settings.seed,
            progress=context.progress,
        )
        means = ", ".join(f"{group} {mean:.2f}" for group, mean in summary.mean_tokens.items())
        context.progress.say(
            f"  {summary.exposures} exposures, mean tokens {means}, longest {summary.longest};"
            f" {summary.questions} questions"
        )

    made, labels, known = _made(context, facts_sha256, tokenizer)
    contents = {name: asdict(entry) for name, entry in templates.items()}
    old = {**made, "templates": contents, "distractors": settings.select.distractors, "seed": settings.seed}
    return Step(
        name="render",
        key={
            "data": {"select": {"distractors": settings.select.distractors}, "seed": settings.seed},
            "files": {"data.templates": {name: fingerprint(content) for name, content in contents.items()}},
            "made": made,
            "versions": {**_versions("render"), **_library(tokenizer)},
        },
        outputs=tuple(f"exposures{suffix}" for suffix in RENDER_SUFFIXES),
        make=make,
        labels=labels,
        known=known,
        **_both("render", old, tokenizer, known),
    )


def _made(
    context: Context, facts_sha256: str | None, tokenizer: Tokenizer | None
) -> tuple[dict[str, str], dict[str, str], bool]:
    """What earlier steps made, where the tokenizer comes from, and whether all of it is known."""
    made = {"facts": facts_sha256, "tokenizer": tokenizer.fingerprint if tokenizer else None}
    known = {key: value for key, value in made.items() if value is not None}
    return known, {"tokenizer": "given" if context.settings.tokenizer else "trained"}, len(known) == len(made)


def _versions(step: str) -> dict[str, str]:
    versions = {"code": CODE[step], "unicode": unicodedata.unidata_version}
    return versions if step == "tokenizer" else {**versions, "regex": package_version("regex")}  # scripts of names


def _library(tokenizer: Tokenizer | None) -> dict[str, str]:
    return {tokenizer.library: package_version(tokenizer.library)} if tokenizer else {}


def _reading(settings: DataPrepConfig) -> dict[str, str]:
    """How text is read; a format counts where one is given."""
    given = {"text_format": settings.text_format} if settings.text_format else {}
    return {"text_key": settings.text_key, **given}


def _text(context: Context) -> list[dict[str, str]]:
    """The text by content; what a file's name says of its kind decides how it is read, unless a format is given."""
    settings, seen = context.settings, context.seen
    return [{"kind": _kind(path, settings.text_format), "sha256": seen.sha256(path)} for path in settings.text]


def _kind(path: Path, text_format: str | None) -> str:
    """What the name says, so that a format that is given is a change of its own."""
    with suppress(InputError):
        return kind_of(path)
    return kind_of(path, text_format)


def _old_text(context: Context) -> dict[str, Any]:
    settings = context.settings
    return {"text": [context.seen.sha256(path) for path in settings.text], "text_key": settings.text_key}


def _old(step: str, key: dict[str, Any]) -> str:
    """The fingerprint in a stamp of the old schema."""
    return fingerprint({"version": int(OLD_VERSION), "step": step, **key})


def _both(step: str, key: dict[str, Any], tokenizer: Tokenizer | None, known: bool) -> dict[str, Any]:
    if tokenizer is None or not known:
        return {}
    older = {**key, "tokenizer": tokenizer.model_sha256}
    return {"old_fingerprint": _old(step, key), "older_fingerprint": _old(step, older)}


def _read(path: Path, schema: str) -> dict[str, Any]:
    try:
        return read_json(path, schema)
    except InputError:
        return {}


def _known(value: _Value | None) -> _Value:
    """Steps are made in order: what earlier ones make is there."""
    assert value is not None
    return value
