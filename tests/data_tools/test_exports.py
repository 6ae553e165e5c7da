import json

import pytest

from data_tools.exports import export_bear
from data_tools.facts import Fact
from data_tools.importers import bear_templates, import_bear
from data_tools.templates import RelationTemplates
from megatron_kis.errors import InputError

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
    with pytest.raises(InputError, match="unknown group 'controls'"):
        export_bear(FACTS, TEMPLATES, tmp_path, groups=["controls"])
    assert list(tmp_path.iterdir()) == []
