"""Prepares the data of a study in steps; a step that would write the same bytes again is left as it is.

``prepare_data`` runs facts -> tokenizer -> corpus -> exposures and questions (``preparation.steps``). Stamps in
``OUTPUT/stamps`` record what each step was made from (``preparation.stamps``), so that a change is named. New files are
made in ``OUTPUT/unfinished`` and replace the earlier ones together when all are complete (``preparation.publish``): an
error in a later step, or a kill at any moment, leaves the data as they were.

What runs were trained on and what they are asked are made by the same steps, but only the first is held by runs: where
only the questions have changed, they are made again, and ``exposures.order.jsonl`` keeps the ones that define the order
in which runs take the facts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megatron_kis.common.errors import InputError
from megatron_kis.common.progress import Progress
from megatron_kis.data_tools.corpus.part import VALIDATION_SUFFIX
from megatron_kis.data_tools.preparation.checks import check_select, check_templates, check_there, checked
from megatron_kis.data_tools.preparation.inputs import StepInputs, fact_names, tokenizer_name
from megatron_kis.data_tools.preparation.making import QUESTIONS, Held, Preparation, rendering_step, seen_in
from megatron_kis.data_tools.preparation.publish import is_interrupted
from megatron_kis.data_tools.preparation.settings import DataPrepConfig
from megatron_kis.data_tools.preparation.stamps import State, state_of
from megatron_kis.data_tools.preparation.steps import steps_of

__all__ = [
    "DataPrepConfig",
    "Held",
    "Outdated",
    "PreparedData",
    "fact_names",
    "other_questions",
    "outdated",
    "prepare_data",
    "prepare_questions",
    "stale",
    "tokenizer_path",
]


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
    settings = checked(settings)
    if spare is not None and spare.resolve() == output.resolve():
        spare = None
    preparation = Preparation(settings, output, progress or Progress(), spare, held)
    if is_interrupted(output) or not preparation.is_done():
        preparation.run()
    return PreparedData(
        corpus=output / "corpus",
        validation=output / f"corpus{VALIDATION_SUFFIX}" if settings.validation_share else None,
        exposures=output / "exposures",
        questions=output / QUESTIONS,
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

    if not (output / "facts.jsonl").is_file():
        remedy = "restore what the runs were trained with; kis study run makes missing files again"
        raise InputError("there are no facts to ask about", where=str(output / "facts.jsonl"), remedy=remedy)
    check_there({"templates": [settings.templates]})
    check_templates(settings)
    check_select(settings)
    Preparation(settings, output, progress or Progress(), None, held).make_questions()
    return output / QUESTIONS


def other_questions(settings: DataPrepConfig, output: Path) -> list[str]:
    """Lists how the questions that the settings ask differ from those that are there; the text is not read.

    Returns:
        ``data.templates: born_in changed`` and so on; an empty list also if there are no data to compare with.

    Raises:
        InputError: wrong templates.
    """
    check_templates(settings)
    seen = seen_in(output)
    try:
        state = state_of(rendering_step(settings, output, seen, Progress()), output, seen)
    except InputError:  # facts or tokenizer are not there
        return []
    return state.differences if state.asks_alone else []


def stale(settings: DataPrepConfig, output: Path) -> list[str]:
    """Lists what ``prepare_data`` would make again and why; nothing is written.

    Returns:
        ``data.vocab_size 400 -> 390``, ``data.text: sources/text.jsonl: content changed``, ``versions.encoder ...``,
        ``corpus.idx: missing``, ``facts: not made yet``; an empty list if all is up to date. Consequences of a change
        are not listed: whether later steps change is only known when an earlier one has been made.

    Raises:
        InputError: any wrong input.
    """
    return outdated(settings, output).reasons


@dataclass(frozen=True)
class Outdated:
    """What would be made again."""

    reasons: list[str]
    """All reasons, as ``stale`` returns them."""

    questions: list[str]
    """Those that concern only the questions, and nothing that a run is trained on."""


def outdated(settings: DataPrepConfig, output: Path) -> Outdated:
    """Returns the result of ``stale``, and of it what concerns the questions alone; the data are read once."""
    found = _outdated(settings, output)
    alone = [one for state, reasons in found if state.asks_alone for one in reasons]
    return Outdated([one for _, reasons in found for one in reasons], alone)


def _outdated(settings: DataPrepConfig, output: Path) -> list[tuple[State, list[str]]]:
    """Returns the state of each step that would be made again, and why; a reason is given once."""
    settings = checked(settings)
    seen = seen_in(output)
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
