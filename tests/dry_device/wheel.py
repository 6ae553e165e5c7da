"""Where the Python code of Transformer Engine and of Megatron-LM is. Not next to what else is installed: where
Transformer Engine can be imported without its kernels, Megatron-Core cannot."""

from __future__ import annotations

import importlib.metadata
import re
import sys
from pathlib import Path

FOLDER = Path(sys.prefix) / "dry-device"
_WANTED = Path(__file__).parents[2] / ".ci" / "dry-device.txt"


def missing(package: str = "transformer-engine") -> str | None:
    """Why a package cannot be loaded; None if it can."""
    wanted = re.search(rf"^{package}==(\S+)", _WANTED.read_text(), re.MULTILINE)[1]
    found = [one.version for one in importlib.metadata.distributions(name=package, path=[str(FOLDER)])]
    return None if found == [wanted] else f"{FOLDER} has no {package} {wanted}: run `make lint` once"
