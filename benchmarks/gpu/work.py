"""One measurement in a process of its own: a name and its settings as JSON; prints one JSON object per result."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def results(name: str, settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What a measurement finds, one by one."""
    if name == "header":
        from benchmarks.gpu.header import describe

        yield describe(**settings)
    elif name == "data":
        from benchmarks.small_data import make_data

        yield {"data": str(make_data(Path(settings.pop("folder")), **settings))}
    elif name == "speed":
        from benchmarks.gpu.speed import measure

        yield measure(**settings)
    elif name == "memory":
        from benchmarks.gpu.memory_work import measure as parts

        yield from parts(**settings)
    elif name == "exported":
        from benchmarks.gpu.compare import exported

        yield exported(**settings)
    elif name == "implementations":
        from benchmarks.gpu.compare import implementations

        yield implementations(**settings)
    else:
        raise ValueError(name)


if __name__ == "__main__":
    for found in results(sys.argv[1], json.loads(sys.argv[2])):
        print(json.dumps(found), flush=True)
