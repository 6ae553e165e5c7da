"""The documentation: its commands run, its code runs, its messages exist, its links lead somewhere."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_kis.analysis import AnalysisConfig, find_transitions, load_curves_csv
from megatron_kis.analysis.findings.analyse import fit_laws
from megatron_kis.analysis.outputs import law_record
from megatron_kis.cli.main import build_parser
from megatron_kis.common.files import write_json
from tests.pages import PAGES, ROOT, blocks, commands, run

RESULTS = ROOT / "docs" / "study" / "results" / "tutorial"
SOURCES = [path for package in ("megatron_kis", "data_tools", "analysis") for path in (ROOT / package).rglob("*.py")]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_is_one_that_kis_understands(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for block in blocks(page):
        for words in commands(block):
            try:
                build_parser().parse_args(words)
            except SystemExit as ended:
                pytest.fail(f"kis {shlex.join(words)}: {capsys.readouterr().err}") if ended.code else None


@pytest.mark.slow
def test_the_tutorial_runs_from_its_first_command_to_its_last(tmp_path: Path) -> None:
    """On a study as small as may be, and from its law on with the results of the whole one, whose numbers it gives."""
    script = Path("run_scripts") / "examples" / "invented_domain.py"
    (tmp_path / script).parent.mkdir(parents=True)
    shutil.copy(ROOT / script, tmp_path / script)
    page = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    ran, said = 0, ""
    for block in blocks(ROOT / "docs" / "tutorial.md"):
        if block.title:
            (tmp_path / block.title).write_text(block.text, encoding="utf-8")
        if block.language != "sh" or block.note.startswith("not run here"):
            continue
        lines = block.text.strip()
        if block.note == "in tests: the law of the committed results":
            _write_law(tmp_path / "studies" / "minerals" / "law.json")
        elif block.note == "in tests: the points of the committed results":
            shutil.copy(RESULTS / "points.csv", tmp_path / "studies" / "minerals" / "points.csv")
        elif block.note:
            lines = f"{lines} {shlex.join(shlex.split(block.note.removeprefix('in tests: ')))}"
        ended = run(lines, tmp_path)
        assert ended.returncode == 0, f"{lines}\n{ended.stdout}\n{ended.stderr}"
        ran, said = ran + 1, said + ended.stdout
    assert ran == 7
    assert (tmp_path / "studies" / "minerals" / "report.html").is_file()
    for told, found in (("K\\* = 1,110", "K = 1,110"), ("677 and 2,000", "677 to 2,000"), ("558 facts", "K = 558")):
        assert told in page and found in said
    assert "K\\* = 990 (622 to 1,701)" in page and "1 of 1 intervals hit" in said


def _write_law(path: Path) -> None:
    """Writes the law of the tutorial's five sizes, from the committed curves."""
    settings = AnalysisConfig(split="train", axis="facts")
    curves = load_curves_csv(RESULTS / "curves.csv")
    smaller = curves[curves["params"] < 100_000]
    laws, refused = fit_laws(find_transitions(smaller, settings), settings, smaller)
    write_json(path, law_record(laws, refused))


def test_every_message_among_the_errors_is_one_that_is_printed() -> None:
    table = re.findall(r"^\| `(.*?)` \|", (ROOT / "docs" / "errors.md").read_text(encoding="utf-8"), flags=re.M)
    sources = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES)
    assert len(table) > 15
    assert [message for message in table if "{" in message] == []  # what a user reads has values there
    patterns = {message: re.escape(message).replace(re.escape("..."), r"\{[^{}]+\}") for message in table}
    assert [message for message, pattern in patterns.items() if not re.search(pattern, sources)] == []


@pytest.mark.slow
def test_the_site_builds_without_a_broken_link(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(ROOT / "docs" / "site" / "mkdocs.yml")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [*command, "-d", str(tmp_path / "site")], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    page = (tmp_path / "site" / "reference" / "commands.html").read_text(encoding="utf-8")
    assert "kis data corpus" in page and "--on-error" in page
    assert "training.optimizer.learning_rate" in (tmp_path / "site" / "reference" / "configuration.html").read_text()
    study = (tmp_path / "site" / "study" / "index.html").read_text(encoding="utf-8")
    assert study.count('<div class="wide"><table>') > 5  # tables that site.css sets tightly
    assert "../assets/site.css" in study
    assert (tmp_path / "site" / "assets" / "site.css").is_file()
    everything = "\n".join(path.read_text(encoding="utf-8") for path in (tmp_path / "site").rglob("*.html"))
    assert not re.search(r'<(?:script|link)[^>]+(?:src|href)="https?://', everything)  # nothing loads from elsewhere
