"""The keys of a study file that set the settings of its runs: an error about a run names what the user wrote."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from megatron_kis.common.errors import InputError
from megatron_kis.config.study import LadderEntry, StudyConfig
from megatron_kis.study.specs import RunSpec, expand_grid

_SAME = ("probes", "validation", "checkpoints", "documents", "logging", "device", "trunk")
"""Sections of a run that a study file has under the same name."""
_OF_A_SIZE = {
    "micro_batch_size": "training.micro_batch_size",
    "learning_rate": "training.optimizer.learning_rate",
}
_LISTED = {
    "token_budgets": "tokens",
    "facts": "facts",
    "frequencies": "frequency",
    "infusion_ratios": "infusion_ratio",
    "seeds": "seed",
}
"""Keys of an entry of ``runs``, by that of the grid."""


@contextmanager
def naming_keys(study: StudyConfig, run: RunSpec | str) -> Iterator[None]:
    """Makes an error about a run's settings name the key of the study file that gave them, and the run.

    Args:
        study: the study.
        run: one of its runs, or the name of one.
    """
    try:
        yield
    except InputError as error:
        spec = run if isinstance(run, RunSpec) else _spec(study, run)
        raise _named(error, study, spec) from None


def of_some_run(error: InputError, study: StudyConfig) -> InputError:
    """Returns an error that says which run it is about (``run NAME: key``) with the key of the study file."""
    match = re.match(r"run (\S+): ", error.where or "")
    assert match is not None
    return _named(error, study, _spec(study, match[1]))


def _spec(study: StudyConfig, name: str) -> RunSpec:
    return next(spec for spec in expand_grid(study) if spec.name == name)


def _named(error: InputError, study: StudyConfig, spec: RunSpec) -> InputError:
    """Returns an error with the study's key, or as it is where it is about something else, such as a file."""
    where, problem = error.where or "", error.problem
    where = where.removeprefix(f"run {spec.name}: ")
    if match := re.match(r"([a-z_.]+): (.*)" if not where else r"(token_budget) (.*)", problem, flags=re.DOTALL):
        where, problem = ".".join(part for part in (where, match[1]) if part), match[2]
    elif where == "training" and "micro_batch_size" in problem:
        where = "training.micro_batch_size"
    where, *file = where.split(": ", 1)
    key = written_key(study, spec, where)
    if key is None:
        return error
    return InputError(problem, where=": ".join([key, f"run {spec.name}", *file]), remedy=error.remedy)


def written_key(study: StudyConfig, spec: RunSpec, key: str) -> str | None:
    """Returns the key of a study file that decides a setting of a run.

    Args:
        study: the study.
        spec: one of its runs.
        key: of the run's configuration, such as ``infusion.ratio``.

    Returns:
        The key as the file has it, with the entry of the ladder or of ``runs`` that says it, such as
        ``ladder.0.infusion_ratios`` or ``runs.3.frequency``; None for what is no setting of a run.
    """
    section, _, rest = key.partition(".")
    if section == "infusion":
        return _of_infusion(study, spec, rest)
    rung = next(number for number, entry in enumerate(study.ladder) if entry.label == spec.entry.label)
    if section == "model":
        return f"ladder.{rung}" + (f".{rest}" if rest else "")
    if section == "parallel":
        return f"ladder.{rung}.{key}"
    if section == "training":
        own = {"token_budget": "token_budgets", "seed": "seeds"}.get(rest)
        if own is not None:
            return _of_axis(study, spec, own)
        name = next((name for name, of in _OF_A_SIZE.items() if of == key and getattr(spec.entry, name)), None)
        return key if name is None else f"ladder.{rung}.{name}"
    return key if section in _SAME else None


def _of_infusion(study: StudyConfig, spec: RunSpec, key: str) -> str:
    """Returns the key of a study file that decides a setting of the section ``infusion`` of a run."""
    if key in ("", "frequency", "frequencies", "ratio"):
        return _of_axis(study, spec, "frequencies" if spec.dose.ratio is None else "infusion_ratios")
    if key == "facts":
        return _of_axis(study, spec, "facts")
    if key == "background.groups":  # or the list that stands for the section
        return "background"
    return "trunk.share" if key == "begins" else key


def _of_axis(study: StudyConfig, spec: RunSpec, axis: str) -> str:
    """Returns where an axis of the grid has a run's value: in an entry of ``runs``, of the ladder, or for all sizes."""
    for number, run in enumerate(study.runs):
        if (run.size, run.tokens, run.dose, run.seed) == (spec.entry.label, spec.tokens, spec.dose, spec.seed):
            return f"runs.{number}.{_LISTED[axis]}"
    for number, entry in enumerate(study.ladder):
        if entry.label == spec.entry.label and _says(entry, axis):
            return f"ladder.{number}.{axis}"
    return axis


def _says(entry: LadderEntry, axis: str) -> bool:
    return getattr(entry, axis) is not None
