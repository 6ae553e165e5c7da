"""The pages of the documentation: their blocks, the commands in them, a shell to run them, a browser to open them."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.forked import run_kis

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--virtual-time-budget=3000",
]
_NOTE = r"(?:<!-- (?P<note>(?:(?!-->).)*?) -->\n *)?"
_BLOCK = re.compile(rf"^( *){_NOTE}```(?P<info>[^\n`]*)\n(?P<text>.*?)^ *```$", re.M | re.S)
_WITHOUT_MODELS = ("law", "plan", "schema")  # commands that import neither PyTorch nor Megatron-Core


@dataclass(frozen=True)
class Block:
    """A fenced block, and the comment in front of it."""

    language: str
    title: str | None
    text: str
    note: str


def blocks(page: Path) -> Iterator[Block]:
    """Yields the fenced blocks of a page."""
    for match in _BLOCK.finditer(page.read_text(encoding="utf-8")):
        language, _, rest = match["info"].strip().partition(" ")
        title = re.search(r'title="(.*?)"', rest)
        yield Block(language, title and title[1], textwrap.dedent(match["text"]), match["note"] or "")


def commands(block: Block) -> Iterator[list[str]]:
    """Yields the words of each line that calls ``kis``."""
    for line in block.text.replace("\\\n", " ").splitlines():
        if line.startswith("kis "):
            yield shlex.split(line, comments=True)[1:]


def run(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs lines in a shell, with ``kis`` of this environment, up to the first that fails.

    What trains or reads models is forked (``forked``) with the words that the shell makes of its line.
    """
    output, errors = "", ""
    for line in script.replace("\\\n", " ").splitlines():
        if line.split()[:1] == ["kis"] and line.split()[1] not in _WITHOUT_MODELS:
            words = _shell(f"kis() {{ printf '%s\\0' \"$@\"; }}; {line}", folder)
            assert words.returncode == 0, words.stderr
            ended = run_kis(*words.stdout.split("\0")[:-1], folder=folder)
        else:
            ended = _shell(line, folder)
        output, errors = output + ended.stdout, errors + ended.stderr
        if ended.returncode:
            break
    return subprocess.CompletedProcess(script, ended.returncode, output, errors)


def _shell(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    paths = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": paths, "OMP_NUM_THREADS": "1"}
    shell = shutil.which("bash") or "sh"
    return subprocess.run(
        [shell, "-eu", "-c", line], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
