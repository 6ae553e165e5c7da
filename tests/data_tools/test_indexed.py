import hashlib
import itertools
import struct
import tracemalloc
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_kis.common.errors import InputError
from megatron_kis.data_tools.storage import indexed
from megatron_kis.data_tools.storage.indexed import IndexedReader, IndexedWriter, suffixed, token_dtype

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
    with pytest.raises(InputError, match=r"corpus\.idx: no such file"):
        IndexedReader(prefix)


def test_missing_files_are_named(tmp_path):
    prefix = tmp_path / "corpus.v1"
    write(prefix)
    for suffix in (".bin", ".idx"):
        path = suffixed(prefix, suffix)
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(InputError, match=f"corpus.v1{suffix}: no such file"):
            IndexedReader(prefix)
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"cannot be read \(File name too long\)"):
        IndexedReader(tmp_path / ("c" * 300))


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
    with pytest.raises(InputError, match="sequence 1 has an impossible"):
        IndexedReader(tmp_path / "c").verify()


def test_sequences_are_read_together_as_one_by_one(tmp_path):
    write(tmp_path / "c")
    reader = IndexedReader(tmp_path / "c")
    for chosen in ([], [1], [2, 0, 0, 1]):
        expected = [token for number in chosen for token in reader[number].tolist()]
        assert reader.joined(chosen).tolist() == expected
        assert reader.joined(chosen).dtype == reader.dtype


@pytest.mark.parametrize("shift", [1, 2])
def test_sequences_that_are_read_together_lie_within_the_file(tmp_path, shift):
    write(tmp_path / "c")
    path = tmp_path / "c.idx"
    content = bytearray(path.read_bytes())
    last = len(IndexedReader(tmp_path / "c")) - 2
    content[34 + 4 * (last + 2) + 8 * last + 1] += shift  # its offset, 256 bytes further on
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"sequence {last} has an impossible"):
        IndexedReader(tmp_path / "c").joined([0, last])


def several(prefix):
    """Documents of 2, 0, 1 and 3 sequences, as Megatron's tool writes sentences."""
    with IndexedWriter(prefix, vocab_size=2048) as writer:
        tokens, lengths = np.arange(2, 16), np.array([3, 1, 2, 4, 2, 2])
        writer.add_batch(tokens, lengths, np.array([2, 0, 1, 3]))
    return IndexedReader(prefix)


def test_documents_of_several_sequences_or_none_are_read(tmp_path):
    reader = several(tmp_path / "c")
    reader.verify()
    assert (len(reader), reader.documents, reader.tokens) == (6, 4, 14)
    assert reader.boundaries.tolist() == [0, 2, 2, 3, 6]
    assert reader[3].tolist() == [8, 9, 10, 11]


@settings(max_examples=50, deadline=None)
@given(sequences=st.lists(st.lists(st.integers(0, 4), max_size=4), max_size=8))
def test_boundaries_say_which_sequences_are_a_document(tmp_path_factory, sequences):
    prefix = tmp_path_factory.mktemp("c") / "c"
    lengths = np.array([length for document in sequences for length in document], dtype=np.int64)
    with IndexedWriter(prefix, vocab_size=100) as writer:
        counts = np.array([len(document) for document in sequences], dtype=np.int64)
        writer.add_batch(np.zeros(lengths.sum(), np.int64), lengths, counts)
    reader = IndexedReader(prefix)
    reader.verify()
    bounds = reader.boundaries.tolist()
    found = [[len(reader[place]) for place in range(*pair)] for pair in itertools.pairwise(bounds)]
    assert found == sequences


def test_files_of_megatrons_builder_with_sentences_are_read(tmp_path):
    indexed_dataset = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    builder = indexed_dataset.IndexedDatasetBuilder(str(tmp_path / "c.bin"), dtype=np.int32)
    builder.add_document([1, 2, 3], [2, 1])
    builder.add_document([], [])
    builder.add_document([4], [1])
    builder.finalize(str(tmp_path / "c.idx"))
    reader = IndexedReader(tmp_path / "c")
    reader.verify()
    assert [tokens.tolist() for tokens in reader] == [[1, 2], [3], [4]]
    assert reader.boundaries.tolist() == [0, 2, 2, 3]


def test_an_empty_corpus_is_read(tmp_path):
    reader = IndexedReader(write(tmp_path / "c", [])._prefix)
    reader.verify()
    assert (len(reader), reader.documents, reader.tokens) == (0, 0, 0)


def test_opening_looks_at_the_last_entry_only(tmp_path, monkeypatch):
    write(tmp_path / "c")
    read = []
    original = np.memmap.__getitem__
    monkeypatch.setattr(np.memmap, "__getitem__", lambda self, key: read.append(key) or original(self, key))
    monkeypatch.setattr(np, "cumsum", None)
    IndexedReader(tmp_path / "c")
    assert read == [slice(None, 34, None)]
    content = bytearray((tmp_path / "c.idx").read_bytes())
    content[34 + 4 * (len(DOCUMENTS) - 1)] += 1  # length of the last document
    (tmp_path / "c.idx").write_bytes(content)
    with pytest.raises(InputError, match=r"c\.bin: truncated"):
        IndexedReader(tmp_path / "c")


FIELDS = st.tuples(
    st.sampled_from([b"MMIDIDX\0\0", b"MMIDIDX\0\1"]),
    st.sampled_from([1, 1, 1, 0, 2**64 - 1]),
    st.sampled_from([4, 8, 8, 0, 6, 255]),
    st.sampled_from([0, 1, 2, 3, 2**31, 2**63, 2**64 - 1]),
    st.sampled_from([0, 1, 2, 3, 4, 2**32, 2**64 - 1]),
)
NUMBERS = st.sampled_from([0, 1, 2, 4, 6, -1, -8, 2**31 - 1, 2**62, -(2**63)])


@settings(max_examples=200, deadline=None)
@given(
    fields=FIELDS,
    lengths=st.lists(NUMBERS, max_size=4),
    offsets=st.lists(NUMBERS, max_size=4),
    boundaries=st.lists(NUMBERS, max_size=5),
    cut=st.integers(0, 3),
    content=st.binary(max_size=20),
    blind=st.binary(max_size=120),
)
def test_no_index_crashes_the_reader_or_makes_it_large(
    tmp_path_factory, fields, lengths, offsets, boundaries, cut, content, blind
):
    prefix = tmp_path_factory.mktemp("fuzz") / "c"
    header = struct.pack("<9sQBQQ", *fields)
    body = struct.pack(f"<{len(lengths)}i", *(max(-(2**31), min(length, 2**31 - 1)) for length in lengths))
    body += struct.pack(f"<{len(offsets)}q", *offsets) + struct.pack(f"<{len(boundaries)}q", *boundaries)
    suffixed(prefix, ".bin").write_bytes(content)
    consistent = struct.pack("<9sQBQQ", *fields[:3], len(lengths), len(boundaries)) + body
    for index in (header + body, consistent, consistent[: len(consistent) - cut], header + blind, blind):
        suffixed(prefix, ".idx").write_bytes(index)
        tracemalloc.start()
        try:
            reader = IndexedReader(prefix)
            assert reader.tokens * reader.dtype.itemsize == len(content)
            for sequence in range(len(reader)):
                with suppress(InputError):
                    assert len(reader[sequence]) == reader.lengths[sequence]
            reader.verify()
        except InputError as error:
            assert "c.idx" in str(error) or "c.bin" in str(error)
        else:
            assert b"".join(tokens.tobytes() for tokens in reader) == content
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < 1 << 20
