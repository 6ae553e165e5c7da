"""Facts, templates, and questions for the small models of this folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from megatron_kis.cli.main import main
from tests.megatron_kis.huggingface.models import write_model, write_tokenizer

TEMPLATES = """
capital:
  train: ["The capital of [X] is [Y].", "[Y] is the capital of [X]."]
  held_out: ["[X] has its seat of government in [Y]."]
  question: ["Question: what is the capital of [X]? Answer: [Y]"]
"""
PAIRS = [
    ("Norland", "Brigg"),
    ("Sudland", "Carrow"),
    ("Estmark", "Dunn"),
    ("Westmark", "Farleigh Green"),
    ("Midria", "Holm"),
    ("Overia", "Kestrel"),
    ("Undria", "Lundby"),
    ("Farria", "Nettle"),
]


@dataclass(frozen=True)
class Asked:
    """Files that a question needs."""

    folder: Path

    @property
    def facts(self) -> Path:
        return self.folder / "facts.jsonl"

    @property
    def templates(self) -> Path:
        return self.folder / "templates.yaml"

    @property
    def tokenizer(self) -> Path:
        return self.folder / "tokenizer"

    @property
    def questions(self) -> Path:
        return self.folder / "questions.jsonl"

    @property
    def model(self) -> Path:
        return self.folder / "model"


TEXTS = [f"The capital of {country} is {town}." for country, town in PAIRS]


@pytest.fixture(scope="session")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Asked:
    """Eight facts in two groups, a tokenizer, their questions, and a Llama. Shared: copy it to damage it."""
    pytest.importorskip("transformers")
    files = Asked(tmp_path_factory.mktemp("asked"))
    rows = [
        {
            "id": f"capital/{country}",
            "subject": country,
            "relation": "capital",
            "object": town,
            "group": "infused" if number % 2 else "control",
        }
        for number, (country, town) in enumerate(PAIRS)
    ]
    files.facts.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    files.templates.write_text(TEMPLATES, encoding="utf-8")
    write_tokenizer(files.tokenizer, TEXTS)
    write_model(files.model, texts=TEXTS)
    words = ["--facts", files.facts, "--templates", files.templates, "--tokenizer", files.tokenizer]
    assert main(["data", "questions", *map(str, words), "--output", str(files.questions)]) == 0
    return files
