import gzip

import pytest

from megatron_kis.common.errors import InputError
from megatron_kis.data_tools.readers.documents import iter_blocks, iter_documents, iter_part
from megatron_kis.data_tools.readers.parts import plan_parts, whole_file


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
        (b'{"text": 3}', "a.jsonl:2: 'text' is a number, not a string"),
        (b'{"text": "\xff"}', "a.jsonl:2: not UTF-8 (byte 10 of the line); save the file as UTF-8"),
        (b'{"text": NaN}', "a.jsonl:2: 'text' is a number, not a string"),
        (
            b'{"text": "a", "deep": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
            "a.jsonl:2: JSON nested more than 200 deep",
        ),
        (b'{"text": "a"}, ', "a.jsonl:2: malformed JSON line (Extra data at column 14)"),
        (
            b'{"text":"a"}{"text":"b"}',
            "a.jsonl:2: several JSON objects on one line, the second at column 13; ",
        ),
        (b'{"text":"a" "b"}', "a.jsonl:2: malformed JSON line (Expecting ',' delimiter at column 13)"),
        (b'{"text":"a', "a.jsonl:2: malformed JSON line (Unterminated string starting at column 9)"),
        (b'{"text": "a", "t\\u0065xt": "b"}', "a.jsonl:2: the key 'text' is given twice; keep one of them"),
        (b'{"\\u0074ext": "a", "id": 1, "te\\u0078t": "b"}', "a.jsonl:2: the key 'text' is given twice"),
        (b'{"text": "\\ud800"}', "a.jsonl:2: holds half of a surrogate pair"),
    ],
)
def test_a_malformed_line_is_named_by_file_and_line(tmp_path, line, problem):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    with pytest.raises(InputError) as error:
        read(path)
    assert problem in str(error.value)


def nested(depth, text="[[{{"):
    """A line whose outermost object counts as one of ``depth``; brackets of texts do not."""
    inner = "[" * (depth - 2) + '{"\\"[[": "[{"}' + "]" * (depth - 2)
    return f'{{"text": "{text}", "deep": {inner}}}\n'.encode()


@pytest.mark.parametrize("beside", [b"", b"\n", b'\xef\xbb\xbf{"text": "marked"}\n'])
@pytest.mark.parametrize("frames", [0, 600])
def test_the_deepest_line_is_the_same_for_every_caller_and_neighbour(tmp_path, beside, frames):
    path = tmp_path / "a.jsonl"
    path.write_bytes(beside + nested(199) + nested(200) + nested(201) + nested(2, "[{" * 500) + nested(970))
    bad = []

    def within(more):
        return within(more - 1) if more else [one.line for one in iter_part(whole_file(path), on_bad=tell)]

    def tell(line, error):
        bad.append((line, error.problem))

    before = bool(beside)
    lines = within(frames)
    assert lines[-3:] == [1 + before, 2 + before, 4 + before]
    assert bad == [(line + before, "JSON nested more than 200 deep") for line in (3, 5)]


def test_a_line_that_is_not_closed_is_refused_however_long_it_is(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "fine"}\n' + b"[{" * 500 + b"\n" + b'{"text": "' + b"[" * 500 + b"\n")
    bad = []
    assert len(list(iter_part(whole_file(path), on_bad=lambda *told: bad.append(told[1].problem)))) == 1
    assert bad == [
        "JSON nested more than 200 deep",
        "malformed JSON line (Unterminated string starting at column 10)",
    ]


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
    with pytest.raises(InputError, match=r"a\.parquet: not a parquet file"):
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


@pytest.mark.parametrize(
    "more",
    [
        '"score": NaN',
        '"score": -Infinity',
        f'"id": {2**64}',
        f'"id": {"9" * 100_000}',
        '"by": "\\ud800"',
        '"said": "\\u0074\\"text\\": \\"text\\""',
    ],
)
def test_what_other_keys_hold_does_not_matter(tmp_path, more):
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "ёлка", {more}}}\n{{{more}, "text": "松"}}\n', encoding="utf-8")
    assert read(path) == [("ёлка", 1), ("松", 2)]


@pytest.mark.parametrize(
    ("key", "spellings"),
    [
        ("text", ['"text"', '"t\\u0065xt"', '"\\u0074\\u0065\\u0078\\u0074"']),
        ("naïve", ['"naïve"', '"na\\u00efve"', '"na\\u00EFve"', '"n\\u0061ïve"']),
        ("ключ", ['"ключ"', '"кл\\u044eч"', '"кл\\u044Eч"']),
        ("a/b", ['"a/b"', '"a\\/b"', '"a\\u002fb"', '"a\\u002Fb"']),
        ('say "x"', ['"say \\"x\\""', '"say \\u0022x\\""']),
        ("𝒳", ['"𝒳"', '"\\ud835\\udcb3"', '"\\uD835\\uDCB3"']),
        (".*", ['".*"', '"\\u002e*"']),
    ],
)
def test_a_key_that_is_given_twice_is_found_in_all_its_spellings(tmp_path, key, spellings):
    path = tmp_path / "a.jsonl"
    for one in spellings:
        path.write_text(f'{{{one}: "fine", "other": "\\u0061\\n"}}\n', encoding="utf-8")
        assert read(path, text_key=key) == [("fine", 1)]
        for other in spellings:
            path.write_text(f'{{"id": 1, {one}: "a", {other} : "b"}}\n', encoding="utf-8")
            with pytest.raises(InputError, match=r"a\.jsonl:1: the key .* is given twice"):
                read(path, text_key=key)


def skipping(path, **options):
    bad = []
    found = iter_part(whole_file(path), on_bad=lambda line, error: bad.append((line, error.problem)), **options)
    return [(document.text, document.line) for document in found], bad


def test_fields_of_tables_have_any_length_and_quotes_are_letters(tmp_path):
    path = tmp_path / "a.tsv"
    long = "语" * 100_000
    path.write_text(f'\ufefftext\tid\r\n{long}\t1\r\na\rb\t2\r\n"a\t3\r\nb"\t4\r\n\r\n', encoding="utf-8", newline="")
    assert read(path) == [(long, 2), ("a\rb", 3), ('"a', 4), ('b"', 5)]


def test_a_blank_line_of_a_table_is_no_row(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_bytes(b"text\n\na\n\r\n")
    assert [document.text for document in iter_part(whole_file(path))] == ["a"]


def test_rows_of_tables_that_are_at_fault_are_skipped_and_headers_are_not(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_bytes(b"id\ttext\n1\t\xff\n2\n3\tc\n4\td\te\n")
    assert skipping(path) == (
        [("c", 4)],
        [(2, "not UTF-8 (byte 2 of the line)"), (3, "1 fields, the header has 2"), (5, "3 fields, the header has 2")],
    )
    for header, problem in (
        (b"id\ttext\xff", "the header cannot be read: not UTF-8"),
        (b"id\tbody", "no column 'text'"),
        (b"text\ttext", "2 columns are named 'text'; rename one of them"),
        (b"x" * 3_000_000, "the header cannot be read: line of 3000001 bytes"),
    ):
        path.write_bytes(header + b"\nid\ttext\n1\ta\n")
        with pytest.raises(InputError, match=rf"a\.tsv:1: {problem}"):
            skipping(path, longest=2_000_000)


def test_a_parquet_file_with_two_columns_of_one_name_is_refused(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]), path)
    with pytest.raises(InputError, match=r"a\.parquet: 2 columns are named 'text'"):
        read(path)


@pytest.mark.parametrize("options", [{"compression": "snappy"}, {"compression": "none", "write_page_checksum": True}])
def test_a_damaged_page_ends_the_work_also_where_rows_are_skipped(tmp_path, options):
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    write_parquet(path, [f"{number} " * 50 for number in range(2000)], use_dictionary=False, **options)
    page = parquet.ParquetFile(path).metadata.row_group(0).column(1).data_page_offset + 200
    content = path.read_bytes()
    path.write_bytes(content[:page] + b"7" * 400 + content[page + 400 :])
    with pytest.raises(InputError, match=r"a\.parquet: cannot be read"):
        skipping(path)


def test_few_long_values_of_parquet_are_in_memory_together(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    path = tmp_path / "a.parquet"
    write_parquet(path, ["x" * 1_000_000] * 200)
    bad = []
    before = pyarrow.total_allocated_bytes()
    blocks = iter_blocks(whole_file(path), on_bad=lambda line, error: bad.append(line), longest=500_000)
    peak = max(pyarrow.total_allocated_bytes() - before for _ in blocks)
    assert len(bad) == 200
    assert peak < 100_000_000
