"""How ``kis train`` ended, for whoever started it: a file that outlives torchrun and srun, which report less.

``KIS_STATUS_FILE`` names the file. The first rank that fails writes it, exclusively: what other ranks meet afterwards
(a connection that is closed, a signal) is a consequence. torchrun itself reads ``TORCHELASTIC_ERROR_FILE`` of each rank
and prints its content.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from megatron_kis.common.errors import InputError, KisError, printable, system_problem
from megatron_kis.common.parsing import parse_json

VARIABLE = "KIS_STATUS_FILE"
SCHEMA = "kis.status/1"

_TORCHRUN = "TORCHELASTIC_ERROR_FILE"
_PATIENCE = 5.0
"""Seconds for which a rank waits for others to report the cause of its failure: a rank that has refused its input
leaves its process groups, which the others see, before it writes."""


@dataclass(frozen=True)
class Ending:
    """End of a run."""

    status: int
    """Exit status of the rank that failed first."""

    error: str
    """Reason of that rank, in one line."""


def tell_starter(status: int, error: str, *, environment: Mapping[str, str] = os.environ) -> None:
    """Writes how this process ends, where it was asked for; what cannot be written changes nothing.

    Args:
        status: the exit status. One of several ranks that ends with 1 waits first: wrong input (2) and a request to
            stop (75) are causes, and another failure may be the consequence of one.
        error: the reason.
        environment: KIS_STATUS_FILE, TORCHELASTIC_ERROR_FILE and WORLD_SIZE.
    """
    ours, theirs = environment.get(VARIABLE), environment.get(_TORCHRUN)
    with suppress(OSError):
        if ours and status == 1 and environment.get("WORLD_SIZE", "1") != "1":
            deadline = time.monotonic() + _PATIENCE
            while time.monotonic() < deadline and not Path(ours).exists():
                time.sleep(0.1)
    with suppress(OSError):
        if theirs:
            details = {"py_callstack": error, "timestamp": str(int(time.time()))}
            Path(theirs).write_text(json.dumps({"message": {"message": error, "extraInfo": details}}), encoding="utf-8")
    with suppress(OSError):
        if ours:
            content = {"schema": SCHEMA, "status": status, "error": error}
            with open(ours, "x", encoding="utf-8") as file:
                file.write(json.dumps(content) + "\n")


def status_of_script(work: Callable[[], int]) -> int:
    """Runs a script and returns its exit status; an error is one line, and reported to torchrun, as in ``kis``.

    Args:
        work: what the script does; returns its status.
    """
    try:
        return work()
    except KisError as error:
        status, message = error.exit_status, str(error)
    except OSError as error:
        status, message = KisError.exit_status, system_problem(error)
    print(f"kis: error: {printable(message)}", file=sys.stderr)
    tell_starter(status, message)
    return status


def read_ending(path: Path) -> Ending | None:
    """Returns what the first failing rank wrote; None where none did, or was ended while it wrote."""
    try:
        content = parse_json(path.read_bytes(), where=str(path))
    except (OSError, InputError):
        return None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        return None
    status, error = content.get("status"), content.get("error")
    if not isinstance(status, int) or not 0 < status < 256 or not isinstance(error, str):
        return None
    return Ending(status, error)
