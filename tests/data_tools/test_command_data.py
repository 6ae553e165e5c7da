import argparse
import json
import subprocess
import sys

import pytest

from megatron_kis.cli import data
from megatron_kis.common.errors import InputError
from megatron_kis.data_tools.facts.fact import write_facts

from .conftest import LEADS, TEMPLATES, TRIPLES


def kis(*arguments):
    parser = argparse.ArgumentParser(prog="kis")
    data.add_parser(parser.add_subparsers())
    options = parser.parse_args([str(argument) for argument in arguments])
    return options.handler(options)


def test_the_steps_one_at_a_time_make_a_studys_data(tmp_path, capsys):
    facts, model = tmp_path / "facts.jsonl", tmp_path / "t.model"
    counts = ("--infused", 8, "--background", 8, "--control", 8)
    assert kis("data", "facts", "--from", "tsv", "--input", TRIPLES, "--output", facts, *counts) == 0
    assert "dropped 2 (2 peak_country): ambiguous" in capsys.readouterr().out
    meta = json.loads((tmp_path / "facts.meta.json").read_text())
    assert meta["dropped"]["ambiguous: the subject has several objects"] == {"peak_country": 2}
    assert kis("data", "tokenizer", "--input", LEADS, "--vocab-size", 400, "--facts", facts, "--output", model) == 0
    assert kis("data", "leaks", "--input", LEADS, "--facts", facts, "--output", tmp_path / "leaks.jsonl") == 0
    leaks = [json.loads(line) for line in (tmp_path / "leaks.jsonl").read_text(encoding="utf-8").splitlines()]
    shared = ("--tokenizer", model, "--facts", facts)
    share = ("--validation-share", 0.3)
    assert kis("data", "corpus", "--input", LEADS, "--output", tmp_path / "corpus", *shared, *share) == 0
    assert f"left out: {len(leaks)} document" in capsys.readouterr().out
    assert kis("data", "render", *shared, "--templates", TEMPLATES, "--output", tmp_path / "exposures") == 0
    capsys.readouterr()
    for name in ("corpus", "corpus.validation", "exposures"):
        assert kis("data", "inspect", tmp_path / name, "--tokenizer", model, "--json") == 0
        assert json.loads(capsys.readouterr().out)["documents"] > 0


def test_a_data_set_of_bear_goes_in_and_comes_out(tmp_path, capsys):
    rows = [{"sub_label": f"Peak {n}", "obj_label": f"Land {chr(65 + n)}", "obj_id": f"Q{n}"} for n in range(24)]
    (tmp_path / "bear").mkdir()
    (tmp_path / "bear" / "P17.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    metadata = {"P17": {"templates": ["[X] is in [Y].", "[X] belongs to a [Y] state.", "In [Y] stands [X]."]}}
    (tmp_path / "bear" / "metadata_relations.json").write_text(json.dumps(metadata))
    facts, templates = tmp_path / "facts.jsonl", tmp_path / "templates.yaml"
    counts = ("--infused", 8, "--background", 8, "--control", 8, "--spread", "proportional", "--keep-telling-names")
    source = ("--from", "bear", "--input", tmp_path / "bear", "--templates-output", templates)
    assert kis("data", "facts", *source, "--output", facts, *counts) == 0
    assert "24 usable of 24, 24 objects; chance 0.0417 among all of them" in capsys.readouterr().out
    assert kis("data", "templates", "--templates", templates, "--facts", facts) == 0
    assert "P17: 2 train, 1 held out, 0 questions" in capsys.readouterr().out
    assert kis("data", "export", "--facts", facts, "--templates", templates, "--output", tmp_path / "out") == 0
    exported = json.loads((tmp_path / "out" / "control" / "metadata_relations.json").read_text())
    assert exported["P17"]["templates"] == ["In [Y] stands [X]."]
    assert len(exported["P17"]["answer_space_labels"]) == 8
    with pytest.raises(InputError, match=r"templates\.yaml: exists"):
        kis("data", "facts", *source, "--output", facts, *counts)


def test_the_text_is_cleaned_of_single_sentences(tmp_path, capsys):
    facts = tmp_path / "facts.jsonl"
    counts = ("--infused", 8, "--background", 8, "--control", 8)
    kis("data", "facts", "--from", "tsv", "--input", TRIPLES, "--output", facts, *counts)
    clean = tmp_path / "clean.jsonl.gz"
    level = ("--level", "sentence", "--clean", clean)
    assert kis("data", "leaks", "--input", LEADS, "--facts", facts, *level) == 0
    assert "also stated across sentences" in capsys.readouterr().out
    assert kis("data", "leaks", "--input", clean, "--facts", facts, "--level", "sentence") == 0
    assert "0 sentences in 0 of 20 documents" in capsys.readouterr().out


def test_damage_is_an_input_error_that_exits_with_2(tmp_path):
    with pytest.raises(InputError, match=r"absent\.idx: no such file") as error:
        kis("data", "inspect", tmp_path / "absent")
    assert error.value.exit_status == 2


@pytest.mark.parametrize(
    "step", ["demo", "tokenizer", "corpus", "facts", "templates", "leaks", "render", "inspect", "export"]
)
def test_every_step_has_help(step, capsys):
    with pytest.raises(SystemExit) as stop:
        kis("data", step, "--help")
    assert stop.value.code == 0
    assert len(capsys.readouterr().out) > 200


def test_describing_the_command_imports_nothing_slow():
    slow = "('numpy', 'torch', 'sentencepiece', 'rich')"
    code = f"import sys, megatron_kis.cli.data; print([name for name in {slow} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


RENDERED = ("--facts", "f", "--templates", "t", "--tokenizer", "t", "--output", "e")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("facts", "--from", "tsv", "--input", TRIPLES, "--output", "folder"), "'folder' is a folder"),
        (("leaks", "--input", LEADS, "--facts", "f", "--output", "folder"), "'folder' is a folder"),
        (("tokenizer", "--input", LEADS, "--vocab-size", "400", "--output", "folder"), "'folder' is a folder"),
        (("export", "--facts", "f", "--templates", "t", "--output", "file"), "'file' is a file"),
        (("corpus", "--input", LEADS, "--tokenizer", "t", "--output", "file/c"), "'file' is a file"),
        (("render", *RENDERED, "--asked", "0"), "argument --asked: '0' is not a count"),
        (("render", *RENDERED, "--asked", "-3"), "argument --asked: '-3' is not a count"),
    ],
)
def test_what_cannot_be_done_is_refused_at_once(tmp_path, monkeypatch, capsys, arguments, problem):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as stop:
        kis("data", *arguments)
    assert stop.value.code == 2
    assert problem in capsys.readouterr().err


def test_text_without_leaks_is_not_read_again_the_next_time(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_bytes(LEADS.read_bytes())
    facts = tmp_path / "facts.jsonl"
    row = {"id": "a", "subject": "Aconcagua", "relation": "peak_country", "object": "Argentina", "group": "infused"}
    facts.write_text(json.dumps(row) + "\n")
    shared = ("data", "leaks", "--input", tmp_path / "in" / "*.jsonl", "--facts", facts)
    for option in ("--clean", "--output"):
        with pytest.raises(InputError, match=r"b\.jsonl: is written here, and .*reads it; write it elsewhere"):
            kis(*shared, option, tmp_path / "in" / "b.jsonl")
    assert kis(*shared, "--clean", tmp_path / "b.jsonl") == 0


def test_an_output_that_cannot_be_written_is_named_as_the_user_wrote_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    counts = ("--infused", 8, "--background", 8, "--control", 8)
    output = f"{'x' * 250}.jsonl"
    with pytest.raises(OSError) as error:
        kis("data", "facts", "--from", "tsv", "--input", TRIPLES, "--output", output, *counts)
    assert error.value.filename == output


def test_a_bad_number_of_facts_is_named_by_its_option(tmp_path):
    output = tmp_path / "facts.jsonl"
    with pytest.raises(InputError, match=r"^--facts-per-object: is -1"):
        kis("data", "facts", "--from", "tsv", "--input", TRIPLES, "--output", output, "--facts-per-object", -1)
    assert not output.exists()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("inspect", "c.bin"), "c.bin: is one file of a corpus; give its prefix, c"),
        (("inspect", "c.idx"), "c.idx: is one file of a corpus; give its prefix, c"),
        (("merge", "--output", "m", "c.bin"), "c.bin: is one file of a corpus; give its prefix, c"),
        (("merge", "--output", "c", "c"), "c: would be overwritten by the result c; give the result another name"),
        (
            ("facts", "--from", "tsv", "--input", TRIPLES, "--output", "f", "--columns", "subject"),
            "--columns: 'subject' is not of the form FIELD=COLUMN; for example subject=city",
        ),
        (("questions", *RENDERED), "f: no such file"),
        (
            ("corpus", "--input", LEADS, "--tokenizer", "t.model", "--output", "d", "--validation-share", "1"),
            "--validation-share: is 1; use 0 or more, and less than 1",
        ),
    ],
)
def test_a_wrong_file_or_option_is_named_and_nothing_is_written(
    tmp_path, monkeypatch, capsys, arguments, problem, tokenizer
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.model").write_bytes(tokenizer.model)
    for name in ("c.bin", "c.idx"):
        (tmp_path / name).touch()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError) as refused:
        kis("data", *arguments)
    assert problem in str(refused.value)
    assert sorted(tmp_path.iterdir()) == before


def test_a_wrong_tokenizer_is_refused_before_templates_are_listed(tmp_path, facts, capsys):
    write_facts(tmp_path / "facts.jsonl", facts)
    model = tmp_path / "t.model"
    model.write_text("text")
    with pytest.raises(InputError, match="not a SentencePiece model"):
        kis("data", "templates", "--templates", TEMPLATES, "--facts", tmp_path / "facts.jsonl", "--tokenizer", model)
    assert capsys.readouterr().out == ""
