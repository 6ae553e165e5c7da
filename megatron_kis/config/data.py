"""Settings of a run's data: files, infusion, boundaries of documents."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from megatron_kis.common.configuration import Config
from megatron_kis.common.errors import InputError, nearest
from megatron_kis.common.identity import DATA
from megatron_kis.data.exposure_schedule import schedule_of


def _checked_schedule(schedule: str | dict[str, Any]) -> str | dict[str, Any]:
    try:
        schedule_of(schedule)
    except InputError as error:
        message = str(error).removeprefix("infusion.schedule: ").removeprefix("infusion.schedule.")
        raise ValueError(message) from None  # the field that it belongs to is named by whoever reads the settings
    return schedule


class BackgroundGroup(Config):
    """Background facts that are shown equally often."""

    facts: PositiveInt
    """Number of facts."""

    frequency: PositiveInt
    """Exposures of each of them in a run without infusion; another number than that of other groups."""


class BackgroundConfig(Config):
    """Background facts, whose retention is watched."""

    policy: Literal["displaced", "protected"] = "displaced"
    """``displaced``: shown at a fixed rate in the general text and displaced with it. ``protected``: shown a fixed
    number of times."""

    frequency: int = Field(0, ge=0)
    """Exposures of each background fact in a run without infusion."""

    groups: tuple[BackgroundGroup, ...] = ()
    """Groups of background facts with different frequencies, each {facts, frequency}, in place of ``frequency``. They
    get the facts one after the other, in the order of ``infusion.facts``. Facts beyond their sum are neither shown nor
    asked about. A list in place of the whole section is these groups, with the policy ``protected``."""

    schedule: str | dict[str, Any] = "uniform"
    """Schedule of the exposures of protected facts, one for all groups: as ``infusion.schedule``."""

    @field_validator("schedule")
    @classmethod
    def _known_schedule(cls, schedule: str | dict[str, Any]) -> str | dict[str, Any]:
        return _checked_schedule(schedule)

    @model_validator(mode="after")
    def _one_of_both(self) -> BackgroundConfig:
        if self.policy == "displaced" and not schedule_of(self.schedule).is_uniform:
            msg = (
                "schedule has no effect on displaced facts, which are shown where general text is; use policy: "
                "protected"
            )
            raise ValueError(msg)
        if self.groups and self.frequency:
            msg = "has both 'frequency' and 'groups'; give one"
            raise ValueError(msg)
        counted = [group.frequency for group in self.groups]
        for frequency in counted:
            if counted.count(frequency) > 1:
                msg = f"has two groups of frequency {frequency}; merge them into one"
                raise ValueError(msg)
        return self


def _of_list(value: Any) -> Any:
    return {"policy": "protected", "groups": value} if isinstance(value, list | tuple) else value


Background = Annotated[
    BackgroundConfig, BeforeValidator(_of_list, json_schema_input_type=BackgroundConfig | tuple[BackgroundGroup, ...])
]
"""The settings of the background facts; a list is ``groups`` with the policy ``protected``."""


class InfusionConfig(Config):
    """Amount of infusion, its schedule and its templates."""

    frequency: float | None = Field(None, ge=0)
    """Infusion frequency F, exposures of each infused fact. It is their mean if it is not a whole number or
    ``zipf_exponent`` is above 0."""

    frequencies: Path | None = None
    """File with the exposures of each fact, in place of ``frequency``: lines ``fact<TAB>count``, one per infused
    fact."""

    facts: PositiveInt | None = None
    """Number K of infused facts that are shown and asked about; all if not given. They are the first K in an order of
    the data that is the same for every seed. Each relation has its share, and the facts of a smaller K are among those
    of a larger one. Facts that share their options follow each other, so choose a multiple of options x relations."""

    ratio: float | None = Field(None, ge=0, le=1)
    """Infusion ratio rho, share of the tokens for infused facts, in place of ``frequency``; met to within one
    exposure."""

    begins: float | None = Field(None, gt=0, lt=1)
    """Share of the run after which infused facts are shown. Before it the plan does not depend on the dose, so that
    runs of several doses can share this part (``trunk``). ``schedule`` covers the rest. None: from the start."""

    zipf_exponent: float = Field(0.0, ge=0)
    """Inequality of the facts' popularity: frequencies fall as this power of the fact's rank, which is random. 0: all
    equal."""

    schedule: str | dict[str, Any] = "uniform"
    """Schedule of the exposures: ``uniform``, ``front_loaded``, ``back_loaded``, or {kind: window, start, end},
    {kind: final, share}, {kind: bursts, count, width}, in shares of the run."""

    templates: Literal["round_robin", "random"] | NonNegativeInt = "round_robin"
    """Train template that an exposure shows: all equally often, in turn or in random order, or always one (its number,
    from 0)."""

    background: Background = BackgroundConfig()
    """Settings of the background facts."""

    @field_validator("schedule")
    @classmethod
    def _known_schedule(cls, schedule: str | dict[str, Any]) -> str | dict[str, Any]:
        return _checked_schedule(schedule)

    @model_validator(mode="after")
    def _one_of_both(self) -> InfusionConfig:
        if sum(value is not None for value in (self.frequency, self.frequencies, self.ratio)) != 1:
            msg = "needs exactly one of 'frequency', 'frequencies' and 'ratio'"
            raise ValueError(msg)
        for name in ("zipf_exponent", "facts"):
            if self.frequencies is not None and getattr(self, name):
                msg = f"has both 'frequencies' and '{name}'; give one"
                raise ValueError(msg)
        return self


class CorpusConfig(Config):
    """One of several corpora."""

    prefix: Path
    """Prefix of its .bin and .idx."""

    weight: float = Field(gt=0)
    """Share of the sequences; the shares of all corpora are scaled to add up to 1."""


class DataConfig(Config):
    """The files of a run, as ``kis data`` writes them."""

    corpus: Path | tuple[CorpusConfig, ...]
    """Prefix of the general text's .bin and .idx; or several with weights, as {prefix, weight} or in the order of
    Megatron-LM's ``--data-path``: [0.7, a, 0.3, b]."""

    validation: Path
    """Prefix of the validation split."""

    exposures: Path
    """Prefix of the exposure store; its questions are next to it."""

    tokenizer: Path
    """The tokenizer's model file."""

    fingerprints: dict[str, str] = Field(default_factory=dict)
    """Fingerprints that the files must have, by name: tokenizer, corpus, validation, exposures, questions. A study
    writes the fingerprints of its data into each run, so that no run trains on files that were made again in the
    meantime; not that of the questions, which may change until the run starts."""

    @field_validator("fingerprints")
    @classmethod
    def _of_data(cls, fingerprints: dict[str, str]) -> dict[str, str]:
        for name in fingerprints:
            if name not in DATA:
                msg = f"{name!r} has no fingerprint; {nearest(name, DATA)}"
                raise ValueError(msg)
        return fingerprints

    @field_validator("corpus", mode="before")
    @classmethod
    def _weighted(cls, corpus: Any) -> Any:
        """Reads Megatron-LM's list of weights and prefixes in turn."""
        if not isinstance(corpus, list | tuple) or not any(isinstance(entry, int | float) for entry in corpus):
            return corpus
        if len(corpus) % 2:
            msg = "needs a weight before each prefix, as in [0.7, a, 0.3, b]"
            raise ValueError(msg)
        for weight in corpus[::2]:
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
                msg = f"has {weight!r}; expected a weight above 0, as in [0.7, a, 0.3, b]"
                raise ValueError(msg)
        for prefix in corpus[1::2]:
            if not isinstance(prefix, str | Path):
                msg = f"has {prefix!r}; expected a prefix, as in [0.7, a, 0.3, b]; put it in quotes if it is one"
                raise ValueError(msg)
        return [{"weight": weight, "prefix": prefix} for weight, prefix in zip(corpus[::2], corpus[1::2], strict=True)]

    @property
    def corpora(self) -> list[tuple[Path, float]]:
        """Prefixes and weights of the general text."""
        if isinstance(self.corpus, Path):
            return [(self.corpus, 1.0)]
        return [(corpus.prefix, corpus.weight) for corpus in self.corpus]

    @property
    def questions(self) -> Path:
        """File of the probe's questions."""
        return self.exposures.with_name(self.exposures.name + ".questions.jsonl")


class DocumentsConfig(Config):
    """Boundaries between the documents of a sequence (exposures and general text)."""

    reset_attention: bool = False
    """Whether tokens attend only to their own document. Rotary positions are distances, so that positions start again,
    too. Costs a mask of L x L per sequence."""

    eod_belongs_to: Literal["next", "previous"] | None = None
    """Document to which an end-of-document token belongs, with ``reset_attention``. ``next``: the document after it.
    Every exposure is then trained after this token, as the probe asks about it, and general text comes before the
    exposures of its sequence. ``previous``: the document before it, as with Megatron-LM's ``--reset-attention-mask``.
    None: ``next``, or ``previous`` if the tokenizer puts a token of its own before each document."""

    @model_validator(mode="after")
    def _has_an_effect(self) -> DocumentsConfig:
        if self.eod_belongs_to is not None and not self.reset_attention:
            msg = "eod_belongs_to has no effect without reset_attention: true; set both, or none"
            raise ValueError(msg)
        return self

    @property
    def text_first(self) -> bool:
        """Whether general text comes before the exposures of its sequence."""
        return self.reset_attention and self.eod_belongs_to != "previous"

    def eod_begins(self, tokenizer_begins: bool) -> bool:
        """Returns whether an end-of-document token is part of the next document.

        Args:
            tokenizer_begins: whether the tokenizer puts a token before each document.
        """
        return not tokenizer_begins if self.eod_belongs_to is None else self.eod_belongs_to == "next"

    mask_boundaries: bool = False
    """Whether the first token of a document is left out of the loss, since it would be predicted from the document
    before it (``--eod-mask-loss``)."""
