"""What cannot be read: wrong input where the path is wrong, a failure where the disk or the file server is."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from megatron_kis.common import files
from megatron_kis.common.errors import InputError, JobError
from megatron_kis.common.files import read_json_lines, read_text, sha256_file, unreadable
from megatron_kis.data_tools.facts.fact import load_facts
from megatron_kis.data_tools.facts.importers.base import parse_json_lines
from megatron_kis.data_tools.readers.documents import iter_documents


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(files, "_WAITS", (0.0, 0.0))


def fails(monkeypatch, number, times):
    """Reading of any file fails so often."""
    left = [times]
    opened = open

    def failing(path, *arguments, **keywords):
        if str(path).endswith(".jsonl") and left[0]:
            left[0] -= 1
            raise OSError(number, os.strerror(number), str(path))
        return opened(path, *arguments, **keywords)

    monkeypatch.setattr("builtins.open", failing)
    monkeypatch.setattr(Path, "read_text", lambda self, encoding: failing(self, encoding=encoding).read())
    return left


READERS = {
    "text": read_text,
    "sha256": sha256_file,
    "rows": lambda path: list(read_json_lines(path)),
    "facts": load_facts,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.ETIMEDOUT])
def test_a_failure_that_passes_is_tried_again(tmp_path, monkeypatch, reader, number):
    path = tmp_path / "f.jsonl"
    path.write_text('{"id": "a", "subject": "s", "relation": "r", "object": "o", "group": "infused"}\n')
    left = fails(monkeypatch, number, 2)
    assert READERS[reader](path)
    assert left == [0]


@pytest.mark.parametrize("reader", READERS)
def test_a_failure_that_stays_is_no_wrong_input(tmp_path, monkeypatch, reader):
    path = tmp_path / "f.jsonl"
    path.write_text("{}\n")
    fails(monkeypatch, errno.ESTALE, 99)
    with pytest.raises(JobError, match=r"f\.jsonl: cannot be read .*; nothing was changed"):
        READERS[reader](path)


@pytest.mark.parametrize("reader", READERS)
def test_a_path_that_is_wrong_is_wrong_input_at_once(tmp_path, reader):
    with pytest.raises(InputError, match=r"none\.jsonl: no such file$"):
        READERS[reader](tmp_path / "none.jsonl")


@pytest.mark.parametrize("reader", READERS)
def test_a_folder_is_wrong_input_and_a_file_is_asked_for(tmp_path, reader):
    (tmp_path / "f.jsonl").mkdir()
    with pytest.raises(InputError, match=r"f\.jsonl: cannot be read \(Is a directory\); name a file in it$"):
        READERS[reader](tmp_path / "f.jsonl")


def test_readers_of_streams_tell_both_apart(tmp_path, monkeypatch):
    path = tmp_path / "f.jsonl"
    path.write_text('{"text": "a"}\n')
    fails(monkeypatch, errno.EIO, 99)
    for read in (lambda: list(iter_documents([path])), lambda: list(parse_json_lines(path, print, skip_errors=True))):
        with pytest.raises(JobError, match=r"f\.jsonl: cannot be read"):
            read()
    damaged = OSError("Not a gzipped file")  # what a decompressor says has no number
    assert isinstance(unreadable(damaged, path), InputError)
