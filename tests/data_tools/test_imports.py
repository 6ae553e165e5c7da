"""From a source to ``facts.jsonl``: what is refused before and after reading, and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_kis.cli.main import main
from megatron_kis.common.errors import InputError
from megatron_kis.data_tools.facts.fact import load_facts
from megatron_kis.data_tools.selection.imports import import_facts, read_source_templates, source_files
from megatron_kis.data_tools.selection.select import SelectConfig

FOUR = SelectConfig(infused=4, background=0, control=0)
ROWS = "Pexa Qy\tc\tLand\nRuvo Sy\tc\tTown\nTilo Uy\tc\tHill\nVara Wy\tc\tMoor\n"


def source(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def labels(count: int = 4) -> str:
    rows = [
        {"sub_label": f"Pexa{n} Qy", "obj_label": f"Town{n}", "sub_uri": n, "obj_uri": f"Q{n}"} for n in range(count)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


def failure(*arguments: Any, **named: Any) -> str:
    with pytest.raises(InputError) as error:
        import_facts(*arguments, **named)
    return str(error.value)


def test_too_few_facts_are_explained_by_what_was_dropped(tmp_path: Path) -> None:
    rows = "Lisbon City\tc\tLisbon\n\tc\tx\nAra Bo\tc\tX Y\nAra Bo\tc\tX Z\nBeth Co\tc\t!\n\nOslo Hut\td\tOslo\n"
    path = source(tmp_path / "t.tsv", rows)
    settings = SelectConfig(infused=4, background=0, control=0, relations=("c",))
    said = failure(path, "tsv", tmp_path / "f.jsonl", settings, skip_errors=True)
    assert "relation 'c' must provide 4 facts (4 infused), but it has 0 usable ones" in said
    assert f"2 ambiguous: the subject has several objects, first {path}:3" in said
    assert f"1 malformed row (subject is missing), first {path}:2" in said
    assert f"1 the object is in the subject's name, first {path}:1" in said
    assert f"{path}:7" not in said  # of another relation
    assert not (tmp_path / "f.jsonl").exists()


def test_rows_of_another_format_are_not_dropped_without_a_word(tmp_path: Path) -> None:
    path = source(tmp_path / "P1.jsonl", '{"subject": "a", "relation": "r", "object": "b"}\n')
    for kind, place in (("lama", path), ("bear", tmp_path)):
        with pytest.raises(InputError, match=r"P1\.jsonl:1: sub_label is missing \(keys: subject, relation, object\)"):
            import_facts(place, kind, tmp_path / "f.jsonl", FOUR)


@pytest.mark.parametrize("text", ["", "\n\n", "subject\trelation\tobject\n"])
def test_a_source_without_triples_is_refused(tmp_path: Path, text: str) -> None:
    path = source(tmp_path / "t.tsv", text)
    for relations in ((), ("c",)):
        settings = SelectConfig(infused=4, background=0, control=0, relations=relations)
        assert "t.tsv: holds no triples" in failure(path, "tsv", tmp_path / "f.jsonl", settings)
    path.write_bytes(b"\xff\n")
    said = failure(path, "tsv", tmp_path / "f.jsonl", FOUR, skip_errors=True)
    assert "holds no triples that can be read (dropped: 1 malformed row (not UTF-8), first" in said


def test_an_id_for_the_second_time_is_named_with_both_lines(tmp_path: Path) -> None:
    rows = [f"{n}\tPexa{n} Qy\tc\tTown{n}\n" for n in (1, 2, 3, 4)]
    path = source(
        tmp_path / "t.tsv", "id\tsubject\trelation\tobject\n" + "".join(rows) + "2\tRuvo Sy\tc\tHill\n" + rows[0]
    )
    for seed in range(4):
        settings = SelectConfig(infused=4, background=0, control=0, seed=seed)
        assert f"{path}:6: id '2' is taken (by {path}:3)" in failure(path, "tsv", tmp_path / "f.jsonl", settings)
    selection = import_facts(path, "tsv", tmp_path / "f.jsonl", FOUR, skip_errors=True)
    assert sorted(fact.id for fact in selection.facts) == ["1", "2", "3", "4"]
    assert selection.dropped["malformed row (id ... is taken)"].total() == 1
    assert selection.dropped["said twice"].total() == 1  # the same row again is no other fact


def test_a_relation_is_asked_for_once(tmp_path: Path) -> None:
    settings = SelectConfig(infused=4, background=0, control=0, relations=("c", "d", "c"))
    said = failure(source(tmp_path / "t.tsv", ROWS), "tsv", tmp_path / "f.jsonl", settings)
    assert said == "relations: 'c' is given twice; name each relation once"


def test_the_source_is_not_written_over(tmp_path: Path) -> None:
    path = source(tmp_path / "t.tsv", ROWS)
    (tmp_path / "link.tsv").symlink_to(path)
    for output in (path, tmp_path / "link.tsv"):
        assert "is written here, and" in failure(path, "tsv", output, FOUR)
    assert path.read_text() == ROWS


def test_folders_and_files_are_told_apart(tmp_path: Path) -> None:
    path = source(tmp_path / "data" / "en" / "P1.jsonl", labels())
    for kind in ("tsv", "csv", "jsonl"):
        said = failure(tmp_path, kind, tmp_path / "f.jsonl", FOUR)
        assert said == f"{tmp_path}: is a folder; {kind} is one file; folders are bear, lama, trex, wikidata5m"
    for kind in ("lama", "bear"):
        said = failure(tmp_path / "data", kind, tmp_path / "f.jsonl", FOUR)
        assert f"give a folder in it that has some, such as {tmp_path / 'data' / 'en'}" in said
    assert "P1.jsonl: not a folder" in failure(path, "bear", tmp_path / "f.jsonl", FOUR)
    assert "lama has no columns to name" in failure(path, "lama", tmp_path / "f.jsonl", FOUR, columns=["subject=1"])


def test_a_folder_of_mlama_is_one_language_with_its_templates(tmp_path: Path) -> None:
    folder = tmp_path / "mlama1.1" / "de"
    for name in ("P17.jsonl", "place_of_birth.jsonl", "._P17.jsonl"):
        source(folder / name, "\x00\x05" if name.startswith(".") else labels().replace("Pexa", name[:5]))
    templates = [
        {"relation": "P17", "template": "[X] liegt in [Y] ."},
        {"relation": "place_of_birth", "template": "[X] ."},
    ]
    source(folder / "templates.jsonl", "".join(json.dumps(row) + "\n" for row in templates))
    assert [path.name for path in source_files(folder, "lama")] == ["P17.jsonl", "place_of_birth.jsonl"]
    settings = SelectConfig(infused=8, background=0, control=0, keep_telling_names=True)
    selection = import_facts(folder, "lama", tmp_path / "f.jsonl", settings)
    assert {fact.relation for fact in selection.facts} == {"P17", "place_of_birth"}
    assert "0" in {fact.subject_id for fact in selection.facts}
    assert read_source_templates(folder, "lama") == {"P17": ["[X] liegt in [Y]."], "place_of_birth": []}
    with pytest.raises(InputError, match=r"templates\.jsonl: holds templates, not triples"):
        source_files(folder / "templates.jsonl", "lama")
    (folder / "templates.jsonl").open("a").write("{oops\n")
    with pytest.raises(InputError, match=r"templates\.jsonl:3: malformed JSON line"):
        read_source_templates(folder, "lama")
    assert read_source_templates(folder, "lama", skip_errors=True)["P17"] == ["[X] liegt in [Y]."]


def test_conceptnet_s_part_of_lama_has_its_names_where_others_have_ids(tmp_path: Path) -> None:
    rows = [
        {"sub": f"thing{n} x", "obj": f"t{n}", "pred": "IsA", "obj_label": f"town{n}", "masked_sentences": []}
        for n in range(4)
    ]
    path = source(tmp_path / "test.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    found = import_facts(path, "lama", tmp_path / "f.jsonl", FOUR).facts
    assert sorted((fact.subject, fact.relation, fact.object, fact.subject_id) for fact in found) == [
        (f"thing{n} x", "IsA", f"town{n}", "") for n in range(4)
    ]


def test_templates_that_are_there_are_refused_before_anything_is_written(tmp_path: Path, capsys: Any) -> None:
    path, templates = source(tmp_path / "en" / "P17.jsonl", labels()), source(tmp_path / "t.yaml", "mine\n")
    asked = [
        "data",
        "facts",
        "--from",
        "lama",
        "--input",
        str(path.parent),
        "--output",
        str(tmp_path / "f.jsonl"),
        "--templates-output",
        str(templates),
        "--infused",
        "4",
        "--background",
        "0",
        "--control",
        "0",
    ]
    assert main(asked) == 2
    assert "t.yaml: exists" in capsys.readouterr().err
    assert not (tmp_path / "f.jsonl").exists()


def test_the_command_takes_columns_and_says_what_it_skipped(tmp_path: Path, capsys: Any) -> None:
    path = source(tmp_path / "t.tsv", "city\tkind\tland\n" + ROWS + "x\n")
    asked = [
        "data",
        "facts",
        "--from",
        "tsv",
        "--input",
        str(path),
        "--output",
        str(tmp_path / "f.jsonl"),
        "--infused",
        "4",
        "--background",
        "0",
        "--control",
        "0",
        "--on-error",
        "skip",
        "--columns",
    ]
    assert main([*asked, "subject=city", "relation=kind", "object=land"]) == 0
    assert "dropped 1 (1 unknown): malformed row (1 field)" in capsys.readouterr().out
    assert len(load_facts(tmp_path / "f.jsonl")) == 4
    meta = json.loads((tmp_path / "f.meta.json").read_text())
    assert meta["source"]["columns"] == ["subject=city", "relation=kind", "object=land"]
    assert meta["dropped"] == {"malformed row (1 field)": {"": 1}}
    assert main([*asked, "subject"]) == 2
    assert "columns: 'subject' is not of the form FIELD=COLUMN" in capsys.readouterr().err


@pytest.mark.parametrize(("value", "expected"), [(1.0, "1"), (0.0, "0"), (7, "7"), (10**30, str(10**30)), (1.5, "1.5")])
def test_ids_that_are_numbers_are_the_same_written_as_whole_or_with_a_point(
    tmp_path: Path, value: float, expected: str
) -> None:
    row = {"id": "a", "subject": "s", "relation": "r", "object": "o", "group": "infused", "object_id": value}
    assert load_facts(source(tmp_path / "f.jsonl", json.dumps(row) + "\n"))[0].object_id == expected


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e300", "9007199254740993.0"])
def test_ids_that_are_no_exact_numbers_are_refused(tmp_path: Path, value: str) -> None:
    row = f'{{"id": "a", "subject": "s", "relation": "r", "object": "o", "group": "infused", "object_id": {value}}}\n'
    with pytest.raises(InputError, match=r"f\.jsonl:1: object_id is "):
        load_facts(source(tmp_path / "f.jsonl", row))


@pytest.mark.parametrize("key", ["subject", "object"])
def test_facts_files_have_each_name_on_one_line(tmp_path: Path, key: str) -> None:
    row = {"id": "a", "subject": "s", "relation": "r", "object": "o", "group": "infused", "object_aliases": ["x\ny"]}
    [fact] = load_facts(source(tmp_path / "f.jsonl", json.dumps({**row, key: "two\r\nlines"}) + "\n"))
    assert (getattr(fact, key), fact.object_aliases) == ("two lines", ("x y",))
    with pytest.raises(InputError, match=rf"f\.jsonl:1: {key} holds the control character"):
        load_facts(source(tmp_path / "f.jsonl", json.dumps({**row, key: "a\x00b"}) + "\n"))
    with pytest.raises(InputError, match=r"f\.jsonl:1: id holds the control character"):
        load_facts(source(tmp_path / "f.jsonl", json.dumps({**row, "id": "a\nb"}) + "\n"))
