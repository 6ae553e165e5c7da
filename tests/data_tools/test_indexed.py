import hashlib
from pathlib import Path

import numpy as np
import pytest

from data_tools import indexed
from data_tools.indexed import IndexedReader, IndexedWriter, suffixed, token_dtype
from megatron_kis.errors import InputError

DOCUMENTS = [[5, 6, 7, 1], [1], [400, 1], list(range(100, 160)), [9, 9, 1]]


def write(prefix, documents=DOCUMENTS, vocab_size=2048):
    with IndexedWriter(prefix, vocab_size=vocab_size) as writer:
        for document in documents:
            writer.add(document)
    return writer


@pytest.mark.parametrize(("vocab_size", "dtype"), [(2048, np.uint16), (65_499, np.uint16), (65_500, np.int32)])
def test_the_bytes_equal_megatrons_own_and_megatron_reads_them(tmp_path, vocab_size, dtype):
    torch = pytest.importorskip("torch")
    from megatron.core.datasets.indexed_dataset import DType, IndexedDataset, IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=DType.optimal_dtype(vocab_size))
    for document in DOCUMENTS:
        builder.add_document(torch.tensor(document), [len(document)])
    builder.finalize(str(tmp_path / "theirs.idx"))
    write(tmp_path / "ours", vocab_size=vocab_size)
    for suffix in (".bin", ".idx"):
        assert (tmp_path / f"ours{suffix}").read_bytes() == (tmp_path / f"theirs{suffix}").read_bytes()
    theirs = IndexedDataset(str(tmp_path / "ours"))
    ours = IndexedReader(tmp_path / "ours")
    assert token_dtype(vocab_size) == ours.dtype == dtype
    assert len(theirs) == len(ours) == len(DOCUMENTS)
    for index, document in enumerate(DOCUMENTS):
        assert theirs[index].tolist() == ours[index].tolist() == document


def test_small_buffers_give_the_same_bytes_as_large_ones(tmp_path, monkeypatch):
    large = write(tmp_path / "large")
    monkeypatch.setattr(indexed, "_BUFFER_TOKENS", 3)
    monkeypatch.setattr(indexed, "_INDEX_CHUNK", 2)
    small = write(tmp_path / "small")
    for suffix in (".bin", ".idx"):
        assert (tmp_path / f"small{suffix}").read_bytes() == (tmp_path / f"large{suffix}").read_bytes()
    content = (tmp_path / "small.bin").read_bytes() + (tmp_path / "small.idx").read_bytes()
    assert small.content_fingerprint == large.content_fingerprint == hashlib.sha256(content).hexdigest()
    IndexedReader(tmp_path / "small").verify()


def test_a_failure_leaves_what_was_there_and_nothing_new(tmp_path):
    prefix = tmp_path / "corpus"
    write(prefix)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(RuntimeError), IndexedWriter(prefix, vocab_size=2048) as writer:
        writer.add([3, 1])
        raise RuntimeError
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises(ValueError, match="outside"):
        write(tmp_path / "other", [[2048]])
    assert {path.name for path in tmp_path.iterdir()} == set(before)


def test_an_old_index_never_stands_beside_new_tokens(tmp_path, monkeypatch):
    prefix = tmp_path / "corpus"
    write(prefix)
    rename = Path.replace

    def full_disk(self, target):
        if Path(target).suffix == ".idx":
            raise OSError("disk full")
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(OSError, match="disk full"):
        write(prefix, [[3, 4, 5, 1]] * len(DOCUMENTS))
    with pytest.raises(InputError, match=r"corpus\.idx: cannot be read"):
        IndexedReader(prefix)


def test_missing_files_are_named(tmp_path):
    prefix = tmp_path / "corpus.v1"
    write(prefix)
    for suffix in (".bin", ".idx"):
        path = suffixed(prefix, suffix)
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(InputError, match=f"corpus.v1{suffix}: cannot be read"):
            IndexedReader(prefix)
        path.write_bytes(content)


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
@pytest.mark.parametrize("change", [-1, -5, +2])
def test_a_wrong_size_names_the_expected_and_found_bytes(tmp_path, suffix, change):
    write(tmp_path / "c")
    path = tmp_path / f"c{suffix}"
    content = path.read_bytes()
    path.write_bytes(content[:change] if change < 0 else content + b"\0" * change)
    with pytest.raises(InputError) as error:
        IndexedReader(tmp_path / "c")
    assert f"c{suffix}: {'truncated' if change < 0 else 'too long'}" in str(error.value)
    assert f"expected {len(content)} bytes" in str(error.value)
    assert f"found {len(content) + change}" in str(error.value)


@pytest.mark.parametrize(
    ("at", "value", "problem"), [(0, b"X", "not a Megatron index"), (9, b"\2", "version 2"), (17, b"\7", "type code 7")]
)
def test_a_foreign_header_is_refused(tmp_path, at, value, problem):
    write(tmp_path / "c")
    path = tmp_path / "c.idx"
    content = bytearray(path.read_bytes())
    content[at : at + 1] = value
    path.write_bytes(content)
    with pytest.raises(InputError, match=problem):
        IndexedReader(tmp_path / "c")


def test_an_index_cut_within_its_header_is_truncated(tmp_path):
    write(tmp_path / "c")
    (tmp_path / "c.idx").write_bytes((tmp_path / "c.idx").read_bytes()[:20])
    with pytest.raises(InputError, match="expected 34 bytes for header, found 20"):
        IndexedReader(tmp_path / "c")


def test_verify_finds_an_index_that_contradicts_itself(tmp_path):
    write(tmp_path / "c")
    path = tmp_path / "c.idx"
    content = bytearray(path.read_bytes())
    content[34 + 4 * len(DOCUMENTS) + 8] += 2  # offset of document 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="document 1 has an impossible"):
        IndexedReader(tmp_path / "c").verify()
