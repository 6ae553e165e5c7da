"""The plan of a configured run: its own, or one that extends a finished run's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from megatron_kis.common.errors import InputError, placed
from megatron_kis.common.files import read_json, read_text
from megatron_kis.common.identity import RUN_FILE, RUN_SCHEMA
from megatron_kis.common.terms import RENDERED_GROUPS
from megatron_kis.config.data import InfusionConfig
from megatron_kis.config.recorded import recorded_config
from megatron_kis.config.run import RunConfig
from megatron_kis.config.training import TrainingConfig
from megatron_kis.data.exposure_plan import BackgroundFacts, ExposurePlan, InfusedFacts, TokenBudget
from megatron_kis.data.exposure_schedule import schedule_of
from megatron_kis.data.exposure_store import ExposureStore
from megatron_kis.data.extension import ExtendedPlan, check_continuation, extend
from megatron_kis.data.frequency import IntArray, zipf_popularity
from megatron_kis.data.late_infusion import begin_later
from megatron_kis.probes.infusion_order import background_frequencies, shown_facts
from megatron_kis.probes.questions import QuestionSet

_MOST_DIGITS = 18  # of a count, which has 64 bits


def open_plan(config: RunConfig, store: ExposureStore, questions: QuestionSet) -> ExposurePlan | ExtendedPlan:
    """Makes the plan of a run.

    Args:
        config: configuration of the run.
        store: its exposures.
        questions: those that define the order of the facts (``infusion_order.ONE_OF_EACH``).

    Raises:
        InputError: impossible settings, exposures that do not fit, or a run to extend that is not there, not finished
            or of other settings; names the key of the configuration.
    """
    try:
        return _open_plan(config, store, questions)
    except InputError as error:
        key = _keys_of_arguments(config.infusion).get(error.where or "")
        if key is None:
            raise
        if error.where in ("exposure_lengths", "background_lengths"):
            _check_lengths(store, config.training.sequence_length)
        raise InputError(_as_written(error.problem, config.training), where=key, remedy=error.remedy) from None


def _check_lengths(store: ExposureStore, sequence_length: int) -> None:
    """Refuses an exposure that is longer than a sequence, by the name of its fact."""
    for group in RENDERED_GROUPS:
        longest = store.lengths(group).max(axis=1, initial=0)
        if len(longest) and longest.max() > sequence_length:
            raise InputError(
                f"an exposure of {store.ids(group)[int(longest.argmax())]} has {longest.max()} tokens, a sequence "
                f"{sequence_length}",
                where="training.sequence_length",
                remedy="use longer sequences or shorter templates",
            )


def _as_written(problem: str, training: TrainingConfig) -> str:
    """Adds the token budget that was written to a problem that names the tokens of whole batches."""
    fed = training.steps * training.step_tokens
    if fed == training.token_budget:
        return problem
    return problem.replace(f"of {fed:,} tokens", f"of {fed:,} tokens ({training.token_budget:,} in whole batches)")


def _keys_of_arguments(infusion: InfusionConfig) -> dict[str, str]:
    """Returns the keys of a run's configuration that give a plan its arguments, by these."""
    often = "ratio" if infusion.ratio is not None else "frequencies" if infusion.frequencies else "frequency"
    return {
        "infusion_frequency": f"infusion.{often}",
        "infusion_ratio": "infusion.ratio",
        "popularity": "infusion.zipf_exponent",
        "shown": "infusion.facts",
        "background_frequency": f"infusion.background.{'groups' if infusion.background.groups else 'frequency'}",
        "token_budget": "training.token_budget",
        "sequence_length": "training.sequence_length",
        "exposure_lengths": "training.sequence_length",
        "background_lengths": "training.sequence_length",
    }


def _open_plan(config: RunConfig, store: ExposureStore, questions: QuestionSet) -> ExposurePlan | ExtendedPlan:
    """Makes the plan of a run; errors name the plan's arguments."""
    training, infusion = config.training, config.infusion
    budget = training.steps * training.global_batch_size * training.sequence_length
    if config.extends is not None:
        base = _plan_of_run(config.extends, config, store, questions)
        return extend(
            base,
            budget,
            infusion_frequency=infusion.frequency,
            infusion_ratio=infusion.ratio,
            schedule=infusion.schedule,
            background_schedule=infusion.background.schedule,
        )
    facts = len(store.ids("infused"))
    exponent = infusion.zipf_exponent
    with placed("infusion.frequencies"):
        frequency = listed_frequencies(infusion, store) if infusion.frequencies else infusion.frequency
    infused = InfusedFacts(
        store.lengths("infused"),
        frequency=frequency,
        ratio=infusion.ratio,
        popularity=zipf_popularity(facts, exponent, seed=training.seed) if exponent else None,
        shown=shown_facts(questions, store.ids("infused"), infusion.facts) if infusion.facts else None,
    )
    background = BackgroundFacts(
        store.lengths("background"),
        frequency=(
            background_frequencies(questions, store.ids("background"), infusion.background.groups)
            if infusion.background.groups
            else infusion.background.frequency
        ),
        policy=infusion.background.policy,
        schedule=schedule_of(infusion.background.schedule),
    )
    whole = TokenBudget(budget, training.sequence_length)
    settings: dict[str, Any] = {
        "schedule": infusion.schedule,
        "templates": infusion.templates,
        "seed": training.seed,
        "text_first": config.documents.text_first,
    }
    if infusion.begins is not None:
        return begin_later(config.begin_step * training.step_tokens, infused, background, budget=whole, **settings)
    return ExposurePlan(infused, background, budget=whole, **settings)


def _plan_of_run(
    folder: Path, config: RunConfig, store: ExposureStore, questions: QuestionSet
) -> ExposurePlan | ExtendedPlan:
    """Makes the plan of a finished run again from its record, and compares it with that."""
    if not (folder / "DONE").exists():
        raise InputError("is not a finished run", where=f"extends: {folder}", remedy="finish it first")
    record = read_json(folder / RUN_FILE, RUN_SCHEMA, keys=("config", "plan", "fingerprints"))
    found, wanted = record["fingerprints"].get("exposures"), store.fingerprint
    if found != wanted:
        raise InputError(
            f"was trained on the exposures {str(found)[:12]}, this run's are {wanted[:12]}",
            where=f"extends: {folder}",
            remedy="continue with the same exposures",
        )
    before = recorded_config(record, folder)
    if before.infusion.begins is not None:
        problem = "is a run in which infusion begins late, whose rates are those of no single plan"
        raise InputError(problem, where=f"extends: {folder}", remedy="extend a run without infusion.begins")
    for name in ("sequence_length", "global_batch_size", "seed"):
        was, now = getattr(before.training, name), getattr(config.training, name)
        if was != now:
            raise InputError(f"is {now}, the run it extends has {was}", where=f"training.{name}", remedy=f"use {was}")
    shown = [(run.infusion.facts, run.infusion.background.groups) for run in (before, config)]
    for name, one, other in zip(("facts", "background.groups"), *shown, strict=True):
        if one != other:
            raise InputError(
                f"says that other facts are shown than in the run it extends, {folder}",
                where=f"infusion.{name}",
                remedy="give what that run has: an extension shows the same facts",
            )
    plan = open_plan(before, store, questions)
    check_continuation(record["plan"], plan.identity())
    return plan


def listed_frequencies(infusion: InfusionConfig, store: ExposureStore) -> IntArray:
    """Reads the exposures of each infused fact from a file of ``fact<TAB>count``.

    Raises:
        InputError: a line that is not of this form, an unknown fact, one that is listed twice, or one that is missing.
    """
    assert infusion.frequencies is not None
    path = infusion.frequencies
    rows = {fact: row for row, fact in enumerate(store.ids("infused"))}
    counts = np.full(len(rows), -1, dtype=np.int64)
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        fact, tab, count = line.rpartition("\t")
        where = f"{path}:{number}"
        if not tab or not count.strip().isdecimal() or len(count.strip()) > _MOST_DIGITS:
            raise InputError(f"is {line[:80]!r}", where=where, remedy="must be a fact's id, a tab and a whole number")
        if fact not in rows:
            raise InputError(f"no infused fact has the id {fact!r}", where=where, remedy="see facts.jsonl")
        if counts[rows[fact]] >= 0:
            raise InputError(f"lists {fact!r} again", where=where, remedy="list every fact once")
        counts[rows[fact]] = int(count)
    missing = np.flatnonzero(counts < 0)
    if len(missing):
        raise InputError(
            f"does not list {len(missing)} infused facts, the first is {store.ids('infused')[missing[0]]!r}",
            where=str(path),
            remedy="list every fact; 0 is a count, too",
        )
    return counts
