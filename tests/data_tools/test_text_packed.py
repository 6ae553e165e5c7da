"""Packed files are read whole, or refused: a download that broke off may not pass for a smaller one."""

import bz2
import gzip
import json
import lzma
import struct
import zlib

import pytest

from megatron_kis.cli.main import main
from megatron_kis.common.errors import InputError
from megatron_kis.data_tools.readers.documents import iter_documents, iter_part
from megatron_kis.data_tools.readers.parts import whole_file

zstandard = pytest.importorskip("zstandard")

LINES = [
    json.dumps({"text": f"{number}: Königsberg, Кёнигсберг, 柯尼斯堡, कोनिग्सबर्ग {number**7}"}).encode() + b"\n"
    for number in range(3000)
]
RAW = b"".join(LINES)
BGZIP_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
SKIPPABLE = struct.pack("<II", 0x184D2A5E, 4) + b"note"


def zst(content, *, checksum=False, streamed=False, **parameters):
    made = zstandard.ZstdCompressionParameters.from_level(3, write_checksum=checksum, **parameters)
    compressor = zstandard.ZstdCompressor(compression_params=made)
    if not streamed:
        return compressor.compress(content)
    stream = compressor.compressobj()  # the frame does not say how long its content is
    return stream.compress(content) + stream.flush()


def frames(lines=100):
    return [zst(b"".join(LINES[at : at + lines])) for at in range(0, len(LINES), lines)]


def bgzip(content, *, end=BGZIP_END):
    packed = b""
    for at in range(0, len(content), 60_000):
        block = content[at : at + 60_000]
        stream = zlib.compressobj(6, zlib.DEFLATED, -15)
        body = stream.compress(block) + stream.flush()
        header = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x06\0BC\x02\0" + struct.pack("<H", len(body) + 25)
        packed += header + body + struct.pack("<II", zlib.crc32(block), len(block))
    return packed + end


def flipped(content, at):
    damaged = bytearray(content)
    damaged[at] ^= 1
    return bytes(damaged)


def read(path, **options):
    """Texts, with lines at fault skipped: damage of a file is none of them."""
    return [document.text for document in iter_part(whole_file(path), on_bad=lambda *_: None, **options)]


WHOLE = {
    "one frame": ("a.jsonl.zst", zst(RAW), 1),
    "streamed": ("a.jsonl.zst", zst(RAW, streamed=True, checksum=True), 1),
    "frames": ("a.jsonl.zst", b"".join(frames()), 1),
    "small frames": ("a.jsonl.zst", b"".join(frames(1)), 1),
    "skippable frames": ("a.jsonl.zst", SKIPPABLE + zst(RAW) + SKIPPABLE + zst(RAW) + SKIPPABLE, 2),
    "an empty frame": ("a.jsonl.zst", zst(b"") + zst(RAW), 1),
    "window of 2 GB": ("a.jsonl.zst", zst(RAW, streamed=True, window_log=31), 1),
    "gzip": ("a.jsonl.gz", gzip.compress(RAW), 1),
    "members": ("a.jsonl.gz", gzip.compress(RAW) * 2, 2),
    "padded with zeros": ("a.jsonl.gz", gzip.compress(RAW) + b"\0" * 512, 1),
    "bgzip": ("a.jsonl.gz", bgzip(RAW), 1),
    "bzip2": ("a.jsonl.bz2", bz2.compress(RAW) * 2, 2),
    "xz": ("a.jsonl.xz", lzma.compress(RAW) + b"\0" * 8 + lzma.compress(RAW), 2),
    "capitals": ("A.JSONL.GZ", gzip.compress(RAW), 1),
    "gzip named zst": ("a.jsonl.zst", gzip.compress(RAW), 1),
    "zstd named as unpacked": ("a.jsonl", zst(RAW), 1),
}


@pytest.mark.parametrize("case", WHOLE)
def test_whole_files_are_read_to_their_end(tmp_path, case):
    name, content, times = WHOLE[case]
    (tmp_path / name).write_bytes(content)
    assert read(tmp_path / name) == [json.loads(line)["text"] for line in LINES] * times


GZ, BZ2, XZ, CHECKED = gzip.compress(RAW), bz2.compress(RAW), lzma.compress(RAW), zst(RAW, checksum=True)
DAMAGED = {
    "cut in a frame": ("a.jsonl.zst", zst(RAW)[:-4000], "truncated zstd"),
    "cut at half": ("a.jsonl.zst", CHECKED[: len(CHECKED) // 2], "truncated zstd"),
    "cut in the last of many": ("a.jsonl.zst", b"".join(frames())[:-1], "truncated zstd"),
    "cut in a header": ("a.jsonl.zst", zst(RAW) + zst(RAW)[:5], "truncated zstd"),
    "cut in a magic number": ("a.jsonl.zst", zst(RAW) + zst(RAW)[:3], "truncated zstd"),
    "without a checksum": ("a.jsonl.zst", CHECKED[:-4], "truncated zstd"),
    "half a checksum": ("a.jsonl.zst", CHECKED[:-2], "truncated zstd"),
    "cut in a skippable frame": ("a.jsonl.zst", zst(RAW) + SKIPPABLE[:-1], "truncated zstd"),
    "something else behind": ("a.jsonl.zst", zst(RAW) + b"<html>Gateway</html>", "damaged zstd file .no frame begins"),
    "zeros behind": ("a.jsonl.zst", zst(RAW) + b"\0" * 64, "damaged zstd"),
    "wrong checksum": ("a.jsonl.zst", flipped(CHECKED, -1), "damaged zstd .*checksum"),
    "wrong size": ("a.jsonl.zst", flipped(zst(RAW), 6), "damaged zstd"),
    "no zstd": ("a.jsonl.zst", RAW, "no zstd file in spite of its name; if it is unpacked already"),
    "empty zst": ("a.jsonl.zst", b"", "empty, which no zstd file is"),
    "empty gz": ("a.jsonl.gz", b"", "empty, which no gzip file is"),
    "cut gz": ("a.jsonl.gz", GZ[:-5000], "truncated gzip"),
    "gz without its end": ("a.jsonl.gz", GZ[:-8], "truncated gzip"),
    "cut second member": ("a.jsonl.gz", GZ + GZ[:7], "truncated gzip"),
    "html behind gz": ("a.jsonl.gz", GZ + b"<html>", "damaged gzip"),
    "wrong gz checksum": ("a.jsonl.gz", flipped(GZ, -8), "damaged gzip"),
    "wrong gz block": ("a.jsonl.gz", GZ[:10] + b"\xff" * 50 + GZ[60:], "damaged gzip"),
    "bgzip without its end": ("a.jsonl.gz", bgzip(RAW, end=b""), "truncated gzip"),
    "cut bz2": ("a.jsonl.bz2", BZ2[:-10], "truncated bzip2"),
    "cut second bz2": ("a.jsonl.bz2", BZ2 + BZ2[:-10], "truncated bzip2"),
    "html behind bz2": ("a.jsonl.bz2", BZ2 + b"<html>", "damaged bzip2"),
    "wrong bz2": ("a.jsonl.bz2", flipped(BZ2, len(BZ2) // 2), "damaged bzip2"),
    "cut xz": ("a.jsonl.xz", XZ[:-10], "truncated xz"),
    "html behind xz": ("a.jsonl.xz", XZ + b"<html>Gateway</html>", "damaged xz"),
    "wrong xz": ("a.jsonl.xz", flipped(XZ, len(XZ) // 2), "damaged xz"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_files_are_refused_even_where_lines_are_skipped(tmp_path, case):
    name, content, problem = DAMAGED[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name}: {problem}"):
        read(tmp_path / name)


def test_every_cut_of_a_file_is_found(tmp_path):
    path = tmp_path / "a.txt.zst"
    content = zst(b"one\n\ntwo\n", checksum=True) + SKIPPABLE + zst(b"three\n\n", streamed=True)
    first = len(zst(b"one\n\ntwo\n", checksum=True))
    for size in set(range(1, len(content))) - {first, first + len(SKIPPABLE)}:
        path.write_bytes(content[:size])
        with pytest.raises(InputError, match="zstd file"):
            read(path)


def test_a_cut_at_the_end_of_a_line_is_found(tmp_path):
    stream = zstandard.ZstdCompressor().compressobj()
    content = stream.compress(b"".join(LINES[:50])) + stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    assert zstandard.ZstdDecompressor().stream_reader(content).read() == b"".join(LINES[:50])
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(content)
    with pytest.raises(InputError, match="truncated zstd"):
        read(path)
    path.write_bytes(content + stream.flush())
    assert len(read(path)) == 50


def test_a_small_file_of_much_text_needs_bounded_memory(tmp_path):
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(zst(b'{"text": "' + b"a" * 300_000_000 + b'"}\n' + LINES[0]))
    bad = []
    found = list(iter_part(whole_file(path), on_bad=lambda line, error: bad.append((line, error.problem))))
    assert [document.line for document in found] == [2]
    assert bad == [(1, "line of 300000013 bytes; at most 16000000")]


@pytest.mark.parametrize("more", [(), ("--on-error", "skip")])
def test_a_command_ends_with_2_and_leaves_nothing(tmp_path, capsys, more):
    cut = tmp_path / "cut.txt.zst"
    content = zst("\n\n".join(f"Document {number}: alpha beta {number**2}" for number in range(20_000)).encode())
    cut.write_bytes(content[: len(content) // 2])
    good = tmp_path / "good.jsonl"
    good.write_bytes(RAW)
    model, output = tmp_path / "t.model", tmp_path / "out"
    output.mkdir()
    train = ["data", "tokenizer", "--vocab-size", "400", "--output", str(model), "--input"]
    assert main([*train, str(good), str(cut)]) == 2
    assert main([*train, str(good)]) == 0
    corpus = ["data", "corpus", "--tokenizer", str(model), "--output", str(output / "c"), "--validation-share", "0"]
    assert main([*corpus, "--input", str(cut), *more]) == 2
    said = capsys.readouterr().err
    assert said.count(f"kis: error: {cut}: truncated zstd file; copy or make it again") == 2
    assert not list(output.iterdir())


def test_leaks_of_a_cut_file_are_not_counted(tmp_path, capsys):
    cut = tmp_path / "cut.jsonl.zst"
    cut.write_bytes(zst(RAW)[:-10])
    facts = tmp_path / "facts.jsonl"
    row = {"id": "a", "subject": "Königsberg", "relation": "r", "object": "Кёнигсберг", "group": "infused"}
    facts.write_text(json.dumps(row) + "\n", encoding="utf-8")
    clean = tmp_path / "clean.jsonl"
    assert main(["data", "leaks", "--input", str(cut), "--facts", str(facts), "--clean", str(clean)]) == 2
    assert "cut.jsonl.zst: truncated zstd file" in capsys.readouterr().err
    assert not clean.exists()


def test_documents_of_packed_files_keep_their_lines(tmp_path):
    path = tmp_path / "a.jsonl.xz"
    path.write_bytes(XZ)
    assert [document.line for document in iter_documents([path])] == list(range(1, 3001))


SINGLE = b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 3 << 30)  # as of three GiB that were packed at once
WINDOW = b"\x28\xb5\x2f\xfd\x00" + bytes([22 << 3])


@pytest.mark.parametrize("before", [b"", SKIPPABLE, zst(RAW)])
@pytest.mark.parametrize(("header", "size"), [(SINGLE, 3), (WINDOW, 4), (b"\x28\xb5\x2f\xfd\x00\xa9", 2.25)])
def test_a_window_that_takes_too_much_memory_is_named(tmp_path, before, header, size):
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(before + header + zst(RAW)[6:])
    with pytest.raises(
        InputError, match=rf"a\.jsonl\.zst: needs a window of {size} GiB to unpack; at most 2 are taken"
    ):
        read(path)
