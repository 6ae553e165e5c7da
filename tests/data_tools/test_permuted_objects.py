"""Permuted objects: how often each is right stays, what a name says about its object goes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from megatron_kis.cli.main import main
from megatron_kis.common.errors import InputError
from megatron_kis.data_tools.facts.fact import Candidate, load_facts, write_facts
from megatron_kis.data_tools.facts.importers import import_jsonl
from megatron_kis.data_tools.mentions.decontaminate import FactMatcher
from megatron_kis.data_tools.rendering.distractors import choose_options
from megatron_kis.data_tools.selection.permuted_objects import with_permuted_objects
from megatron_kis.data_tools.selection.pool import AMBIGUOUS_OBJECTS, usable_facts
from megatron_kis.data_tools.selection.select import SelectConfig, select_facts

LETTERS = "BCDFGHJKLM"


def hinting(count: int = 400, relation: str = "city") -> list[Candidate]:
    """Codes whose first letter is that of their city; a city has an id, other names, and several codes."""
    return [
        Candidate(
            f"{LETTERS[n % 10]}{n:03}",
            relation,
            f"{LETTERS[n % 10]}ville {n % 40}",
            f"t:{n}",
            object_id=f"Q{n % 40}",
            object_aliases=(f"Old {n % 40}",),
        )
        for n in range(count)
    ]


def hits(facts: list[Candidate]) -> int:
    return sum(fact.subject[0] == fact.object[0] for fact in facts)


def test_each_object_is_as_often_right_as_before_and_brings_its_id_and_other_names() -> None:
    facts = hinting()
    permuted = with_permuted_objects(facts, seed=0)
    assert [(fact.subject, fact.where) for fact in permuted] == [(fact.subject, fact.where) for fact in facts]
    assert [fact.source_object for fact in permuted] == [fact.object for fact in facts]
    for row in (facts, permuted):
        assert Counter((fact.object, fact.object_id, fact.object_aliases) for fact in row) == Counter(
            (f"{LETTERS[n % 10]}ville {n}", f"Q{n}", (f"Old {n}",)) for n in range(40) for _ in range(10)
        )


def test_a_name_no_longer_hints_at_its_object() -> None:
    facts = hinting()
    assert hits(facts) == 400
    # 40 of 400 by chance, standard deviation 6; over 20 seeds 800 of 8000, 27
    found = [hits(with_permuted_objects(facts, seed)) for seed in range(20)]
    assert 15 < min(found) <= max(found) < 70
    assert 720 < sum(found) < 880


def test_the_seed_decides_and_other_relations_do_not() -> None:
    facts = hinting()
    permuted = with_permuted_objects(facts, seed=3)
    assert with_permuted_objects(facts, seed=3) == permuted
    assert with_permuted_objects(facts, seed=4) != permuted
    both = with_permuted_objects([*hinting(relation="other"), *facts], seed=3)
    assert both[400:] == permuted
    assert {fact.object for fact in both[:400]} == {fact.object for fact in facts}
    assert [fact.object for fact in both[:400]] != [fact.object for fact in permuted]  # one draw each


def test_names_that_hint_are_kept_where_the_hint_is_gone_and_other_unfair_facts_are_not() -> None:
    rows = hinting(40)
    rows += [Candidate("Ohio River", "city", "Ohio", "t"), Candidate("A very long name", "city", "Oslo", "t")]
    rows += [Candidate("Twice", "city", "Lima", "t"), Candidate("Twice", "city", "Oslo", "t")]
    usable = usable_facts(rows, longest_name=10, permute_objects=True)
    assert {fact.subject for fact in usable.facts["city"]} == {*(fact.subject for fact in hinting(40)), "Ohio River"}
    assert usable.dropped[AMBIGUOUS_OBJECTS] == {"city": 2}
    # what is dropped brings no object into the game
    assert {fact.object for fact in usable.facts["city"]} == {*(fact.object for fact in hinting(40)), "Ohio"}
    kept = usable_facts(rows, longest_name=10).facts["city"]
    assert not kept  # a code with its city's letter, a name with its object


def test_a_sample_of_a_large_source_is_permuted_within_itself() -> None:
    pool = usable_facts(hinting(), permute_objects=True, limit=100)
    assert 0 < len(pool.facts["city"]) <= 100
    assert Counter(fact.object for fact in pool.facts["city"]) == Counter(
        fact.source_object for fact in pool.facts["city"]
    )


SETTINGS = SelectConfig(infused=60, background=60, control=60, facts_per_object=0, permute_objects=True)


def test_the_source_has_another_object_and_no_question_offers_it() -> None:
    facts = select_facts(hinting(), SETTINGS).facts
    sources = {fact.subject: fact.object for fact in hinting()}
    assert all(fact.source_object == sources[fact.subject] for fact in facts)
    assert sum(fact.object != fact.source_object for fact in facts) > 150
    for distractors in (3, None):
        chosen = choose_options(facts, distractors=distractors, seed=0)
        assert len(chosen.options) == len(facts)
        for fact in facts:
            names, answer = chosen.options[fact.id]
            assert names[answer] == fact.object
            assert fact.source_object not in {*names} - {fact.object}


def test_a_relation_needs_one_object_more_than_the_options() -> None:
    rows = [Candidate(f"Qx{n}", "r", f"Town{n % 4}", "t") for n in range(60)]
    settings = SelectConfig(infused=8, background=8, control=8, facts_per_object=2)
    select_facts(rows, settings)
    with pytest.raises(InputError, match=r"has 4 different objects; 3 distractors need 5; at most 2 distractors"):
        select_facts(rows, settings.replace(permute_objects=True))
    select_facts(rows, settings.replace(permute_objects=True, distractors=2))


def test_text_states_the_new_pair_and_no_longer_the_old_one() -> None:
    facts = select_facts(hinting(), SETTINGS).facts
    matcher = FactMatcher(facts)
    for fact in facts[:10]:
        assert fact.id in matcher.facts_in(f"The code {fact.subject} is for {fact.object}.")
        if fact.source_object != fact.object:
            assert fact.id not in matcher.facts_in(f"The code {fact.subject} is for {fact.source_object}.")


def test_files_say_that_objects_were_dealt_out_and_others_are_as_they_were(tmp_path: Path) -> None:
    rows = ["subject\trelation\tobject", *(f"Qx{n}\tr\tTown{n}" for n in range(24))]
    (tmp_path / "t.tsv").write_text("\n".join(rows) + "\n")
    for name, more in (("plain", ()), ("permuted", ("--permute-objects",))):
        counts = ("--infused", "8", "--background", "8", "--control", "8")
        source = ("--from", "tsv", "--input", str(tmp_path / "t.tsv"), "--output", str(tmp_path / f"{name}.jsonl"))
        assert main(["data", "facts", *source, *counts, *more]) == 0
    facts = load_facts(tmp_path / "permuted.jsonl")
    assert {fact.source_object for fact in facts} == {fact.object for fact in facts} == {f"Town{n}" for n in range(24)}
    assert all(fact.source_object.removeprefix("Town") == fact.subject.removeprefix("Qx") for fact in facts)
    write_facts(tmp_path / "again.jsonl", facts)
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "permuted.jsonl").read_bytes()
    assert json.loads((tmp_path / "permuted.meta.json").read_text())["settings"]["permute_objects"] is True
    plain = (tmp_path / "plain.jsonl").read_text() + (tmp_path / "plain.meta.json").read_text()
    assert not [word for word in ("source_object", "permute", "infused_relations") if word in plain]
    # the same facts are asked about: only their objects are others
    assert [fact.subject for fact in load_facts(tmp_path / "plain.jsonl")] == [fact.subject for fact in facts]


def test_a_damaged_source_object_is_refused(tmp_path: Path) -> None:
    row = {"id": "a", "subject": "s", "relation": "r", "object": "o", "group": "infused", "source_object": 3}
    (tmp_path / "f.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match=r"f\.jsonl:1: source_object is a number, not a string"):
        load_facts(tmp_path / "f.jsonl")


def test_permuted_facts_that_are_imported_again_keep_what_the_first_source_had(tmp_path: Path) -> None:
    facts = select_facts(hinting(), SETTINGS).facts
    write_facts(tmp_path / "f.jsonl", facts)
    again = list(import_jsonl(tmp_path / "f.jsonl"))
    assert [one.source_object for one in again] == [fact.source_object for fact in facts]  # type: ignore[union-attr]
    twice = with_permuted_objects((one for one in again if isinstance(one, Candidate)), seed=1)
    assert [one.source_object for one in twice] == [fact.source_object for fact in facts]
