"""Where Transformer Engine's Python code is. Not next to what else is installed: without its kernels, Megatron-Core
cannot be imported where it can."""

from __future__ import annotations

import importlib.metadata
import re
import sys
from pathlib import Path

FOLDER = Path(sys.prefix) / "dry-device"
_WANTED = Path(__file__).parents[2] / ".ci" / "dry-device.txt"


def missing() -> str | None:
    """Why it cannot be loaded; None if it can."""
    wanted = re.search(r"^transformer-engine==(\S+)", _WANTED.read_text(), re.MULTILINE)[1]
    found = [one.version for one in importlib.metadata.distributions(name="transformer-engine", path=[str(FOLDER)])]
    return None if found == [wanted] else f"{FOLDER} has no Transformer Engine {wanted}: run `make lint` once"
