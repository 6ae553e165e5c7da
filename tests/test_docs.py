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
from tests.pages import CHROMIUM, PAGES, QUIET, ROOT, blocks, commands, run

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


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_block_is_one_on_the_site_too(page: Path) -> None:
    """With any other word after its language, a block is shown there as running text."""
    lines = [line.strip() for line in page.read_text(encoding="utf-8").splitlines()]
    info = [line.strip("` ") for line in lines if line.startswith("```")]
    assert [words for words in info if not re.fullmatch(r'(\w+( title="[^"]+")?)?', words)] == []


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
    assert "K\\* = 1,100" in page and "between 654 and 1,850" in page and "**532 facts**" in page
    predicted = re.search(r"centre +K = ([\d,]+)\n.*?interval of a model +([\d,]+) to ([\d,]+)\n", said, re.S)
    decided = re.search(r"nothing lost with 95% +K = ([\d,]+)\n", said)
    assert predicted and decided
    numbers = [int(number.replace(",", "")) for number in (*predicted.groups(), decided[1])]
    assert numbers == pytest.approx([1100, 654, 1850, 532], rel=0.1)  # intervals are drawn at random
    assert "K\\* = 990 (622 to 1,701)" in page and "1 of 1 interval hit" in said


def _write_law(path: Path) -> None:
    """Writes the law of the tutorial's five sizes, from the committed curves."""
    settings = AnalysisConfig(split="train", axis="facts")
    curves = load_curves_csv(RESULTS / "curves.csv")
    smaller = curves[curves["params"] < 100_000]
    laws, refused = fit_laws(find_transitions(smaller, settings), settings, smaller)
    write_json(path, law_record(laws, refused))


def test_every_message_in_a_table_of_messages_is_one_that_is_printed() -> None:
    pages = [path.read_text(encoding="utf-8") for path in PAGES]
    tables = [rows for page in pages for rows in re.findall(r"^\| message \|.*\n((?:\|.*\n?)+)", page, flags=re.M)]
    table = re.findall(r"^\| `(.*?)` \|", "".join(tables), flags=re.M)
    sources = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES)
    assert len(tables) > 6 and len(table) > 60
    assert [message for message in table if "{" in message] == []  # what a user reads has values there
    patterns = {message: re.escape(message).replace(re.escape("..."), r"\{[^{}]+\}") for message in table}
    assert [message for message, pattern in patterns.items() if not re.search(pattern, sources)] == []


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built site."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(ROOT / "docs" / "site" / "mkdocs.yml")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([*command, "-d", str(folder)], env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return folder


@pytest.mark.slow
def test_the_site_builds_without_a_broken_link(site: Path) -> None:
    page = (site / "reference" / "commands.html").read_text(encoding="utf-8")
    assert "kis data corpus" in page and "--on-error" in page
    assert "model presets: cpu-32" in page
    keys = (site / "reference" / "configuration.html").read_text()
    assert "training.optimizer.learning_rate" in keys and "<code>[1.0]</code>" in keys and "<code>true</code>" in keys
    names = (site / "reference" / "python.html").read_text()
    assert all(
        f'id="{name.lower()}"' in names for name in ("InfusedDataset", "probe_model", "infused", "find_transitions")
    )
    assert "AnalysisSettings" not in names, "a second name of the same class"
    study = (site / "study" / "index.html").read_text(encoding="utf-8")
    assert study.count('<div class="wide"><table>') > 5  # tables that site.css sets tightly
    assert "../assets/site.css" in study
    assert (site / "assets" / "site.css").is_file()
    texts = {path: path.read_text(encoding="utf-8") for path in site.rglob("*.html") if path.name != "404.html"}
    pictures = {
        path.parent / src for path, text in texts.items() for src in re.findall(r' src(?:set)?="([^":]+)"', text)
    }
    assert site / "cliff-narrow.png" in pictures and not [path for path in pictures if not path.is_file()]
    everything = "\n".join(texts.values())
    assert "&amp;lt;" not in everything  # what is escaped twice
    assert not re.search(r'<(?:script|link)[^>]+(?:src|href)="https?://', everything)  # nothing loads from elsewhere
    assert '<ol start="4">' in (site / "index.html").read_text(encoding="utf-8")  # a list that a block interrupts


# Runs in a page of the site, as a user would: writes a word into the search box, and notes what is found.
SEARCH = """
<script>
addEventListener("load", () => setTimeout(() => {
  document.querySelector("[for=__search]").click();
  const query = document.querySelector("[data-md-component=search-query]");
  query.value = "collapse";
  query.focus();
  query.dispatchEvent(new KeyboardEvent("keyup", {bubbles: true}));
  setTimeout(() => {
    const out = document.createElement("pre");
    out.id = "seen";
    out.textContent = document.querySelector(".md-search-result__meta").textContent.trim();
    document.body.append(out);
  }, 4000);
}, 1500));
</script>
"""


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_pages_opened_from_files_can_be_searched(site: Path, tmp_path: Path) -> None:
    page = (site / "how-to" / "steps.html").read_text(encoding="utf-8")
    probed = site / "how-to" / "probed.html"
    probed.write_text(page.replace("</body>", SEARCH + "</body>"), encoding="utf-8")
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    command = [str(CHROMIUM), *QUIET[:-1], "--virtual-time-budget=20000", profile, "--dump-dom", probed.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True).stdout
    probed.unlink()
    assert re.search(r'<pre id="seen">\d+ matching documents</pre>', dom)
