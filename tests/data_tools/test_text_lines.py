import pytest

from data_tools import text_lines
from data_tools.text import iter_documents, iter_part
from data_tools.text_parts import whole
from megatron_kis.errors import InputError


def test_a_line_longer_than_any_document_is_dropped_and_named(tmp_path, monkeypatch):
    monkeypatch.setattr(text_lines, "BUFFER", 20)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "one"}\n{"text": "' + b"x" * 500 + b'"}\n{"text": "three"}\n')
    with pytest.raises(InputError, match=r"a\.jsonl:2: line of 51. bytes; at most 50"):
        list(iter_documents([path], longest=50))
    bad = []
    found = list(iter_part(whole(path), longest=50, on_bad=lambda line, error: bad.append(line)))
    assert [(document.line, document.text) for document in found] == [(1, "one"), (3, "three")]
    assert bad == [2]
