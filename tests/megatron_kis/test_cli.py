"""Exit statuses and messages of ``kis``, and the wrong input of each step of its data."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from megatron_kis import __version__
from megatron_kis.cli import main as cli
from megatron_kis.common.errors import InputError, JobError, nearest
from megatron_kis.config.run import RunConfig
from tests.sources import Sources

MakeRun = Callable[..., RunConfig]


def kis(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


def raising(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every command end with ``error``."""

    def fail(_: argparse.Namespace) -> int:
        raise error

    parser = argparse.ArgumentParser()
    parser.add_argument("--debug", action="store_true")
    parser.set_defaults(handler=fail)
    monkeypatch.setattr(cli, "build_parser", lambda: parser)


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (InputError("is -1", where="seed", remedy="use 0 or more"), 2, "kis: error: seed: is -1; use 0 or more\n"),
        (JobError("the loss is nan"), 1, "kis: error: the loss is nan\n"),
        (KeyboardInterrupt(), 130, "kis: interrupted; run the same command again to resume\n"),
        (OSError(28, "No space left on device", "/x"), 1, "kis: error: /x: No space left on device\n"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_ending_has_its_status_and_one_line(
    error: BaseException, status: int, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raising(error, monkeypatch)
    assert kis() == status
    assert capsys.readouterr().err == message


def test_debug_shows_where_an_error_comes_from(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raising(InputError("is -1"), monkeypatch)
    assert kis("--debug") == 2
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("KIS_DEBUG", "1")
    assert kis() == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_defect_of_ours_is_not_dressed_as_wrong_input(monkeypatch: pytest.MonkeyPatch) -> None:
    raising(ZeroDivisionError("ours"), monkeypatch)
    with pytest.raises(ZeroDivisionError):
        kis()


def test_a_reader_that_leaves_early_is_no_error(tiny_data: Path) -> None:
    """As ``kis ... | head`` does: the other end of the pipe is closed before anything is written."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "megatron_kis", "data", "inspect", str(tiny_data / "corpus")]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    ended = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, env=environment, check=False)
    os.close(write)
    assert (ended.returncode, ended.stderr) == (0, b"")


@pytest.mark.parametrize("arguments", [["nonsense"], ["study"], ["train"], ["data", "corpus"], ["law", "fit", "--x"]])
def test_a_command_line_that_makes_no_sense_exits_with_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        kis(*arguments)
    assert ended.value.code == 2
    assert "usage: kis" in capsys.readouterr().err


def test_the_version_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        kis("--version")
    assert capsys.readouterr().out == f"megatron_kis {__version__}\n"


def test_python_minus_m_is_kis() -> None:
    ended = subprocess.run([sys.executable, "-m", "megatron_kis", "--version"], capture_output=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, f"megatron_kis {__version__}\n".encode())


def test_the_nearest_name_is_offered_or_all_of_few_and_the_first_of_many() -> None:
    assert nearest("modle", ["model", "data"]) == "did you mean 'model'?"
    assert nearest("xyzzy", ["model", "data"]) == "valid: data, model"
    many = [f"run{number:04}" for number in range(1000)]
    assert nearest("xyzzy", many) == f"valid: {', '.join(many[:30])} and 970 more"


def facts_with(folder: Path, source: Path, line: int, text: str) -> Path:
    lines = source.read_text(encoding="utf-8").splitlines()
    lines[line - 1] = text
    path = folder / "facts.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def fact_without(source: Path, line: int, key: str) -> str:
    row = json.loads(source.read_text(encoding="utf-8").splitlines()[line - 1])
    return json.dumps({**row, key: ""})


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        ("malformed", "facts.jsonl:3: malformed JSON line"),
        ("object", "facts.jsonl:3: object is missing"),
        ("subject", "facts.jsonl:3: subject is missing"),
        ("group", "facts.jsonl:3: group is missing"),
        ("template", "[X]"),
        ("relation", "town_region"),
        ("tokenizer", "tokenizer.model: not a SentencePiece model"),
    ],
)
def test_nothing_is_rendered_from_wrong_input(
    damage: str,
    complaint: str,
    tiny_data: Path,
    tiny_sources: Sources,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    facts, templates, tokenizer = tiny_data / "facts.jsonl", tiny_sources.templates, tiny_data / "tokenizer.model"
    if damage == "malformed":
        facts = facts_with(tmp_path, facts, 3, '{"id": "x"')
    elif damage in ("object", "subject", "group"):
        facts = facts_with(tmp_path, facts, 3, fact_without(facts, 3, damage))
    elif damage == "tokenizer":
        tokenizer = tmp_path / "tokenizer.model"
        tokenizer.write_bytes(b"no model")
    else:
        content = yaml.safe_load(templates.read_text(encoding="utf-8"))
        if damage == "relation":
            del content["town_region"]
        else:
            content["town_region"]["train"][1] = "A town in [Y]."
        templates = tmp_path / "templates.yaml"
        templates.write_text(yaml.safe_dump(content), encoding="utf-8")
    output = tmp_path / "out" / "exposures"
    paths = ("--facts", facts, "--templates", templates, "--tokenizer", tokenizer, "--output", output)
    assert kis("data", "render", *paths) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.startswith("kis: error: ")
    assert len(error.splitlines()) == 1
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"text": "a', "text.jsonl:2: malformed JSON line"),
        ('{"title": "a"}', "text.jsonl:2: "),
        ("[]", "text.jsonl:2: "),
    ],
)
def test_nothing_is_tokenized_from_a_malformed_line(
    line: str, complaint: str, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.jsonl"
    text.write_text('{"text": "The old bridge crosses the river."}\n' + line + "\n")
    output = tmp_path / "out" / "corpus"
    assert kis("data", "corpus", "--input", text, "--tokenizer", tiny_data / "tokenizer.model", "--output", output) == 2
    assert complaint in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*"))


def test_a_failed_step_leaves_what_was_there(
    tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in tiny_data.glob("corpus.*"):
        shutil.copy(path, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("corpus.*")}
    text = tmp_path / "text.jsonl"
    text.write_text('{"text": "The old bridge."}\nnonsense\n')
    paths = ("--input", text, "--tokenizer", tiny_data / "tokenizer.model", "--output", tmp_path / "corpus")
    assert kis("data", "corpus", *paths) == 2
    assert "text.jsonl:2" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in tmp_path.glob("corpus.*")} == before


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("infusion.frequency=-1", "infusion.frequency"),
        ("infusion.frequency=4000", "the largest that fits is about"),
        ("infusion={ratio: 1.0}", "the largest that fits is about"),
        ("infusion.background.frequency=4000", "infusion.background.frequency: 16 background facts x 4000 exposures"),
        ("training.sequence_length=16", "use longer sequences or shorter templates"),
        ("validation.max_tokens=10", "validation"),
        ("device=cuda", "no CUDA device is available"),
    ],
)
def test_a_run_that_cannot_be_trained_is_refused_before_its_folder_is_made(
    override: str, complaint: str, tiny_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    if "cuda" in override and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    config = tiny_run()
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert kis("train", path, override) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert len(error.splitlines()) == 1
    assert not config.output.exists()


def test_an_output_that_cannot_be_written_is_one_line(
    tiny_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").write_text("a file, not a folder")
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tiny_run(output=tmp_path / "taken" / "run").model_dump(mode="json")))
    assert kis("train", path) == 2
    error = capsys.readouterr().err
    assert error.startswith("kis: error: ")
    assert "taken" in error
