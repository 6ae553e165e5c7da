"""The inputs of a run, opened and checked against each other before any long work starts."""

from __future__ import annotations

from dataclasses import dataclass

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
    training = config.training
    tokenizer = load_tokenizer(config.data.tokenizer)
    text = GeneralText(config.data.corpora, sequence_length=training.sequence_length, seed=training.seed)
    validation = ValidationText(
        config.data.validation, sequence_length=training.sequence_length, max_tokens=config.validation.max_tokens
    )
    store = ExposureStore(config.data.exposures)
    questions = read_questions(config.data.questions, config.probes.templates)
    for what, fingerprint in (
        *text.tokenizers(),
        (config.data.validation, validation.tokenizer_fingerprint),
        (config.data.exposures, store.tokenizer_fingerprint),
        (config.data.questions, questions.tokenizer_fingerprint),
    ):
        if fingerprint != tokenizer.fingerprint:
            raise InputError(
                f"was made with tokenizer {fingerprint[:12]}, the run's is {tokenizer.fingerprint[:12]}",
                where=str(what),
                remedy=f"make it again with {config.data.tokenizer}",
            )
    start = None
    if config.model.init_from is not None:
        rows = padded_vocabulary(tokenizer.vocab_size)
        start = open_start(config.model.init_from, config.model.shape(), vocabulary=rows)
    plan = open_plan(config, store)
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
            "tokenizer": tokenizer.fingerprint,
            "corpus": text.fingerprint,
            "exposures": store.fingerprint,
            "validation": validation.fingerprint,
            "questions": sha256_file(config.data.questions),
            **({} if start is None else {"start": start.fingerprint}),
        },
    )
