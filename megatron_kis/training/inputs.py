"""The inputs of a run, opened and checked against each other before any long work starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from data_tools.tokenizer import load_tokenizer
from megatron_kis.config import RunConfig
from megatron_kis.data.dataset import InfusedDataset
from megatron_kis.data.extension import Plan
from megatron_kis.data.general import GeneralText, ValidationText
from megatron_kis.data.plans import open_plan
from megatron_kis.data.store import ExposureStore
from megatron_kis.errors import InputError
from megatron_kis.files import sha256_file
from megatron_kis.imports.start import open_start
from megatron_kis.model.vocabulary import padded_vocabulary
from megatron_kis.probes.questions import QuestionSet, read_questions


@dataclass(frozen=True)
class Inputs:
    """Everything a run reads."""

    vocabulary: int
    """Pieces of the tokenizer, before padding."""

    eod_id: int
    """The end-of-document token."""

    text: GeneralText
    """General text."""

    validation: ValidationText
    """Held-out general text."""

    store: ExposureStore
    """Exposures."""

    plan: Plan
    """Which exposures lie where."""

    dataset: InfusedDataset
    """The training sequences."""

    questions: QuestionSet
    """What the probe asks."""

    fingerprints: dict[str, str]
    """Of all files that decide a result: training on the same text and asking something else is another run."""


def open_inputs(config: RunConfig) -> Inputs:
    """Opens and checks a run's inputs.

    Raises:
        InputError: a missing, damaged or truncated file, files of different tokenizers, or a plan that does not fit.
    """
    return InputsOfMany().open(config)


class InputsOfMany:
    """Opens the inputs of many runs. Files that they share are opened and checked once: a study may have ten thousand.

    Plans are not shared here; ``plan_key`` tells which are the same.
    """

    def __init__(self) -> None:
        self._opened: dict[tuple[Any, ...], Any] = {}

    def open(self, config: RunConfig) -> Inputs:
        """The inputs of a run; see ``open_inputs``."""
        training, data = config.training, config.data
        length, most = training.sequence_length, config.validation.max_tokens
        tokenizer = self._once(("tokenizer", data.tokenizer), lambda: load_tokenizer(data.tokenizer))
        text = self._once(
            ("text", *data.corpora, length, training.seed),
            lambda: GeneralText(data.corpora, sequence_length=length, seed=training.seed),
        )
        validation = self._once(
            ("validation", data.validation, length, most),
            lambda: ValidationText(data.validation, sequence_length=length, max_tokens=most),
        )
        store = self._once(("store", data.exposures), lambda: ExposureStore(data.exposures))
        asked = config.probes.templates
        questions, questions_sha256 = self._once(
            ("questions", data.questions, *asked.items()),
            lambda: (read_questions(data.questions, asked), sha256_file(data.questions)),
        )
        _check_tokenizers(config, tokenizer.fingerprint, text, validation, store, questions)
        found = {
            "tokenizer": tokenizer.fingerprint,
            "corpus": text.fingerprint,
            "exposures": store.fingerprint,
            "validation": validation.fingerprint,
            "questions": questions_sha256,
        }
        for name, expected in data.fingerprints.items():
            if found.get(name) != expected:
                raise InputError(f"is {str(found.get(name))[:12]}, and must be {expected[:12]}", where=f"data: {name}")
        start = None
        if config.model.init_from is not None:
            rows = padded_vocabulary(tokenizer.vocab_size)
            start = open_start(config.model.init_from, config.model.shape(), vocabulary=rows)
        plan = open_plan(config, store)  # not kept: those of many runs would fill the memory
        return Inputs(
            vocabulary=tokenizer.vocab_size,
            eod_id=tokenizer.eod_id,
            text=text,
            validation=validation,
            store=store,
            plan=plan,
            dataset=InfusedDataset(
                plan,
                text,
                store,
                reset_attention=config.documents.reset_attention,
                mask_boundaries=config.documents.mask_boundaries,
            ),
            questions=questions,
            fingerprints={
                **found,
                **({} if start is None else {"start": start.fingerprint}),
            },
        )

    def _once(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        if key not in self._opened:
            self._opened[key] = make()
        return self._opened[key]


def plan_key(config: RunConfig, *, seed: bool = True) -> tuple[Any, ...]:
    """What decides a run's plan, apart from its data. Sizes of a study share their plans.

    Args:
        config: the run.
        seed: whether the seed counts.
    """
    training = config.training
    return (
        config.infusion.model_dump_json(),  # a schedule may be a mapping
        training.steps,
        training.global_batch_size,
        training.sequence_length,
        training.seed if seed else None,
        config.extends,
    )


def _check_tokenizers(
    config: RunConfig,
    wanted: str,
    text: GeneralText,
    validation: ValidationText,
    store: ExposureStore,
    questions: QuestionSet,
) -> None:
    for what, fingerprint in (
        *text.tokenizers(),
        (config.data.validation, validation.tokenizer_fingerprint),
        (config.data.exposures, store.tokenizer_fingerprint),
        (config.data.questions, questions.tokenizer_fingerprint),
    ):
        if fingerprint != wanted:
            raise InputError(
                f"was made with tokenizer {fingerprint[:12]}, the run's is {wanted[:12]}",
                where=str(what),
                remedy=f"make it again with {config.data.tokenizer}",
            )
