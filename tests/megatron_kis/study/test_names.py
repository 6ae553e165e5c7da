"""Names are one folder and plain text everywhere; what is not checked never means something to a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_kis.cli.main import main
from megatron_kis.cli.study.table import headline, tables
from megatron_kis.common.configuration import parse_config
from megatron_kis.common.console import print_table
from megatron_kis.common.errors import InputError
from megatron_kis.config.run import RunConfig
from megatron_kis.executor.logs import for_terminal
from megatron_kis.study.forecast import forecast
from megatron_kis.study.status import RunStatus
from tests.megatron_kis.study.test_executor import run_of
from tests.megatron_kis.test_study import write_study
from tests.sources import Sources

HOSTILE = ["llama/tiny", "../up", ".hidden", "x[/red]", "two\nkis: error: lines", "\x1b[31mred", "-option", "a b", ""]
ESCAPES = "\x1b[31mred\x1b[0m \x9b1m \x07\x1b]0;title\x07"


def said_by(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(words) == 2
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()  # no name adds a line
    assert line.isprintable()
    assert line.startswith("kis: error: ")
    return line


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("place", ["study", "size", "run's size"])
def test_names_of_a_study_are_refused_where_they_are_read(
    place: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = Sources(tmp_path / "t.jsonl", tmp_path / "f.tsv", tmp_path / "t.yaml")
    changes: dict[str, Any] = {
        "study": {"name": name},
        "size": {"ladder": [{"name": name, "layers": 1, "width": 16, "heads": 2}]},
        "run's size": {"runs": [{"size": name, "tokens": 6000, "frequency": 1}]},
    }[place]
    study = write_study(tmp_path, sources, **changes)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    for step in ("plan", "run", "status", "report"):
        said_by(["study", step, str(study)], capsys)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", HOSTILE)
def test_names_of_runs_and_models_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"name"):
        run_of(tmp_path, name)
    content = run_of(tmp_path, "r").model_dump(mode="json")
    content["model"]["name"] = name
    with pytest.raises(InputError, match=r"model\.name"):
        parse_config(RunConfig, content, source="run")


@pytest.mark.parametrize("name", HOSTILE[:-1])
def test_names_of_runs_on_the_command_line_are_quoted_without_harm(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = Sources(tmp_path / "t.jsonl", tmp_path / "f.tsv", tmp_path / "t.yaml")
    study = str(write_study(tmp_path, sources))
    if not name.startswith("-"):
        assert "no run" in said_by(["study", "logs", study, name], capsys)
    with pytest.raises(SystemExit) as ended:
        main(["study", "status", study, "--all", name])
    assert ended.value.code == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("kis: error: ")
    assert all(line.isprintable() for line in said)


def test_tables_and_titles_know_no_markup_and_pass_nothing_on(capfd: pytest.CaptureFixture[str]) -> None:
    print_table(f"x[/red] {ESCAPES}", ("run[/]", "b"), [["7b[v2]", "[bold]x"], [ESCAPES, "1"]])
    shown = capfd.readouterr().out
    assert "x[/red]" in shown
    assert "7b[v2]" in shown
    assert "[bold]x" in shown
    assert all(letter.isprintable() or letter == "\n" for letter in shown)


def test_the_status_knows_no_markup_and_passes_nothing_on(capfd: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    row = RunStatus(
        "7b[v2]",
        f"x[/red]{ESCAPES}",
        1,
        "given up",
        attempts=1,
        where=f"job [7]{ESCAPES}",
        log=(f"[/bold]{ESCAPES}\rover\ttab",),
    )
    console = Console(width=200)
    for rows in ([row], [row] * 61):
        ahead = forecast(rows)
        assert headline(ESCAPES, rows, ahead).isprintable()
        for table in tables(rows, ahead, every=False):
            console.print(table, highlight=False)
    shown = capfd.readouterr().out
    assert "7b[v2]" in shown
    assert "x[/red]" in shown
    assert "[/bold]red" in shown
    assert all(letter.isprintable() or letter == "\n" for letter in shown)


def test_a_log_is_shown_without_what_a_terminal_obeys(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    sources = Sources(tmp_path / "t.jsonl", tmp_path / "f.tsv", tmp_path / "t.yaml")
    study = write_study(tmp_path, sources)
    folder = tmp_path / "out" / "runs" / "1x16_D5.12k_F0_s0"
    folder.mkdir(parents=True)
    text = f"a\tb\r\n10%\r20%\n{ESCAPES}fünf\x1b[2J\nno end\x1b"
    (folder / "log.txt").write_bytes(text.encode() + b"\xff")
    assert main(["study", "logs", str(study), folder.name, "--lines", "0"]) == 0
    assert capfd.readouterr().out == "a\tb\n10%\n20%\nred \\x9b1m \\x07fünf\nno end\\x1b\ufffd"


def test_sequences_of_a_terminal_are_taken_out_of_a_log() -> None:
    assert for_terminal("\x1b[1;31mred\x1b[0m\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\") == "redlink"
    assert for_terminal("\x1b(B") == "\\x1b(B"


def test_what_a_failed_run_printed_is_told_without_harm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from megatron_kis.cli.study.run import tell
    from megatron_kis.executor.interface import Progress

    run = run_of(tmp_path, "bad")
    run.output.mkdir(parents=True)
    (run.output / "log.txt").write_text(f"==== attempt 1\nkis: error: {ESCAPES}\n[Trace]\n===\n===\n===\n===\n===\n")
    tell(Progress(done=(), failed=("bad",), running=(), total=1, elsewhere=(("x", ESCAPES),)), [run])
    said = capsys.readouterr().err
    assert "    kis: error: red" in said
    assert all(letter.isprintable() or letter == "\n" for letter in said)


def test_a_relation_of_a_corpus_is_shown_without_harm(capsys: pytest.CaptureFixture[str]) -> None:
    from megatron_kis.cli.data.inspect import _lines

    assert _lines([ESCAPES, "a\tb"]).splitlines()[1] == "a\tb"
    assert "\x1b" not in _lines([ESCAPES])
    from megatron_kis.common.progress import console_progress

    console_progress().say(f"reading {ESCAPES}")
    assert "\x1b" not in capsys.readouterr().err


def test_words_that_argparse_refuses_are_quoted_without_harm(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["study", "nonsense\x1b[31m\nkis: error: false"])
    assert "\x1b" not in capsys.readouterr().err
