"""A file of another kind is refused in words: what was expected, what was found, and which command writes it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import megatron_kis
from megatron_kis.common.errors import InputError
from megatron_kis.common.files import read_json
from megatron_kis.common.schemas import described, writer

ROOT = Path(megatron_kis.__file__).parents[1]
CODE = [path for name in ("megatron_kis", "analysis", "data_tools") for path in (ROOT / name).rglob("*.py")]
SCHEMAS = {found for path in CODE for found in re.findall(r'"(kis\.[a-z-]+/\d+)"', path.read_text("utf-8"))}


def test_every_kind_of_file_has_a_name_and_a_command() -> None:
    assert {"kis.law/1", "kis.exposures/1", "kis.submission-data/1"} <= SCHEMAS
    for schema in SCHEMAS:
        assert described(schema).endswith(" writes")


@pytest.mark.parametrize("schema", sorted(SCHEMAS))
def test_what_is_no_such_file_is_refused_without_the_name_of_a_schema(schema: str, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    for content in ("", "[", "[]", "{}", '{"schema": "other"}'):
        path.write_text(content)
        with pytest.raises(InputError) as caught:
            read_json(path, schema)
        assert schema not in str(caught.value)
        assert f"{writer(schema)} writes" in str(caught.value)
    path.write_text(f'{{"schema": "{schema}"}}')
    assert read_json(path, schema) == {"schema": schema}
    with pytest.raises(InputError, match=rf"has no 'rows'; make the file again with {writer(schema)}$"):
        read_json(path, schema, keys=("rows",))
