import json
from dataclasses import astuple, replace

import pytest

from megatron_kis.common.errors import InputError
from megatron_kis.data_tools.facts.fact import Fact
from megatron_kis.data_tools.facts.importers import bear_templates, import_bear
from megatron_kis.data_tools.rendering.templates import RelationTemplates
from megatron_kis.data_tools.selection.exports import export_bear
from megatron_kis.data_tools.selection.select import SelectConfig, select_facts

TEMPLATES = {"P30": RelationTemplates(("[X] is in [Y].",), ("[X] is a(n) [Y] place.", "In [Y] lies [X]."), ())}
FACTS = [
    Fact("a", "Nile", "P30", "Africa", "infused", ("Nile River",), ("the continent",), "Q3392", "Q15"),
    Fact("b", "Rysy", "P30", "Europe", "infused", (), (), "Q1", "Q46"),
    Fact("c", "Congo", "P30", "africa", "infused"),
    Fact("d", "Fuji", "P30", "Asia", "control"),
]


def test_every_group_is_a_data_set_whose_answers_are_its_own_objects(tmp_path):
    folders = export_bear(FACTS, TEMPLATES, tmp_path)
    assert [folder.name for folder in folders] == ["infused", "control"]
    metadata = json.loads((tmp_path / "infused" / "metadata_relations.json").read_text())
    assert metadata["P30"]["templates"] == ["[X] is a [Y] place.", "In [Y] lies [X]."]
    assert metadata["P30"]["answer_space_labels"] == ["Africa", "Europe"]
    assert metadata["P30"]["answer_space_ids"] == ["Q15", "Q46"]
    rows = [json.loads(line) for line in (tmp_path / "infused" / "P30.jsonl").read_text().splitlines()]
    for row, fact in zip(rows, FACTS, strict=False):
        assert (row["fact_id"], row["sub_label"], row["sub_aliases"]) == (
            fact.id,
            fact.subject,
            [*fact.subject_aliases],
        )
        assert metadata["P30"]["answer_space_labels"][row["answer_idx"]].casefold() == fact.object.casefold()
        assert metadata["P30"]["answer_space_ids"][row["answer_idx"]] == row["obj_id"]


def test_what_was_exported_can_be_imported_again(tmp_path):
    export_bear(FACTS[:2], TEMPLATES, tmp_path, split="train")
    found = list(import_bear(tmp_path / "infused"))
    for candidate, fact in zip(found, FACTS[:2], strict=True):
        for name in ("id", "subject", "relation", "object", "subject_id", "object_id"):
            assert getattr(candidate, name) == getattr(fact, name)
        assert candidate.subject_aliases == fact.subject_aliases
        assert candidate.object_aliases == fact.object_aliases
    assert bear_templates(tmp_path / "infused") == {"P30": ["[X] is in [Y]."]}


def test_what_the_format_cannot_hold_is_refused_before_anything_is_written(tmp_path):
    odd = Fact("e", "A", "place/of.birth", "B", "infused")
    with pytest.raises(InputError, match=r"relation 'place/of\.birth' cannot name a file"):
        export_bear([odd], {**TEMPLATES, odd.relation: TEMPLATES["P30"]}, tmp_path)
    with pytest.raises(InputError, match="'P30' has no question templates"):
        export_bear(FACTS, TEMPLATES, tmp_path, split="question")
    with pytest.raises(InputError, match="unknown split 'held'; did you mean 'held_out'"):
        export_bear(FACTS, TEMPLATES, tmp_path, split="held")
    with pytest.raises(InputError, match="groups: no facts of group 'background'"):
        export_bear(FACTS, TEMPLATES, tmp_path, groups=["infused", "background"])
    with pytest.raises(InputError, match="unknown group 'controls'"):
        export_bear(FACTS, TEMPLATES, tmp_path, groups=["controls"])
    assert list(tmp_path.iterdir()) == []


def back(folder):
    """The facts of an exported group, without what a file of facts has of its own."""
    return [astuple(replace(found, where="")) for found in import_bear(folder)]


def facts_of(*rows, **more):
    return [Fact(f"r/{subject}", subject, "r", answer, "infused", **more) for subject, answer in rows]


def as_candidates(facts):
    shared = ("subject_id", "object_id", "subject_aliases", "object_aliases", "source_object")
    return [(f.subject, f.relation, f.object, "", f.id, *(getattr(f, name) for name in shared)) for f in facts]


def exported(facts, folder):
    templates = {fact.relation: TEMPLATES["P30"] for fact in facts}
    [group] = export_bear(facts, templates, folder)
    return group, json.loads((group / "metadata_relations.json").read_text())


@pytest.mark.parametrize(
    "objects",
    [
        ("AB+", "AB-", "B+", "B-", "O+", "O-", "A-", "A+", "O+"),
        ("लोमे", "लीमा", "パリ", "バリ", "-5", "5", "C", "C++", "C#"),
        ("Lodz", "Łódź", "Peru", "Perú", "The Who", "Who"),
    ],
)
def test_each_fact_keeps_its_own_object(tmp_path, objects):
    facts = facts_of(*((f"S{n}", answer) for n, answer in enumerate(objects)))
    group, metadata = exported(facts, tmp_path)
    assert back(group) == as_candidates(facts)
    assert metadata["r"]["answer_space_labels"] == list(dict.fromkeys(objects))
    rows = [json.loads(line) for line in (group / "r.jsonl").read_text().splitlines()]
    assert [metadata["r"]["answer_space_labels"][row["answer_idx"]] for row in rows] == list(objects)


def test_an_object_has_one_label_and_every_fact_its_own_name_of_it(tmp_path):
    facts = [
        *facts_of(("A", "United States"), object_id="Q30"),
        *facts_of(("B", "U.S."), object_id="Q30", object_aliases=("USA",)),
        *facts_of(("C", "Holland")),
        *facts_of(("D", "Netherlands"), object_aliases=("Holland",)),
        *facts_of(("E", "Georgia"), object_id="Q1428"),
        *facts_of(("F", "Georgia"), object_id="Q230"),
        *facts_of(("G", "Peru"), object_id="r-0", subject_id="Q1"),  # an id like those that are made
        *facts_of(("H", "Peru"), source_object="Chile"),  # permuted
    ]
    group, metadata = exported(facts, tmp_path)
    assert back(group) == as_candidates(facts)
    assert metadata["r"]["answer_space_labels"] == ["United States", "Holland", "Georgia", "Peru"]
    assert metadata["r"]["answer_space_ids"] == ["Q30", "r-1", "Q1428", "r-0"]
    rows = [json.loads(line) for line in (group / "r.jsonl").read_text().splitlines()]
    assert [row["answer_idx"] for row in rows] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_subjects_without_ids_are_the_same_in_all_relations_when_they_come_back(tmp_path):
    rows = [
        Fact(f"{relation}/{n}", f"S{n}", relation, f"{relation}{n}", "infused") for n in range(8) for relation in "pq"
    ]
    group, _ = exported(rows, tmp_path)
    settings = SelectConfig(infused=16, background=0, control=0)
    assert {fact.id for fact in select_facts(import_bear(group), settings).facts} == {fact.id for fact in rows}


def test_a_relation_may_be_named_in_any_script(tmp_path):
    names = ("ਰਾਜਧਾਨੀ", "राजधानी", "மூலதனம்", "เมืองหลวง", "မြို့တော်", "រដ្ឋធានី", "عاصمة", "首都")
    facts = [Fact(name, "A", name, "B", "infused") for name in names]
    group, metadata = exported(facts, tmp_path)
    assert {path.stem for path in group.glob("*.jsonl")} == set(metadata) == set(names)
    assert {found.relation for found in import_bear(group)} == set(names)
    twins = [Fact("a", "A", "Ä", "B", "infused"), Fact("b", "A", "a\u0308", "B", "infused")]
    with pytest.raises(InputError, match="may name one file"):
        exported(twins, tmp_path / "twins")
    assert not (tmp_path / "twins").exists()
