"""What the steps of a study's data are made from: settings and sources, and what earlier steps have made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from megatron_kis.common.known_files import Seen
from megatron_kis.common.progress import Progress
from megatron_kis.data_tools.facts.fact import Fact, load_facts
from megatron_kis.data_tools.preparation.settings import DataPrepConfig
from megatron_kis.data_tools.rendering.templates import RelationTemplates, load_templates
from megatron_kis.data_tools.tokenizers.base import Tokenizer
from megatron_kis.data_tools.tokenizers.registry import load_tokenizer
from megatron_kis.data_tools.tokenizers.training import TokenizerConfig

_TOKENIZER_NAMES = ("tokenizer.model", "tokenizer.json")

_Value = TypeVar("_Value")


@dataclass(slots=True)
class StepInputs:
    """Inputs of the steps: settings and sources, and what earlier steps have made."""

    settings: DataPrepConfig
    """Settings, whose text is expanded: each file by its name."""
    seen: Seen
    """Known hashes of the sources."""
    progress: Progress
    """Receiver of the steps' messages."""
    facts: list[Fact] | None = None
    """The study's facts; None before they are made."""
    facts_sha256: str | None = None
    """SHA-256 of ``facts.jsonl``; None before it is made."""
    tokenizer: Tokenizer | None = None
    """The tokenizer; None before it is trained."""
    templates: Mapping[str, RelationTemplates] = field(default_factory=dict)
    """Templates of the facts' relations; of all relations before the facts are made."""

    def load(self, step: str, folder: Path | None) -> None:
        """Loads what later steps take from one whose outputs are in ``folder``; None if they are not made.

        Raises:
            InputError: a damaged file, or no templates for a relation of the facts.
        """
        if step == "facts":
            if folder is not None:
                self.facts = load_facts(folder / "facts.jsonl")
                self.facts_sha256 = self.seen.sha256(folder / "facts.jsonl")
            relations = sorted({fact.relation for fact in self.facts or ()})
            templates = load_templates(self.settings.templates, relations=relations)
            self.templates = {name: templates[name] for name in relations} if relations else templates
            if self.settings.tokenizer is not None:
                self.tokenizer = load_tokenizer(self.settings.tokenizer)
        elif step == "tokenizer" and folder is not None:
            self.tokenizer = load_tokenizer(folder / tokenizer_name(self.settings))


def tokenizer_name(settings: DataPrepConfig) -> str:
    """Returns the file name of a tokenizer that is trained here."""
    return _TOKENIZER_NAMES[settings.tokenizer_model == "byte-bpe"]


def training(settings: DataPrepConfig) -> TokenizerConfig:
    """Returns the configuration with which a tokenizer is trained here."""
    return TokenizerConfig(
        vocab_size=settings.vocab_size,
        kind=settings.tokenizer_model,
        seed=settings.seed,
        character_coverage=settings.character_coverage,
        option=lambda name: "data.tokenizer_model" if name == "model" else f"data.{name}",
    )


def fact_names(facts: Iterable[Fact]) -> list[str]:
    """Returns the sorted distinct names of facts of all groups, on which a tokenizer is trained next to text."""
    return sorted({name for fact in facts for name in (fact.subject, fact.object)})


def made_before(value: _Value | None) -> _Value:
    """Returns what an earlier step has made: steps are made in order."""
    assert value is not None
    return value
