import random
import time
from collections import Counter

import pytest

from megatron_kis.common.errors import InputError
from megatron_kis.data_tools.facts.importers import Candidate, Dropped
from megatron_kis.data_tools.selection.pool import (
    AMBIGUOUS_NAMES,
    AMBIGUOUS_OBJECTS,
    CONTAINS_OBJECT,
    NO_CONTENT,
    NOT_SAMPLED,
    REPEATED,
    usable_facts,
)
from megatron_kis.data_tools.selection.select import SelectConfig, select_facts


def many(count, relation="r", objects=None):
    return [Candidate(f"Qx{n}", relation, f"Town{n % (objects or count)}", "t") for n in range(count)]


def test_one_entity_under_two_names_is_one_subject_and_both_names_are_kept():
    rows = [
        Candidate("Barack Obama", "r", "Honolulu", "t", subject_id="Q76", object_id="Q18094"),
        Candidate("Obama", "r", "Honolulu, Hawaii", "t", subject_id="Q76", object_id="Q18094"),
    ]
    pool = usable_facts(rows)
    [fact] = pool.facts["r"]
    assert (fact.subject_aliases, fact.object_aliases) == (("Obama",), ("Honolulu, Hawaii",))
    assert pool.dropped[REPEATED] == {"r": 1}


def test_what_importers_drop_is_counted_and_the_object_in_the_name_is_a_reason_of_its_own():
    rows = [
        *many(3),
        Dropped("r", "empty name"),
        Dropped("", "malformed row"),
        Candidate("Ohio River", "r", "Ohio", "t"),
    ]
    pool = usable_facts(rows, relations=["r"])
    assert pool.imported == {"r": 5, "": 1}
    assert pool.dropped["empty name"] == {"r": 1}
    assert pool.dropped["malformed row"] == {"": 1}
    assert pool.dropped[CONTAINS_OBJECT] == {"r": 1}
    assert len(pool.facts["r"]) == 3


def test_a_source_beyond_the_limit_is_sampled_by_subject_and_every_triple_is_accounted_for():
    rng = random.Random(1)
    rows = many(2000) + many(2000, "s")
    rows += [Candidate(f"Qx{n}", "r", f"Hill{n}", "t") for n in range(0, 2000, 2)]  # half of r is ambiguous
    rng.shuffle(rows)
    pool = usable_facts(rows, limit=1000, seed=3)
    kept = {relation: {fact.subject for fact in facts} for relation, facts in pool.facts.items()}
    assert 0 < sum(map(len, kept.values())) <= 1000
    assert kept["r"] <= kept["s"]  # a subject is kept with all its triples or not at all
    assert all(int(subject[2:]) % 2 for subject in kept["r"])  # so that the ambiguous ones are known
    assert pool.dropped[AMBIGUOUS_OBJECTS]["r"] == 2 * len(kept["s"] - kept["r"])
    assert (
        pool.dropped[NOT_SAMPLED].total() + pool.dropped[AMBIGUOUS_OBJECTS].total() + sum(map(len, kept.values()))
        == 5000
    )
    again = usable_facts(sorted(rows, key=lambda row: row.subject), limit=1000, seed=3)
    assert {fact.subject for fact in again.facts["s"]} <= {fact.subject for fact in usable_facts(rows).facts["s"]}


def test_bearers_of_a_name_are_told_apart_over_relations():
    rows = [Candidate("York", "a", "Ouse", "t", subject_id="Q1"), Candidate("york", "b", "Erie", "t", subject_id="Q2")]
    pool = usable_facts(rows)
    assert pool.facts == {"a": [], "b": []}
    assert pool.dropped[AMBIGUOUS_NAMES] == {"a": 1, "b": 1}


def test_a_proportional_spread_follows_the_sizes_and_leaves_out_what_is_too_small():
    rows = many(300, "big") + [Candidate(f"S{n}", "mid", f"O{n}", "t") for n in range(100)]
    rows += [Candidate(f"T{n}", "tiny", f"P{n}", "t") for n in range(5)]
    settings = SelectConfig(infused=40, background=40, control=40, spread="proportional")
    selection = select_facts(rows, settings)
    counts = Counter((fact.group, fact.relation) for fact in selection.facts)
    for group in ("infused", "background", "control"):
        assert (counts[group, "big"], counts[group, "mid"], counts[group, "tiny"]) == (30, 10, 0)
    with pytest.raises(InputError, match=r"spread: is 'odd'"):
        select_facts(rows, SelectConfig(spread="odd"))


def test_relations_are_described_with_their_chance_levels():
    rows = many(30, objects=5) + [Candidate(f"S{n}", "r", "Town0", "t") for n in range(10)]
    settings = SelectConfig(infused=8, background=8, control=8, facts_per_object=0)
    [relation] = select_facts(rows, settings).relations
    assert (relation.imported, relation.usable, relation.objects) == (40, 40, 5)
    assert (relation.chance, relation.most_frequent) == (1 / 5, 16 / 40)
    assert relation.chosen == {"infused": 8, "background": 8, "control": 8}
    lines = select_facts(rows, settings).summary()
    assert any("chance 0.2000 among all of them, 0.2500 among 4 options" in line for line in lines)


def test_any_number_of_facts_may_share_an_object_but_not_all_of_them():
    rows = many(60, objects=2)
    with pytest.raises(InputError, match="3 distractors need 4"):
        select_facts(rows, SelectConfig(infused=10, background=10, control=10, facts_per_object=0))


def pairs(*rows, relation="r"):
    return [Candidate(subject, relation, answer, "t") for subject, answer in rows]


@pytest.mark.parametrize(
    "rows",
    [
        [("टोगो", "लोमे"), ("टोंगा", "नुकुआलोफ़ा"), ("पेरू", "लीमा")],
        [("C", "Ritchie"), ("C++", "Stroustrup"), ("C#", "Hejlsberg"), ("C--", "Ramsey")],
        [("กา", "Nan"), ("กี", "Trat"), ("กู", "Phuket")],
        [("مِصر", "Nile"), ("مُصر", "Oder")],
        [("β", "two"), ("ß", "ss"), ("β+", "decay"), ("β−", "other")],
        [("+", "plus"), ("€", "euro"), ("$", "dollar"), ("5", "five"), ("-5", "minus")],
    ],
)
def test_names_that_differ_by_a_mark_or_a_symbol_are_several_subjects(rows):
    pool = usable_facts(pairs(*rows), keep_telling_names=True)
    assert [(fact.subject, fact.object) for fact in pool.facts["r"]] == rows


@pytest.mark.parametrize(
    "objects", [("लोमे", "लीमा"), ("パリ", "バリ"), ("-5", "5"), ("A+", "A-"), ("C#", "C++"), ("ဂ", "ဂါ")]
)
def test_objects_that_differ_by_a_mark_or_a_symbol_contradict_one_another(objects):
    pool = usable_facts(pairs(*(("Rahul", answer) for answer in objects)))
    assert pool.facts == {"r": []}
    assert pool.dropped[AMBIGUOUS_OBJECTS] == {"r": 2}
    assert not pool.dropped[REPEATED]


def test_names_of_punctuation_alone_are_dropped():
    assert usable_facts(pairs(("A", "?!"), ("--", "B"))).dropped[NO_CONTENT] == {"r": 2}


def test_an_object_under_another_name_that_the_source_gives_it_says_the_same_twice():
    rows = [
        Candidate("Hague House", "r", "Holland", "t"),
        Candidate("Hague House", "r", "Nederland", "t", object_id="Q55"),
        Candidate("Delft", "s", "Netherlands", "t", object_aliases=("Holland", "Nederland")),
        Candidate("Tbilisi", "r", "Georgia", "t", object_id="Q230"),
        Candidate("Tbilisi", "r", "Georgia", "t", object_id="Q1428"),
    ]
    pool = usable_facts(rows)
    [fact] = pool.facts["r"]
    assert (fact.object, fact.object_aliases, fact.object_id) == ("Holland", ("Nederland",), "Q55")
    assert (pool.dropped[REPEATED], pool.dropped[AMBIGUOUS_OBJECTS]) == ({"r": 1}, {"r": 2})  # other ids are others


def test_subjects_without_ids_are_one_where_an_alias_says_so():
    rows = [
        Candidate("Holland", "capital", "Amsterdam", "t"),
        Candidate("Netherlands", "capital", "The Hague", "t", subject_aliases=("Holland",)),
        Candidate("Ceylon", "ocean", "Indian Ocean", "t"),
        Candidate("Sri Lanka", "ocean", "Indian Ocean", "t", subject_aliases=("Ceylon",)),
        Candidate("Peru", "capital", "Lima", "t"),
    ]
    pool = usable_facts(rows)
    assert pool.dropped[AMBIGUOUS_OBJECTS] == {"capital": 2}
    assert pool.dropped[REPEATED] == {"ocean": 1}
    assert [fact.subject for fact in pool.facts["capital"]] == ["Peru"]
    [fact] = pool.facts["ocean"]
    assert (fact.subject, fact.subject_aliases) == ("Ceylon", ("Sri Lanka",))


def test_a_subject_of_very_many_objects_takes_linear_time():
    begin = time.process_time()
    rows = [Candidate("France", "r", f"Commune {n}", "t") for n in range(100_000)]
    assert usable_facts(rows).dropped[AMBIGUOUS_OBJECTS] == {"r": 100_000}
    assert time.process_time() - begin < 20


def test_a_name_is_as_long_as_it_looks():
    rows = pairs(("e\u0301" * 5, "Lima"), ("abcdef", "Oslo"))
    assert [fact.object for fact in usable_facts(rows, longest_name=5).facts["r"]] == ["Lima"]
