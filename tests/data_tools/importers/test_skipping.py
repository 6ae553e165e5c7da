"""``--on-error skip``: whatever is wrong with a row, the others are read, and the row is counted with its reason."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from megatron_kis.common.errors import InputError
from megatron_kis.data_tools.facts.importers import (
    IMPORTERS,
    Candidate,
    Dropped,
    import_csv,
    import_lama,
    import_trex,
    import_tsv,
    import_wikidata5m,
)

BAD_LINES = [b"\xff\tr\tx", b"a\x00b\tr\tx", b"a\tr\tb\x1b", b"a\tr", b"a\tr\tb\tc", b"\tr\tx", b"a\tr r\tx"]


@pytest.mark.parametrize("line", BAD_LINES)
@pytest.mark.parametrize("place", [0, 1, 3])
def test_a_bad_line_of_a_table_costs_no_other(tmp_path: Path, line: bytes, place: int) -> None:
    good = [b"a\tr\tx", b"b\tr\ty", b"c\tr\tz"]
    lines = [*good[:place], line, *good[place:]]
    for name, read in (("t.tsv", import_tsv), ("t.csv", import_csv)):
        path = tmp_path / name
        path.write_bytes(b"\n".join(lines).replace(b"\t", b"," if read is import_csv else b"\t") + b"\n")
        with pytest.raises(InputError, match=rf"{name}:{place + 1}: "):
            list(read(path))
        found = list(read(path, skip_errors=True))
        assert [one.subject for one in found if isinstance(one, Candidate)] == ["a", "b", "c"]
        [dropped] = [one for one in found if isinstance(one, Dropped)]
        assert dropped.where == f"{path}:{place + 1}"
        assert dropped.reason.startswith("malformed row (")


def test_csv_goes_on_behind_stray_quotes_and_quotes_that_are_never_closed(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('a,r,x\n"b"q,r,x\nc,r,z\nd,"r,x\ne,r,"two\nlines"\nf,r,w\ng,"r\n')
    found = list(import_csv(path, skip_errors=True))
    assert [(one.subject, one.object) for one in found if isinstance(one, Candidate)] == [
        ("a", "x"),
        ("c", "z"),
        ("e", "two lines"),
        ("f", "w"),
    ]
    assert [one.where[-2:] for one in found if isinstance(one, Dropped)] == [":2", ":4", ":8"]


def test_many_quotes_that_are_never_closed_take_no_quadratic_time(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(
        "".join(f'a{n},"r{"x" * 3000},x\n' if n % 200 == 0 else f"b{n},r,{'y' * 3000}\n" for n in range(2000))
    )
    found = list(import_csv(path, skip_errors=True))
    assert sum(isinstance(one, Candidate) for one in found) == 1990


def test_fields_that_are_longer_than_csv_s_own_limit_are_read(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f'subject,relation,object,note\na,r,x,{"y" * 200_000}\n"b",r,"z","{"y" * 200_000}"\n')
    assert [one.subject for one in import_csv(path) if isinstance(one, Candidate)] == ["a", "b"]


def test_a_name_is_on_one_line_in_every_importer(tmp_path: Path) -> None:
    labels = {
        "sub_label": "two\n lines",
        "obj_label": "a\ttab",
        "sub_aliases": ["x\u2028y", "two lines"],
        "obj_aliases": [],
    }
    (tmp_path / "P1.jsonl").write_text(json.dumps(labels) + "\n")
    row = {"subject": "two\n lines", "relation": "P1", "object": "a\ttab", "subject_aliases": ["x\u2028y"]}
    (tmp_path / "t.json").write_text(json.dumps(row) + "\n")
    (tmp_path / "t.csv").write_text('subject,relation,object,subject_aliases\n"two\n lines",P1,"a\ttab","x\u2028y"\n')
    places: dict[str, Path] = {
        "bear": tmp_path,
        "lama": tmp_path / "P1.jsonl",
        "jsonl": tmp_path / "t.json",
        "csv": tmp_path / "t.csv",
    }
    for kind, place in places.items():
        [found] = IMPORTERS[kind](place)
        assert isinstance(found, Candidate)
        assert (found.subject, found.object, found.subject_aliases) == ("two lines", "a tab", ("x y",)), kind


@pytest.mark.parametrize("key", ["id", "subject_id", "object_id"])
@pytest.mark.parametrize("value", ["a\nb", "a\tb", "a\u2028b", "\x00"])
def test_ids_hold_no_line_breaks(tmp_path: Path, key: str, value: str) -> None:
    path = tmp_path / "j.jsonl"
    path.write_text(json.dumps({"subject": "a", "relation": "r", "object": "b", key: value}) + "\n")
    with pytest.raises(InputError, match=rf"j\.jsonl:1: {key} holds the control character"):
        list(IMPORTERS["jsonl"](path))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"obj_label": "a"}, "sub_label is missing"),
        ({"sub_label": "a"}, "obj_label is missing"),
        ({"sub_label": "a", "obj_label": ["b", "c"]}, "obj_label is not a name"),
        ({"sub_label": "a", "obj_label": "b", "sub_uri": [1]}, "sub_uri is"),
        ({"sub_label": "a", "obj_label": "b\x07"}, "object holds the control character ..."),
        ({"sub_label": "Squad", "obj_label": "b", "id": "x"}, "no triple"),
        ([], "not a JSON object"),
    ],
)
def test_rows_of_lama_are_skipped_with_their_reason(tmp_path: Path, row: Any, reason: str) -> None:
    path = tmp_path / "P1.jsonl"
    path.write_text(json.dumps(row) + "\n" + json.dumps({"sub_label": "a", "obj_label": "b"}) + "\n")
    with pytest.raises(InputError, match=r"P1\.jsonl:1: "):
        list(import_lama(path))
    dropped, fact = import_lama(path, skip_errors=True)
    assert dropped == Dropped("", f"malformed row ({reason})")
    assert isinstance(fact, Candidate)


def test_a_malformed_triple_of_a_document_costs_no_other(tmp_path: Path) -> None:
    def part(number: int) -> dict[str, str]:
        return {"uri": f"e/Q{number}", "surfaceform": f"Name{number}"}

    good = [{"subject": part(n), "predicate": {"uri": "p/P1"}, "object": part(n + 1)} for n in (1, 3)]
    path = tmp_path / "t.json"
    path.write_text(json.dumps([{"title": "t", "uri": "u", "triples": [good[0], {"subject": 3}, good[1]]}, 3]))
    with pytest.raises(InputError, match=r"t\.json: document 0: "):
        list(import_trex(path))
    found = list(import_trex(path, skip_errors=True))
    assert [one.subject for one in found if isinstance(one, Candidate)] == ["Name1", "Name3"]
    assert [one.reason for one in found if isinstance(one, Dropped)] == [
        "malformed row (lacks object)",
        "malformed document (has no list of triples)",
    ]


def test_malformed_names_of_wikidata5m_are_skipped_and_counted(tmp_path: Path) -> None:
    (tmp_path / "w_entity.txt").write_bytes(
        b"\xef\xbb\xbfQ1\tOne\tU\x01no\tEins\r\nQ2\tT\x07wo\r\nQ3\tTh\x0bree\r\nx\tbad\nQ4\tF\xff\nQ1\tOther\n"
    )
    (tmp_path / "w_relation.txt").write_bytes(b"\xef\xbb\xbfP1\tin\r\nP\tbad\n")
    (tmp_path / "w_triplet.txt").write_bytes(b"\xef\xbb\xbfQ1\tP1\tQ3\r\nQ2\tP1\tQ1\r\nQ4\tP1\tQ1\r\n")
    (tmp_path / "._w_entity.txt").write_bytes(b"\x00\x05")
    with pytest.raises(InputError, match=r"w_relation\.txt:2: not an id"):
        list(import_wikidata5m(tmp_path))
    (tmp_path / "w_relation.txt").write_bytes(b"P1\tin\n")
    with pytest.raises(InputError, match=r"w_entity\.txt:4: not an id"):
        list(import_wikidata5m(tmp_path))
    found = list(import_wikidata5m(tmp_path, skip_errors=True))
    [fact] = [one for one in found if isinstance(one, Candidate)]
    assert (fact.subject, fact.subject_aliases, fact.object) == ("One", ("Eins",), "Th ree")
    reasons = sorted(one.reason for one in found if isinstance(one, Dropped))
    assert reasons == [
        "an id without a name",
        "an id without a name",
        "malformed line of names (an id in two lines)",
        "malformed line of names (not UTF-8)",
        "malformed line of names (not an id)",
    ]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("a\tr\tb\n".encode("utf-16"), "is UTF-16, not UTF-8; convert it"),
        (b"PAR1\x15\x04", "is a parquet file"),
        (b"PK\x03\x04\x14", "is a zip archive, not text"),
    ],
)
def test_what_is_no_text_at_all_ends_the_import_also_where_errors_are_skipped(
    tmp_path: Path, content: bytes, problem: str
) -> None:
    for kind in ("tsv", "csv", "jsonl", "lama"):
        path = tmp_path / "t.x"
        path.write_bytes(content)
        with pytest.raises(InputError) as error:
            list(IMPORTERS[kind](path, skip_errors=True))
        assert problem in str(error.value)


def test_packed_files_are_read_and_those_that_are_cut_end_the_import(tmp_path: Path) -> None:
    texts = {
        "tsv": "a\tr\tb\n",
        "csv": "a,r,b\n",
        "jsonl": '{"subject": "a", "relation": "r", "object": "b"}\n',
        "lama": '{"sub_label": "a", "obj_label": "b"}\n',
    }
    for kind, text in texts.items():
        path = tmp_path / "r.jsonl.gz"
        path.write_bytes(gzip.compress(text.encode()))
        [found] = IMPORTERS[kind](path)
        assert isinstance(found, Candidate)
        assert (found.subject, found.relation, found.object) == ("a", "r", "b")
        path.write_bytes(gzip.compress(text.encode())[:-5])
        with pytest.raises(InputError, match=r"r\.jsonl\.gz: "):
            list(IMPORTERS[kind](path, skip_errors=True))
