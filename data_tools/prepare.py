"""All data steps of a study in order, each skipped where its inputs and settings are those of the last time.

``prepare_data`` runs facts -> tokenizer -> corpus -> exposures and questions. After each step a stamp in
``OUTPUT/stamps`` records a fingerprint of what went in and the sizes of what came out; a changed file or setting redoes
that step and all that follow from it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from data_tools.corpus import VALIDATION_SUFFIX, build_corpus
from data_tools.facts import Fact, load_facts
from data_tools.importers import IMPORTERS
from data_tools.imports import import_facts, source_fingerprint
from data_tools.indexed import suffixed
from data_tools.progress import Progress
from data_tools.render import render
from data_tools.select import SelectSettings
from data_tools.templates import load_templates
from data_tools.text import iter_documents
from data_tools.text_parts import check_text_files, expand
from data_tools.tokenizer import MODEL_KINDS, load_tokenizer, train_tokenizer
from megatron_kis.errors import InputError
from megatron_kis.files import fingerprint, read_json, sha256_file, write_json
from megatron_kis.identity import differences

_TOKENIZER_NAMES = ("tokenizer.model", "tokenizer.json")
_VERSION = 2  # raise it when a step's code changes what it writes


@dataclass(frozen=True, slots=True)
class DataSettings:
    """Everything that decides what a study's data are."""

    text: tuple[Path, ...]
    """Files of general text, or patterns of their names; the kinds are those of ``data_tools.text``."""
    facts: Path
    """Triples to choose the facts from."""
    templates: Path
    """``templates.yaml`` for their relations."""
    facts_format: str = "tsv"
    """A key of ``data_tools.importers.IMPORTERS``: ``tsv``, ``csv``, ``jsonl``, ``bear``, ``lama``, ``trex``, ..."""
    text_key: str = "text"
    """JSON key or TSV column of the text."""
    tokenizer: Path | None = None
    """A tokenizer to use; None trains one on the general text and the names of all chosen facts."""
    vocab_size: int = 2048
    """Pieces of a tokenizer that is trained here. Small models: the embedding is most of their parameters."""
    tokenizer_model: str = "unigram"
    """``unigram`` or ``bpe`` (SentencePiece), or ``byte-bpe`` (a ``tokenizer.json``)."""
    select: SelectSettings = field(default_factory=SelectSettings)
    """Which facts, and how many of each group; also the distractors of a question."""
    validation_share: float = 0.02
    """Share of documents of general text set aside for the validation loss."""
    seed: int = 0
    """Seed of the validation split, the distractors and the tokenizer's sample; facts have ``select.seed``."""


@dataclass(frozen=True, slots=True)
class PreparedData:
    """Paths of a study's data."""

    corpus: Path
    """Prefix of the training corpus."""
    validation: Path | None
    """Prefix of the validation corpus; None where its share is 0."""
    exposures: Path
    """Prefix of the exposure store."""
    questions: Path
    """The questions file."""
    facts: Path
    """``facts.jsonl``."""
    tokenizer: Path
    """SentencePiece model."""


def tokenizer_path(settings: DataSettings, output: Path) -> Path:
    """The tokenizer of a study whose data are prepared in ``output``."""
    return settings.tokenizer or output / _TOKENIZER_NAMES[settings.tokenizer_model == "byte-bpe"]


def fact_names(facts: Iterable[Fact]) -> list[str]:
    """Subjects and objects of facts of all groups, each once, sorted: what a tokenizer is trained on beside text."""
    return sorted({name for fact in facts for name in (fact.subject, fact.object)})


class _Stop(Exception):
    """What follows of a step that is not up to date is not known before it is made."""


def stale(settings: DataSettings, output: Path) -> list[str]:
    """What differs from the last time, without writing anything; nothing where all is there and up to date."""
    steps = _Steps(output / "stamps", Progress(), output=output, looking=True)
    with suppress(_Stop):
        _prepare(settings, output, Progress(), steps)
    return [difference for differences in steps.found.values() for difference in differences]


def prepare_data(
    settings: DataSettings,
    output: Path,
    *,
    progress: Progress | None = None,
    spare: Path | None = None,
    held: Callable[[str, list[str]], None] | None = None,
) -> PreparedData:
    """Prepares all data of a study in ``output``; steps that are up to date are skipped.

    Args:
        settings: sources and choices.
        output: folder for the results.
        progress: where to report.
        spare: another folder of the same layout; a step that is up to date there is moved over.
        held: called with a step and what differs before anything that is there and whole is made again; may raise.

    Raises:
        InputError: any wrong input; files, templates and settings are checked before long work starts.
    """
    progress = progress or Progress()
    if held is not None:
        steps = _Steps(output / "stamps", Progress(), output=output, looking=True)
        with suppress(_Stop):
            _prepare(settings, output, Progress(), steps)
        for step, differences in steps.found.items():
            if steps.whole[step]:
                held(step, differences)
    return _prepare(settings, output, progress, _Steps(output / "stamps", progress, output=output, spare=spare))


def _prepare(settings: DataSettings, output: Path, progress: Progress, steps: _Steps) -> PreparedData:
    _check(settings)
    settings = replace(settings, text=tuple(expand(settings.text)))
    paths = PreparedData(
        corpus=output / "corpus",
        validation=output / f"corpus{VALIDATION_SUFFIX}" if settings.validation_share else None,
        exposures=output / "exposures",
        questions=output / "exposures.questions.jsonl",
        facts=output / "facts.jsonl",
        tokenizer=tokenizer_path(settings, output),
    )
    def make_facts() -> None:
        selection = import_facts(settings.facts, settings.facts_format, paths.facts, settings.select)
        for line in selection.summary():
            progress.say(f"  {line}")

    facts_key = {
        "source": source_fingerprint(settings.facts),
        "format": settings.facts_format,
        **asdict(settings.select),
    }
    steps.run("facts", facts_key, [paths.facts], make_facts)
    facts = load_facts(paths.facts)
    templates = load_templates(settings.templates, relations=sorted({fact.relation for fact in facts}))
    text_key = {"text": [sha256_file(path) for path in settings.text], "text_key": settings.text_key}

    if settings.tokenizer is None:

        def make_tokenizer() -> None:
            documents = iter_documents(settings.text, text_key=settings.text_key)
            train_tokenizer(
                (document.text for document in progress.track(documents, description="documents")),
                paths.tokenizer,
                vocab_size=settings.vocab_size,
                kind=settings.tokenizer_model,
                names=fact_names(facts),
                seed=settings.seed,
            )

        tokenizer_key = {
            **text_key,
            "names": fingerprint(fact_names(facts)),
            "vocab_size": settings.vocab_size,
            "model": settings.tokenizer_model,
            "seed": settings.seed,
        }
        steps.run("tokenizer", tokenizer_key, [paths.tokenizer], make_tokenizer)
    tokenizer = load_tokenizer(paths.tokenizer)

    def make_corpus() -> None:
        summary = build_corpus(
            settings.text,
            tokenizer,
            paths.corpus,
            text_key=settings.text_key,
            facts=facts,
            validation_share=settings.validation_share,
            seed=settings.seed,
            progress=progress,
        )
        progress.say(
            f"  {summary.documents} documents, {summary.tokens} tokens; validation {summary.validation_documents}"
            f" documents, {summary.validation_tokens} tokens; left out {summary.leaked_documents} documents that state"
            f" {summary.leaked_facts} of the facts"
        )

    facts_content = sha256_file(paths.facts)
    corpus_key = {
        **text_key,
        "tokenizer": tokenizer.fingerprint,
        "facts": facts_content,
        "validation_share": settings.validation_share,
        "seed": settings.seed,
    }
    corpora = [paths.corpus] + ([paths.validation] if paths.validation else [])
    corpus_files = [suffixed(prefix, suffix) for prefix in corpora for suffix in (".bin", ".idx", ".meta.json")]
    steps.run("corpus", corpus_key, corpus_files, make_corpus)

    def make_exposures() -> None:
        summary = render(
            facts,
            templates,
            tokenizer,
            paths.exposures,
            distractors=settings.select.distractors,
            seed=settings.seed,
            progress=progress,
        )
        means = ", ".join(f"{group} {mean:.2f}" for group, mean in summary.mean_tokens.items())
        progress.say(
            f"  {summary.exposures} exposures, mean tokens {means}, longest {summary.longest};"
            f" {summary.questions} questions"
        )

    render_key = {
        "facts": facts_content,
        "templates": {name: asdict(templates[name]) for name in sorted({fact.relation for fact in facts})},
        "tokenizer": tokenizer.fingerprint,
        "distractors": settings.select.distractors,
        "seed": settings.seed,
    }
    suffixes = (".bin", ".idx", ".json", ".facts.npy", ".ids.txt", ".questions.jsonl")
    render_files = [suffixed(paths.exposures, suffix) for suffix in suffixes]
    steps.run("render", render_key, render_files, make_exposures)
    return paths


def _check(settings: DataSettings) -> None:
    """Everything that can be checked without long work."""
    if not settings.text:
        raise InputError("no files of general text", where="data.text")
    check_text_files(expand(settings.text))
    if settings.facts_format not in IMPORTERS:
        raise InputError(
            f"is {settings.facts_format!r}", where="data.facts_format", remedy=f"valid: {', '.join(IMPORTERS)}"
        )
    if settings.tokenizer_model not in MODEL_KINDS:
        raise InputError(
            f"is {settings.tokenizer_model!r}", where="data.tokenizer_model", remedy=f"valid: {', '.join(MODEL_KINDS)}"
        )
    if not 0 <= settings.validation_share < 1:
        raise InputError(f"is {settings.validation_share}", where="data.validation_share", remedy="a share in [0, 1)")
    load_templates(settings.templates, relations=settings.select.relations)
    if settings.tokenizer is not None:
        load_tokenizer(settings.tokenizer)


class _Steps:
    """Runs steps whose stamp does not match."""

    def __init__(
        self, folder: Path, progress: Progress, *, output: Path, spare: Path | None = None, looking: bool = False
    ) -> None:
        self._folder, self._progress, self._output, self._spare = folder, progress, output, spare
        self._looking = looking
        self.found: dict[str, list[str]] = {}
        self.whole: dict[str, bool] = {}

    def run(self, name: str, key: dict[str, Any], outputs: Sequence[Path], make: Callable[[], None]) -> None:
        """Makes ``outputs`` unless they are there, whole, and made from the same ``key``."""
        stamp_path = self._folder / f"{name}.json"
        wanted = fingerprint({"version": _VERSION, "step": name, **key})
        if _matches(stamp_path, wanted, outputs):
            self._progress.say(f"{name}: up to date")
            return
        if self._looking:
            stamp = read_json(stamp_path, "kis.stamp/1") if stamp_path.exists() else {}
            self.whole[name] = bool(stamp) and all(path.exists() for path in outputs)
            changed = differences(stamp.get("key", {}), key) if self.whole[name] else ["not made yet"]
            self.found[name] = [f"{name}: {change}" for change in changed]
            raise _Stop
        if self._spare is not None:
            theirs = [self._spare / path.relative_to(self._output) for path in outputs]
            if _matches(self._spare / "stamps" / stamp_path.name, wanted, theirs):
                stamp_path.unlink(missing_ok=True)
                stamp_path.parent.mkdir(parents=True, exist_ok=True)
                for path, target in zip(theirs, outputs, strict=True):
                    path.replace(target)
                (self._spare / "stamps" / stamp_path.name).replace(stamp_path)
                return
        self._progress.say(f"{name}: working")
        stamp_path.unlink(missing_ok=True)
        make()
        sizes = {path.name: path.stat().st_size for path in outputs}
        content = {"schema": "kis.stamp/1", "fingerprint": wanted, "outputs": sizes, "key": key}
        write_json(stamp_path, json.loads(json.dumps(content, default=str)))


def _matches(stamp_path: Path, wanted: str, outputs: Sequence[Path]) -> bool:
    try:
        stamp = read_json(stamp_path, "kis.stamp/1")
    except InputError:  # absent or damaged: the step is done again
        return False
    sizes = {path.name: path.stat().st_size if path.exists() else -1 for path in outputs}
    return bool(stamp.get("fingerprint") == wanted and stamp.get("outputs") == sizes)


def quickstart_settings(demo: Path, *, vocab_size: int = 2048) -> DataSettings:
    """Settings for the sources that ``kis data demo`` fetched into ``demo``: 100 facts a group over three relations."""
    return DataSettings(
        text=(demo / "text.jsonl",),
        facts=demo / "triples.tsv",
        templates=demo / "templates.yaml",
        vocab_size=vocab_size,
        select=replace(SelectSettings(), relations=("airport_region", "iata_city", "country_capital"), longest_name=30),
    )
