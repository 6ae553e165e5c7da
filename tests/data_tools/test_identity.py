"""What exposures and questions are made of, changed one at a time: their fingerprints change, or their bytes do not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_kis.common.files import sha256_file
from megatron_kis.data_tools.facts.fact import Fact
from megatron_kis.data_tools.rendering.render import render, template_lengths
from megatron_kis.data_tools.rendering.templates import RelationTemplates
from megatron_kis.data_tools.tokenizers.base import Tokenizer
from megatron_kis.data_tools.tokenizers.registry import load_tokenizer
from tests.frames import EOD, write_framed_tokenizer

TEMPLATES = {"r": RelationTemplates(("[X] is in [Y].", "In [Y] is [X]."), ("[X]: [Y].",), ("Where is [X]? [Y]",))}
FACTS = [
    Fact(f"{group}{n}", f"S{group}{n}", "r", f"{group} town {n}", group)
    for group in ("infused", "background", "control")
    for n in range(5)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("identity")


def texts() -> list[str]:
    return [f"{fact.subject} is in {fact.object}." for fact in FACTS] * 5


def made_with(folder: Path, name: str, **how: Any) -> tuple[str, str, str]:
    """Fingerprints of exposures, of their tokenizer, and of the questions."""
    inputs: dict[str, Any] = {"facts": FACTS, "templates": TEMPLATES, "tokenizer": tokenizer(folder), **how}
    summary = render(inputs.pop("facts"), inputs.pop("templates"), inputs.pop("tokenizer"), folder / name, **inputs)
    header = json.loads((folder / f"{name}.json").read_text())
    return header["content_fingerprint"], header["tokenizer_fingerprint"], sha256_file(summary.questions_path)


def tokenizer(folder: Path, **how: Any) -> Tokenizer:
    place = folder / f"t{''.join(map(str, how.values()))}"
    return load_tokenizer(write_framed_tokenizer(place, texts(), vocabulary=320, **how))


def changed(place: int, **change: Any) -> list[Fact]:
    return [replace(fact, **change) if at == place else fact for at, fact in enumerate(FACTS)]


def with_templates(**change: Any) -> dict[str, RelationTemplates]:
    return {"r": replace(TEMPLATES["r"], **change)}


CHANGES: dict[str, tuple[Callable[[Path], dict[str, Any]], str]] = {
    "an infused object": (lambda _: {"facts": changed(0, object="Lima")}, "eq"),
    "an infused subject": (lambda _: {"facts": changed(0, subject="Lima")}, "eq"),
    "a control object": (lambda _: {"facts": changed(12, object="Lima")}, "q"),
    "an alias of an object": (lambda _: {"facts": changed(0, object_aliases=("Lima",))}, "q"),
    "a group": (lambda _: {"facts": changed(12, group="infused")}, "eq"),
    "an alias of a subject, of which nothing is made": (lambda _: {"facts": changed(0, subject_aliases=("S",))}, ""),
    "a train template": (lambda _: {"templates": with_templates(train=("[X] lies in [Y].",))}, "eq"),
    "the order of train templates": (lambda _: {"templates": with_templates(train=TEMPLATES["r"].train[::-1])}, "eq"),
    "a held-out template": (lambda _: {"templates": with_templates(held_out=("[X] / [Y].",))}, "q"),
    "a question": (lambda _: {"templates": with_templates(question=())}, "q"),
    "templates of another relation": (lambda _: {"templates": {**TEMPLATES, "s": TEMPLATES["r"]}}, ""),
    "distractors": (lambda _: {"distractors": 2}, "q"),
    "the seed": (lambda _: {"seed": 1}, "q"),
    "all facts asked, which the header says": (lambda _: {"asked": 5}, "q"),
    "fewer facts that are asked": (lambda _: {"distractors": 1, "asked": 2}, "q"),
    "the limit of lengths": (lambda _: {"longest_exposure": 99}, ""),
    "the frame": (lambda folder: {"tokenizer": tokenizer(folder, framed=False)}, "etq"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_shows_in_the_fingerprints_of_what_it_changes_and_of_nothing_else(folder: Path, change: str) -> None:
    make, shown = CHANGES[change]
    before, after = made_with(folder, "before"), made_with(folder, "after", **make(folder))
    differs = "".join(letter for letter, one, other in zip("etq", before, after, strict=True) if one != other)
    assert differs == shown


def test_the_end_of_documents_is_of_the_frame(folder: Path) -> None:
    before = made_with(folder, "before")
    framed = tokenizer(folder, framed=True)
    path = folder / "tTrue" / "tokenizer.json"
    path.with_name("tokenizer_config.json").write_text(json.dumps({"eos_token": "!"}))
    other = load_tokenizer(path)
    assert other.fingerprint != framed.fingerprint
    after = made_with(folder, "after", tokenizer=other)
    assert all(one != two for one, two in zip(before, after, strict=True))
    path.with_name("tokenizer_config.json").write_text(json.dumps({"eos_token": EOD}))
    assert made_with(folder, "after", tokenizer=load_tokenizer(path)) == before


def test_lengths_count_the_frame(folder: Path) -> None:
    with_frame, without = (tokenizer(folder, framed=framed) for framed in (True, False))
    longest = [render(FACTS, TEMPLATES, one, folder / "l").longest for one in (with_frame, without)]
    assert longest[0] == longest[1] + 1
    counts = [template_lengths(FACTS, TEMPLATES, one)["r.train[0]"].shortest for one in (with_frame, without)]
    assert counts[0] == counts[1] + 1
