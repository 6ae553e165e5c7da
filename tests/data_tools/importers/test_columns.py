"""Which column of a table is which: by the header, by what the user says, by their order."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_kis.common.errors import InputError
from megatron_kis.data_tools.facts.importers import Candidate, import_csv, import_jsonl, import_tsv
from megatron_kis.data_tools.facts.importers.columns import parse_columns

FACT = ("Rysy", "peak_country", "Poland")


def tsv(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def triples(found: object) -> list[tuple[str, str, str]]:
    assert isinstance(found, list)
    return [(one.subject, one.relation, one.object) for one in found if isinstance(one, Candidate)]


@pytest.mark.parametrize(
    "header",
    [
        "Subject\tPredicate\tObject",
        "head\trelation\ttail",
        "subj\trel\tobj",
        "sub_label\tpredicate\tobj_label",
        "Subject Label\tProperty\tObject-Label",
        "s\tp\to",
        "h\tr\tt",
        "subj_name\trel\tobj_name",
        "sub_name\tp\tobj_name",
        "h_label\tr\tt_label",
        "s_name\tp\to_name",
        "head_name\tproperty_id\ttail_name",
    ],
)
def test_headers_of_other_data_sets_name_the_columns(tmp_path: Path, header: str) -> None:
    path = tsv(tmp_path / "t.tsv", header, "\t".join(FACT))
    assert triples(list(import_tsv(path))) == [FACT]
    turned = tsv(tmp_path / "t.csv", ",".join(header.split("\t")[::-1]), ",".join(FACT[::-1]))
    assert triples(list(import_csv(turned))) == [FACT]


def test_labels_go_before_ids_of_the_same_name(tmp_path: Path) -> None:
    path = tsv(
        tmp_path / "t.tsv", "sub\tsub_label\tpred\tobj_uri\tobj_label", "\t".join(("x", *FACT[:2], "Q36", "Poland"))
    )
    [found] = import_tsv(path)
    assert isinstance(found, Candidate)
    assert (found.subject, found.object, found.object_id) == ("Rysy", "Poland", "Q36")


def test_a_table_of_popqa_is_read_with_its_quoted_lists(tmp_path: Path) -> None:
    header = "id\tsubj\tprop\tobj\tsubj_id\tobj_id\ts_aliases\to_aliases\ts_pop\tpossible_answers"
    row = 'a\tRysy\tpeak\tPoland\t1\t2\t[]\t"[""Polska"", ""Republic | of""]"\t9\t"[""Poland"", ""PL""]"'
    path = tsv(tmp_path / "t.tsv", header, row)
    [found] = import_tsv(path)
    assert isinstance(found, Candidate)
    assert (found.id, found.object_id, found.subject_aliases) == ("a", "2", ())
    assert found.object_aliases == ("Polska", "Republic | of")
    [found] = import_tsv(path, columns=parse_columns(["object_aliases=possible_answers"]))
    assert isinstance(found, Candidate)
    assert found.object_aliases == ("PL",)  # the name is no alias of its own
    with pytest.raises(InputError, match=r"t\.tsv:2: object_aliases is not a JSON list: \"\['a', 'b'\]\"; or put \|"):
        list(import_tsv(tsv(path, header, "\t".join((*FACT, "x", "1", "2", "", "['a', 'b']", "9", "")))))


@pytest.mark.parametrize(
    "header",
    [
        "Subjekt\tPrädikat\tObjekt",
        "sujet\trelation\tobjet",
        "主語\t述語\t目的語",
        "country\trelation\tcapital",
        "entity\tvia\tvalue",
        "stadt\tprop\tland",
        "Stadt\tproperty\tLand",
        "name\tkind\tvalue",
        "Subject\tname\tObject\tnote",
        '"subject"\t"relation"\t"object"',
    ],
)
def test_what_looks_like_a_header_is_no_fact(tmp_path: Path, header: str) -> None:
    path = tsv(tmp_path / "t.tsv", header, "\t".join(FACT))
    for skip_errors in (False, True):
        with pytest.raises(InputError, match=r"t\.tsv:1: looks like a header .*--columns subject=NAME"):
            list(import_tsv(path, skip_errors=skip_errors))


def test_columns_are_named_by_the_user(tmp_path: Path) -> None:
    path = tsv(tmp_path / "t.tsv", "mountain\tkind\tland\tother", "Rysy\tpeak_country\tPoland\tPolska")
    columns = parse_columns(["subject=mountain", "relation=kind", "object=land", "object_aliases=other"])
    [found] = import_tsv(path, columns=columns)
    assert isinstance(found, Candidate)
    assert (found.subject, found.relation, found.object, found.object_aliases) == (*FACT, ("Polska",))
    numbers = parse_columns(["object=1", "subject=3", "relation=2"])
    assert triples(list(import_csv(tsv(tmp_path / "n.csv", "Poland,peak_country,Rysy"), columns=numbers))) == [FACT]
    row = '{"a": "Rysy", "b": "peak_country", "c": "Poland"}'
    found_rows = list(
        import_jsonl(tsv(tmp_path / "j.jsonl", row), columns={"subject": "a", "relation": "b", "object": "c"})
    )
    assert triples(found_rows) == [FACT]


def test_columns_may_be_named_with_commas_between_them() -> None:
    assert parse_columns(["subject=city, old,relation=prop", "object=obj"]) == {
        "subject": "city, old",
        "relation": "prop",
        "object": "obj",
    }


@pytest.mark.parametrize(
    ("choices", "problem"),
    [
        (["subject=mount"], r"t\.tsv:1: no column 'mount'; did you mean 'mountain'"),
        (["subject=mountain"], r"t\.tsv:1: no column of relation among mountain, kind, land; name it"),
        (["subject=1", "object=9", "relation=2"], r"t\.tsv:1: 3 columns, object is column 9; 1 to 3"),
        (["subject=1", "object=0", "relation=2"], r"t\.tsv:1: 3 columns, object is column 0; 1 to 3"),
        (["subject=1", "object=2"], r"columns: no column of relation; for example relation=1"),
        (["subject"], r"columns: 'subject' is not of the form FIELD=COLUMN"),
        (["subject="], r"columns: 'subject=' is not of the form"),
        (["subjekt=a"], r"columns: unknown field 'subjekt'; did you mean 'subject'"),
        (["subject=a", "subject=b"], r"columns: subject is given twice"),
        (["subject=a", "object=a"], r"columns: 'a' is given for two fields"),
    ],
)
def test_a_wrong_choice_of_columns_is_named(tmp_path: Path, choices: list[str], problem: str) -> None:
    path = tsv(tmp_path / "t.tsv", "mountain\tkind\tland", "\t".join(FACT))
    with pytest.raises(InputError, match=problem):
        list(import_tsv(path, columns=parse_columns(choices)))


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = tsv(tmp_path / "t.tsv", "subject\trelation\tobject\tobject", "a\tr\tb\tc")
    with pytest.raises(InputError, match=r"t\.tsv:1: the column 'object' is there twice"):
        list(import_tsv(path))


@pytest.mark.parametrize(
    ("name", "line", "remedy"),
    [
        ("t.tsv", "Rysy,peak,Poland", "found commas: use --from csv"),
        ("t.csv", "Rysy\tpeak\tPoland", "found tabs: use --from tsv"),
        ("t.csv", "Rysy;peak;Poland", "found semicolons"),
        ("t.csv", '"Rysy";"peak";"Poland"', "found semicolons"),
        ("t.tsv", "Rysy peak Poland", "spaces do not separate them"),
        ("t.tsv", "<http://a> <http://b> <http://c> .", "N-Triples"),
        ("t.tsv", "/a/[/r/IsA/,/c/en/dog/]\t/r/IsA\t/c/en/dog/n\t/c/en/animal\t{}", "ConceptNet's assertions"),
        ("t.tsv", "1\tRysy\tpeak\tPoland", "--columns subject=1 relation=2 object=3"),
        ("t.tsv", '{"subject": "Rysy"}', "looks like JSON, not like a table; use --from jsonl"),
        ("t.tsv", "a\tr\tb\rc\tr\td\r", "end lines with line feeds"),
        ("t.csv", "a,r,b\rc,r,d\r", "end lines with line feeds"),
    ],
)
def test_a_table_of_another_kind_is_told(tmp_path: Path, name: str, line: str, remedy: str) -> None:
    path = tsv(tmp_path / name, line, line)
    with pytest.raises(InputError) as error:
        list((import_csv if name.endswith("csv") else import_tsv)(path))
    assert str(error.value).startswith(f"{path}:1: ")
    assert remedy in str(error.value)


def test_keys_of_other_names_are_told_to_be_named(tmp_path: Path) -> None:
    path = tsv(tmp_path / "j.jsonl", '{"subj": "a", "prop": "b", "obj": "c"}')
    with pytest.raises(
        InputError, match=r"j\.jsonl:1: subject is missing \(keys: subj, prop, obj\); add --columns subject=subj "
    ):
        list(import_jsonl(path))
    path = tsv(tmp_path / "j.jsonl", '{"Subject": "a", "relation": "b", "Object": "c"}')
    with pytest.raises(InputError, match=r"add --columns subject=Subject object=Object$"):
        list(import_jsonl(path))


def test_quotes_behind_a_comma_and_a_space_are_quotes(tmp_path: Path) -> None:
    path = tsv(tmp_path / "t.csv", '"subject", "relation", "object"', '"Rysy", "peak_country", "Poland, the"')
    assert triples(list(import_csv(path))) == [("Rysy", "peak_country", "Poland, the")]
