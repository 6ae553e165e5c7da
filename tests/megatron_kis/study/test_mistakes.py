"""Mistakes in a study's files: the message names file and key, what was written, and what would be right."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from megatron_kis.cli.main import main
from megatron_kis.common.errors import InputError
from megatron_kis.data_tools.preparation.checks import check_there
from megatron_kis.data_tools.tokenizers.base import read_meta, side_file
from tests.sources import write_sources
from tests.studies import write_study


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study with sources of its own, to break, in the current folder."""
    monkeypatch.chdir(tmp_path)
    return write_study(tmp_path, write_sources(tmp_path))


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main([*words]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("kis: error: ")
    return line


def setting(key: str, value: object) -> Callable[[Path], None]:
    def change(study: Path) -> None:
        content = yaml.safe_load(study.read_text())
        section = content
        *path, last = [int(part) if part.isdecimal() else part for part in key.split(".")]
        for part in path:
            section = section[part]
        section[last] = value
        study.write_text(yaml.safe_dump(content))

    return change


def header(*columns: str) -> Callable[[Path], None]:
    def change(study: Path) -> None:
        path = study.with_name("triples.tsv")
        path.write_text("\t".join(columns) + "\n" + path.read_text().split("\n", 1)[1])

    return change


def added(name: str, line: bytes) -> Callable[[Path], None]:
    def change(study: Path) -> None:
        path = study.with_name(name)
        path.write_bytes(path.read_bytes() + line)

    return change


def in_encoding(name: str, encoding: str) -> Callable[[Path], None]:
    def change(study: Path) -> None:
        path = study.with_name(name)
        path.write_bytes(path.read_text().encode(encoding))

    return change


def replaced(name: str, content: bytes) -> Callable[[Path], None]:
    def change(study: Path) -> None:
        study.with_name(name).write_bytes(content)

    return change


emptied = replaced("text.jsonl", b"")


MISTAKES: list[tuple[Callable[[Path], None], list[str]]] = [
    (added("text.jsonl", b'{"text": "caf\xe9"}\n'), ["text.jsonl:361: not UTF-8 (byte 13 of the line)", "LATIN1"]),
    (added("triples.tsv", b"caf\xe9\ttown_region\tx\n"), ["triples.tsv:50: not UTF-8 (byte 3", "LATIN1"]),
    (in_encoding("templates.yaml", "utf-16"), ["templates.yaml: is UTF-16, not UTF-8; convert it: iconv"]),
    (in_encoding("study.yaml", "utf-16"), ["study.yaml: is UTF-16, not UTF-8"]),
    (header("A", "B", "C"), ["triples.tsv:1: would be read as a fact (A, B, C)", "if it is the header, call its"]),
    (
        header("entity", "relation", "value"),
        ["triples.tsv:1: looks like a header", "data.facts_columns: [subject=NAME]"],
    ),
    (emptied, ["text.jsonl: no text to train a tokenizer on"]),
    (setting("data.select.infused", 30), ["triples.tsv: relation 'painter_teacher' must provide", "24 usable ones"]),
    (setting("data.validation_share", 1e-9), ["text.jsonl: no documents for the validation split", "a larger share"]),
    (setting("data.facts", "t.tsv"), ["study.yaml: data.facts: there is no t.tsv"]),
    (setting("data.vocab_size", 8000), ["study.yaml: data.vocab_size: no tokenizer of 8000 pieces", "at most"]),
    (setting("ladder.0.heads", 3), ["study.yaml: ladder.0.heads: run 1x16_D5.12k_F0_s0: width 16 over 3 heads"]),
    (setting("frequencies", [0, 3, 900]), ["study.yaml: frequencies: run 1x16_D5.12k_F900_s0", "that fits is about"]),
    (setting("frequencies", [0, 3, 3]), ["study.yaml: frequencies: has an entry twice (3); keep one of them"]),
    (
        setting("templates", 99),
        ["study.yaml: templates: run", "no template 99 for 16 of 16 infused facts", "from 0 to 2"],
    ),
    (setting("seeds", [2**64]), ["study.yaml: seeds.0: is 18446744073709551616; must be below"]),
    (setting("output", ""), ["study.yaml: output: is empty; must be a path"]),
    (setting("output", "C:\\studies\\a"), [r"study.yaml: output: 'C:\studies\a' is a Windows path, not one of"]),
    (setting("data.text", ["https://example.org/t.jsonl"]), ["study.yaml: data.text", "is an address, not"]),
    (setting("data.text", ["*.json"]), ["study.yaml: data.text: *.json: matches no file"]),
    (setting("data.tokenizer", "gpt2"), ["study.yaml: data.tokenizer: there is no gpt2", "not the name of a model"]),
    (replaced("text.jsonl", b"a plain text\n"), ["text.jsonl:1: malformed", "plain text, name the file .txt"]),
    (setting("token_budgets", [100]), ["token_budgets: run 1x16_D100_F0_s0: 100 is less", "at least 512"]),
]


@pytest.mark.parametrize(("change", "told"), MISTAKES)
def test_a_mistake_is_told_with_file_key_and_remedy(
    study: Path, change: Callable[[Path], None], told: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    change(study)
    line = refused(capsys, "study", "plan", "study.yaml")
    assert all(part in line for part in told), line
    assert "unfinished" not in line
    assert "--" not in line  # a study has keys, not options


def test_a_setting_on_the_command_line_is_not_looked_for_in_the_file(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, "study", "plan", "study.yaml", "data.facts=zz.tsv")
    assert line.endswith("error: data.facts: there is no zz.tsv; a relative path starts at the current folder")


@pytest.mark.parametrize("command", ["plan", "run", "submit --dry-run", "status", "report"])
def test_an_output_that_is_a_file_is_refused_by_its_key(
    study: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    study.with_name("out").write_text("mine")
    line = refused(capsys, "study", *command.split(), "study.yaml", "output=out")
    assert "error: output: out: is a file, not a folder" in line
    assert study.with_name("out").read_text() == "mine"


@pytest.mark.parametrize("place", ["out/runs", "out/data/new"])
def test_an_output_in_the_folder_of_another_study_is_refused(
    study: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (study.parent / place).mkdir(parents=True)
    (study.parent / "out" / "study.json").write_text("{}")
    line = refused(capsys, "study", "plan", "study.yaml", f"output={place}")
    assert f"output: {place}: is in the folder of another study" in line


@pytest.mark.parametrize("command", ["plan", "run"])
def test_the_study_file_is_not_replaced_by_the_record_of_the_study(
    study: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    study.write_text(study.read_text() + "# a remark of mine\n")
    before = study.read_text()
    line = refused(capsys, "study", command, "study.yaml", "output=.")
    assert "output: is the folder of the study file, and kis keeps a study.yaml of its own there" in line
    assert study.read_text() == before


def test_a_file_of_another_kind_is_called_by_what_it_is(
    study: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "law.json").write_text('{"schema": "kis.law/1"}')
    line = refused(capsys, "law", "validate", "law.json", "--points", "p.csv")
    assert line.endswith("law.json: is a law (kis.law); expected a prediction, which kis law predict --output writes")
    (tmp_path / "run.json").write_text('{"schema": "kis.run/1"}')
    (tmp_path / "config.yaml").write_text("")
    line = refused(capsys, "train", "run.json")
    assert line.endswith("run.json: is the record of a run; give the configuration of a run, such as config.yaml")


def test_templates_that_are_not_there_are_named_by_their_key() -> None:
    with pytest.raises(InputError, match=r"data\.templates: there is no none\.yaml; a relative path starts"):
        check_there({"templates": [Path("none.yaml")]})


def test_text_among_the_files_of_the_study_is_refused(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (study.parent / "out" / "data").mkdir(parents=True)
    (study.parent / "out" / "data" / "facts.jsonl").write_text('{"text": "x"}\n')
    setting("data.text", ["**/*.jsonl"])(study)
    line = refused(capsys, "study", "plan", "study.yaml")
    assert "study.yaml: data.text: out/data/facts.jsonl is in the folder that the study writes; name the" in line


def test_no_setting_is_asked_for_where_the_file_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["study", "plan"])
    assert capsys.readouterr().err.rstrip().endswith("the following arguments are required: STUDY.yaml")


@pytest.mark.parametrize("place", [".", "/"])
def test_a_folder_in_place_of_a_corpus_is_refused(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"error: {place}: is a folder; name the files' beginning" in refused(capsys, "data", "inspect", place)


def test_a_size_that_no_float_holds_is_planned(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    setting("ladder.0.width", 10**9)(study)
    assert main(["study", "plan", "study.yaml", "--json"]) == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert runs[0]["params"] > 2**53


def test_templates_without_sentences_of_a_split_get_a_remark(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = study.with_name("templates.yaml")
    content = yaml.safe_load(path.read_text())
    del content["town_region"]["held_out"]
    path.write_text(yaml.safe_dump(content))
    assert main(["data", "templates", "--templates", "templates.yaml"]) == 0
    said = capsys.readouterr().out
    assert "town_region: has no held_out sentences; its facts are in no result of split held_out" in said
    assert "1 remark" in said


def test_an_option_that_is_no_number_is_told_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["data", "facts", "--input", "t.tsv", "--from", "tsv", "--output", "f.jsonl", "--infused", "many"])
    assert ended.value.code == 2
    assert "argument --infused: 'many' is not a whole number" in capsys.readouterr().err


def test_empty_and_missing_files_are_told_as_such(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study.with_name("c.csv").touch()
    line = refused(capsys, "law", "collapse", "--curves", "c.csv", "--output", "p.csv")
    assert "c.csv:1: is empty; the first line is the header: params," in line
    line = refused(capsys, "data", "tokenizer", "--input", "nope", "--output", "t.model", "--vocab-size", "400")
    assert line == "kis: error: nope: no such file"


def test_keys_of_a_tokenizers_side_file_that_decide_nothing_are_refused(tmp_path: Path) -> None:
    model = tmp_path / "t.model"
    side_file(model).write_text('{"schema": "kis.tokenizer/1", "eos": "x"}')
    with pytest.raises(InputError, match=r"t\.model\.meta\.json: eos: unknown key; did you mean 'eod'\?"):
        read_meta(model)
    side_file(model).write_text('{"schema": "kis.tokenizer/1", "eod": "x", "fingerprint": "f", "pieces_of_text": 3}')
    assert read_meta(model)["eod"] == "x"  # written here, with how it was made


def test_a_study_and_a_run_in_place_of_each_other_are_named(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "train", study.name, "model.preset=cpu-48")
    assert f"{study.name}: is a study, not a run; kis study run trains its runs" in said
    run = study.with_name("run.yaml")
    run.write_text(yaml.safe_dump({"name": "one", "output": "out", "model": {"preset": "cpu-48"}}))
    for step in ("run", "plan", "status"):
        assert "run.yaml: is a run, not a study; kis train trains it" in refused(capsys, "study", step, run.name)
    run.write_text(yaml.safe_dump({"name": "one", "ladder": [{"preset": "cpu-48"}], "model": {}}))
    assert "run.yaml: " in (said := refused(capsys, "study", "plan", run.name)) and "not a study" not in said


UNUSABLE: list[tuple[list[str], str]] = [
    (["study", "plan", "study.yaml", "data.text=[]"], "data.text: is an empty list; name at least one file"),
    (
        ["study", "plan", "study.yaml", "ladder=[{preset:", "cpu-33}]"],
        "ladder=[{preset:: not valid YAML (expected the node content, but found '<stream end>'); put the whole setting",
    ),
    (["study", "plan", "study.yaml", "data.facts=."], ".: is a folder; tsv is one file; folders are bear, lama"),
    (["study", "plan", "study.yaml", "analysis.law=M"], "analysis.law: unknown law 'M'; valid: "),
    (["study", "plan", "text.jsonl"], "text.jsonl:2: not valid YAML"),
    (["study", "status", "."], "error: .: is a folder; give the study file, such as study.yaml"),
    (["study", "watch", "study.yaml", "--every", "inf"], "--every: is inf; give seconds, at most 86400, such as 5"),
    (["study", "watch", "study.yaml", "--every", "nan"], "--every: is nan; give seconds"),
    (["study", "logs", "study.yaml", "nope"], "RUN: no run 'nope' in this study; valid: 1x16_D5.12k_F0_s0"),
    (["study", "probe", "study.yaml", "--batch-size", "-1"], "--batch-size: is -1; use at least 1"),
    (["study", "report", "study.yaml"], "out: has no runs yet; kis study run trains them"),
    (["study", "submit", "study.yaml", "--dry-run", "--templates", "nope"], "nope: is not a folder; copy "),
    (
        ["plan", "study.yaml", "--tokens", "1e9"],
        "--tokens: cannot be combined with a file, which has its own; leave",
    ),
    (["plan", "study.yaml", "--length", "64"], "--length: cannot be combined with a file"),
    (["plan", "study.yaml", "--batch", "512"], "--batch: cannot be combined with a file"),
    (["plan", "triples.tsv"], "MODEL: preset: no model preset 'triples.tsv'; valid: "),
    (["train", "study.yaml"], "study.yaml: is a study, not a run; kis study run trains its runs"),
    (["train", "."], ".: is a folder; give the configuration of a run"),
    (["law", "predict", ".", "--params", "7b"], ".: is a folder; expected a law, which kis law fit writes"),
    (
        ["law", "predict", "study.yaml", "--params", "7b"],
        "study.yaml:1: not valid JSON (Expecting value); expected a l",
    ),
    (["law", "validate", ".", "--points", "p.csv"], ".: is a folder; expected a prediction, which kis law predict"),
    (["probe", "nowhere", "--batch-size", "0"], "--batch-size: is 0; use 1 or more"),
    (["probe", "nowhere", "--tensor", "0"], "--tensor: is 0; use 1 or more"),
    (["probe", "nowhere", "--device", "gpu"], "--device: unknown device 'gpu'; valid: auto, cpu, cuda"),
    (["probe", "nowhere", "--keep", "--probes", "{"], "--probes:1: not valid JSON"),
    (["probe", "nowhere", "--histories", "h.csv", "--tensor", "2"], "--tensor: cannot be combined with --histories"),
    (["probe", "nowhere", "--histories", "h.csv", "--device", "cpu"], "--device: cannot be combined with --histories"),
    (["probe", "nowhere", "--histories", "h.csv", "--step", "5"], "--step: cannot be combined with --histories"),
    (["probe", "nowhere", "--histories", "h.csv", "--all-templates"], "--all-templates: cannot be combined with --hi"),
    (["probe", "nowhere", "--questions", "q"], "--questions: cannot be combined with a run; use it with --model DIR"),
    (["probe", "nowhere", "--model", "m"], "RUN_DIR: cannot be combined with --model; give one of them"),
    (["probe", "--model", "m", "--tensor", "2"], "--tensor: cannot be combined with --model; use it with RUN_DIR"),
    (["probe", "nowhere"], "nowhere: no such folder; give the folder of a run"),
    (["probe", "."], ".: has no run.json; give the folder of a run"),
    (["export", "hf", "study.yaml", "--output", "hf"], "study.yaml: is a file; give the folder of a run"),
    (["import", "hf", "study.yaml", "--output", "st"], "study.yaml: is a file; give the folder of a model"),
    (["import", "megatron", "study.yaml", "--output", "st"], "study.yaml: is a file; give the folder of a checkpoint"),
    (["import", "hf", "nowhere", "--output", "st"], "nowhere: no such folder; give the folder of a model"),
    (
        ["law", "collapse", "study.yaml", "--output", "p.csv"],
        "study.yaml: is a file of settings; give the folder that a study writes, a runs folder or a curves.csv",
    ),
    (
        ["law", "predict", "triples.tsv", "--params", "7b"],
        "triples.tsv:1: not valid JSON (Expecting value); expected a law, which kis law fit writes",
    ),
    (["law", "predict", "empty", "--params", "7b"], "empty: is empty; expected a law, which kis law fit writes"),
    (["law", "predict", "nowhere", "--params", "7b"], "error: nowhere: no such file"),
    (
        ["law", "validate", "empty", "--points", "p.csv"],
        "empty: is empty; expected a prediction, which kis law pred",
    ),
    (["data", "leaks", "--input", "text.jsonl", "--facts", "triples.tsv"], "malformed JSON line (Expecting value)"),
    *(
        (
            [*["data", "corpus", "--input", "no", "--tokenizer", "no", "--output", "o", "--validation-share"], share],
            said,
        )
        for share, said in (("1", "--validation-share: is 1; use 0"), ("nan", "--validation-share: is nan; use 0"))
    ),
    *(
        ([*["data", "facts", "--from", "tsv", "--input", "no", "--output", "f.jsonl"], *option.split()], said)
        for option, said in (
            ("--infused -1", "--infused: is -1; a number of facts, 0 or more"),
            ("--distractors 0", "--distractors: is 0; at least 1"),
            ("--longest-name 0", "--longest-name: is 0; 1 character or more"),
            ("--relations a a", "--relations: 'a' is given twice"),
            ("--columns foo=1", "--columns: unknown field 'foo'"),
        )
    ),
    (["data", "inspect", "text.jsonl", "--sample", "-1"], "--sample: is -1; use 0 or more documents"),
    (["data", "inspect", "text.jsonl", "--recount"], "--recount: needs a run; give RUN_DIR, or leave it out"),
    (["data", "inspect", "folder"], "folder: is a folder, not a prefix; give the prefix of a corpus, such as folder/c"),
]


@pytest.mark.parametrize(("words", "said"), UNUSABLE, ids=[" ".join(words) for words, _ in UNUSABLE])
def test_an_unusable_argument_is_refused_by_its_name_and_nothing_is_written(
    study: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    study.with_name("empty").touch()
    study.with_name("folder").mkdir()
    before = sorted(path.name for path in study.parent.iterdir())
    assert said in refused(capsys, *words)
    assert sorted(path.name for path in study.parent.iterdir()) == before


def test_a_part_of_a_setting_that_a_shell_cut_off_is_explained(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["study", "submit", "study.yaml", "--dry-run", "--only", "a", "--json", "cluster={gres: x", "--bad]"])
    assert "unrecognized arguments: --bad]; put a setting with spaces in quotes" in capsys.readouterr().err


def test_a_run_in_place_of_a_model_or_of_runs_is_named(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = study.with_name("run")
    run.mkdir()
    (run / "run.json").write_text("{}")
    (run / "outcomes").mkdir()
    assert "run: is the folder of a run of kis; kis exp" in refused(capsys, "import", "hf", "run", "--output", "s")
    assert "run: is a single run; give a folder of runs" in refused(capsys, "law", "collapse", "run", "--output", "p")
    assert "--tokenizer: cannot be combined with a run" in refused(capsys, "data", "inspect", "run", "--tokenizer", "t")
