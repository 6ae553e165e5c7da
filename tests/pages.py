"""The pages of the documentation: their blocks, the commands in them, and a shell to run them."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_BLOCK = re.compile(r"^( *)(?:<!-- (?P<note>.*?) -->\n *)?```(?P<info>[^\n`]*)\n(?P<text>.*?)^ *```$", re.M | re.S)


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
        yield Block(language, title and title[1], match["text"], match["note"] or "")


def commands(block: Block) -> Iterator[list[str]]:
    """Yields the words of each line that calls ``kis``."""
    for line in block.text.replace("\\\n", " ").splitlines():
        if line.startswith("kis "):
            yield shlex.split(line, comments=True)[1:]


def run(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs lines in a shell, with ``kis`` of this environment."""
    paths = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": paths, "OMP_NUM_THREADS": "1"}
    shell = shutil.which("bash") or "sh"
    return subprocess.run(
        [shell, "-eu", "-c", script], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
