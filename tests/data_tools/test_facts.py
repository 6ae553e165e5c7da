import json

import pytest

from data_tools.facts import Fact, import_jsonl, import_tsv, load_facts, write_facts
from megatron_kis.errors import InputError

ROW = {"id": "a", "subject": "Rysy", "relation": "peak_country", "object": "Poland", "group": "infused"}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("Rysy\tpeak_country", "t.tsv:2: object is missing"),
        ("Rysy\tpeak_country\t", "t.tsv:2: object is missing"),
        ("\tpeak_country\tPoland", "t.tsv:2: subject is missing"),
        ("Rysy\tpeak_country\tPoland\tx", "t.tsv:2: 4 fields"),
    ],
)
def test_a_triple_without_an_object_is_named_by_file_and_line(tmp_path, line, problem):
    path = tmp_path / "t.tsv"
    path.write_text(f"Musala\tpeak_country\tBulgaria\n{line}\n", encoding="utf-8")
    with pytest.raises(InputError) as error:
        list(import_tsv(path))
    assert problem in str(error.value)


def test_a_header_is_skipped_only_where_it_stands_first(tmp_path):
    path = tmp_path / "t.tsv"
    path.write_bytes("\ufeffSubject\tRelation\tObject\r\nRysy\tpeak_country\tPoland\r\n".encode())
    assert [(fact.subject, fact.object, fact.where) for fact in import_tsv(path)] == [("Rysy", "Poland", f"{path}:2")]


def test_json_lines_bring_ids_entities_and_aliases(tmp_path):
    path = tmp_path / "t.jsonl"
    row = {**ROW, "subject_id": "Q1", "object_aliases": ["Polska"]}
    path.write_text(json.dumps(row) + "\n" + json.dumps({**ROW, "object": None}) + "\n", encoding="utf-8")
    facts = import_jsonl(path)
    first = next(facts)
    assert (first.id, first.entity, first.object_aliases) == ("a", "Q1", ("Polska",))
    with pytest.raises(InputError, match=r"t\.jsonl:2: object is missing"):
        next(facts)


def test_facts_come_back_as_they_were_written(tmp_path):
    facts = [Fact("a", "Rysy", "peak_country", "Poland", "control", ("Rysy Peak",), ("Polska",))]
    write_facts(tmp_path / "facts.jsonl", facts)
    assert load_facts(tmp_path / "facts.jsonl") == facts


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"object": ""}, "facts.jsonl:2: object is missing"),
        ({"group": "infuse"}, "facts.jsonl:2: group is 'infuse'; valid: infused"),
        ({"id": "a"}, "facts.jsonl:2: id 'a' is taken"),
        ({"subject": 3}, "facts.jsonl:2: subject is int"),
        ({"object_aliases": "Polska"}, "facts.jsonl:2: object_aliases is not a list"),
    ],
)
def test_a_wrong_fact_is_named_by_file_and_line(tmp_path, change, problem):
    path = tmp_path / "facts.jsonl"
    path.write_text(json.dumps(ROW) + "\n" + json.dumps({**ROW, "id": "b", **change}) + "\n", encoding="utf-8")
    with pytest.raises(InputError) as error:
        load_facts(path)
    assert problem in str(error.value)
