"""What a command is to write is checked before it reads anything."""

from __future__ import annotations

import argparse
import errno
import os
from pathlib import Path
from typing import Any

import pytest

from megatron_kis.cli.main import main
from megatron_kis.cli.outputs import check_written, new_file, new_folder, new_prefix, spare_inputs
from megatron_kis.common.errors import InputError
from megatron_kis.common.files import atomic_folder, check_empty
from megatron_kis.common.paths import unwritable
from tests.sources import Sources
from tests.studies import write_study

FILES = [
    "law collapse RUNS --output",
    "law collapse RUNS --output points.csv --curves-output",
    "law fit --points points.csv --output",
    "law predict law.json --params 7b --output",
    "law decide law.json --params 7b --output",
    "law report RUNS --output",
    "law survival RUNS --output",
    "probe RUNS --outcomes",
    "probe RUNS --histories",
    "data facts --from tsv --input t.tsv --output",
    "data facts --from bear --input BEAR --output facts.jsonl --templates-output",
    "data tokenizer --input t.jsonl --vocab-size 400 --output",
    "data leaks --input t.jsonl --facts facts.jsonl --output",
    "data leaks --input t.jsonl --facts facts.jsonl --clean",
]
FOLDERS = [
    "law report RUNS --output report.html --export",
    "export hf RUNS --output",
    "export lm-eval RUNS --output",
    "export megatron RUNS --output",
    "import hf MODEL --output",
    "import megatron MODEL --output",
    "data demo --output",
    "data export --facts facts.jsonl --templates t.yaml --output",
]
PREFIXES = [
    "data corpus --input t.jsonl --tokenizer t.model --output",
    "data render --facts facts.jsonl --templates t.yaml --tokenizer t.model --output",
    "data merge a b --output",
]


def refused(command: str, output: Path | str, capsys: pytest.CaptureFixture[str]) -> str:
    """Runs a command whose inputs do not exist; returns the last line of the error, which ends it with status 2."""
    try:
        status = main([*command.split(), str(output)])
    except SystemExit as end:
        status = int(str(end.code))
    assert status == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("command", FILES)
def test_a_folder_is_no_file_to_write(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"'{tmp_path}' is a folder; give the name of a file" in refused(command, tmp_path, capsys)


@pytest.mark.parametrize("command", FILES + FOLDERS + PREFIXES)
def test_a_file_holds_no_outputs(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    line = refused(command, tmp_path / "file" / "new" / "out", capsys)
    assert f"'{tmp_path / 'file'}' is a file, not a folder" in line


@pytest.mark.parametrize("command", FOLDERS)
def test_a_file_is_no_folder_to_write_into(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert f"'{tmp_path / 'file'}' is a file, not a folder" in refused(command, tmp_path / "file", capsys)


@pytest.mark.parametrize("command", FILES + FOLDERS + PREFIXES)
def test_a_folder_without_the_right_to_write_is_named(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _forbid(tmp_path, monkeypatch)
    line = refused(command, tmp_path / "new" / "out", capsys)
    assert f"the folder '{tmp_path}' cannot be written; choose another place" in line


def _forbid(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets nothing be made in a folder, whoever runs the tests."""
    opened = os.open

    def refuses(path: Any, flags: int, *rest: Any, **settings: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE and Path(path) == folder:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, flags, *rest, **settings)

    monkeypatch.setattr(os, "open", refuses)


@pytest.mark.parametrize("nameless", [True, False])
def test_a_folder_is_tried_and_left_as_it_was(nameless: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not nameless:  # as on NFS

        def refuses(*_: Any, **__: Any) -> int:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")

        monkeypatch.setattr(os, "open", refuses)
    before = tmp_path.stat().st_mtime_ns
    assert unwritable(tmp_path) is None
    assert not list(tmp_path.iterdir())
    assert tmp_path.stat().st_mtime_ns == before or not nameless
    assert unwritable(tmp_path / "missing") is not None


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no folder of the system's own on this machine")
@pytest.mark.parametrize("command", FILES + FOLDERS + PREFIXES)
def test_a_folder_of_the_systems_own_is_named(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(command, Path("/proc/x/out"), capsys)
    assert "the folder '/proc' cannot be written; choose another place" in line


def test_a_study_whose_output_cannot_be_made_is_refused(
    tmp_path: Path, tiny_sources: Sources, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = write_study(tmp_path, tiny_sources)
    (tmp_path / "place").mkdir()
    _forbid(tmp_path / "place", monkeypatch)
    output = tmp_path / "place" / "out"
    line = refused(f"study plan {study}", f"output={output}", capsys)
    assert f"output: {output}: cannot be made (Permission denied); choose another output" in line
    assert "cannot be made" in refused(f"study run {study}", f"output={output}", capsys)
    assert not list((tmp_path / "place").iterdir())


@pytest.mark.parametrize("command", PREFIXES)
def test_a_prefix_has_a_name(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is a folder; give the beginning of the files' names" in refused(command, f"{tmp_path}/", capsys)


def test_folders_that_can_be_made_and_variables_are_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIS_TEST_PLACE", str(tmp_path))
    for kind in (new_file, new_folder, new_prefix):
        assert kind("$KIS_TEST_PLACE/new/out") == tmp_path / "new" / "out"
        with pytest.raises(argparse.ArgumentTypeError, match="KIS_TEST_NOTHING, which is not set"):
            kind("$KIS_TEST_NOTHING/out")
    (tmp_path / "new").mkdir()
    for kind in (new_file, new_folder):  # what ~ and variables stand for counts
        (tmp_path / "file").touch()
        with pytest.raises(argparse.ArgumentTypeError, match="is a file, not a folder"):
            kind("$KIS_TEST_PLACE/file/out")


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("law collapse --curves {} --output", "--output"),
        ("law collapse --curves {} --output new.csv --curves-output", "--curves-output"),
        ("law fit --points {} --output", "--output"),
        ("law predict {} --params 7b --output", "--output"),
        ("law decide {} --params 7b --output", "--output"),
        ("law report {} --output", "--output"),
        ("law survival runs --facts {} --output", "--output"),
    ],
)
def test_an_input_is_not_written_over(
    command: str, option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = tmp_path / "given"
    given.write_text("kept")
    (tmp_path / "link").hardlink_to(given)
    (tmp_path / "points").symlink_to(given)
    for name in ("given", "link", "points"):
        path = tmp_path / name
        assert refused(command.format(given), path, capsys) == (
            f"kis: error: {option}: {path} is also read; write it elsewhere"
        )
    assert given.read_text() == "kept"


def test_two_outputs_are_two_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "out.csv"
    line = refused(f"law collapse RUNS --output {path} --curves-output", path, capsys)
    assert line == f"kis: error: --curves-output: {path} is also written by --output; write it elsewhere"
    spare_inputs(argparse.Namespace(output=path, curves_output=tmp_path / "b"), ("output", "curves_output"))


def test_a_file_that_cannot_be_written_is_named_with_the_reason(tmp_path: Path) -> None:
    check_written(tmp_path / "new")
    with pytest.raises(InputError, match="is a folder; give the name of a file") as caught:
        check_written(tmp_path)
    assert str(caught.value) == f"{tmp_path}: is a folder; give the name of a file"


@pytest.mark.parametrize("name", ["curves.csv", "points.csv", "law.json", "prediction.json", "report.html"])
@pytest.mark.parametrize("step", ["report", "run"])
def test_a_study_whose_report_cannot_be_written_is_not_begun(
    step: str, name: str, tmp_path: Path, tiny_sources: Sources, capsys: pytest.CaptureFixture[str]
) -> None:
    study = write_study(tmp_path, tiny_sources)
    place = tmp_path / "out" / name
    place.mkdir(parents=True)
    assert f"{place}: is a folder; give the name of a file" in refused(f"study {step}", study, capsys)
    assert not (tmp_path / "out" / "data").exists()


def test_proposals_are_not_made_for_a_study_that_cannot_be_written(
    tmp_path: Path, tiny_sources: Sources, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = write_study(tmp_path, tiny_sources)
    _forbid(tmp_path, monkeypatch)
    line = refused("study next --params 7b --write", study, capsys)
    assert f"{study}: the folder '{tmp_path}' cannot be written" in line


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "new" / "out"
    with pytest.raises(RuntimeError), atomic_folder(place) as partial:
        (partial / "half").touch()
        raise RuntimeError
    assert not list(place.parent.iterdir())
    place.mkdir()
    (tmp_path / "link").symlink_to(place)
    with atomic_folder(tmp_path / "link") as partial:
        (partial / "file").touch()
        assert not list(place.iterdir())
    assert [path.name for path in place.parent.iterdir()] == ["out"]
    assert (tmp_path / "link" / "file").is_file()
    monkeypatch.chdir(tmp_path / "new")
    (tmp_path / "empty").mkdir()
    for taken, problem in (("out", "is not empty"), ("out/file", "is a file"), ("out/file/deeper", "is a file")):
        with pytest.raises(InputError, match=f"{problem}.*; choose another output"):
            check_empty(Path(taken))
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(InputError, match="is the current folder"), atomic_folder(Path()):
        pass
