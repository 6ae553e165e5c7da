import re
from collections import Counter
from dataclasses import replace

import pytest

from megatron_kis.common.errors import InputError
from megatron_kis.common.terms import GROUPS
from megatron_kis.data_tools.facts.importers import Candidate, import_tsv
from megatron_kis.data_tools.mentions.mentions import name_words
from megatron_kis.data_tools.rendering.distractors import choose_options
from megatron_kis.data_tools.selection.revealing_names import reveals_object
from megatron_kis.data_tools.selection.select import SelectConfig, select_facts

from .conftest import FOUR_EACH, TRIPLES


def candidates(rows, relation="r"):
    return [Candidate(subject, relation, answer, f"t:{index}") for index, (subject, answer) in enumerate(rows)]


def many(count, objects=None, relation="r"):
    return candidates([(f"Qx{index}", f"Town{index % (objects or count)}") for index in range(count)], relation)


def test_ambiguous_and_telling_facts_are_dropped_and_counted():
    selection = select_facts(import_tsv(TRIPLES), FOUR_EACH)
    assert not {"Matterhorn", "Jamaica Peak"} & {fact.subject for fact in selection.facts}
    assert selection.dropped["ambiguous: the subject has several objects"] == {"peak_country": 2}
    assert selection.dropped["the object is in the subject's name"] == {"peak_country": 1}
    assert selection.imported == {"peak_country": 19}
    assert any("dropped 2" in line and "ambiguous" in line for line in selection.summary())


def test_a_name_that_several_entities_bear_is_ambiguous_even_with_one_object():
    rows = [Candidate(f"Qx{n}", "r", f"Town{n}", "t", subject_id=f"Q{n}") for n in range(12)]
    rows += [Candidate("QX0", "r", "Town0", "t", subject_id="Q99")]
    selection = select_facts(rows, SelectConfig(infused=4, background=4, control=0))
    assert selection.dropped["ambiguous: several entities have the subject's name"] == {"r": 2}
    assert "Qx0" not in {fact.subject for fact in selection.facts}


def test_a_triple_said_twice_counts_once():
    selection = select_facts(many(12) + many(12), SelectConfig(infused=4, background=4, control=4))
    assert selection.dropped["said twice"] == {"r": 12}
    assert len({fact.subject for fact in selection.facts}) == 12


def test_counts_are_spread_evenly_over_relations():
    settings = SelectConfig(infused=9, background=8, control=10)
    selection = select_facts(
        many(40, relation="a") + candidates([(f"S{n}", f"O{n}") for n in range(40)], "b"), settings
    )
    counts = Counter((fact.group, fact.relation) for fact in selection.facts)
    assert {group: sorted(counts[group, name] for name in "ab") for group in GROUPS} == {
        "infused": [4, 5],
        "background": [4, 4],
        "control": [5, 5],
    }


def test_within_a_group_and_relation_every_object_answers_one_fact():
    selection = select_facts(many(300, objects=20), SelectConfig(infused=15, background=15, control=15))
    for group in GROUPS:
        objects = [fact.object for fact in selection.facts if fact.group == group]
        assert len(objects) == len(set(objects)) == 15


def test_the_split_is_the_seeds_and_does_not_depend_on_the_order_of_other_relations():
    settings = SelectConfig(infused=4, background=4, control=4, relations=("r",))
    one = select_facts(many(40), settings).facts
    two = select_facts(many(30, relation="other") + many(40), settings).facts
    assert one == two
    other = select_facts(many(40), SelectConfig(infused=4, background=4, control=4, relations=("r",), seed=1)).facts
    assert one != other


def test_groups_are_exchangeable_over_seeds():
    taken = Counter()
    for seed in range(200):
        chosen = select_facts(many(24), SelectConfig(infused=8, background=8, control=8, seed=seed)).facts
        taken.update(fact.group for fact in chosen if fact.subject == "Qx3")
    # 200 draws with p = 1/3: mean 67, standard deviation 6.7
    assert all(40 < taken[group] < 94 for group in GROUPS)


def test_all_facts_of_a_subject_stay_in_one_group():
    rows = many(40, relation="a") + candidates([(f"Qx{n}", f"Hill{n}") for n in range(40)], "b")
    facts = select_facts(rows, SelectConfig(infused=20, background=20, control=20)).facts
    groups = {}
    for fact in facts:
        assert groups.setdefault(fact.subject, fact.group) == fact.group


def test_too_few_facts_say_how_many_there_are():
    with pytest.raises(InputError, match=r"provide 30 facts \(10 infused \+ .*it has 12 usable ones with 12 objects"):
        select_facts(many(12), SelectConfig(infused=10, background=10, control=10))
    with pytest.raises(InputError, match="cannot have 3 distractors"):
        select_facts(many(12), SelectConfig(infused=3, background=4, control=4))
    with pytest.raises(
        InputError, match=r"^relations: no facts of relation 'peak_countries'; did you mean 'peak_country'"
    ):
        select_facts(import_tsv(TRIPLES), SelectConfig(relations=("peak_countries",)))
    with pytest.raises(InputError, match=r"^infused: is -1"):
        select_facts(many(12), SelectConfig(infused=-1))


def test_too_few_facts_say_how_many_can_be_chosen_in_the_same_proportions():
    rows = many(60, relation="r") + many(40, relation="q")
    wanted = SelectConfig(infused=60, background=30, control=30)
    with pytest.raises(InputError, match=r"; ask for fewer facts \(infused: .* fit\), or add relations") as caught:
        select_facts(rows, wanted)
    found = dict(re.findall(r"(infused|background|control): (\d+)", str(caught.value)))
    counts = {group: int(count) for group, count in found.items()}
    assert counts == {"infused": 40, "background": 20, "control": 20}
    assert len(select_facts(rows, SelectConfig(**counts)).facts) == 80


def test_long_names_are_dropped_where_a_limit_is_set():
    rows = many(12) + candidates([("A mountain with a very long name", "Chile")])
    selection = select_facts(rows, SelectConfig(infused=4, background=4, control=4, longest_name=12))
    assert selection.dropped["a name longer than 12 characters"] == {"r": 1}


@pytest.mark.parametrize(
    ("subject", "answer"),
    [
        ("Kansas City Airport", "Kansas"),
        ("Guatemala", "Guatemala City"),
        ("São Tomé and Príncipe", "Sao Tome"),
        ("Tunisia", "Tunis"),
        ("Algeria", "Algiers"),
        ("Tashkent Airport", "Toshkent-Shahri"),
        ("CHA", "Chattanooga"),
    ],
)
def test_names_that_give_the_answer_away_are_recognised(subject, answer):
    assert reveals_object(subject, answer)


@pytest.mark.parametrize(
    ("subject", "answer"), [("San Diego", "San Jose"), ("BGO", "Oslo"), ("France", "Paris"), ("Peru", "Lima")]
)
def test_names_that_tell_nothing_are_kept(subject, answer):
    assert not reveals_object(subject, answer)


def test_names_are_compared_without_case_accents_and_article():
    assert name_words("The Bahamas") == ("bahamas",)
    assert name_words("São TOMÉ") == ("sao", "tome")
    assert name_words("N'Djamena") == ("n", "djamena")
    assert name_words("The") == ("the",)


def test_a_relation_with_too_few_objects_is_not_told_to_have_more_facts():
    for facts_per_object in (1, 24, 0):
        settings = SelectConfig(infused=8, background=8, control=8, facts_per_object=facts_per_object)
        with pytest.raises(InputError) as error:
            select_facts(many(200, objects=2), settings)
        assert "relation 'r' has 2 different objects; 3 distractors need 4; at most 1 distractor" in str(error.value)
        assert "at least" not in str(error.value)


@pytest.mark.parametrize("facts_per_object", [8, 24, 0])
def test_facts_that_have_enough_objects_are_taken_whatever_facts_per_object_allows(facts_per_object):
    settings = SelectConfig(infused=8, background=8, control=8, facts_per_object=facts_per_object, distractors=1)
    facts = select_facts(many(60, objects=2), settings).facts
    for group in GROUPS:
        assert len({fact.object for fact in facts if fact.group == group}) == 2


def test_following_the_advice_about_too_few_drawn_objects_leads_to_a_selection():
    rows = candidates([(f"Qx{n}", "Town0" if n < 380 else f"Town{n}") for n in range(400)])
    settings = {"infused": 10, "background": 10, "control": 10, "distractors": 2}
    with pytest.raises(InputError) as error:
        select_facts(rows, SelectConfig(**settings, facts_per_object=24))
    advice = re.search(r"facts_per_object of (\d+) or less", str(error.value))
    assert "; 2 distractors need 3" in str(error.value)
    assert advice is not None
    for seed in range(20):
        select_facts(rows, SelectConfig(**settings, facts_per_object=int(advice[1]), seed=seed))


def test_raising_facts_per_object_is_advised_where_it_helps_and_only_there():
    settings = {"infused": 8, "background": 8, "control": 8, "distractors": 1}
    with pytest.raises(InputError, match=r"raise facts_per_object \(to 2 or more\)"):
        select_facts(many(60, objects=4), SelectConfig(**settings))
    select_facts(many(60, objects=4), SelectConfig(**settings, facts_per_object=2))
    one_group = {"infused": 20, "background": 2, "control": 2, "distractors": 1}  # wants more than there are objects
    with pytest.raises(InputError, match=r"raise facts_per_object \(to 2 or more\)"):
        select_facts(many(60, objects=12), SelectConfig(**one_group))
    select_facts(many(60, objects=12), SelectConfig(**one_group, facts_per_object=2))
    with pytest.raises(InputError) as error:
        select_facts(many(20, objects=4), SelectConfig(**settings, facts_per_object=2))
    assert "facts_per_object" not in str(error.value)


def test_objects_that_may_mean_the_same_are_one_object_of_a_group():
    rows = candidates([(f"Qx{n}", f"Town{n}") for n in range(20)])
    rows += [replace(rows[n], subject=f"Rx{n}", object=f"Burgh{n}", object_id=f"Q{n}") for n in range(20)]
    rows[:20] = [replace(row, object_id=f"Q{n}") for n, row in enumerate(rows[:20])]  # one id, two names
    rows += [replace(rows[n], subject=f"Sx{n}", object=f"Ville{n}", object_id="") for n in range(20)]
    rows[20:40] = [replace(row, object_aliases=(f"Ville{n}",)) for n, row in enumerate(rows[20:40])]
    for seed in range(5):
        selection = select_facts(rows, SelectConfig(infused=18, background=18, control=18, seed=seed))
        assert selection.relations[0].objects == 20
        for group in GROUPS:
            towns = [re.sub(r"\D+", "", fact.object) for fact in selection.facts if fact.group == group]
            assert len(set(towns)) == len(towns) == 18


def test_facts_of_one_subject_under_several_names_stay_in_one_group():
    rows = [Candidate(f"Land {n}", "a", f"Town{n}", "t", subject_aliases=(f"Terra {n}",)) for n in range(40)]
    rows += [Candidate(f"Terra {n}", "b", f"Hill{n}", "t") for n in range(40)]
    facts = select_facts(rows, SelectConfig(infused=20, background=20, control=20)).facts
    groups = {}
    for fact in facts:
        assert groups.setdefault(fact.subject.split()[1], fact.group) == fact.group


def test_a_relation_that_is_named_twice_is_one():
    facts = select_facts(many(12), SelectConfig(infused=4, background=4, control=4, relations=("r", "r"))).facts
    assert len(facts) == 12


def test_groups_can_have_relations_of_their_own_and_options_stay_within_them():
    rows = [one for name in "abc" for one in candidates([(f"S{name}{n}", f"O{name}{n}") for n in range(40)], name)]
    settings = SelectConfig(
        infused=12, background=9, control=12, infused_relations=("a",), background_relations=("b", "c")
    )
    facts = select_facts(rows, settings).facts
    assert Counter((fact.group, fact.relation) for fact in facts) == {
        ("infused", "a"): 12,
        ("background", "b"): 5,
        ("background", "c"): 4,
        **{("control", name): 4 for name in "abc"},
    }
    options = choose_options(facts, distractors=1, seed=0).options
    for fact in facts:
        assert {name[1] for name in options[fact.id][0]} == {fact.relation}
    own = settings.replace(control_relations=("c",), distractors=3)
    assert {fact.relation for fact in select_facts(rows, own).facts if fact.group == "control"} == {"c"}


def test_the_subject_of_several_relations_has_one_group_where_groups_have_their_own():
    rows = many(40, relation="a") + candidates([(f"Qx{n}", f"Hill{n}") for n in range(40)], "b")
    settings = SelectConfig(infused=20, background=20, control=0, infused_relations=("a",), background_relations=("b",))
    facts = select_facts(rows, settings).facts
    assert len({fact.subject for fact in facts}) == 40


def test_relations_of_groups_are_read_no_more_widely_than_needed():
    of = SelectConfig(infused=4, background=8, control=0, infused_relations=("a",), background_relations=("b", "a"))
    assert of.relations_of_all_groups() == ("a", "b")
    assert of.replace(control=4).relations_of_all_groups() == ()  # control has all that there are
    assert of.replace(control=4, relations=("c",)).relations_of_all_groups() == ("a", "b", "c")
    rows = many(12, relation="a") + candidates([(f"Sx{n}", f"Hill{n}") for n in range(12)], "b")
    selection = select_facts(rows + many(9, relation="d"), of)
    assert [one.relation for one in selection.relations] == ["a", "b"]


def test_an_unknown_relation_of_a_group_is_named_with_the_nearest():
    settings = SelectConfig(infused=4, background=0, control=0, infused_relations=("peak_countries",))
    with pytest.raises(
        InputError, match=r"^infused_relations: no facts of relation 'peak_countries'; did you mean 'peak_country'"
    ):
        select_facts(import_tsv(TRIPLES), settings)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (SelectConfig(infused=0, background=0, control=0), "infused: is 0, and so are background and control"),
        (SelectConfig(longest_name=-5), "longest_name: is -5; 1 character or more"),
        (SelectConfig(longest_name=0), "longest_name: is 0; 1 character or more"),
    ],
)
def test_settings_with_which_there_are_no_facts_are_refused(settings, problem):
    with pytest.raises(InputError, match=problem):
        select_facts(many(9), settings)
