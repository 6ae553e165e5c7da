import json

import pytest

from megatron_kis.common.errors import InputError
from megatron_kis.data_tools.facts.importers import Dropped, bear_templates, import_bear

NILE = {"sub_id": "Q3392", "sub_label": "Nile", "sub_aliases": ["Nile River"], "obj_id": "Q15", "obj_label": "Africa"}
TEMPLATES = ["[X] is located in [Y].", "[Y] is the continent of [X]."]


@pytest.fixture
def folder(tmp_path):
    def write(rows, **metadata):
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (tmp_path / "P30.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        content = {"P30": {"templates": TEMPLATES, "answer_space_labels": ["Asia", "Africa"], **metadata}}
        (tmp_path / "metadata_relations.json").write_text(json.dumps(content), encoding="utf-8")
        return tmp_path

    return write


def test_rows_bring_ids_aliases_and_the_relation_of_their_file(folder):
    [fact] = import_bear(folder([{**NILE, "answer_idx": 1}]))
    assert (fact.subject, fact.relation, fact.object) == ("Nile", "P30", "Africa")
    assert (fact.subject_id, fact.object_id, fact.subject_aliases) == ("Q3392", "Q15", ("Nile River",))
    assert fact.where.endswith("P30.jsonl:1")


def test_templates_are_those_of_the_metadata(folder):
    assert bear_templates(folder([NILE])) == {"P30": TEMPLATES}


def test_an_object_may_be_given_by_its_place_in_the_answer_space(folder):
    [fact] = import_bear(folder([{"sub_label": "Nile", "answer_idx": 0}]))
    assert fact.object == "Asia"


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([{**NILE, "answer_idx": 0}], r"P30\.jsonl:1: answer_idx 0 points at 'Asia', obj_label is 'Africa'"),
        ([{**NILE, "answer_idx": 2}], r"P30\.jsonl:1: answer_idx is 2; the answer space has 2 entries"),
        ([{**NILE, "answer_idx": True}], r"P30\.jsonl:1: answer_idx is True; expected a whole number"),
        ([{"sub_label": "Nile", "answer_idx": True}], r"P30\.jsonl:1: answer_idx is True; expected a whole number"),
        ([{**NILE, "answer_idx": "1"}], r"P30\.jsonl:1: answer_idx is '1'; expected a whole number"),
        ([NILE, "{oops"], r"P30\.jsonl:2: malformed JSON line"),
        ([{**NILE, "sub_aliases": "x"}], r"P30\.jsonl:1: sub_aliases is not a list"),
    ],
)
def test_wrong_rows_are_named_by_file_and_line(folder, rows, problem):
    with pytest.raises(InputError, match=problem):
        list(import_bear(folder(rows)))
    assert isinstance(list(import_bear(folder(rows), skip_errors=True))[-1], Dropped)


@pytest.mark.parametrize(
    ("metadata", "problem"),
    [
        ({"templates": 5}, "templates is not a list of strings"),
        ({"templates": "[X] is in [Y]."}, "templates is not a list of strings"),
        ({"templates": ["[X] is in [Y].", 5]}, "templates is not a list of strings"),
        ({"templates": {"a": "[X] is in [Y]."}}, "templates is not a list of strings"),
        ({"answer_space_labels": {"0": "Asia", "1": "Africa"}}, "answer_space_labels is not a list of names"),
        ({"answer_space_labels": "Africa"}, "answer_space_labels is not a list of names"),
        ({"answer_space_labels": ["Asia", True]}, "answer_space_labels is not a list of names"),
        ({"answer_space_labels": 5}, "answer_space_labels is not a list of names"),
    ],
)
def test_metadata_of_another_type_are_named_by_file_and_relation(folder, metadata, problem):
    path = folder([{**NILE, "answer_idx": 1}], **metadata)
    for read in (bear_templates, lambda place: list(import_bear(place))):
        with pytest.raises(InputError, match=rf"metadata_relations\.json: P30: {problem}"):
            read(path)


@pytest.mark.parametrize("entry", [5, "x", ["[X] is in [Y]."], None])
def test_a_relation_of_the_metadata_that_is_no_object_is_named(folder, entry):
    path = folder([NILE])
    (path / "metadata_relations.json").write_text(json.dumps({"P30": entry, "_version": 1}))
    with pytest.raises(InputError, match=r"metadata_relations\.json: P30 is not a JSON object"):
        list(import_bear(path))


def test_metadata_may_say_nothing(folder):
    path = folder([NILE], templates=None, answer_space_labels=None)
    assert bear_templates(path) == {"P30": []}
    assert [fact.object for fact in import_bear(path)] == ["Africa"]


def test_a_row_without_a_name_is_dropped_and_not_an_error(folder):
    assert list(import_bear(folder([{**NILE, "sub_label": " "}]))) == [Dropped("P30", "empty name")]


def test_a_relation_without_metadata_and_a_folder_without_relations_are_refused(folder, tmp_path):
    path = folder([NILE])
    (path / "P31.jsonl").write_text(json.dumps(NILE))
    with pytest.raises(InputError, match=r"metadata_relations\.json: does not mention P31\.jsonl; did you mean 'P30'"):
        list(import_bear(path))
    (tmp_path / "empty").mkdir()
    for place, problem in ((tmp_path / "empty", r"no \*\.jsonl files"), (tmp_path / "none", "not a folder")):
        with pytest.raises(InputError, match=problem):
            list(import_bear(place))
