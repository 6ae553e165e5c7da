"""Prepares the data of a study in steps; a step that would write the same bytes again is left as it is.

``prepare_data`` runs facts -> tokenizer -> corpus -> exposures and questions (``preparation.steps``). Stamps in
``OUTPUT/stamps`` record what each step was made from (``preparation.stamps``), so that a change is named. New files are
made in ``OUTPUT/unfinished`` and replace the earlier ones together when all are complete (``preparation.publish``): an
error in a later step, or a kill at any moment, leaves the data as they were.

What runs were trained on and what they are asked are made by the same steps, but only the first is held by runs: where
the questions alone are others, they are made again, and ``exposures.order.jsonl`` keeps the ones that tell the order in
which runs take the facts.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from glob import has_magic
from pathlib import Path

from megatron_kis.common.errors import InputError, JobError, KisError, nearest
from megatron_kis.common.files import atomic_path, locked, sha256_file
from megatron_kis.common.known_files import Seen, Sources
from megatron_kis.common.progress import Progress
from megatron_kis.data_tools.corpus.part import VALIDATION_SUFFIX
from megatron_kis.data_tools.facts.importers import IMPORTERS
from megatron_kis.data_tools.preparation.publish import finish, is_interrupted, move_outputs, publish, unfinished
from megatron_kis.data_tools.preparation.settings import DataPrepConfig
from megatron_kis.data_tools.preparation.stamps import (
    OLDER_FINGERPRINT,
    State,
    Step,
    old_versions,
    read_stamp,
    state_of,
    write_stamp,
)
from megatron_kis.data_tools.preparation.steps import StepInputs, fact_names, steps_of, tokenizer_name, training
from megatron_kis.data_tools.readers.files import check_text_files, expand
from megatron_kis.data_tools.readers.open import FORMATS
from megatron_kis.data_tools.rendering.templates import load_templates
from megatron_kis.data_tools.selection.imports import check_source, source_files
from megatron_kis.data_tools.selection.select import check_settings
from megatron_kis.data_tools.tokenizers.registry import load_tokenizer, model_file

__all__ = [
    "DataPrepConfig",
    "Held",
    "PreparedData",
    "fact_names",
    "other_questions",
    "prepare_data",
    "prepare_questions",
    "stale",
    "stale_questions",
    "tokenizer_path",
]

Held = Callable[[str, list[str]], None]
"""Called with a step whose files would be replaced, and with what differs; raises if runs were made with them."""

_HOLDER = "preparation of these data"
_QUESTIONS, _ORDER = "exposures.questions.jsonl", "exposures.order.jsonl"
_RENDER = "render"


@dataclass(frozen=True, slots=True)
class PreparedData:
    """Paths of the prepared data of a study."""

    corpus: Path
    """Prefix of the training corpus."""
    validation: Path | None
    """Prefix of the validation corpus; None if its share is 0."""
    exposures: Path
    """Prefix of the exposure store."""
    questions: Path
    """Path of the questions file."""
    facts: Path
    """Path of ``facts.jsonl``."""
    tokenizer: Path
    """Path of the tokenizer: the user's own if one was given, else the one that was trained."""


def tokenizer_path(settings: DataPrepConfig, output: Path) -> Path:
    """Returns the tokenizer of a study whose data are prepared in ``output``."""
    return settings.tokenizer or output / tokenizer_name(settings)


def prepare_data(
    settings: DataPrepConfig,
    output: Path,
    *,
    progress: Progress | None = None,
    spare: Path | None = None,
    held: Held | None = None,
) -> PreparedData:
    """Prepares all data of a study in ``output``; steps that are up to date stay as they are.

    Args:
        settings: sources and choices.
        output: folder for the results.
        progress: where to report.
        spare: another such folder; a step that is up to date there is moved over instead of being made.
        held: called before complete files are replaced by others, and before any long work if that is known by then.
            If only versions of packages differ and it raises, the files stay, with a message. If what differs are the
            questions alone, they are made again whatever it says. Missing and damaged files are made again without a
            call if their content comes out unchanged.

    Raises:
        InputError: any wrong input; files, templates and settings are checked before long work starts.
        JobError: the disk is full, or another process prepares the same data.
        KisError: raised by ``held``; nothing was changed.
    """
    settings = _checked(settings)
    if spare is not None and spare.resolve() == output.resolve():
        spare = None
    preparation = _Preparation(settings, output, progress or Progress(), spare, held)
    if is_interrupted(output) or not preparation.is_done():
        preparation.run()
    return PreparedData(
        corpus=output / "corpus",
        validation=output / f"corpus{VALIDATION_SUFFIX}" if settings.validation_share else None,
        exposures=output / "exposures",
        questions=output / _QUESTIONS,
        facts=output / "facts.jsonl",
        tokenizer=tokenizer_path(settings, output),
    )


def prepare_questions(settings: DataPrepConfig, output: Path, *, progress: Progress | None = None) -> Path:
    """Makes the questions that the settings ask, about the facts that are there; the text is not read.

    Args:
        settings: sources and choices.
        output: folder of the data.
        progress: where to report.

    Returns:
        The questions' file.

    Raises:
        InputError: wrong templates, data that are not there, or settings by which runs would be trained otherwise.
        JobError: the disk is full, or another process prepares the same data.
    """

    def held(step: str, differences: list[str]) -> None:
        raise InputError(f"{step}: {', '.join(differences)}")  # caught: what is there is kept

    _check_templates(settings)
    _check_select(settings)
    _Preparation(settings, output, progress or Progress(), None, held).make_questions()
    return output / _QUESTIONS


def other_questions(settings: DataPrepConfig, output: Path) -> list[str]:
    """Lists how the questions that the settings ask differ from those that are there; the text is not read.

    Returns:
        ``data.templates: born_in changed`` and so on; an empty list also if there are no data to compare with.

    Raises:
        InputError: wrong templates.
    """
    _check_templates(settings)
    seen = _seen(output)
    try:
        state = state_of(_rendering(settings, output, seen, Progress()), output, seen)
    except InputError:  # facts or tokenizer are not there
        return []
    return state.differences if state.asks_alone else []


def _rendering(settings: DataPrepConfig, output: Path, seen: Seen, progress: Progress) -> Step:
    """Returns the step that makes the questions, on the facts and the tokenizer that are there."""
    inputs = StepInputs(settings, seen, progress)
    for name in ("facts", *([] if settings.tokenizer else ["tokenizer"])):
        inputs.load(name, output)
    return steps_of(settings)[-1](inputs)


def stale(settings: DataPrepConfig, output: Path) -> list[str]:
    """Lists what ``prepare_data`` would make again and why; nothing is written.

    Returns:
        ``data.vocab_size 400 -> 390``, ``data.text: sources/text.jsonl: content changed``, ``versions.encoder ...``,
        ``corpus.idx: missing``, ``facts: not made yet``; an empty list if all is up to date. Consequences of a change
        are not listed: whether later steps change is only known when an earlier one has been made.

    Raises:
        InputError: any wrong input.
    """
    return [one for _, reasons in _outdated(settings, output) for one in reasons]


def stale_questions(settings: DataPrepConfig, output: Path) -> list[str]:
    """Lists those entries of ``stale`` that concern the questions alone, and nothing that a run is trained on."""
    return [one for state, reasons in _outdated(settings, output) if state.asks_alone for one in reasons]


def _outdated(settings: DataPrepConfig, output: Path) -> list[tuple[State, list[str]]]:
    """Returns the state of each step that would be made again, and why; a reason is given once."""
    settings = _checked(settings)
    seen = _seen(output)
    found: list[tuple[State, list[str]]] = []
    said: set[str] = set()
    inputs = StepInputs(settings, seen, Progress())
    for describe in steps_of(settings):
        step = describe(inputs)
        state = state_of(step, output, seen)
        if not state.fresh:
            found.append((state, [one for one in dict.fromkeys(state.reasons(step.name)) if one not in said]))
            said.update(found[-1][1])
        inputs.load(step.name, output if state.fresh or state.asks_alone else None)
    return found


def _seen(folder: Path) -> Seen:
    return Seen(folder / "stamps" / "seen.json")


def _checked(settings: DataPrepConfig) -> DataPrepConfig:
    """Returns the settings with each text file named, after all checks that need no long work."""
    if not settings.text:
        raise InputError("no files of general text", where="data.text")
    _check_sources(settings)
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
    _check_select(settings)
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
    _check_templates(settings)
    if settings.tokenizer is not None:
        load_tokenizer(settings.tokenizer)
    return settings


def _check_sources(settings: DataPrepConfig) -> None:
    """Refuses a source that is not there, by its key; what matches a pattern of names is seen later."""
    text: list[Path | None] = [path for path in settings.text if not has_magic(str(path))]
    named: dict[str, list[Path | None]] = {
        "text": text,
        "facts": [settings.facts],
        "templates": [settings.templates],
        "tokenizer": [settings.tokenizer],
    }
    for key, paths in named.items():
        for path in paths:
            if path is not None and not path.exists():
                remedy = "a relative path starts at the folder of the study file"
                raise InputError(f"there is no {path}", where=f"data.{key}", remedy=remedy)


def _check_select(settings: DataPrepConfig) -> None:
    try:
        check_settings(settings.select)
    except InputError as error:
        raise InputError(error.problem, where=f"data.select.{error.where}", remedy=error.remedy) from None


def _check_templates(settings: DataPrepConfig) -> None:
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


@dataclass(slots=True)
class _Preparation:
    """One call of ``prepare_data``."""

    settings: DataPrepConfig
    output: Path
    progress: Progress
    spare: Path | None
    held: Held | None
    kept: dict[str, list[str]] = field(default_factory=dict)
    """Differences of the steps that stay as they are although versions differ."""
    asked: set[str] = field(default_factory=set)
    """Steps whose files may be replaced."""
    questions: set[str] = field(default_factory=set)
    """Steps of whose files the questions alone are replaced."""

    def is_done(self) -> bool:
        """Returns whether nothing has to be made; calls ``held`` about all that is known to be replaced."""
        seen = _seen(self.output)
        inputs = StepInputs(self.settings, seen, self.progress)
        states: dict[str, State] = {}
        for describe in steps_of(self.settings):
            step = describe(inputs)
            state = states[step.name] = state_of(step, self.output, seen)
            inputs.load(step.name, self.output if self._stays(step, state, seen) else self._elsewhere(step))
        for name, state in states.items():
            self._ask(name, state)
        done = all(state.fresh or name in self.kept for name, state in states.items())
        if done:
            for name in states:
                self._say_stays(name)
            if os.access(self.output / "stamps", os.W_OK):
                seen.save()
                if unfinished(self.output).exists():  # of other settings
                    with suppress(JobError), locked(self.output / "stamps", _HOLDER):
                        shutil.rmtree(unfinished(self.output))
        return done

    def run(self) -> None:
        """Makes what is not up to date, and puts it in place."""
        with locked(self.output / "stamps", _HOLDER):
            if is_interrupted(self.output):
                finish(self.output)
            self._make_all()

    def make_questions(self) -> None:
        """Makes the questions again if they are others; what is there for training stays as it is.

        Raises:
            InputError: what they would be asked about is missing, or another one.
        """
        with locked(self.output / "stamps", _HOLDER):
            if is_interrupted(self.output):
                finish(self.output)
            seen = _seen(self.output)
            step = _rendering(self.settings, self.output, seen, self.progress)
            state = state_of(step, self.output, seen)
            if not (state.fresh or state.asks_alone or (state.only_versions and not state.damage)):
                raise InputError(
                    f"not only the questions are others ({', '.join(state.reasons(step.name))})",
                    where=str(self.output),
                    remedy="restore what the runs were trained with; only questions can be asked anew",
                )
            if self._complete(step, seen) != self.output:
                self._keep_order(held=True)
                publish(self.output, [step])
            seen.save()

    def _make_all(self) -> None:
        settings = self.settings
        seen = _seen(self.output)
        folder = unfinished(self.output)
        given = [model_file(settings.tokenizer)] if settings.tokenizer else []
        sources = Sources(
            [*settings.text, *source_files(settings.facts, settings.facts_format), settings.templates, *given]
        )
        made: list[Step] = []
        inputs = StepInputs(settings, seen, self.progress)
        for describe in steps_of(settings):
            step = describe(inputs)
            place = self._complete(step, seen)
            if place != self.output:
                made.append(step)
            inputs.load(step.name, place)
        sources.check()
        for step in made:
            self._compare(step, seen)
        if made:
            if any(step.name == _RENDER for step in made):
                self._keep_order(held=_RENDER in self.questions or self._holds(_RENDER, []))
            publish(self.output, made)
            for step in made:
                stamp = read_stamp(self.output, step.name)
                for name, entry in (stamp or {"outputs": {}})["outputs"].items():
                    seen.add(self.output / name, entry["sha256"])
        seen.save()
        if folder.exists():
            shutil.rmtree(folder)

    def _complete(self, step: Step, seen: Seen) -> Path:
        """Makes a step unless it is up to date; returns the folder with its outputs, the old one or ``unfinished``."""
        state = state_of(step, self.output, seen)
        if self._stays(step, state, seen):
            self._say_stays(step.name)
            return self.output
        self._ask(step.name, state)
        folder = unfinished(self.output)
        if step.name == _RENDER and state.asks_alone and self._holds(step.name, state.differences):
            self.questions.add(step.name)
        place = None if step.name in self.questions else self._elsewhere(step)
        if place == folder:
            self.progress.say(f"{step.name}: made before")
        elif place is not None:
            move_outputs(step, place, folder)
            self.progress.say(f"{step.name}: taken from {place}")
        else:
            self.progress.say(f"{step.name}: working")
            (folder / "stamps" / f"{step.name}.json").unlink(missing_ok=True)
            step.make(folder)
            if step.name in self.questions:
                self._keep_exposures(step)
            versions = step.recorded(folder).items()  # the encoder
            found = {key: version for key, version in versions if key not in step.key["versions"]}
            write_stamp(step, folder, _seen(folder), versions=found)
        return folder

    def _elsewhere(self, step: Step) -> Path | None:
        """Returns another folder in which a step is up to date: where it was made before a kill, or the spare one."""
        folders = (unfinished(self.output), self.spare)
        return next((one for one in folders if one is not None and state_of(step, one, _seen(one)).fresh), None)

    def _stays(self, step: Step, state: State, seen: Seen) -> bool:
        """Returns whether a step stays as it is: it is up to date, or differs in versions only and runs use it."""
        if not (state.fresh or step.name in self.kept or self._keeps(step, state)):
            return False
        if state.old and OLDER_FINGERPRINT not in state.differences and os.access(self.output / "stamps", os.W_OK):
            write_stamp(step, self.output, seen, versions=old_versions(step, self.output))
        return True

    def _keeps(self, step: Step, state: State) -> bool:
        """Returns whether a step stays because runs use it: what differs are versions, or what they are asked."""
        if step.name == _RENDER and state.asks_alone:
            return False  # the questions are made again
        if self.held is None or not (state.known and (state.only_versions or state.asks_alone)) or state.damage:
            return False
        if self._holds(step.name, state.differences):
            self.kept[step.name] = state.differences
            return True
        self.asked.add(step.name)
        return False

    def _holds(self, name: str, differences: list[str]) -> bool:
        """Returns whether something holds the files of a step."""
        if self.held is None:
            return False
        try:
            self.held(name, differences)
        except KisError:
            return True
        return False

    def _ask(self, name: str, state: State) -> None:
        """Asks once whether files may be replaced; with other versions only, the content may come out the same."""
        if self.held is None or name in self.asked or not state.found or not state.differences or state.only_versions:
            return
        if state.asks_alone and (name == _RENDER or self._holds(name, state.differences)):
            return
        self.held(name, state.differences)
        self.asked.add(name)

    def _compare(self, step: Step, seen: Seen) -> None:
        """Asks whether files may be replaced that were not asked about, unless the new ones are the same.

        Descriptions do not count: they contain versions and paths.
        """
        if self.held is None or step.name in self.asked or step.name in self.questions:
            return
        stamp = read_stamp(self.output, step.name)
        recorded = {} if stamp is None else stamp["outputs"]
        others = []
        for name in (name for name in step.outputs if not name.endswith(".meta.json")):
            there = self.output / name
            then = recorded.get(name, {}).get("sha256") or (seen.sha256(there) if there.exists() else None)
            if then is not None and sha256_file(unfinished(self.output) / name) != then:
                others.append(f"{name}: made again, it has another content")
        if others:
            self.held(step.name, others)
            self.asked.add(step.name)

    def _keep_exposures(self, step: Step) -> None:
        """Puts the exposures that are there in place of new ones: of the step, the questions alone are made again."""
        for name in (name for name in step.outputs if name != _QUESTIONS):
            again = unfinished(self.output) / name
            again.unlink(missing_ok=True)
            try:
                os.link(self.output / name, again)
            except OSError:  # a file system without links
                shutil.copyfile(self.output / name, again)

    def _keep_order(self, *, held: bool) -> None:
        """Keeps the questions that tell the order of the facts, or removes them if there are other facts."""
        order = self.output / _ORDER
        if not held:
            order.unlink(missing_ok=True)
        elif not order.exists() and _RENDER in self.questions:
            with atomic_path(order) as partial:
                shutil.copyfile(self.output / _QUESTIONS, partial)

    def _say_stays(self, name: str) -> None:
        if name in self.kept:
            changed = ", ".join(self.kept[name])
            self.progress.say(f"{name}: kept as it is, runs were made with it ({changed})")
        else:
            self.progress.say(f"{name}: up to date")
