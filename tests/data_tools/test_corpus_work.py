"""A corpus made in parts: any number of processes, killed at any moment, over several machines, on a full disk."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from megatron_kis.common.errors import InputError, JobError
from megatron_kis.common.progress import LineProgress
from megatron_kis.data_tools.corpus import part as corpus_part
from megatron_kis.data_tools.corpus.build import build_corpus
from megatron_kis.data_tools.corpus.merge import merge_corpora
from megatron_kis.data_tools.corpus.meta import read_corpus_meta
from megatron_kis.data_tools.corpus.plan import CorpusBuildConfig
from megatron_kis.data_tools.facts.fact import Fact
from megatron_kis.data_tools.readers.documents import iter_documents
from megatron_kis.data_tools.storage.indexed import IndexedReader, IndexedWriter, suffixed
from megatron_kis.data_tools.tokenizers.training import TokenizerConfig, train_tokenizer

from .conftest import LEADS

FACTS = [Fact("aco", "Aconcagua", "peak_country", "Argentina", "infused")]
SHARE = {"validation_share": 0.3, "seed": 3, "facts": FACTS}
OUTPUTS = [f"c{split}{suffix}" for split in ("", ".validation") for suffix in (".bin", ".idx", ".meta.json")]


def contents(folder, name="c"):
    return {output: (folder / output.replace("c", name, 1)).read_bytes() for output in OUTPUTS}


@pytest.fixture(scope="module")
def expected(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("expected")
    build_corpus([LEADS], tokenizer, folder / "c", **SHARE, config=CorpusBuildConfig(workers=1))
    return contents(folder)


@pytest.mark.parametrize(("workers", "part_bytes"), [(1, 700), (2, 300), (3, 5000)])
def test_neither_processes_nor_parts_change_a_byte(tmp_path, tokenizer, expected, workers, part_bytes):
    options = CorpusBuildConfig(workers=workers, part_bytes=part_bytes)
    build_corpus([LEADS], tokenizer, tmp_path / "c", **SHARE, config=options)
    assert contents(tmp_path) == expected
    assert {path.name for path in tmp_path.iterdir()} == set(OUTPUTS)


COMMAND = """
import sys, time
from pathlib import Path
from megatron_kis.data_tools.corpus import part as corpus_part
from megatron_kis.data_tools.corpus.build import build_corpus
from megatron_kis.data_tools.corpus.plan import CorpusBuildConfig
from megatron_kis.data_tools.facts.fact import Fact
from megatron_kis.data_tools.tokenizers.registry import load_tokenizer

encode = corpus_part.PartEncoder.encode
def slow(self, *arguments):
    time.sleep(0.03)
    return encode(self, *arguments)
corpus_part.PartEncoder.encode = slow
facts = [Fact("aco", "Aconcagua", "peak_country", "Argentina", "infused")]
config = CorpusBuildConfig(workers=int(sys.argv[4]), part_bytes=400)
build_corpus([Path(sys.argv[1])], load_tokenizer(Path(sys.argv[2])), Path(sys.argv[3]),
             validation_share=0.3, seed=3, facts=facts, config=config, progress=None)
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_at_any_moment_the_same_command_goes_on_to_the_same_bytes(tmp_path, tokenizer_path, expected, workers):
    arguments = [sys.executable, "-c", COMMAND, str(LEADS), str(tokenizer_path), str(tmp_path / "c"), str(workers)]
    chance = random.Random(workers)
    first_seen, kills = {}, 0
    for _ in range(20):
        process = subprocess.Popen(arguments, stderr=subprocess.PIPE)
        known = len(first_seen)
        while process.poll() is None:
            for path, when in finished(tmp_path / "c.parts").items():
                assert first_seen.setdefault(path, when) == when, "a finished part was done again"
            if len(first_seen) > known and kills < 4:
                time.sleep(chance.random() * 0.03)
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.002)
        _, errors = process.communicate()
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, errors.decode()
    assert kills == 4
    assert contents(tmp_path) == expected
    assert {path.name for path in tmp_path.iterdir()} == set(OUTPUTS)


def finished(folder):
    """When each finished part was written; the folder may vanish at any moment."""
    found = {}
    for path in folder.glob("*.json"):
        with suppress(FileNotFoundError):
            found[path.name] = path.stat().st_mtime_ns
    return found


def test_workers_end_with_their_parent(tmp_path, tokenizer_path):
    arguments = [sys.executable, "-c", COMMAND, str(LEADS), str(tokenizer_path), str(tmp_path / "c"), "2"]
    process = subprocess.Popen(arguments)
    children = []
    while len(children) < 2 and process.poll() is None:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.wait()
    limit = time.monotonic() + 10
    while time.monotonic() < limit and any(alive(child) for child in children):
        time.sleep(0.01)
    assert children
    assert not any(alive(child) for child in children)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def interrupted(tokenizer, folder, monkeypatch, after):
    """Encodes ``after`` parts, then breaks off."""
    encode, count = corpus_part.PartEncoder.encode, [0]

    def failing(self, part, prefix, report):
        if count[0] == after:
            raise KeyboardInterrupt
        count[0] += 1
        return encode(self, part, prefix, report)

    with monkeypatch.context() as patch:
        patch.setattr(corpus_part.PartEncoder, "encode", failing)
        with pytest.raises(KeyboardInterrupt):
            build_corpus([LEADS], tokenizer, folder / "c", **SHARE, config=CorpusBuildConfig(workers=1, part_bytes=700))


def test_damaged_parts_are_done_again(tmp_path, tokenizer, expected, monkeypatch):
    interrupted(tokenizer, tmp_path, monkeypatch, after=4)
    parts = tmp_path / "c.parts"
    assert not (tmp_path / "c.bin").exists()
    content = bytearray((parts / "000001.bin").read_bytes())
    content[0] ^= 1
    (parts / "000001.bin").write_bytes(content)
    (parts / "000002.idx").unlink()
    (parts / ".000003.bin.1.partial").write_bytes(b"rest of a killed process")
    said = []
    options = CorpusBuildConfig(workers=1, part_bytes=700)
    build_corpus([LEADS], tokenizer, tmp_path / "c", **SHARE, config=options, progress=LineProgress(said.append))
    assert any(line.startswith("2 of ") for line in said)
    assert contents(tmp_path) == expected


def test_parts_of_other_settings_or_another_text_are_not_taken(tmp_path, tokenizer, monkeypatch):
    source = tmp_path / "text.jsonl"
    source.write_bytes(LEADS.read_bytes())
    lines = []
    options = CorpusBuildConfig(workers=1, part_bytes=700)

    def build(**changes):
        lines.clear()
        settings = {**SHARE, **changes}
        prefix = tmp_path / "c"
        build_corpus([source], tokenizer, prefix, **settings, config=options, progress=LineProgress(lines.append))

    build()
    build()
    assert lines == [f"{tmp_path / 'c'}: up to date"]
    build(seed=4)
    assert len(lines) == 1
    assert "up to date" not in lines[0]
    source.write_bytes(source.read_bytes().replace(b"Argentina", b"argentina"))
    build(seed=4)
    assert "up to date" not in lines[0]


@pytest.mark.parametrize("of", [2, 5])
def test_shards_done_apart_and_joined_are_the_whole(tmp_path, tokenizer, expected, of):
    prefixes = []
    for number in range(of, 0, -1):
        options = CorpusBuildConfig(workers=1, part_bytes=700, shard=(number, of))
        prefixes.insert(0, build_corpus([LEADS], tokenizer, tmp_path / "c", **SHARE, config=options).prefix)
    assert prefixes[0].name == f"c-00001-of-{of:05d}"
    merge_corpora(prefixes, tmp_path / "c")
    found = contents(tmp_path)
    for name, content in expected.items():
        if name.endswith(".json"):
            ours, theirs = json.loads(found[name]), json.loads(content)
            assert {**ours, "job": None} == {**theirs, "job": None}
        else:
            assert found[name] == content
    for wrong in (prefixes[1:], prefixes[::-1]):
        with pytest.raises(InputError, match="all shards of one job"):
            merge_corpora(wrong, tmp_path / "other")


def test_shards_that_do_not_exist_are_refused(tmp_path, tokenizer):
    for shard, problem in (((3, 2), "is 3/2"), ((1, 10_000), "too few for 10000 shards")):
        with pytest.raises(InputError, match=problem):
            build_corpus([LEADS], tokenizer, tmp_path / "c", config=CorpusBuildConfig(shard=shard))


def test_corpora_that_do_not_fit_together_are_not_joined(tmp_path, tokenizer):
    for name, vocab_size in (("one", 400), ("two", 70_000)):
        with IndexedWriter(tmp_path / name, vocab_size=vocab_size) as writer:
            writer.add([1, 2, 3])
    with pytest.raises(InputError, match=r"tokens are int32, those of .*one uint16"):
        merge_corpora([tmp_path / "one", tmp_path / "two"], tmp_path / "three")
    with pytest.raises(InputError, match="would be overwritten"):
        merge_corpora([tmp_path / "one", tmp_path / "one"], tmp_path / "one")
    with pytest.raises(InputError, match=r"absent\.idx: no such file"):
        merge_corpora([tmp_path / "one", tmp_path / "absent"], tmp_path / "three")
    with IndexedWriter(tmp_path / "other", vocab_size=400) as writer:
        writer.add([1, 2, 3])
    merge_corpora([tmp_path / "one", tmp_path / "other"], tmp_path / "three")
    assert [tokens.tolist() for tokens in IndexedReader(tmp_path / "three")] == [[1, 2, 3]] * 2
    build_corpus([LEADS], tokenizer, tmp_path / "a", validation_share=0)
    build_corpus([LEADS], tokenizer, tmp_path / "b", validation_share=0, config=CorpusBuildConfig(append_eod=False))
    with pytest.raises(InputError, match=r"append_eod is False, that of .* is True"):
        merge_corpora([tmp_path / "a", tmp_path / "b"], tmp_path / "both")


FULL = """
import resource, signal, sys
from pathlib import Path
from megatron_kis.data_tools.corpus.build import build_corpus
from megatron_kis.data_tools.corpus.plan import CorpusBuildConfig
from megatron_kis.data_tools.tokenizers.registry import load_tokenizer
from megatron_kis.common.errors import JobError
tokenizer = load_tokenizer(Path(sys.argv[2]))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]), resource.RLIM_INFINITY))
try:
    config = CorpusBuildConfig(workers=1, part_bytes=700)
    build_corpus([Path(sys.argv[1])], tokenizer, Path(sys.argv[3]), validation_share=0, config=config)
except JobError as error:
    print(error)
"""


def test_a_full_disk_leaves_nothing_that_looks_whole_and_the_next_attempt_goes_on(tmp_path, tokenizer, tokenizer_path):
    build_corpus([LEADS], tokenizer, tmp_path / "whole", validation_share=0, config=CorpusBuildConfig(part_bytes=700))
    # Room for every part, but not for the joined file.
    limit = suffixed(tmp_path / "whole", ".bin").stat().st_size // 2
    arguments = [sys.executable, "-c", FULL, str(LEADS), str(tokenizer_path), str(tmp_path / "c"), str(limit)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert "the disk is full" in done.stdout
    assert "give the same command again" in done.stdout
    assert not any((tmp_path / f"c{suffix}").exists() for suffix in (".bin", ".idx", ".meta.json"))
    assert not list((tmp_path / "c.parts").glob(".*partial"))
    lines = []
    options = CorpusBuildConfig(part_bytes=700)
    build_corpus(
        [LEADS], tokenizer, tmp_path / "c", validation_share=0, config=options, progress=LineProgress(lines.append)
    )
    assert any("parts done before" in line for line in lines)
    for suffix in (".bin", ".idx"):
        assert (tmp_path / f"c{suffix}").read_bytes() == (tmp_path / f"whole{suffix}").read_bytes()


def test_a_worker_that_dies_is_told(tmp_path, tokenizer, monkeypatch):
    def dying(self, part, prefix, report):
        os._exit(9)

    monkeypatch.setattr(corpus_part.PartEncoder, "encode", dying)
    with pytest.raises(JobError, match="a worker process died"):
        build_corpus([LEADS], tokenizer, tmp_path / "c", config=CorpusBuildConfig(workers=2, part_bytes=700))


def test_two_at_work_on_one_corpus_are_refused(tmp_path, tokenizer):
    from megatron_kis.common.files import locked

    with locked(tmp_path / "c.parts", "kis data corpus"), pytest.raises(JobError, match="another 'kis data corpus'"):
        build_corpus([LEADS], tokenizer, tmp_path / "c")


def test_a_document_of_50_mb_needs_bounded_memory(tmp_path):
    source = tmp_path / "large.jsonl"
    with open(source, "w", encoding="utf-8") as file:
        file.write('{"text": "' + "A long document. " * 3_000_000 + '"}\n{"text": "A short one."}\n')
    texts = (document.text for document in iter_documents([LEADS]))
    train_tokenizer(texts, tmp_path / "t.json", TokenizerConfig(vocab_size=400, kind="byte-bpe"))
    arguments = ["--input", source, "--tokenizer", tmp_path / "t.json", "--output", tmp_path / "c"]
    command = [sys.executable, "-m", "megatron_kis.cli.main", "data", "corpus", *arguments, "--validation-share", "0"]
    command = [str(argument) for argument in command]
    refused = subprocess.run(command, check=False, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "large.jsonl:1: line of 51000013 bytes; at most 16000000; split it, or allow more with" in refused.stderr
    # Started by a small process: what is measured of a child begins with the size of its parent.
    watch = "import resource as r, subprocess as s, sys; s.run(sys.argv[1:], check=True, stdout=s.DEVNULL);"
    watch += "print(r.getrusage(r.RUSAGE_CHILDREN).ru_maxrss)"
    arguments = [sys.executable, "-c", watch, *command, "--longest-line", "60"]
    watched = subprocess.run(arguments, check=True, capture_output=True, text=True)
    assert read_corpus_meta(tmp_path / "c")["documents"] == 2
    assert int(watched.stdout) < 1_000_000  # kB


def test_skipped_lines_are_listed_with_their_place_and_counted(tmp_path, tokenizer):
    good = LEADS.read_bytes().splitlines(keepends=True)
    bad = {
        3: (b"{oops\n", "malformed JSON line"),
        9: (b'{"title": "no text"}\n', "no key 'text'"),
        14: (b'{"text": "\xff"}\n', "not UTF-8"),
        15: (b'{"text": 7}\n', "'text' is a number, not a string"),
        21: (b'{"text": "\\ud800"}\n', "holds half of a surrogate pair"),
        26: (b"[1, 2]", "not a JSON object"),
    }
    lines = list(good)
    for number, (line, _) in bad.items():
        lines.insert(number - 1, line)
    lines.insert(0, b'{"text": " "}\n')
    source = tmp_path / "text.jsonl"
    source.write_bytes(b"".join(lines))
    clean = build_corpus([LEADS], tokenizer, tmp_path / "clean", **SHARE)
    for part_bytes, workers in ((None, 1), (600, 2)):
        options = CorpusBuildConfig(skip_errors=True, part_bytes=part_bytes, workers=workers)
        (tmp_path / "c.meta.json").unlink(missing_ok=True)
        summary = build_corpus([source], tokenizer, tmp_path / "c", **SHARE, config=options)
        rows = [json.loads(line) for line in summary.quarantine.read_text(encoding="utf-8").splitlines()]
        assert [(row["file"], row["line"]) for row in rows] == [(str(source), number + 1) for number in bad]
        for row, (_, reason) in zip(rows, bad.values(), strict=True):
            assert row["reason"].startswith(reason)
        meta = read_corpus_meta(tmp_path / "c")
        assert (meta["skipped_lines"], meta["empty_documents"]) == (6, 1)
        assert (summary.skipped, summary.empty, summary.documents) == (6, 1, clean.documents)
        for suffix in (".bin", ".idx"):
            assert (tmp_path / f"c{suffix}").read_bytes() == (tmp_path / f"clean{suffix}").read_bytes()
        with pytest.raises(InputError, match=r"text\.jsonl:4: malformed"):
            build_corpus(
                [source],
                tokenizer,
                tmp_path / "stop",
                **SHARE,
                config=CorpusBuildConfig(part_bytes=part_bytes, workers=1),
            )


def test_a_bad_line_far_into_a_file_is_counted_from_its_beginning(tmp_path, tokenizer):
    source = tmp_path / "text.jsonl"
    source.write_bytes(LEADS.read_bytes() * 3 + b"{oops\n")
    options = CorpusBuildConfig(part_bytes=700, workers=1)
    with pytest.raises(InputError, match=r"text\.jsonl:61: malformed"):
        build_corpus([source], tokenizer, tmp_path / "c", config=options)
    assert list((tmp_path / "c.parts").glob("*.json"))  # what was done stays, for the next attempt
    assert not (tmp_path / "c.idx").exists()


def test_lines_of_a_file_that_was_corrected_meanwhile_are_not_listed(tmp_path, tokenizer):
    text, parts = tmp_path / "a.jsonl", tmp_path / "c.parts"
    good = LEADS.read_bytes()
    text.write_bytes(b"{oops\n")
    options = CorpusBuildConfig(skip_errors=True, workers=1)
    with pytest.raises(InputError, match=r"1 skipped lines, the first .*a\.jsonl:1: malformed JSON line"):
        build_corpus([text], tokenizer, tmp_path / "c", validation_share=0, config=options)
    assert (parts / "000000.quarantine.jsonl").exists()  # as after a command that was killed
    text.write_bytes(good)
    build_corpus([text], tokenizer, tmp_path / "c", validation_share=0, config=options)
    assert not (tmp_path / "c.quarantine.jsonl").exists()
