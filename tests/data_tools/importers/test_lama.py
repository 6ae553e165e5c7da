import json

import pytest

from megatron_kis.common.errors import InputError
from megatron_kis.data_tools.facts.importers import Dropped, import_lama, import_trex, lama_templates

ROW = {
    "predicate_id": "P19",
    "sub_label": "Johannes Brahms",
    "sub_uri": "Q7294",
    "obj_label": "Hamburg",
    "obj_uri": "Q1",
}
ENTITY, PROPERTY = "http://www.wikidata.org/entity/", "http://www.wikidata.org/prop/direct/"


def test_lama_reads_a_folder_and_takes_the_space_out_of_its_templates(tmp_path):
    (tmp_path / "TREx").mkdir()
    (tmp_path / "TREx" / "P19.jsonl").write_text(json.dumps(ROW) + "\n" + json.dumps({**ROW, "obj_label": ""}) + "\n")
    (tmp_path / "relations.jsonl").write_text(
        json.dumps({"relation": "P19", "template": "[X] was born in [Y] ."}) + "\n"
    )
    fact, dropped = import_lama(tmp_path / "TREx")
    assert (fact.relation, fact.subject, fact.object, fact.subject_id) == ("P19", "Johannes Brahms", "Hamburg", "Q7294")
    assert dropped == Dropped("P19", "empty name")
    assert lama_templates(tmp_path / "TREx") == {"P19": ["[X] was born in [Y]."]}
    assert lama_templates(tmp_path / "TREx" / "P19.jsonl") == lama_templates(tmp_path / "TREx")
    assert lama_templates(tmp_path) == {"P19": ["[X] was born in [Y]."]}


def test_google_re_has_other_names_for_the_same_things(tmp_path):
    path = tmp_path / "place_of_birth_test.jsonl"
    row = {"pred": "/people/person/place_of_birth", "sub": "/m/1", "obj": "/m/2", "sub_label": "A", "obj_label": "B"}
    path.write_text(json.dumps({**row, "sub_aliases": None, "obj_aliases": ["Bee"]}) + "\n")
    [fact] = import_lama(path)
    assert (fact.relation, fact.subject_id, fact.object_aliases) == ("people.person.place_of_birth", "/m/1", ("Bee",))


def triple(subject, relation, answer):
    part = dict(zip(("uri", "surfaceform"), subject, strict=True))
    return {
        "subject": part,
        "predicate": {"uri": PROPERTY + relation, "surfaceform": None},
        "object": dict(zip(("uri", "surfaceform"), answer, strict=True)),
    }


BRAHMS = (ENTITY + "Q7294", "He")
HAMBURG = (ENTITY + "Q1055", "Hamburg")


def test_trex_calls_a_document_s_own_entity_by_its_title_and_drops_pronouns(tmp_path):
    document = {
        "title": "Johannes Brahms",
        "uri": ENTITY + "Q7294",
        "triples": [
            triple(BRAHMS, "P19", HAMBURG),
            triple((ENTITY + "Q5", "She"), "P19", HAMBURG),
            triple(HAMBURG, "P571", ("0808-01-01T00:00:00Z^^http://www.w3.org/2001/XMLSchema#dateTime", "808")),
        ],
    }
    path = tmp_path / "re-nlg_0-1.json"
    path.write_text(json.dumps([document]))
    for place in (path, tmp_path):
        fact, pronoun, date = import_trex(place)
        assert (fact.subject, fact.relation, fact.object) == ("Johannes Brahms", "P19", "Hamburg")
        assert (fact.subject_id, fact.object_id) == ("Q7294", "Q1055")
        assert pronoun == Dropped("P19", "a pronoun for a name")
        assert (date.object, date.object_id[:4]) == ("808", "0808")


def test_trex_keeps_what_the_text_calls_a_document_s_own_entity_where_it_is_a_name(tmp_path):
    own = ENTITY + "Q308"
    for form, aliases in (("Mercury", ("Mercury",)), ("the planet", ()), ("It", ()), ("水星", ("水星",))):
        document = {"title": "Mercury (planet)", "uri": own, "triples": [triple((own, form), "P361", HAMBURG)]}
        (tmp_path / "d.json").write_text(json.dumps([document]))
        [fact] = import_trex(tmp_path / "d.json")
        assert (fact.subject, fact.subject_aliases) == ("Mercury (planet)", aliases)


def test_trex_is_read_document_by_document(tmp_path):
    path = tmp_path / "cut.json"
    documents = json.dumps(
        [{"title": "t", "uri": "u", "triples": [triple((f"e/Q{n}", f"S{n}"), "P1", HAMBURG)]} for n in range(400)]
    )
    path.write_text(documents[: len(documents) // 2])
    facts = import_trex(path)
    assert next(facts).subject == "S0"
    with pytest.raises(InputError, match=r"cut\.json: not valid JSON .*; is the file whole"):
        list(facts)


@pytest.mark.parametrize("document", [3, {}, {"triples": 3}, {"triples": [{"subject": {}}]}, {"triples": [3]}])
def test_a_malformed_document_is_named_or_skipped(tmp_path, document):
    path = tmp_path / "d.json"
    good = {"title": "t", "uri": "u", "triples": [triple((BRAHMS[0], "Brahms"), "P19", HAMBURG)]}
    path.write_text(json.dumps([document, good]))
    with pytest.raises(InputError, match=r"d\.json: document 0: "):
        list(import_trex(path))
    assert [getattr(row, "subject", None) for row in import_trex(path, skip_errors=True)] == [None, "Brahms"]


def test_nothing_to_read_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match=r"no \*\.json files"):
        list(import_trex(tmp_path))
    with pytest.raises(InputError, match="no such file or folder"):
        list(import_lama(tmp_path / "absent"))


@pytest.mark.parametrize(
    ("label", "name"), [("1945.0", "1945"), ("0", "0"), ("NaN", None), ("1.5", "1.5"), ("true", None)]
)
def test_labels_that_are_numbers_are_their_text(tmp_path, label, name):
    path = tmp_path / "P1.jsonl"
    path.write_text(f'{{"sub_label": "a", "obj_label": {label}}}\n')
    [found] = import_lama(path)
    assert getattr(found, "object", None) == name


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"docs": [{"triples": []}]}', "is one JSON object; expected an array of documents"),
        ('\n{\n "triples": []\n}\n', "is one JSON object; expected an array of documents"),
        ('{"triples": []}\n', "is one JSON object; expected an array of documents"),
        ('{"triples": []}\n{"triples": []}\n', r"is JSON lines; make it one array of documents: jq -s \. FILE"),
        ('"text"', "is not a JSON array; expected an array of documents"),
    ],
)
@pytest.mark.parametrize("skip_errors", [False, True])
def test_trex_that_is_no_array_of_documents_says_so(tmp_path, text, problem, skip_errors):
    (tmp_path / "d.json").write_text(text)
    with pytest.raises(InputError, match=rf"d\.json: {problem}"):
        list(import_trex(tmp_path / "d.json", skip_errors=skip_errors))
