"""Forks a process per question from one that has imported PyTorch and this project: most of a rank's time is that.

python -m tests.dry_device.server: reads a JSON object per line, ``{"start": "rank", "call": "module:function",
"arguments": [...]}``, and answers each with ``{"found": ...}`` or ``{"failed": TRACEBACK}``. It ends with its input.
"""

from __future__ import annotations

import gc
import json
import os
import pkgutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable
from functools import partial
from typing import IO, Any

from tests.dry_device import rank

SECONDS = 600
"""Time of a question's process; SIGALRM ends it then."""

STARTS: dict[str, Callable[[], tuple[Any, ...]]] = {
    "rank": partial(rank.started, with_engine=False),
    "Transformer Engine": partial(rank.started, with_engine=True),
}
"""What is done once, before the forks. What it returns are the first arguments of a call."""


def serve(questions: Iterable[str], answers: IO[str], first: tuple[Any, ...] = ()) -> None:
    """Answers until there are no more questions: one that wants a start goes to a process that has begun so.

    Args:
        questions: lines of JSON.
        answers: where to write a line for each.
        first: arguments before those of a question.
    """
    gc.collect()
    gc.freeze()  # what is there stays: nobody need look through it in each process
    others: dict[str, tuple[IO[str], IO[str]]] = {}
    for line in questions:
        question = json.loads(line)
        start = question.pop("start", None)
        if start is None:
            answer = json.dumps(_forked(first, **question))
        else:
            if start not in others:
                others[start] = _begin(start)
            ask, told = others[start]
            ask.write(json.dumps(question) + "\n")
            ask.flush()
            answer = told.readline().strip() or json.dumps({"failed": f"the start {start!r} failed"})
        answers.write(answer + "\n")
        answers.flush()
    for ask, _ in others.values():
        ask.close()
    for _ in others:  # the later ones hold the questions of the earlier ones open
        os.wait()


def _begin(start: str) -> tuple[IO[str], IO[str]]:
    """A process that answers questions after a start: the ends of its questions and answers."""
    (questions, ask), (told, answers) = os.pipe(), os.pipe()
    if os.fork() == 0:
        os.close(ask)
        os.close(told)
        try:
            with open(questions) as read, open(answers, "w") as write:
                serve(read, write, STARTS[start]())
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(0)
    os.close(questions)
    os.close(answers)
    return open(ask, "w"), open(told)


def _forked(first: tuple[Any, ...], call: str, arguments: list[Any]) -> dict[str, Any]:
    """Calls a function in a process of its own."""
    with tempfile.TemporaryFile("w+") as found, tempfile.TemporaryFile("w+", errors="replace") as said:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                signal.alarm(SECONDS)
                for stream in (sys.stdout, sys.stderr):
                    os.dup2(said.fileno(), stream.fileno())
                json.dump(pkgutil.resolve_name(call)(*first, *arguments), found)
                found.flush()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        _, status = os.waitpid(child, 0)
        for file in (found, said):
            file.seek(0)
        if status:
            return {"failed": f"status {os.waitstatus_to_exitcode(status)}\n{said.read()[-6000:]}"}
        return {"found": json.load(found)}


if __name__ == "__main__":
    serve(sys.stdin, sys.stdout)
