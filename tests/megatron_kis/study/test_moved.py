"""A study, or one of its runs, is moved or copied: every command works there, whatever the current folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from megatron_kis.cli.main import main
from tests.runs import hashes
from tests.sources import Sources, write_sources
from tests.studies import ONE, RUN, edited, write_study


def kis(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """What a command that succeeds prints."""
    capsys.readouterr()
    status = main([str(word) for word in words])
    said = capsys.readouterr()
    assert status == 0, said.err
    return said.out


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder that has nothing to do with the study."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.usefixtures("elsewhere")
def test_a_finished_run_alone_is_asked_inspected_and_exported_where_it_was_copied(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(done.parent / "out" / "runs" / RUN, tmp_path / "copies" / RUN)
    before = kis(capsys, "probe", done.parent / "out" / "runs" / RUN, "--json")
    shutil.rmtree(done.parent)
    run = Path("..", "copies", RUN)
    ours, theirs = json.loads(kis(capsys, "probe", run, "--json")), json.loads(before)
    for found in (ours, theirs):
        del found["questions_file"]
        for row in found["rows"]:
            del row["seconds"]
    assert ours == theirs
    assert kis(capsys, "probe", run, "--histories", "histories.csv")
    assert "infused" in kis(capsys, "data", "inspect", run)
    kis(capsys, "export", "hf", run, "--output", "model")
    kis(capsys, "export", "lm-eval", run, "--output", "tasks")
    kis(capsys, "probe", run, "--keep", "--all-templates")
    kis(capsys, "law", "collapse", run.parent, "--output", "points.csv", "--resamples", 99)


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("file", ["study.yaml", "out/study.yaml"])
def test_a_study_that_was_moved_with_its_sources_is_the_same_study(
    done: Path, tmp_path: Path, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its own file names the sources relatively; that in its output finds them from there."""
    content = yaml.safe_load(done.read_text(encoding="utf-8"))
    write_sources(done.parent / "sources")
    names = {"text": ["sources/text.jsonl"], "facts": "sources/triples.tsv", "templates": "sources/templates.yaml"}
    edited(done, data=content["data"] | names)
    kis(capsys, "study", "run", done)  # which writes down where the sources are
    moved = tmp_path / "moved"
    done.parent.rename(moved)
    before = hashes(moved / "out" / "runs")
    study, out = Path("..", "moved", file), moved / "out"
    states = [row["state"] for row in json.loads(kis(capsys, "study", "status", study, "--json"))["runs"]]
    assert states == ["done"]
    kis(capsys, "study", "plan", study)
    kis(capsys, "study", "report", study)
    (out / "report.html").unlink()
    kis(capsys, "study", "run", study)
    assert (out / "report.html").exists()
    kis(capsys, "study", "probe", study, "probes.facts_per_group=4")
    assert {name: text for name, text in hashes(out / "runs").items() if name in before} == before
    kis(capsys, "probe", out / "runs" / RUN)
    kis(capsys, "data", "inspect", out / "runs" / RUN, "--recount")
    kis(capsys, "law", "survival", out, "--output", "survival.csv")


@pytest.mark.usefixtures("elsewhere")
def test_the_output_of_a_study_alone_is_reported_and_asked_without_its_sources(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The text of a large study stays where it was; questions need the templates, and nothing else."""
    shutil.copytree(done.parent / "out", tmp_path / "copy")
    content = yaml.safe_load((tmp_path / "copy" / "study.yaml").read_text(encoding="utf-8"))
    templates = content["data"]["templates"]
    content["data"] |= {"text": ["/gone/text.jsonl"], "facts": "/gone/triples.tsv"}
    (tmp_path / "copy" / "study.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    shutil.rmtree(done.parent)
    study = Path("..", "copy", "study.yaml")
    assert "1 done" in kis(capsys, "study", "status", study)
    kis(capsys, "study", "probe", study, "probes.facts_per_group=4", f"data.templates={templates}")
    kis(capsys, "study", "report", study)
    kis(capsys, "law", "collapse", study.parent, "--output", "points.csv", "--resamples", 99)
    (tmp_path / "copy" / "study.yaml").write_text(
        (tmp_path / "copy" / "study.yaml").read_text(encoding="utf-8").replace(templates, "/gone/templates.yaml"),
        encoding="utf-8",
    )
    kis(capsys, "study", "report", study)  # what there is was answered


def test_the_same_command_means_the_same_study_in_every_folder(
    tiny_sources: Sources, tmp_path: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = write_study(tmp_path, tiny_sources, **ONE)
    (tmp_path / "out" / "runs" / RUN).mkdir(parents=True)
    said = kis(capsys, "study", "status", study, "--json")
    assert kis(capsys, "study", "status", Path("..", study.name), "--json") == said
    assert not list(elsewhere.iterdir())
