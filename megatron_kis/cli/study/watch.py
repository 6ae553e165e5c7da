"""``kis study watch``: the status, again and again, until all has ended."""

from __future__ import annotations

import argparse
import logging
import time

from megatron_kis.cli.study.common import add_step
from megatron_kis.cli.study.status import overview, queued
from megatron_kis.cli.study.table import headline, tables
from megatron_kis.common.console import output_console, plain
from megatron_kis.common.errors import InputError, JobError

logger = logging.getLogger(__name__)

_SECONDS = 5.0
_LONGEST = 86400  # seconds


def add_parser(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    watch = add_step(
        steps,
        "watch",
        "show the status, refreshed until every run is done or given up; Ctrl-C does not affect the runs",
        _watch,
        json=False,
    )
    watch.add_argument("--all", action="store_true", help="list every run, however many there are")
    watch.add_argument("--every", type=float, default=_SECONDS, metavar="SECONDS", help="seconds between two updates")


def _watch(options: argparse.Namespace) -> int:
    from rich.console import Group
    from rich.live import Live

    from megatron_kis.executor.slurm.queue import Queue
    from megatron_kis.study.forecast import forecast

    if not 0 < options.every <= _LONGEST:
        remedy = f"give seconds, at most {_LONGEST}, such as 5"
        raise InputError(f"is {options.every:g}", where="--every", remedy=remedy)
    study, view = overview(options)
    queue = Queue(study.output)
    console = output_console()
    live = Live(console=console, auto_refresh=False) if console.is_terminal else None
    last = ""
    try:
        if live:
            live.start()
        while True:
            rows = view.look(queued(queue))
            ahead = forecast(rows)
            line = headline(study.name, rows, ahead)
            if live:
                live.update(Group(plain(line), *tables(rows, ahead, every=options.all)), refresh=True)
            elif line != last:  # plain lines, where something changed
                print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)
            last = line
            if all(row.state in ("done", "unasked", "given up", "other settings") for row in rows):
                break
            time.sleep(options.every)
    except KeyboardInterrupt:
        logger.info("kis: stopped watching; the runs continue")
        return 0
    finally:
        if live:
            live.stop()
    others = sum(row.state == "other settings" for row in rows)
    if others:
        raise JobError(f"runs with other settings: {others} of {len(rows)}; kis study status names them")
    lost = sum(row.state == "given up" for row in rows)
    if lost:
        raise JobError(f"runs given up: {lost} of {len(rows)}; kis study status says why")
    return 0
