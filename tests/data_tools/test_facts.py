import json

import pytest

from megatron_kis.common.errors import InputError
from megatron_kis.data_tools.facts.fact import Fact, load_facts, write_facts

ROW = {"id": "a", "subject": "Rysy", "relation": "peak_country", "object": "Poland", "group": "infused"}


def test_facts_come_back_as_they_were_written(tmp_path):
    facts = [Fact("a", "Rysy", "peak_country", "Poland", "control", ("Rysy Peak",), ("Polska",), "Q1", "Q36")]
    write_facts(tmp_path / "facts.jsonl", facts)
    assert load_facts(tmp_path / "facts.jsonl") == facts


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"object": ""}, "facts.jsonl:2: object is missing"),
        ({"group": "infuse"}, "facts.jsonl:2: group is 'infuse'; valid: infused"),
        ({"id": "a"}, "facts.jsonl:2: id 'a' is taken"),
        ({"subject": 3}, "facts.jsonl:2: subject is a number, not a string"),
        ({"object": "\u200b"}, r"facts.jsonl:2: object is not a name: '\u200b'; a name has a letter"),
        ({"subject": "..."}, "facts.jsonl:2: subject is not a name: '...'"),
        ({"object_aliases": "Polska"}, "facts.jsonl:2: object_aliases is not a list"),
    ],
)
def test_a_wrong_fact_is_named_by_file_and_line(tmp_path, change, problem):
    path = tmp_path / "facts.jsonl"
    path.write_text(json.dumps(ROW) + "\n" + json.dumps({**ROW, "id": "b", **change}) + "\n", encoding="utf-8")
    with pytest.raises(InputError) as error:
        load_facts(path)
    assert problem in str(error.value)
