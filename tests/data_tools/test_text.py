import gzip

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools import text
from data_tools.text import check_text_files, expand, iter_documents, iter_part, plan_parts, whole
from megatron_kis.errors import InputError


def read(path, **options):
    return [(document.text, document.line) for document in iter_documents([path], **options)]


def test_each_kind_of_file_gives_its_documents_with_their_lines(tmp_path):
    jsonl = tmp_path / "a.jsonl"
    jsonl.write_text('{"text": "one"}\n\n{"text": "  "}\n{"text": "two\\nlines"}\n', encoding="utf-8")
    plain = tmp_path / "a.txt"
    plain.write_bytes("\ufeffFirst line\r\nsecond line\r\n\r\n\r\nNext document".encode())
    table = tmp_path / "a.tsv"
    table.write_text('title\tbody\nA\tsays "hi\nB\ttwo\n', encoding="utf-8")
    assert read(jsonl) == [("one", 1), ("two\nlines", 4)]
    assert read(plain) == [("First line\r\nsecond line", 1), ("Next document", 5)]
    assert read(table, text_key="body") == [('says "hi', 2), ("two", 3)]


def test_gzip_files_are_read_and_damaged_ones_refused(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "packed"}\n' * 1000))
    assert read(path)[999] == ("packed", 1000)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"a\.jsonl\.gz: damaged gzip"):
        read(path)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"text": "cut', "a.jsonl:2: malformed JSON line"),
        (b'["text"]', "a.jsonl:2: not a JSON object"),
        (b'{"texts": "x"}', "a.jsonl:2: no key 'text'; did you mean 'texts'"),
        (b'{"text": 3}', "a.jsonl:2: 'text' is int"),
        (b'{"text": "\xff"}', "a.jsonl:2: malformed JSON line"),
        (b'{"text": "\\ud800"}', "a.jsonl:2: holds half of a surrogate pair"),
    ],
)
def test_a_malformed_line_is_named_by_file_and_line(tmp_path, line, problem):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    with pytest.raises(InputError) as error:
        read(path)
    assert problem in str(error.value)


def test_kinds_that_are_not_read_are_refused_before_any_work(tmp_path):
    for name, word in (("a.parquet.gz", "unknown kind"), ("a.pdf", "unknown kind"), ("a.txt", "no such")):
        with pytest.raises(InputError, match=word):
            check_text_files([tmp_path / name])


def write_parquet(path, column, **options):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"id": list(range(len(column))), "text": column}), path, **options)


def test_zstd_and_parquet_files_are_read(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    packed = tmp_path / "a.jsonl.zst"
    frame = zstandard.compress(b'{"text": "one"}\n{"text": "two"}\n')
    packed.write_bytes(frame + frame)  # as shards that were concatenated
    assert read(packed) == [("one", 1), ("two", 2), ("one", 3), ("two", 4)]
    packed.write_bytes(frame[:-4] + b"xxxx")
    with pytest.raises(InputError, match=r"a\.jsonl\.zst: damaged zstd"):
        read(packed)
    table = tmp_path / "a.parquet"
    write_parquet(table, ["one", "", "three\nlines"])
    assert read(table) == [("one", 1), ("three\nlines", 3)]
    with pytest.raises(InputError, match=r"a\.parquet: no column 'texts'; did you mean 'text'"):
        read(table, text_key="texts")
    with pytest.raises(InputError, match="cannot be read as text"):
        read(table, text_key="id")
    table.write_bytes(b"PAR1 not at all")
    with pytest.raises(InputError, match=r"a\.parquet: no parquet file"):
        read(table)


def test_rows_without_text_are_bad_lines(tmp_path):
    pa = pytest.importorskip("pyarrow")
    table = tmp_path / "a.parquet"
    column = pa.array([b"one", None, b"\xff", b"four"], pa.binary())
    write_parquet(table, column, row_group_size=1)
    bad = []
    parts = plan_parts([table], part_bytes=1)
    assert len(parts) == 4
    rows = [
        (d.line, d.text)
        for part in parts
        for d in iter_part(part, on_bad=lambda line, e: bad.append((line, e.problem)))
    ]
    assert rows == [(1, "one"), (4, "four")]
    assert bad == [(2, "'text' is null"), (3, "not UTF-8 (byte 0 of the text)")]
    with pytest.raises(InputError, match=r"a\.parquet:2: 'text' is null"):
        read(table)


def test_patterns_give_their_files_in_order(tmp_path):
    for name in ("b.jsonl", "a.jsonl", "sub/c.jsonl", "d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    names = [path.name for path in expand([tmp_path / "d.txt", tmp_path / "**" / "*.jsonl"])]
    assert names == ["d.txt", "a.jsonl", "b.jsonl", "c.jsonl"]
    with pytest.raises(InputError, match="matches no file"):
        expand([tmp_path / "*.zst"])
    odd = tmp_path / "odd[1].jsonl"
    odd.write_text("{}")
    assert expand([odd]) == [odd]


LINES = st.lists(
    st.sampled_from(
        [
            b'{"text": "a"}',
            b'{"text": "\xc3\xa9\xe5\x8c\x97"}',
            b"",
            b"  ",
            b"word",
            b"two words",
            b"\xe3\x80\x80",
            b"\r",
        ]
    ),
    max_size=25,
)


@settings(deadline=None)
@given(lines=LINES, part_bytes=st.integers(1, 60), ends=st.booleans(), kind=st.sampled_from([".txt", ".jsonl"]))
def test_parts_hold_every_document_once_and_in_order(tmp_path_factory, lines, part_bytes, ends, kind):
    path = tmp_path_factory.mktemp("parts") / f"a{kind}"
    path.write_bytes(b"\n".join(lines) + (b"\n" if ends else b""))

    def documents(parts):
        found, bad = [], 0

        def skip(_line, _error):
            nonlocal bad
            bad += 1

        for part in parts:
            found += [document.text for document in iter_part(part, on_bad=skip)]
        return found, bad

    parts = plan_parts([path], part_bytes=part_bytes)
    assert documents(parts) == documents([whole(path)])


def test_a_line_longer_than_any_document_is_dropped_and_named(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "LONGEST_LINE", 50)
    monkeypatch.setattr(text, "_BUFFER", 20)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "one"}\n{"text": "' + b"x" * 500 + b'"}\n{"text": "three"}\n')
    with pytest.raises(InputError, match=r"a\.jsonl:2: line of 51. bytes; at most 50"):
        read(path)
    bad = []
    found = list(iter_part(whole(path), on_bad=lambda line, error: bad.append(line)))
    assert [(document.line, document.text) for document in found] == [(1, "one"), (3, "three")]
    assert bad == [2]
