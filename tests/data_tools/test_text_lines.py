import pytest

from megatron_kis.common.errors import InputError
from megatron_kis.data_tools.readers import base
from megatron_kis.data_tools.readers.documents import iter_documents, iter_part
from megatron_kis.data_tools.readers.parts import plan_parts, whole_file
from megatron_kis.data_tools.readers.txt import TxtReader


def test_a_line_longer_than_any_document_is_dropped_and_named(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "BUFFER", 20)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "one"}\n{"text": "' + b"x" * 500 + b'"}\n{"text": "three"}\n')
    with pytest.raises(InputError, match=r"a\.jsonl:2: line of 51. bytes; at most 50"):
        list(iter_documents([path], longest=50))
    bad = []
    found = list(iter_part(whole_file(path), longest=50, on_bad=lambda line, error: bad.append(line)))
    assert [(document.line, document.text) for document in found] == [(1, "one"), (3, "three")]
    assert bad == [2]


def skipping(part, longest):
    bad = []
    found = iter_part(part, longest=longest, on_bad=lambda line, error: bad.append((line, error.problem)))
    return [document.text for document in found], bad


def test_a_line_of_the_longest_size_is_read_and_one_byte_more_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "BUFFER", 16)
    path = tmp_path / "a.txt"
    for end in (b"", b"\n", b"\n\nb"):
        path.write_bytes(b"x" * 40 + end)
        assert skipping(whole_file(path), 40)[1] == []
        assert len(skipping(whole_file(path), 39)[1]) == 1


@pytest.mark.parametrize("kind", [".txt", ".tsv", ".jsonl"])
def test_a_text_beyond_the_limit_is_refused_by_its_line_in_each_kind(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(base, "BUFFER", 20)
    path = tmp_path / f"a{kind}"
    row = {".txt": "{}\n", ".tsv": "text\n{}\nend\n", ".jsonl": '{{"text": "{}"}}\n'}[kind]
    path.write_text(row.format("речь " * 100), encoding="utf-8")
    with pytest.raises(
        InputError, match=r"a\.\w+:[12]: line of 9\d\d bytes; at most 200; split it, or allow more with"
    ):
        list(iter_documents([path], longest=200))


def test_a_parquet_text_beyond_the_limit_is_one_bad_row(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a", "b" * 300, "c"]}), path)
    assert skipping(whole_file(path), 200) == (["a", "c"], [(2, "text of 300 bytes; at most 200")])


def test_a_plain_text_without_blank_lines_is_no_document_of_any_size(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one\n\n" + "a line of a document\n" * 50 + "\nlast\n", encoding="utf-8")
    expected = (["one", "last"], [(3, "document of 209 bytes or more; at most 200")])
    assert skipping(whole_file(path), 200) == expected
    with pytest.raises(InputError, match=r"a\.txt:3: document of 209 bytes or more; at most 200"):
        list(iter_documents([path], longest=200))
    found, bad = [], 0
    for part in plan_parts([path], part_bytes=100):
        texts, refused = skipping(part, 200)
        found, bad = found + texts, bad + len(refused)
    assert (found, bad) == (["one", "last"], 1)


def test_a_document_without_one_of_its_lines_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "BUFFER", 20)
    path = tmp_path / "a.txt"
    path.write_bytes(b"begins\n" + b"x" * 500 + b"\n" + b"y" * 500 + b"\nends\n\nnext\n")
    for parts in ([whole_file(path)], plan_parts([path], part_bytes=90)):
        found = [skipping(part, 100) for part in parts]
        assert [text for texts, _ in found for text in texts] == ["next"]
        assert sum(len(bad) for _, bad in found) == 1


def test_a_part_within_a_long_document_does_not_read_to_its_end(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"line of a document\n" * 1000)

    class Counting:
        def __init__(self, file):
            self.file, self.lines = file, 0

        def readline(self, size):
            self.lines += 1
            return self.file.readline(size)

        def __getattr__(self, name):
            return getattr(self.file, name)

    part = plan_parts([path], part_bytes=1900)[5]
    with open(path, "rb") as raw:
        file = Counting(raw)
        reader = TxtReader(part, text_key="text", on_bad=lambda *_: None, longest=1 << 20)
        assert list(reader._blocks(file)) == []
    assert file.lines < 4
