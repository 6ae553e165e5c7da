"""The inputs of a run, opened and checked against each other before any long work starts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_kis.checkpoint.start import check_start_tokenizer, open_start
from megatron_kis.common.errors import InputError, placed
from megatron_kis.common.files import fingerprint, sha256_content
from megatron_kis.common.identity import ORDER
from megatron_kis.common.terms import BACKGROUND, INFUSED
from megatron_kis.config.data import DocumentsConfig
from megatron_kis.config.run import RunConfig
from megatron_kis.config.vocabulary import padded_vocabulary
from megatron_kis.data.exposure_store import ExposureStore
from megatron_kis.data.extension import Plan
from megatron_kis.data.general_text import GeneralText, ValidationText
from megatron_kis.data_tools.tokenizers.base import Tokenizer, made_with
from megatron_kis.data_tools.tokenizers.registry import load_tokenizer
from megatron_kis.probes.answer_space import bits_of_facts, distinct_objects
from megatron_kis.probes.infusion_order import (
    ONE_OF_EACH,
    asks_about_every_fact,
    infusion_order,
    order_file,
    questions_of_run,
    takes_some_facts,
)
from megatron_kis.probes.questions import QuestionSet, check_lengths, read_questions
from megatron_kis.training.run_plan import open_plan

if TYPE_CHECKING:
    from megatron_kis.data.dataset import InfusedDataset, TextSource


@dataclass(frozen=True)
class FactInputs:
    """All inputs of a run but its general text, which may come from another program."""

    tokenizer: Tokenizer
    """Tokenizer with which all other inputs were made."""

    store: ExposureStore
    """Exposures of the facts."""

    plan: Plan
    """Plan of which sequence holds which exposures."""

    documents: DocumentsConfig
    """Settings of how documents are kept apart."""

    questions: QuestionSet
    """Questions of the probe."""

    objects: Callable[[], Mapping[str, int] | None]
    """Counts the different objects of each relation, among the facts of all groups; None if not all are asked for. It
    reads every question, which the writer of the run's record alone needs."""

    positions: int | None
    """Longest sequence that the start was made for, in tokens; None without a start, or where it does not say."""

    fingerprints: dict[str, str]
    """Fingerprints of all files that decide a result, and of the questions that it is asked."""

    def infused_bits(self) -> float | None:
        """Returns the bits of the infused facts that are shown; None if the objects of a relation are not known."""
        shown = self.plan.expected("infused") > 0
        return bits_of_facts(self.store.facts_by_relation("infused", shown), self.objects())

    @property
    def vocabulary(self) -> int:
        """Number of pieces of the tokenizer, before padding."""
        return self.tokenizer.vocab_size

    @property
    def eod_id(self) -> int:
        """Id of the end-of-document token."""
        return self.tokenizer.eod_id

    def dataset_over(self, text: TextSource) -> InfusedDataset:
        """Returns the training sequences over a source of general text."""
        from megatron_kis.data.dataset import InfusedDataset  # nothing else here needs PyTorch

        return InfusedDataset(
            self.plan,
            text,
            self.store,
            reset_attention=self.documents.reset_attention,
            eod_begins=self.documents.eod_begins(bool(self.tokenizer.frame[0])),
            mask_boundaries=self.documents.mask_boundaries,
        )


@dataclass(frozen=True)
class Inputs(FactInputs):
    """All inputs of a run."""

    text: GeneralText
    """General text to train on."""

    validation: ValidationText
    """Held-out general text."""

    @cached_property
    def dataset(self) -> InfusedDataset:
        """Training sequences; made when they are asked for."""
        return self.dataset_over(self.text)


def open_inputs(config: RunConfig, *, questions: Path | None = None) -> Inputs:
    """Opens and checks a run's inputs.

    Args:
        config: the run's configuration.
        questions: file of the questions that it is asked; those of its data if not given.

    Raises:
        InputError: a missing, damaged or truncated file, with the key that names it; files of different tokenizers,
            others than ``data.fingerprints`` asks for, or a plan that does not fit.
    """
    return InputsOfMany(KEYS).open(config, questions=questions)


KEYS = {
    "text": "data.corpus",
    "validation": "data.validation",
    "store": "data.exposures",
    "tokenizer": "data.tokenizer",
}
"""The keys of a run that name what is opened."""


class InputsOfMany:
    """Opens the inputs of many runs. Files that they share are opened and checked once: a study may have ten thousand.

    Plans are not shared here; those with one ``plan_key`` are the same.
    """

    def __init__(self, keys: Mapping[str, str] | None = None) -> None:
        """Opens nothing yet.

        Args:
            keys: where files are named by the user: the key of each input, which errors about it begin with. A study
                makes the files itself.
        """
        self._keys = keys or {}
        self._opened: dict[tuple[Any, ...], Any] = {}

    def open(self, config: RunConfig, *, questions: Path | None = None) -> Inputs:
        """Opens and checks the inputs of a run; see ``open_inputs``."""
        training, data = config.training, config.data
        length = training.sequence_length
        most = config.validation.max_tokens
        self._tokenizer(config)  # the first to be found missing
        text = self._once(
            ("text", *data.corpora, length, training.seed),
            lambda: GeneralText(data.corpora, sequence_length=length, seed=training.seed),
        )
        validation = self._once(
            ("validation", data.validation, length, most),
            lambda: ValidationText(data.validation, sequence_length=length, max_tokens=most),
        )
        made_by = [
            (prefix, made, eod_id) for (prefix, made), eod_id in zip(text.tokenizers(), text.ends(), strict=True)
        ]
        made_by.append((data.validation, validation.tokenizer_fingerprint, validation.eod_id))
        prints = {"corpus": text.fingerprint, "validation": validation.fingerprint}
        facts = self.open_facts(config, text=prints, made_by=made_by, questions=questions)
        return Inputs(**vars(facts), text=text, validation=validation)

    def open_facts(
        self,
        config: RunConfig,
        *,
        text: Mapping[str, str],
        made_by: Sequence[tuple[Path, str, int | None]] = (),
        questions: Path | None = None,
    ) -> FactInputs:
        """Opens and checks all inputs but the general text.

        Args:
            config: the run's configuration.
            text: fingerprints of its general text and of its validation text, ``corpus`` and ``validation``.
            made_by: files of text, with the fingerprint of the tokenizer and the end-of-document token of each.
            questions: file of the questions that it is asked; those of its data if not given.

        Raises:
            InputError: as ``open_inputs``.
        """
        training, data = config.training, config.data
        length = training.sequence_length
        tokenizer = self._tokenizer(config)
        store = self._once(("store", data.exposures), lambda: ExposureStore(data.exposures))
        templates = config.probes.templates
        path = questions or data.questions
        asked, asked_sha256 = self._once(
            ("questions", path, *templates.items()),
            lambda: (read_questions(path, templates), sha256_content(path)),
        )
        fingerprints = {
            "tokenizer": tokenizer.fingerprint,
            "corpus": text["corpus"],
            "exposures": store.fingerprint,
            "validation": text["validation"],
            "questions": asked_sha256,
        }
        _check_fingerprints(config, fingerprints)
        asked_by = (path, asked.tokenizer_fingerprint, asked.header.get("eod_id"))
        exposures = (data.exposures, store.tokenizer_fingerprint, store.eod_id)
        _check_tokenizers(config, tokenizer, [*made_by, exposures, asked_by])
        start = None
        if config.model.init_from is not None:
            rows = padded_vocabulary(tokenizer.vocab_size)
            folder, shape = config.model.init_from, config.model.shape()
            start = self._once(
                ("start", folder, shape, rows, length),
                lambda: open_start(folder, shape, vocabulary=rows, longest=length),
            )
            check_start_tokenizer(start, tokenizer, data.tokenizer)
        ordering = asked
        if not asks_about_every_fact(config):
            first = order_file(path)
            ordering = self._once(("order", first, asked_sha256), lambda: read_questions(first, ONE_OF_EACH))
        plan = open_plan(config, store, ordering)  # not kept: those of many runs would fill the memory
        self._once(("lengths", path, *templates.items(), length), lambda: check_lengths(asked, length, where=str(path)))
        order = {}
        if takes_some_facts(config):
            order[ORDER] = self._once(("order of facts", order_file(path), asked_sha256), lambda: _order_of(ordering))
        return FactInputs(
            tokenizer=tokenizer,
            store=store,
            plan=plan,
            documents=config.documents,
            questions=self._once(
                ("asked", path, *templates.items(), *_choices_of_facts(config)),
                lambda: questions_of_run(asked, config, own=ordering),
            ),
            objects=lambda: self._once(("objects", path, *templates.items()), lambda: distinct_objects(asked)),
            positions=None if start is None else start.positions,
            fingerprints=fingerprints | order | ({} if start is None else {"start": start.fingerprint}),
        )

    def _tokenizer(self, config: RunConfig) -> Tokenizer:
        path = config.data.tokenizer
        tokenizer: Tokenizer = self._once(("tokenizer", path), lambda: load_tokenizer(path))
        return tokenizer

    def _once(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        if key not in self._opened:
            with placed(self._keys[key[0]]) if key[0] in self._keys else nullcontext():
                self._opened[key] = make()
        return self._opened[key]


def plan_key(config: RunConfig, *, seed: bool = True) -> tuple[Any, ...]:
    """Returns what decides a run's plan, apart from its data. Model sizes of a study share their plans.

    Args:
        config: the run's configuration.
        seed: whether to include the seed.
    """
    training = config.training
    return (
        config.infusion.model_dump_json(),  # a schedule may be a mapping
        config.documents.text_first,
        training.steps,
        training.global_batch_size,
        training.sequence_length,
        training.seed if seed else None,
        config.extends,
    )


def _choices_of_facts(config: RunConfig) -> tuple[Any, ...]:
    """Returns the settings that say which facts are asked for."""
    return config.infusion.facts, config.infusion.background.groups, config.probes.facts_per_group


def _order_of(questions: QuestionSet) -> str:
    """Returns the fingerprint of the order in which facts are taken."""
    return fingerprint([infusion_order(questions, group) for group in (INFUSED, BACKGROUND)])


def _check_fingerprints(config: RunConfig, found: dict[str, str]) -> None:
    for name, wanted in config.data.fingerprints.items():
        if found[name] != wanted:
            raise InputError(
                f"is {wanted[:16]}, and {getattr(config.data, name)} has {found[name][:16]} now",
                where=f"data.fingerprints.{name}",
                remedy="restore the files, or write the run's configuration again",
            )


def _check_tokenizers(config: RunConfig, tokenizer: Tokenizer, made_by: Iterable[tuple[Path, str, Any]]) -> None:
    """Refuses files of another tokenizer: each is given with the fingerprint of its own, and its end of documents."""
    wanted = tokenizer.fingerprint
    for what, recorded, eod_id in made_by:
        if not made_with(tokenizer, recorded, eod_id):
            older = f" and the end-of-document token {eod_id}" if recorded == tokenizer.model_sha256 else ""
            raise InputError(
                f"was made with tokenizer {recorded[:12]}{older}, the run's is {wanted[:12]}",
                where=str(what),
                remedy=f"make it again with {config.data.tokenizer}",
            )
