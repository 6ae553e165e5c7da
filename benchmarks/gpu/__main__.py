"""``python -m benchmarks.gpu``: see the package's docstring."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import benchmarks.gpu
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.checks import checks
from benchmarks.gpu.commands import Failed, Limit, Skipped
from benchmarks.gpu.memory import memory
from benchmarks.gpu.probes import probes
from benchmarks.gpu.rows import Rows
from benchmarks.gpu.side_by_side import side_by_side
from benchmarks.gpu.speed import speed
from benchmarks.gpu.table import table

PARTS: dict[str, tuple[Callable[[Bench], None], float]] = {
    "checks": (checks, 4.0),
    "memory": (memory, 1.5),
    "speed": (speed, 3.0),
    "probes": (probes, 1.0),
    "side-by-side": (side_by_side, 1.0),
}
"""The function of each part, and its share of the remaining time when its turn comes."""

SHORTEST = 2.0  # seconds without which a part is not begun


def main() -> int:
    """Runs the parts, or prints the table."""
    options = _options()
    if options.table:
        print(table(options.table))
        return 0
    limit = Limit(60 * options.minutes)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: limit.stop())  # every wait checks it, and ends its process
    rows = Rows(options.output / "results.jsonl", options.only)
    work = Path(tempfile.mkdtemp(prefix="kis-gpu-", dir=options.work))
    logs = options.output / "logs"
    try:
        machine = Bench(options, rows, limit, work, logs, {}).measure("header", "header", device=options.device)
        rows.add("header", machine["device"], **machine)
        bench = Bench(options, rows, limit, work, logs, machine)
        _all_parts(bench, options.parts or list(PARTS))
    except (Failed, Skipped) as reason:
        rows.add("header", options.device, "failed", message=str(reason))
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if options.only and not rows.chosen:
        print(f"no row of these parts has {' or '.join(options.only)} in its name", file=sys.stderr)
        return 2
    return 1 if rows.failed else 0


def _all_parts(bench: Bench, names: list[str]) -> None:
    for at, name in enumerate(names):
        work, share = PARTS[name]
        if bench.limit.left() < SHORTEST:
            bench.rows.add(name, "all", "skipped", message="no time left")
            continue
        shares = sum(PARTS[other][1] for other in names[at:])
        own = bench.within(Limit(bench.limit.left() * share / shares, bench.limit))
        try:
            work(own)
        except Skipped as reason:
            bench.rows.add(name, "all", "skipped", message=str(reason))
        except Exception as error:  # the other parts still run
            bench.rows.add(name, "all", "failed", message=f"{type(error).__name__}: {error}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=benchmarks.gpu.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (all)")
    parser.add_argument("--minutes", type=float, default=8.0, help="limit of everything (8)")
    parser.add_argument("--output", type=Path, default=Path("gpu-results"), metavar="DIR", help="(gpu-results)")
    parser.add_argument("--table", type=Path, metavar="FILE", help="print the rows of a file as Markdown, and end")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="TEXT", help="only rows whose name contains one of them"
    )
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="cpu only tries the script")
    parser.add_argument("--work", type=Path, metavar="DIR", help="folder for checkpoints and data (temporary)")
    cores = os.cpu_count() or 2
    parser.add_argument("--jobs", type=int, default=max(1, min(6, cores // 2)), help="checks at the same time")
    parser.add_argument("--steps", type=int, default=60, help="of each run of the checks (60)")
    parser.add_argument("--devices", type=int, default=0, help="ranks that the checks may use (all GPUs)")
    parser.add_argument("--presets", nargs="+", default=["137m", "1b", "3b"], help="the first is the small run's")
    parser.add_argument("--lengths", nargs="+", type=int, default=[2048, 4096], help="tokens per sequence")
    parser.add_argument("--batch", type=int, default=16, help="sequences per step at the first length (16)")
    parser.add_argument("--micro-batch", type=int, default=4, help="sequences per pass at most (4)")
    parser.add_argument("--vocabulary", type=int, default=32_000, help="pieces, for memory and speed (32000)")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement of speed, after warm-up (8)")
    parser.add_argument("--facts", type=int, default=100, help="of each group, for the probes' speed (100)")
    parser.add_argument("--turns", type=int, default=2, help="of each tool, for the probes' speed (2)")
    parser.add_argument("--together", nargs="+", type=int, default=[1, 2, 4], help="small runs on one GPU (1 2 4)")
    parser.add_argument("--run-tokens", type=float, default=1e9, help="tokens of a small run (1e9)")
    options = parser.parse_args()
    unknown = [name for name in options.parts if name not in PARTS]
    if unknown:
        parser.error(f"no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    counts = "minutes jobs steps lengths batch micro_batch vocabulary seconds facts turns together run_tokens"
    for name in counts.split():
        given = getattr(options, name)
        if any(value <= 0 for value in (given if isinstance(given, list) else [given])):
            parser.error(f"--{name.replace('_', '-')} must be more than 0")
    if options.table and not options.table.is_file():
        parser.error(f"--table: there is no file {options.table}")
    options.output = options.output.resolve()
    return options


if __name__ == "__main__":
    sys.exit(main())
