import gzip
import json
import subprocess
import sys

import pytest

from megatron_kis.cli.main import main
from megatron_kis.data_tools.storage.indexed import IndexedReader

from .conftest import LEADS


def kis(*arguments):
    return main([str(argument) for argument in ("data", *arguments)])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "t.json"
    assert kis("tokenizer", "--input", LEADS, "--vocab-size", 400, "--model", "byte-bpe", "--output", path) == 0
    return path


def test_shards_of_several_files_are_joined_by_merge(tmp_path, model, capsys):
    zstandard = pytest.importorskip("zstandard")
    lines = LEADS.read_bytes().splitlines(keepends=True)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.jsonl").write_bytes(b"".join(lines[:9]) + b"{oops\n")
    (tmp_path / "text" / "b.jsonl.zst").write_bytes(zstandard.compress(b"".join(lines[9:])))
    shared = ("--input", tmp_path / "text" / "*.jsonl*", "--tokenizer", model, "--on-error", "skip", "--workers", 1)
    for number in (1, 2):
        assert kis("corpus", *shared, "--output", tmp_path / "c", "--shard", f"{number}/2", "--part-size", 0.002) == 0
    assert "gigatoken" in capsys.readouterr().err
    shards = [tmp_path / f"c-0000{number}-of-00002" for number in (1, 2)]
    assert kis("merge", *shards, "--output", tmp_path / "joined") == 0
    assert kis("corpus", *shared, "--output", tmp_path / "once") == 0
    out = capsys.readouterr().out
    assert "skipped: 1 line, listed in" in out
    for suffix in (".bin", ".idx", ".validation.bin", ".validation.idx", ".quarantine.jsonl"):
        assert (tmp_path / f"joined{suffix}").read_bytes() == (tmp_path / f"once{suffix}").read_bytes()
    assert kis("corpus", *shared, "--output", tmp_path / "once") == 0
    assert "up to date" in capsys.readouterr().err


def test_options_of_megatrons_tool_change_what_is_written(tmp_path, model):
    shared = ("--input", LEADS, "--tokenizer", model, "--validation-share", 0, "--output")
    assert kis("corpus", *shared, tmp_path / "bare", "--no-append-eod") == 0
    assert kis("corpus", *shared, tmp_path / "ended", "--append-eod") == 0
    bare, ended = IndexedReader(tmp_path / "bare"), IndexedReader(tmp_path / "ended")
    assert ended.tokens == bare.tokens + 20
    assert json.loads((tmp_path / "bare.meta.json").read_text())["append_eod"] is False


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--shard", "0/2"), "'0/2' is not i/n"),
        (("--shard", "two"), "'two' is not i/n"),
        (("--part-size", "-1"), "'-1' is not a size"),
        (("--workers", "0"), "--workers: is 0; at least 1"),
        (("--keep-newlines",), "--keep-newlines: needs --split-sentences"),
        (("--encoder", "fast"), "invalid choice"),
        (("--format", "csv"), "invalid choice"),
        (("--longest-line", "1"), "'1' is too small; at least 2 MB"),
        (("--longest-line", "x"), "'x' is not a size"),
    ],
)
def test_wrong_options_exit_with_2(tmp_path, model, capsys, arguments, problem):
    command = ("corpus", "--input", LEADS, "--tokenizer", model, "--output", tmp_path / "c", *arguments)
    try:
        status = kis(*command)
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    assert problem in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_corpus_is_made_without_importing_anything_heavy(tmp_path, model):
    arguments = ["data", "corpus", "--input", LEADS, "--tokenizer", model, "--output", tmp_path / "c", "--workers", 1]
    heavy = "('torch', 'awkward', 'pandas', 'scipy', 'nltk', 'pyarrow', 'rich', 'transformers', 'sentencepiece')"
    code = (
        f"import sys; from megatron_kis.cli.main import main; main({list(map(str, arguments))});"
        f" print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_outputs_are_not_written_over_what_is_read_besides_text(tmp_path, model, capsys):
    facts = tmp_path / "facts.jsonl"
    facts.write_text('{"id": "a", "subject": "A", "relation": "r", "object": "B", "group": "infused"}\n')
    before = {path: path.read_bytes() for path in (facts, model)}
    side = model.with_name(f"{model.name}.meta.json")
    text, vocabulary = ("--input", LEADS), ("--vocab-size", 400)
    for command, name in (
        (("corpus", *text, "--tokenizer", model, "--output", model), side.name),  # PREFIX.meta.json
        (("tokenizer", *text, *vocabulary, "--facts", facts, "--output", facts), facts.name),
        (("leaks", *text, "--facts", facts, "--output", facts), facts.name),
        (("leaks", *text, "--facts", facts, "--clean", facts), facts.name),
        (("tokenizer", *text, *vocabulary, "--output", LEADS), LEADS.name),
    ):
        assert kis(*command) == 2
        assert f"{name}: is written here, and" in capsys.readouterr().err
    both = tmp_path / "both.jsonl"
    assert kis("leaks", *text, "--facts", facts, "--output", both, "--clean", both) == 2
    assert "--clean: is the same file as --output" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in before} == before


def test_steps_do_not_write_over_their_own_inputs(tmp_path, model, capsys):
    facts, triples = tmp_path / "x.questions.jsonl", tmp_path / "g.meta.json"
    facts.write_text('{"id": "a", "subject": "A", "relation": "r", "object": "B", "group": "infused"}\n')
    triples.write_text('{"subject": "A", "relation": "r", "object": "B"}\n')
    templates = tmp_path / "t.yaml"
    templates.write_text("r:\n  train: ['[X] has [Y].']\n")
    before = {path: path.read_bytes() for path in (facts, triples, templates, model)}
    made = ("--templates", templates, "--output")
    for command, name in (
        (("render", "--facts", facts, "--tokenizer", model, *made, tmp_path / "x"), facts.name),
        (("render", "--facts", facts, "--tokenizer", model, *made, model.with_suffix("")), model.name),
        (("facts", "--from", "jsonl", "--input", triples, "--output", tmp_path / "g.jsonl"), triples.name),
    ):
        assert kis(*command) == 2
        assert f"{name}: is written here, and" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in before} == before
    both = tmp_path / "both.jsonl"
    arguments = ("--from", "bear", "--input", tmp_path, "--output", both, "--templates-output", both)
    assert kis("facts", *arguments) == 2
    assert "--templates-output: is also the file of --output" in capsys.readouterr().err
    assert not both.exists()


@pytest.fixture
def flawed(tmp_path):
    """Good text with two lines and a row that hold none, and the good text alone."""
    lines = LEADS.read_bytes().splitlines(keepends=True)
    (tmp_path / "a.jsonl").write_bytes(b"".join(lines[:9]) + b'{"text": 3}\n' + b"".join(lines[9:]) + b"{oops\n")
    (tmp_path / "b.tsv").write_text("text\tid\nShort text of a table.\t1\nno id\n")
    (tmp_path / "good.tsv").write_text("text\tid\nShort text of a table.\t1\n")
    return ("--input", tmp_path / "a.jsonl", tmp_path / "b.tsv"), ("--input", LEADS, tmp_path / "good.tsv")


def test_leaks_and_tokenizer_leave_bad_lines_out_where_they_are_told_to(tmp_path, flawed, capsys):
    bad, good = flawed
    facts = tmp_path / "facts.jsonl"
    row = {"id": "a", "subject": "Aconcagua", "relation": "r", "object": "Argentina", "group": "infused"}
    facts.write_text(json.dumps(row) + "\n", encoding="utf-8")
    told = f"skipped: 3 lines, the first {tmp_path / 'a.jsonl'}:10: 'text' is a number, not a string\n"
    for arguments in (("leaks", "--facts", facts, "--clean"), ("tokenizer", "--vocab-size", 400, "--output")):
        name = "clean.jsonl" if "leaks" in arguments else "t.json"
        assert kis(*arguments, tmp_path / name, *bad) == 2
        assert "a.jsonl:10: 'text' is a number, not a string" in capsys.readouterr().err
        assert not (tmp_path / name).exists()
        assert kis(*arguments, tmp_path / name, *bad, "--on-error", "skip") == 0
        out = capsys.readouterr().out
        assert told in out
        assert kis(*arguments, tmp_path / f"good-{name}", *good, "--on-error", "skip") == 0
        assert (tmp_path / name).read_bytes() == (tmp_path / f"good-{name}").read_bytes()
        assert "skipped" not in capsys.readouterr().out


def test_damage_ends_leaks_and_tokenizer_also_where_lines_are_skipped(tmp_path, flawed, capsys):
    path = tmp_path / "cut.jsonl.gz"
    path.write_bytes(gzip.compress(LEADS.read_bytes() * 20)[:-10])
    arguments = (*flawed[0], path, "--on-error", "skip", "--vocab-size", 400, "--output", tmp_path / "t.json")
    assert kis("tokenizer", *arguments) == 2
    told = capsys.readouterr()
    assert "cut.jsonl.gz: truncated gzip file" in told.err
    assert "skipped: 3 lines" in told.out
    assert not (tmp_path / "t.json").exists()
