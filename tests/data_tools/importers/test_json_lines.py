import json

import pytest

from megatron_kis.common.errors import InputError
from megatron_kis.data_tools.facts.importers import Dropped, import_jsonl

ROW = {"id": "a", "subject": "Rysy", "relation": "peak_country", "object": "Poland", "group": "infused"}


def test_json_lines_bring_ids_entities_and_aliases(tmp_path):
    path = tmp_path / "t.jsonl"
    row = {**ROW, "subject_id": "Q1", "object_id": "Q36", "object_aliases": ["Polska"]}
    path.write_text(json.dumps(row) + "\n" + json.dumps({**ROW, "object": None}) + "\n", encoding="utf-8")
    facts = import_jsonl(path)
    first = next(facts)
    assert (first.id, first.subject_id, first.object_id, first.object_aliases) == ("a", "Q1", "Q36", ("Polska",))
    with pytest.raises(InputError, match=r"t\.jsonl:2: object is missing"):
        next(facts)


def test_every_kind_of_malformed_line_is_skipped_where_errors_are(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'{"subject": 3}\n{oops\n[]\n"\xff"\n\n' + json.dumps(ROW).encode() + b"\n")
    rows = list(import_jsonl(path, skip_errors=True))
    assert [isinstance(row, Dropped) for row in rows] == [True, True, True, True, False]
    with pytest.raises(InputError, match=r"t\.jsonl:1: subject is a number, not a string"):
        list(import_jsonl(path))
