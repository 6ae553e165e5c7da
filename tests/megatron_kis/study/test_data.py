"""The files that a study's data are made from."""

from __future__ import annotations

from pathlib import Path

from megatron_kis.data_tools.preparation.settings import DataPrepConfig
from megatron_kis.study.data import source_files


def test_a_tokenizer_that_is_a_folder_counts_by_the_files_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    names = ("tokenizer.json", "tokenizer_config.json", "tokenizer.json.meta.json")
    for name in names:
        (folder / name).touch()
    (tmp_path / "tokenizer_config.json").touch()  # of another tokenizer
    text, facts, templates = (tmp_path / name for name in ("text.jsonl", "facts.tsv", "templates.yaml"))
    found = source_files(DataPrepConfig(text=(text,), facts=facts, templates=templates, tokenizer=folder))
    assert found == [text, facts, templates, *(folder / name for name in names)]
