import gzip

import pytest

from data_tools.text import check_text_files, iter_documents
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
    for name, word in (
        ("a.parquet", "parquet"),
        ("a.jsonl.zst", "zst"),
        ("a.pdf", "unknown kind"),
        ("a.txt", "no such"),
    ):
        with pytest.raises(InputError, match=word):
            check_text_files([tmp_path / name])
