"""What every reader of facts holds to: ids of 0, names that are safe, text that is text, no key twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_kis.common.errors import InputError
from megatron_kis.data_tools.facts.fact import Fact, load_facts, write_facts
from megatron_kis.data_tools.facts.importers import (
    Candidate,
    Dropped,
    import_bear,
    import_csv,
    import_jsonl,
    import_lama,
    import_trex,
    import_tsv,
)
from megatron_kis.data_tools.rendering.paraphrases import load_paraphrases
from megatron_kis.data_tools.rendering.templates import RelationTemplates
from megatron_kis.data_tools.selection.exports import export_bear
from megatron_kis.data_tools.selection.imports import import_facts
from megatron_kis.data_tools.selection.select import SelectConfig

ROW = {"id": "a", "subject": "Rysy", "relation": "peak", "object": "Poland", "group": "infused"}
NILE = {"sub_label": "Nile", "obj_label": "Africa"}
HALF = "\ud83d"


def write(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def trex(path: Path, **changes: Any) -> Path:
    triple = {
        "subject": {"uri": "e/Q1", "surfaceform": "Brahms"},
        "predicate": {"uri": "p/P19"},
        "object": {"uri": "e/Q2", "surfaceform": "Hamburg"},
        **changes,
    }
    return write(path, [{"title": "t", "uri": "u", "triples": [triple]}])


def one(found: Any) -> Candidate:
    [candidate] = found
    assert isinstance(candidate, Candidate)
    return candidate


def test_ids_may_be_zero(tmp_path: Path) -> None:
    ids = {"id": 0, "subject_id": 0, "object_id": "0"}
    found = one(import_jsonl(write(tmp_path / "j.jsonl", {**ROW, **ids})))
    assert (found.id, found.subject_id, found.object_id) == ("0", "0", "0")
    nile = {**NILE, "fact_id": 0, "sub_id": 0, "obj_id": 0}
    found = one(import_bear(write(tmp_path / "b" / "P30.jsonl", nile).parent))
    assert (found.id, found.subject_id, found.object_id) == ("0", "0", "0")
    found = one(import_lama(write(tmp_path / "P30.jsonl", {**NILE, "sub_uri": 0, "sub": "other", "obj": 0})))
    assert (found.subject_id, found.object_id) == ("0", "0")
    part = {"surfaceform": "Brahms", "uri": 0}
    found = one(import_trex(trex(tmp_path / "t.json", subject=part)))
    assert found.subject_id == "0"
    path = write(tmp_path / "t.tsv", "subject\trelation\tobject\tid\tobject_id", "A\tr\tB\t0\t0")
    assert (one(import_tsv(path)).id, one(import_tsv(path)).object_id) == ("0", "0")
    [fact] = load_facts(write(tmp_path / "facts.jsonl", {**ROW, **ids}))
    assert (fact.id, fact.subject_id, fact.object_id) == ("0", "0", "0")
    write_facts(tmp_path / "facts.jsonl", [fact])
    assert load_facts(tmp_path / "facts.jsonl") == [fact]
    own = load_paraphrases(write(tmp_path / "p.jsonl", {"fact": 0, "split": "train", "text": "Rysy: Poland."}), [fact])
    assert own["0"].train == ("Rysy: [Y].",)
    assert one(import_lama(write(tmp_path / "P31.jsonl", {"sub_label": "Zero", "obj_label": 0}))).object == "0"


def test_an_id_of_0_reaches_the_facts_of_a_study(tmp_path: Path) -> None:
    rows = [{**ROW, "id": n, "subject": f"Qx{n}", "object": f"Town{n}", "object_id": n} for n in range(4)]
    import_facts(
        write(tmp_path / "t.jsonl", *rows),
        "jsonl",
        tmp_path / "f.jsonl",
        SelectConfig(infused=4, background=0, control=0),
    )
    found = load_facts(tmp_path / "f.jsonl")
    assert sorted((fact.id, fact.object_id) for fact in found) == [(f"{n}", f"{n}") for n in range(4)]


@pytest.mark.parametrize("value", [False, True, [], {}, ["a"]], ids=str)
def test_what_is_no_id_is_refused(tmp_path: Path, value: Any) -> None:
    for key in ("id", "subject_id"):
        with pytest.raises(InputError, match=rf"j\.jsonl:1: {key} is .*an id is a string or a number"):
            list(import_jsonl(write(tmp_path / "j.jsonl", {**ROW, key: value})))
        with pytest.raises(InputError, match=rf"f\.jsonl:1: {key} is "):
            load_facts(write(tmp_path / "f.jsonl", {**ROW, key: value}))


@pytest.mark.parametrize("value", [None, "", " "], ids=repr)
def test_an_empty_id_is_none(tmp_path: Path, value: Any) -> None:
    assert one(import_jsonl(write(tmp_path / "j.jsonl", {**ROW, "id": value, "object_id": value}))).id == ""
    with pytest.raises(InputError, match="id is missing"):
        load_facts(write(tmp_path / "f.jsonl", {**ROW, "id": value}))


UNSAFE = ["place of birth", "a/b", "../up", ".hidden", "-r", "x[/red]", "a\x1b[31m", "r|s", "n" * 300]


@pytest.mark.parametrize("name", UNSAFE)
def test_relations_are_checked_where_they_are_read(tmp_path: Path, name: str) -> None:
    row, lama = {**ROW, "relation": name}, {**NILE, "pred": name}
    places = {
        "j.jsonl": lambda **how: import_jsonl(write(tmp_path / "j.jsonl", row), **how),
        "t.tsv": lambda **how: import_tsv(write(tmp_path / "t.tsv", f"A\t{name}\tB"), **how),
        "t.csv": lambda **how: import_csv(write(tmp_path / "t.csv", f"A,{name},B"), **how),
        "l.jsonl": lambda **how: import_lama(write(tmp_path / "l.jsonl", lama), **how),
    }
    for place, read in places.items():
        if place == "l.jsonl" and "/" in name:  # LAMA's slashes become dots
            continue
        with pytest.raises(InputError, match=rf"{place}:1: not the name of a relation \(.*; use letters, digits"):
            list(read())
        assert list(read(skip_errors=True)) == [Dropped("", "malformed row (not the name of a relation)")]
    with pytest.raises(InputError, match=r"f\.jsonl:1: not the name of a relation"):
        load_facts(write(tmp_path / "f.jsonl", row))


def test_file_names_and_properties_that_are_no_relations_are_refused_or_skipped(tmp_path: Path) -> None:
    folder = write(tmp_path / "bear" / "place of birth.jsonl", NILE, NILE).parent
    write(folder / "P30.jsonl", NILE)
    for read in (import_bear, import_lama):
        with pytest.raises(InputError, match=r"place of birth\.jsonl:1: not the name of a relation"):
            list(read(folder))
        found = list(read(folder, skip_errors=True))
        assert [getattr(row, "count", None) for row in found] == [None, 1, 1]
    predicate = {"predicate": {"uri": "p/place of birth"}}
    with pytest.raises(InputError, match=r"document 0: not the name of a relation"):
        list(import_trex(trex(tmp_path / "t.json", **predicate)))
    skipped = Dropped("", "malformed row (not the name of a relation)")
    assert list(import_trex(tmp_path / "t.json", skip_errors=True)) == [skipped]


def test_names_of_every_script_are_relations_and_files(tmp_path: Path) -> None:
    for name in ("ਰਾਜਧਾਨੀ", "राजधानी", "เมืองหลวง", "首都", "столица", "P19-x+y_z"):
        fact = Fact("a", "Nile", name, "Africa", "infused")
        write_facts(tmp_path / "facts.jsonl", [fact])
        assert load_facts(tmp_path / "facts.jsonl") == [fact]
        templates = {name: RelationTemplates(("[X] is in [Y].",), ("In [Y] lies [X].",), ())}
        [folder] = export_bear([fact], templates, tmp_path / name)
        assert one(import_bear(folder)).relation == name
    dotted = Fact("a", "Nile", "people.place", "Africa", "infused")
    with pytest.raises(InputError, match=r"relation 'people\.place' cannot name a file of this format"):
        export_bear([dotted], {"people.place": templates[name]}, tmp_path / "dotted")


@pytest.mark.parametrize("key", ["subject", "object", "id", "object_id", "subject_aliases", "object_aliases"])
def test_half_a_surrogate_pair_is_refused_where_it_is_read(tmp_path: Path, key: str) -> None:
    row = {**ROW, key: [f"x{HALF}"] if key.endswith("aliases") else f"x{HALF}"}
    with pytest.raises(InputError, match=rf"j\.jsonl:2: {key} holds half of a surrogate pair"):
        list(import_jsonl(write(tmp_path / "j.jsonl", ROW, row)))
    assert isinstance(list(import_jsonl(tmp_path / "j.jsonl", skip_errors=True))[1], Dropped)
    with pytest.raises(InputError, match=rf"f\.jsonl:2: {key} holds half of a surrogate pair"):
        load_facts(write(tmp_path / "f.jsonl", ROW, {**row, "id": row["id"] if key == "id" else "b"}))
    names = {
        "subject": "sub_label",
        "object": "obj_label",
        "id": "fact_id",
        "object_id": "obj_id",
        "subject_aliases": "sub_aliases",
        "object_aliases": "obj_aliases",
    }
    for read in (import_bear, import_lama):
        if (read, key) != (import_lama, "id"):
            ids = {} if key.endswith("aliases") else {"obj_uri": row[key]}
            path = write(tmp_path / read.__name__ / "P30.jsonl", {**NILE, names[key]: row[key], **ids})
            with pytest.raises(InputError, match=r"P30\.jsonl:1: .* holds half of a surrogate pair"):
                list(read(path.parent))


def test_a_key_twice_is_refused_in_every_file_of_triples(tmp_path: Path) -> None:
    twice = '{"sub_label": "Nile", "obj_label": "Africa", "obj_label": "Asia"}'
    row = json.dumps(ROW).replace('"object"', '"object": "Peru", "object"')
    for place, read in {
        "j.jsonl": lambda: import_jsonl(write(tmp_path / "j.jsonl", ROW, row)),
        "P1.jsonl": lambda: import_lama(write(tmp_path / "P1.jsonl", NILE, twice)),
        "P2.jsonl": lambda: import_bear(write(tmp_path / "b" / "P2.jsonl", NILE, twice).parent),
    }.items():
        with pytest.raises(InputError, match=rf"{place}:2: the key 'obj\w*' is given twice"):
            list(read())
    with pytest.raises(InputError, match=r"f\.jsonl:1: the key 'object' is given twice"):
        load_facts(write(tmp_path / "f.jsonl", row))
    entry = '"P2": {"templates": []}'
    metadata = write(tmp_path / "b" / "metadata_relations.json", f"{{{entry},", f"{entry}}}")
    with pytest.raises(InputError, match=r"metadata_relations\.json:2: the key 'P2' is given twice"):
        list(import_bear(metadata.parent))
    assert isinstance(list(import_lama(tmp_path / "P1.jsonl", skip_errors=True))[1], Dropped)


def test_a_key_twice_in_a_document_of_trex_names_that_document(tmp_path: Path) -> None:
    good = json.loads(trex(tmp_path / "t.json").read_text())[0]
    bad = json.dumps(good).replace('"uri": "e/Q2"', '"uri": "e/Q2", "uri": "e/Q3"')
    assert bad != json.dumps(good)
    path = write(tmp_path / "t.json", f"[{json.dumps(good)}, {bad}, {json.dumps(good)}]")
    with pytest.raises(InputError, match=r"t\.json: document 1: the key 'uri' is given twice"):
        list(import_trex(path))
    found = list(import_trex(path, skip_errors=True))
    assert [isinstance(row, Candidate) for row in found] == [True, False, True]
