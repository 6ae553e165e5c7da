"""What a file is: told by its name, by the user, or refused by its first bytes."""

import bz2
import gzip
import json
import lzma
import sys

import pytest

from megatron_kis.cli.main import main
from megatron_kis.common.errors import InputError
from megatron_kis.data_tools.readers.documents import iter_documents, iter_part
from megatron_kis.data_tools.readers.files import check_text_files, expand
from megatron_kis.data_tools.readers.open import kind_of
from megatron_kis.data_tools.readers.parts import plan_parts, whole_file

LINES = b'{"text": "\xd7\x90\xd7\x97\xd7\xaa"}\n{"text": "two"}\n'
TEXTS = ["אחת", "two"]


def texts(path, **options):
    return [document.text for document in iter_documents([path], **options)]


@pytest.mark.parametrize(
    "name",
    ["c4-train.00000-of-01024.json", "my-corpus.json", "a.ndjson", "A.JSON", "v1.5r2-0000.json.gz", "A.Json.GZ"],
)
def test_json_lines_are_read_under_all_their_names(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(gzip.compress(LINES, mtime=0) if name.lower().endswith(".gz") else LINES)
    assert texts(path) == TEXTS


@pytest.mark.parametrize(
    ("name", "text_format", "content", "expected"),
    [
        ("part-00000", "jsonl", LINES, TEXTS),
        ("part-00000", "jsonl", gzip.compress(LINES, mtime=0), TEXTS),
        ("shard.gz", "jsonl", gzip.compress(LINES, mtime=0), TEXTS),
        ("a.jsonl.1", "jsonl", LINES, TEXTS),
        ("a.log", "txt", b"one\nmore\n\ntwo", ["one\nmore", "two"]),
        ("a.tab", "tsv", b"id\ttext\n1\tone", ["one"]),
        ("a.jsonl", "txt", b"one\n\ntwo", ["one", "two"]),
    ],
)
def test_a_format_overrides_the_name(tmp_path, name, text_format, content, expected):
    path = tmp_path / name
    path.write_bytes(content)
    check_text_files([path], text_format)
    assert texts(path, text_format=text_format) == expected
    assert {part.kind for part in plan_parts([path], part_bytes=8, text_format=text_format)} == {f".{text_format}"}


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("a.csv", "unknown kind of text file '.csv'; convert it to"),
        ("a.arrow", "unknown kind of text file '.arrow'; convert it to"),
        ("a.txt.zip", "unknown kind of text file '.zip'; unpack it first"),
        ("a.jsonl.lz4", "unknown kind of text file '.lz4'; unpack it first"),
        ("a.tar.gz", "unknown kind of text file '.tar.gz'; unpack it first"),
        ("c4.00000-of-01024.pdf", "unknown kind of text file '.pdf'; expected .jsonl (or .json, .ndjson)"),
        ("part-00000", "files of another name are read with --format, or data.text_format of a study"),
    ],
)
def test_other_names_are_refused_with_what_to_do(tmp_path, name, problem):
    with pytest.raises(InputError) as error:
        kind_of(tmp_path / name)
    assert problem in str(error.value)


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(InputError, match=r"is a folder; name its files, as '.*/\*\.jsonl'"):
        check_text_files([tmp_path])
    with pytest.raises(InputError, match="unknown format 'josnl'; did you mean 'jsonl'"):
        kind_of(tmp_path, "josnl")


ROWS = [{"text": "a"}, {"text": "b"}]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.json", json.dumps(ROWS), "is one JSON array, not one object per line; convert it: jq -c '.[]'"),
        ("a.json", json.dumps(ROWS, indent=2), "is one JSON array"),
        ("a.jsonl", '[{"text": "a"},\n{"text": "b"}]\n', "is one JSON array"),
        ("a.json", json.dumps([{"text": "a" * 9000}] * 3), "is one JSON array"),
        ("a.jsonl", "[" * 300 + "]" * 300 + '\n{"text": "a"}\n', "is one JSON array"),
        ("a.json", json.dumps(ROWS[0], indent=2), "is one JSON object, not one object per line; convert it: jq -c ."),
        ("a.jsonl", "\ufeff{\r\n" + '"text": "a"}', "is one JSON object"),
    ],
)
def test_one_json_document_is_refused_as_such(tmp_path, name, content, problem):
    for packed in ("", ".gz"):
        path = tmp_path / f"{name}{packed}"
        path.write_bytes(gzip.compress(content.encode()) if packed else content.encode())
        with pytest.raises(InputError) as error:
            check_text_files([path])
        assert f"{path}: {problem}" in str(error.value)
        with pytest.raises(InputError, match="is one JSON"):
            texts(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.tsv", "a.jsonl.gz"])
@pytest.mark.parametrize(
    ("encoding", "told"),
    [("utf-16", "UTF-16"), ("utf-16-le", "UTF-16LE"), ("utf-16-be", "UTF-16BE"), ("utf-32", "UTF-32")],
)
def test_text_in_another_encoding_is_refused_with_its_name(tmp_path, name, encoding, told):
    path = tmp_path / name
    content = 'text\n{"text": "München liegt an der Isar."}\n'.encode(encoding)
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(InputError, match=rf"is {told}\b.*, not UTF-8; convert it: iconv -f {told} -t UTF-8"):
        check_text_files([path])


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"PK\x03\x04\x14\x00", "a zip archive"),
        (b"PAR1\x15\x04", "a parquet file"),
        (b"\x04\x22\x4d\x18d@", "an lz4 file"),
        (b"a.txt".ljust(257, b"\0") + b"ustar", "a tar archive"),
    ],
)
def test_archives_and_tables_are_not_read_as_text_whatever_their_name(tmp_path, content, what):
    path = tmp_path / "a.txt"
    for packed in (content, gzip.compress(content)):
        path.write_bytes(packed)
        with pytest.raises(InputError, match=rf"a\.txt: is {what}, not text"):
            check_text_files([path])


def test_hidden_files_and_folders_are_not_matched(tmp_path):
    for name in ("a.jsonl", "._a.jsonl", ".ipynb_checkpoints/a-checkpoint.jsonl", "sub/b.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(LINES)
    assert [path.name for path in expand([tmp_path / "**" / "*.jsonl"])] == ["a.jsonl", "b.jsonl"]
    assert expand([tmp_path / "._a.jsonl"])


def test_commands_read_files_of_any_name(tmp_path, capsys):
    for part in range(2):
        rows = (json.dumps({"text": f"Document {part} {number} of some words."}) for number in range(300))
        (tmp_path / f"part-0000{part}").write_text("\n".join(rows), encoding="utf-8")
    text, model = ["--input", str(tmp_path / "part-*")], tmp_path / "t.json"
    train = ["data", "tokenizer", *text, "--vocab-size", "300", "--model", "byte-bpe", "--output", str(model)]
    assert main(train) == 2
    assert "read with --format" in capsys.readouterr().err
    assert main([*train, "--format", "jsonl"]) == 0
    corpus = ["data", "corpus", *text, "--tokenizer", str(model), "--output", str(tmp_path / "c")]
    assert main([*corpus, "--format", "jsonl", "--validation-share", "0"]) == 0
    assert "c: 600 documents" in capsys.readouterr().out
    assert json.loads((tmp_path / "c.meta.json").read_text())["text_format"] == "jsonl"


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.tsv"])
@pytest.mark.parametrize("first", ["short", "long " * 3000])
def test_lines_that_end_as_on_an_old_mac_are_refused(tmp_path, name, first):
    path = tmp_path / name
    pack = gzip.compress if name.endswith(".gz") else bytes
    path.write_bytes(pack(f"{first}\r\rtext\rmore\r".encode()))
    with pytest.raises(InputError, match=r"a\.t\S+: has no line ends but '\\r', .*; convert them: tr '\\r' '\\n'"):
        check_text_files([path])
    with pytest.raises(InputError, match="has no line ends"):
        texts(path)
    for fine in (f"{first}\r\r\ntext\r\n", first, f"\r{first}\r"):
        path.write_bytes(pack(fine.encode()))
        check_text_files([path])


@pytest.mark.parametrize("inner", [gzip.compress, bz2.compress, lzma.compress])
def test_a_file_that_is_packed_twice_is_called_so(tmp_path, inner):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(inner(b'{"text": "a"}\n')))
    with pytest.raises(InputError, match=r"a\.jsonl\.gz: is packed twice: its content is a \w+ file again; unpack it"):
        check_text_files([path])


def test_a_long_first_line_that_is_no_document_is_one_bad_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('["' + "x" * 9000 + '"]\n{"text": "ok"}\n', encoding="utf-8")
    check_text_files([path])
    bad = []
    part = whole_file(path)
    texts = [document.text for document in iter_part(part, on_bad=lambda line, error: bad.append(line))]
    assert (texts, bad) == (["ok"], [1])


def test_a_package_that_is_missing_is_named_with_the_extra_that_has_it(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(InputError, match=r"pyarrow is needed for parquet files; pip install 'megatron-kis\[corpus\]'"):
        list(iter_documents([tmp_path / "a.parquet"]))
