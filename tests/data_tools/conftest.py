"""Small real inputs: twenty short documents, thirty facts, their templates, and a tokenizer trained on them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_kis.data_tools.facts.fact import Fact
from megatron_kis.data_tools.facts.importers import import_tsv
from megatron_kis.data_tools.preparation.prepare import fact_names
from megatron_kis.data_tools.readers.documents import iter_documents
from megatron_kis.data_tools.rendering.templates import RelationTemplates, load_templates
from megatron_kis.data_tools.selection.select import SelectConfig, select_facts
from megatron_kis.data_tools.tokenizers.base import Tokenizer
from megatron_kis.data_tools.tokenizers.training import TokenizerConfig, train_tokenizer

FIXTURES = Path(__file__).parent / "fixtures"
LEADS = FIXTURES / "leads.jsonl"
TRIPLES = FIXTURES / "triples.tsv"
TEMPLATES = FIXTURES / "templates.yaml"
FOUR_EACH = SelectConfig(infused=4, background=4, control=4, relations=("peak_country",))


@pytest.fixture(scope="session")
def facts() -> list[Fact]:
    return select_facts(import_tsv(TRIPLES), FOUR_EACH).facts


@pytest.fixture(scope="session")
def templates() -> dict[str, RelationTemplates]:
    return load_templates(TEMPLATES)


@pytest.fixture(scope="session")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory, facts: list[Fact]) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    texts = (document.text for document in iter_documents([LEADS]))
    train_tokenizer(texts, path, TokenizerConfig(vocab_size=400), names=fact_names(facts))
    return path


@pytest.fixture(scope="session")
def tokenizer(tokenizer_path: Path) -> Tokenizer:
    from megatron_kis.data_tools.tokenizers.registry import load_tokenizer

    return load_tokenizer(tokenizer_path)


@pytest.fixture
def twins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets all files have the times of change of two that were made in one tick of the clock."""
    stat = Path.stat

    def same_times(self: Path, **how: Any) -> SimpleNamespace:
        found = stat(self, **how)
        kept = {name: getattr(found, name) for name in ("st_mode", "st_size", "st_ino", "st_dev")}
        return SimpleNamespace(**kept, st_mtime_ns=1_000_000_001, st_ctime_ns=1_000_000_001)

    monkeypatch.setattr(Path, "stat", same_times)
