"""The command line: help at every level, and wrong input as one clear line with exit status 2, nothing half-written."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from megatron_kis.cli.main import build_parser, main
from megatron_kis.config.run import RunConfig
from tests.sources import Sources
from tests.studies import write_study

MakeRun = Callable[..., RunConfig]


def levels(parser: argparse.ArgumentParser) -> Iterator[list[str]]:
    """Yields the words of every command and of every group of commands."""
    yield []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, below in action.choices.items():
                yield from ([word, *words] for words in levels(below))


@pytest.mark.parametrize("level", levels(build_parser()), ids=" ".join)
def test_every_level_has_help(level: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*level, "--help"])
    assert ended.value.code == 0
    assert "usage: kis" in capsys.readouterr().out


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Runs a command that must end with status 2, and returns its one line of complaint."""
    capsys.readouterr()
    assert main(arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("kis: error: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("data corpus --tokenizer t --output o", "--input"),
        ("data facts --from tsv --input i --output o", "--columns"),
        ("data facts --from tsv --input i --output o", "--relations"),
        ("data export --facts f --templates t --output o", "--groups"),
        ("law import lm-eval runs.csv --output o", "--metric"),
        ("study run study.yaml", "--only"),
    ],
    ids=lambda words: words,
)
def test_a_list_that_is_given_in_two_parts_is_whole(command: str, option: str) -> None:
    words = ["infused", "background"]
    given = build_parser().parse_args([*command.split(), option, words[0], option, words[1]])
    assert [str(word) for word in getattr(given, option.removeprefix("--"))] == words


def test_unknown_keys_name_the_nearest_valid_one(
    tmp_path: Path, tiny_sources: Sources, capsys: pytest.CaptureFixture[str]
) -> None:
    study = str(write_study(tmp_path, tiny_sources))
    for override, key, near in (
        ("ladr=1", "ladr", "ladder"),
        ("training.sequence_lenght=1", "training.sequence_lenght", "sequence_length"),
        ("data.vocab=1", "data.vocab", "vocab_size"),
        ("data.select.infuse=1", "data.select.infuse", "infused"),
        ("analysis.toleranc=1", "analysis.toleranc", "tolerance"),
    ):
        line = refused(["study", "plan", study, override], capsys)
        assert key in line
        assert f"did you mean '{near}'?" in line


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("frequencies=[0,-1]", "frequencies=[0,-1]: is -1; must be at least 0"),
        ("frequencies=[0,4000]", "the largest that fits is about"),
        ("token_budgets=[100]", "less than one step"),
        ("ladder=[{preset: cpu-4}]", "no model preset 'cpu-4'"),
        ("ladder=[{layers: 1, width: 15, heads: 2}]", "a head's width must be a whole, even number"),
        ("data.select.infused=99999", "ask for fewer facts"),
        ("frequencies", "is not of the form key=value"),
        ("data.text=[nowhere.jsonl]", "nowhere.jsonl"),
    ],
)
def test_settings_that_cannot_be_met_are_refused_before_any_run(
    override: str, complaint: str, tmp_path: Path, tiny_sources: Sources, capsys: pytest.CaptureFixture[str]
) -> None:
    study = write_study(tmp_path, tiny_sources)
    assert complaint in refused(["study", "run", str(study), override], capsys)
    assert not (tmp_path / "out" / "runs").exists()


@pytest.mark.parametrize("damage", ["malformed json", "no object", "template without [X]", "template without [Y]"])
def test_damaged_sources_are_named_by_file_and_line(
    damage: str, tmp_path: Path, tiny_sources: Sources, capsys: pytest.CaptureFixture[str]
) -> None:
    copies = Sources(*(Path(shutil.copy(path, tmp_path)) for path in tiny_sources.__dict__.values()))
    if damage == "malformed json":
        lines = copies.text.read_text().splitlines()
        lines[4] = lines[4][:20]
        copies.text.write_text("\n".join(lines) + "\n")
        expected = f"{copies.text}:5"
    elif damage == "no object":
        lines = copies.triples.read_text().splitlines()
        lines[6] = "\t".join([*lines[6].split("\t")[:2], ""])
        copies.triples.write_text("\n".join(lines) + "\n")
        expected = f"{copies.triples}:7"
    else:
        slot = damage.rsplit(maxsplit=1)[-1]
        templates = yaml.safe_load(copies.templates.read_text())
        templates["town_region"]["held_out"][0] = templates["town_region"]["held_out"][0].replace(slot, "it")
        copies.templates.write_text(yaml.safe_dump(templates))
        expected = slot
    line = refused(["study", "run", str(write_study(tmp_path, copies))], capsys)
    assert expected in line
    assert not list((tmp_path / "out").rglob("corpus.idx")) or "template" in damage
    assert not list((tmp_path / "out").rglob("*.partial"))


@pytest.mark.parametrize(
    ("name", "keep", "complaint"),
    [
        ("corpus.idx", None, "no such file"),
        ("corpus.idx", 0.5, "truncated"),
        ("corpus.bin", 0.5, "truncated"),
        ("corpus.validation.idx", 0.5, "truncated"),
        ("exposures.idx", 20, "truncated"),
        ("tokenizer.model", 100, "not a SentencePiece model"),
        ("tokenizer.model", None, "no such file"),
        ("exposures.questions.jsonl", 0.5, "malformed JSON line"),
    ],
)
def test_damaged_data_are_refused_before_training(
    name: str,
    keep: float | None,
    complaint: str,
    tiny_run: MakeRun,
    tiny_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    damaged = data / name
    content = damaged.read_bytes()
    damaged.unlink()
    if keep is not None:
        damaged.write_bytes(content[: int(keep if keep > 1 else keep * len(content))])
    config = tiny_run(
        data={
            "corpus": data / "corpus",
            "validation": data / "corpus.validation",
            "exposures": data / "exposures",
            "tokenizer": data / "tokenizer.model",
        }
    )
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    line = refused(["train", str(path)], capsys)
    assert name in line
    assert complaint in line
    assert not config.output.exists()


def test_a_run_is_configured_by_file_and_overrides(
    tiny_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tiny_run().model_dump(mode="json")))
    assert main(["train", str(path), "training.seed=3", f"output={tmp_path / 'third'}"]) == 0
    assert capsys.readouterr().out.strip().endswith("third")
    assert (tmp_path / "third" / "DONE").exists()
    again = ["train", str(path), "training.seed=3", f"output={tmp_path / 'third'}"]
    assert "nope: no such folder" in refused([*again, "--branch-from", "nope"], capsys)
    line = refused([*again, "--branch-from", str(tmp_path)], capsys)
    assert (
        f"--branch-from: is '{tmp_path}', but {tmp_path / 'third'} began from step 0; leave it out, or choose" in line
    )
    assert "--restart: begins an unfinished run again, and" in refused([*again, "--restart"], capsys)
    assert main(again) == 0
    assert "parallel.tensro" in refused(["train", str(path), "parallel.tensro=2"], capsys)
    path.write_text("name: [unclosed\n")
    assert f"{path}:" in refused(["train", str(path)], capsys)


@pytest.mark.parametrize("folder", ["nowhere", "0001", "studies"])
def test_what_is_no_submission_is_not_prepared(
    folder: str, tmp_path: Path, tiny_sources: Sources, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "studies").mkdir()
    write_study(tmp_path / "studies", tiny_sources)
    assert f"{folder}: is not a submission; give the folder" in refused(
        ["study", "prepare", str(tmp_path / folder)], capsys
    )
