import gzip

import pytest

from data_tools.text import iter_documents, iter_part
from data_tools.text_parts import plan_parts
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
    with pytest.raises(InputError, match=r"a\.jsonl\.gz: truncated gzip"):
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


@pytest.mark.parametrize("key", ["text", "текст"])
def test_a_line_whose_text_key_stands_twice_is_bad_and_others_are_not_looked_into(tmp_path, key):
    path = tmp_path / "a.jsonl"
    good = [
        f'{{"{key}": "one"}}',
        f'{{"meta": {{"{key}": 1, "id": 2}}, "{key}": "two", "id": 3}}',
        f'{{"id": 1, "id": 2, "{key}": "three"}}',  # other keys are not ours
        f'{{"{key}": "four", "said": "\\"{key}\\" and \\"{key}\\": x"}}',
    ]
    path.write_text("\n".join(good) + "\n", encoding="utf-8")
    assert [text for text, _ in read(path, text_key=key)] == ["one", "two", "three", "four"]
    for twice in (f'{{"{key}": "a", "{key}": "b"}}', f'{{"{key}": "a", "id": {{"{key}": "c"}}, "{key}": "a"}}'):
        path.write_text("\n".join([*good, twice, good[0]]) + "\n", encoding="utf-8")
        with pytest.raises(InputError, match=rf"a\.jsonl:5: the key '{key}' is given twice"):
            read(path, text_key=key)
    escaped = '{"\\u0442\\u0435\\u043a\\u0441\\u0442": "a", "\\u0442\\u0435\\u043a\\u0441\\u0442": "b"}'
    if key != "text":
        path.write_text(escaped + "\n", encoding="utf-8")
        with pytest.raises(InputError, match=r"a\.jsonl:1: the key"):
            read(path, text_key=key)
