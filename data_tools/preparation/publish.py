"""Replaces earlier files by finished ones, all or none, whenever the process is killed.

New files are made in ``OUTPUT/unfinished``, a folder of the same layout. When all are complete, ``publish.json`` is
written there: from then on the change is decided, and a command that finds this file completes it. Until then the
earlier files are untouched. While files are moved some are missing, but an earlier file of a step is never seen next to
a new one.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from megatron_kis.common.files import make_folder, read_json, write_json
from megatron_kis.data_tools.preparation.stamps import Step, read_stamp

SCHEMA = "kis.publish/1"
_LIST = "publish.json"


def unfinished(output: Path) -> Path:
    """Returns the folder in which new files are made."""
    return output / "unfinished"


def is_interrupted(output: Path) -> bool:
    """Returns whether a process was killed while it moved files into place."""
    return (unfinished(output) / _LIST).exists()


def publish(output: Path, steps: Iterable[Step]) -> None:
    """Moves the outputs and stamps of steps from ``unfinished`` to their place."""
    content: dict[str, dict[str, list[str]]] = {}
    for step in steps:
        earlier = read_stamp(output, step.name)
        obsolete = [name for name in (earlier or {"outputs": {}})["outputs"] if name not in step.outputs]
        content[step.name] = {"outputs": list(step.outputs), "remove": obsolete}
    write_json(unfinished(output) / _LIST, {"schema": SCHEMA, "steps": content})
    finish(output)


def finish(output: Path) -> None:
    """Completes what ``publish`` began, from wherever it was interrupted."""
    folder = unfinished(output)
    make_folder(output / "stamps")
    for name, step in read_json(folder / _LIST, SCHEMA, keys=("steps",))["steps"].items():
        stamp = folder / "stamps" / f"{name}.json"
        if not stamp.exists():
            continue
        (output / "stamps" / f"{name}.json").unlink(missing_ok=True)
        remaining = [output_name for output_name in step["outputs"] if (folder / output_name).exists()]
        for output_name in (*remaining, *step["remove"]):
            (output / output_name).unlink(missing_ok=True)
        for output_name in remaining:
            (folder / output_name).replace(output / output_name)
        stamp.replace(output / "stamps" / f"{name}.json")
    (folder / _LIST).unlink()
    shutil.rmtree(folder)


def move_outputs(step: Step, spare: Path, folder: Path) -> None:
    """Moves a step's outputs, and last its stamp, from one folder to another."""
    make_folder(folder / "stamps")
    for name in (*step.outputs, f"stamps/{step.name}.json"):
        shutil.move(spare / name, folder / name)
