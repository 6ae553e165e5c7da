"""``kis study report`` and ``next`` look at the runs that the study file now names; folders are made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_kis.analysis import AnalysisConfig, analyse_study, report
from megatron_kis.cli.main import main
from megatron_kis.cli.study.report import belonging
from megatron_kis.common.errors import InputError
from megatron_kis.config.study import StudyConfig
from tests.analysis.synthetic import Truth, write_run

FREQUENCIES = [0, 64, 128, 256, 512]
TOKENS = 2_000_000


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study file whose runs are all done."""
    content = {
        "name": "s",
        "output": str(tmp_path / "out"),
        "ladder": [{"layers": 1, "width": 16, "heads": 2}],
        "token_budgets": [TOKENS],
        "frequencies": FREQUENCIES,
        "training": {"sequence_length": 64, "global_batch_size": 8, "optimizer": {"learning_rate": 0.01}},
        "data": {"text": ["t.jsonl"], "facts": "f.tsv", "templates": "t.yaml"},
        "analysis": {"resamples": 99, "law_resamples": 0},
    }
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(content))
    for name, config in configs(path).items():
        frequency = int(config["infusion"]["frequency"])
        write_run(tmp_path / "out" / "runs" / name, Truth(facts=30), 100_000, frequency, 0, config=config)
    return path


def configs(path: Path) -> dict[str, dict[str, Any]]:
    from megatron_kis.config.data import DataConfig
    from megatron_kis.study.grid import runs_of

    data = DataConfig(corpus=Path("c"), validation=Path("v"), exposures=Path("e"), tokenizer=Path("t"))
    return {run.name: run.model_dump(mode="json") for run in runs_of(loaded(path), data)}


def loaded(path: Path) -> StudyConfig:
    from argparse import Namespace

    from megatron_kis.cli.study.common import load_study

    return load_study(Namespace(study=path, overrides=[]))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))


def test_all_runs_of_the_study_are_reported(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "report", str(study)]) == 0
    assert "not of this study" not in capsys.readouterr().out
    assert len(belonging(loaded(study))["runs"]) == len(FREQUENCIES)


@pytest.mark.parametrize("step", ["report", "next"])
def test_a_run_that_cannot_be_counted_is_named_where_the_findings_are(
    study: Path, capsys: pytest.CaptureFixture[str], step: str
) -> None:
    first, second, *_ = sorted((study.parent / "out" / "runs").iterdir())
    (first / "probes.jsonl").write_text("oops")
    (second / "DONE").unlink()
    assert main(["study", step, str(study), *(["--params", "1e6"] if step == "next" else [])]) == 0
    told = capsys.readouterr()
    line = next(line for line in (told.out + told.err).splitlines() if "2 runs are not counted: " in line)
    assert f"{first.name} (damaged: " in line
    assert f"{second.name} (incomplete: " in line


@pytest.mark.parametrize("step", ["report", "next"])
@pytest.mark.parametrize("prepared", [False, True])
def test_a_study_without_runs_is_told_to_train_them(
    study: Path, capsys: pytest.CaptureFixture[str], step: str, prepared: bool
) -> None:
    output = study.parent / "untrained"
    edit(study, output=str(output), predict=[1e6])
    if prepared:
        (output / "data").mkdir(parents=True)
    assert main(["study", step, str(study)]) == 2
    assert f"{output}: has no runs yet; kis study run trains them" in capsys.readouterr().err


def test_runs_that_an_edited_study_does_not_name_are_apart_everywhere(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(study, frequencies=[0, 64, 128, 256])
    apart = "1x16_D2M_F512_s0"
    assert main(["study", "report", str(study)]) == 0
    assert f"1 run is not of this study: {apart} (the study does not name it)" in capsys.readouterr().out
    out = study.parent / "out"
    assert ",512," not in (out / "curves.csv").read_text()
    page = (out / "report.html").read_text()
    assert "Not of this study" in page
    assert apart in page
    assert main(["study", "next", str(study), "--params", "1e6"]) == 0
    assert apart in capsys.readouterr().err
    assert main(["study", "report", str(study), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["not_counted"]
    assert rows == [{"run": apart, "status": "foreign", "reason": "the study does not name it"}]


def test_runs_of_other_settings_are_apart_and_the_key_is_named(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(study, training={"sequence_length": 64, "global_batch_size": 4, "optimizer": {"learning_rate": 0.01}})
    for step in (["report"], ["next", "--params", "1e6"]):
        assert main(["study", step[0], str(study), *step[1:]]) == 2
        assert "training.global_batch_size 8 -> 4" in capsys.readouterr().err


def test_data_that_are_not_made_yet_are_not_reported_on(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from megatron_kis.study.manifest import write_study

    out = study.parent / "out"
    write_study(loaded(study), out / "study.yaml")
    assert main(["study", "report", str(study)]) == 0
    edit(study, data={"text": ["t2.jsonl"], "facts": "f.tsv", "templates": "t.yaml", "vocab_size": 390})
    capsys.readouterr()
    for step in (["report"], ["next", "--params", "1e6"]):
        assert main(["study", step[0], str(study), *step[1:]]) == 2
        said = capsys.readouterr().err
        assert "data.vocab_size 2048 -> 390" in said
        assert "t2.jsonl" in said


def test_names_from_records_reach_neither_terminal_nor_page_raw(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = next(iter(configs(study).values()))
    name = "x\x1b[31m<b>"
    write_run(study.parent / "out" / "runs" / name, Truth(facts=30), 100_000, 7, 0, config=config, study="\ud800\x00")
    assert main(["study", "report", str(study)]) == 0
    printed = capsys.readouterr()
    page = (study.parent / "out" / "report.html").read_text()
    for text in (printed.out, printed.err, page):
        assert not {"\x1b", "\x00", "\ud800"} & set(text)
    assert "x\\x1b[31m&lt;b&gt;" in page
    assert "x\\x1b[31m<b>" in printed.out
    out = study.parent / "out"
    assert main(["law", "collapse", str(out), "--output", str(out / "p.csv")]) == 0
    assert "\x1b" not in capsys.readouterr().err


MISTAKES = {
    "critrion": ("tolerance_rule", "analysis.critrion: unknown key; did you mean 'criterion'?"),
    "r": (1.5, "analysis.r: is 1.5; must be below 1"),
    "resamples": ("many", "analysis.resamples: "),
    "law": (None, "analysis.law: "),
}


def everything(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.fixture
def mistaken(study: Path, request: pytest.FixtureRequest) -> tuple[Path, Path, str]:
    """The study file and the one in its output folder, both with one wrong key of ``analysis``; what is said of it."""
    value, said = MISTAKES[request.param]
    edit(study, analysis={"resamples": 99, "law_resamples": 0, request.param: value})
    resolved = study.parent / "out" / "study.yaml"
    resolved.write_bytes(study.read_bytes())
    return study, resolved, said


@pytest.mark.parametrize("mistaken", MISTAKES, indirect=True)
@pytest.mark.parametrize(
    "command",
    [
        "study status",
        "study plan",
        "study run",
        "study report",
        "study next --params 1e6",
        "study submit",
        "plan",
    ],
)
def test_a_wrong_criterion_is_refused_by_every_command_that_reads_the_file(
    mistaken: tuple[Path, Path, str], command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    study, _, said = mistaken
    before = everything(study.parent)
    assert main([*command.split(), str(study)]) == 2
    assert f"{study}: {said}" in capsys.readouterr().err
    assert everything(study.parent) == before


@pytest.mark.parametrize("mistaken", MISTAKES, indirect=True)
@pytest.mark.parametrize("folder", [".", "runs"])
@pytest.mark.parametrize("step", ["collapse", "fit", "report"])
def test_a_wrong_criterion_is_refused_by_every_command_that_reads_the_folder(
    mistaken: tuple[Path, Path, str], step: str, folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    study, resolved, said = mistaken
    before = everything(study.parent)
    assert main(["law", step, str(resolved.parent / folder), "--output", str(study.parent / "new")]) == 2
    assert f"{resolved}: {said}" in capsys.readouterr().err
    assert everything(study.parent) == before


@pytest.mark.parametrize("mistaken", MISTAKES, indirect=True)
def test_a_wrong_criterion_is_refused_in_python(mistaken: tuple[Path, Path, str]) -> None:
    study, resolved, said = mistaken
    before = everything(study.parent)
    for call in (lambda: report(resolved.parent, study.parent / "new.html"), lambda: analyse_study(resolved.parent)):
        with pytest.raises(InputError) as caught:
            call()
        assert f"{resolved}: {said}" in str(caught.value)
    assert everything(study.parent) == before


@pytest.mark.parametrize("content", [{"analysys": {"r": 0.2}}, {"analysis": None}, {"analysis": ["hinge"]}])
def test_a_declaration_that_would_not_be_read_is_refused(study: Path, content: dict[str, Any]) -> None:
    (study.parent / "out" / "study.yaml").write_text(yaml.safe_dump({"title": "t", **content}))
    with pytest.raises(InputError, match=f"study.yaml: {next(iter(content))}: "):
        analyse_study(study.parent / "out")


@pytest.mark.parametrize(
    "declared", [{"resamples": "199"}, {"resamples": 199.0}, {"tolerance": "0.1"}, {"tolerance": 1}]
)
def test_the_same_values_are_accepted_everywhere(study: Path, declared: dict[str, Any], tmp_path: Path) -> None:
    edit(study, analysis={"law_resamples": 0, **declared})
    resolved = study.parent / "out" / "study.yaml"
    resolved.write_bytes(study.read_bytes())
    assert main(["study", "status", str(study)]) == 0
    assert main(["law", "collapse", str(resolved.parent), "--output", str(tmp_path / "points.csv")]) == 0
    assert loaded(study).analysis == AnalysisConfig(**{"law_resamples": 0, **declared})
