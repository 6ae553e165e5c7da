"""``kis study``: a whole study, from its sources to its report."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_kis.errors import InputError, JobError

if TYPE_CHECKING:
    from analysis.settings import AnalysisSettings
    from data_tools.prepare import DataSettings
    from megatron_kis.config import RunConfig
    from megatron_kis.data.settings import DataConfig
    from megatron_kis.study.config import StudyConfig
    from megatron_kis.study.executor import Progress
    from megatron_kis.study.proposed import Placed

_SHORTEST_BAR = 20  # columns of a terminal below which plain lines are clearer


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describes ``kis study`` and its steps."""
    parser = commands.add_parser(
        "study", help="a ladder of runs, their curves, the law and the report", description=__doc__
    )
    steps = parser.add_subparsers(dest="step", metavar="STEP", required=True)
    _add(steps, "plan", "show the runs of a study and what each feeds, and check its settings; trains nothing", _plan)
    run = _add(steps, "run", "prepare the data, execute what is not done, analyse, write the report", _run)
    run.add_argument("--workers", type=int, metavar="N", help="runs side by side (default: the study's, or all cores)")
    _add(steps, "status", "where the runs of a study stand", _status)
    proposed = _add(
        steps, "next", "the runs that would narrow the prediction most for what they cost; trains nothing", _next
    )
    proposed.add_argument("--count", type=int, default=6, metavar="K", help="runs to propose (6)")
    proposed.add_argument("--params", type=float, metavar="N", help="target size (default: the largest of predict)")
    proposed.add_argument("--tokens", type=float, metavar="D", help="target budget (default: the study's largest)")
    proposed.add_argument(
        "--write", action="store_true", help="add them to the runs of the study file, for kis study run to train"
    )
    _add(steps, "report", "analyse the runs that are done and write the report", _report)


def _add(
    steps: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    summary: str,
    handler: Callable[[argparse.Namespace], int],
) -> argparse.ArgumentParser:
    parser = steps.add_parser(name, help=summary, description=summary)
    parser.add_argument("study", type=Path, metavar="STUDY.yaml", help="the study's configuration")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings that replace the file's, e.g. seeds=[0,1]"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(handler=handler)
    return parser


def _load(options: argparse.Namespace) -> tuple[StudyConfig, DataSettings, AnalysisSettings]:
    """The study and its two sections that other packages own, all checked."""
    from analysis.settings import AnalysisSettings
    from data_tools.prepare import DataSettings
    from megatron_kis.settings import load_config, parse_dataclass
    from megatron_kis.study.config import StudyConfig

    study = load_config(StudyConfig, options.study, options.overrides)
    source = str(options.study)
    data = parse_dataclass(DataSettings, study.data, where=f"{source}: data")
    analysis = parse_dataclass(AnalysisSettings, study.analysis, where=f"{source}: analysis")
    return study, data, analysis


def _data_config(study: StudyConfig, data: DataSettings) -> DataConfig:
    from megatron_kis.data.settings import DataConfig

    if not data.validation_share:
        raise InputError("is 0", where="data.validation_share", remedy="a study needs text set aside, such as 0.02")
    folder = study.output / "data"
    return DataConfig(
        corpus=folder / "corpus",
        validation=folder / "corpus.validation",
        exposures=folder / "exposures",
        tokenizer=data.tokenizer or folder / "tokenizer.model",
    )


def _prepare(study: StudyConfig, data: DataSettings) -> list[RunConfig]:
    """Prepares the data, checks every run against them, and returns the runs."""
    from data_tools.prepare import prepare_data
    from data_tools.progress import console_progress
    from megatron_kis.study.grid import runs_of

    data_config = _data_config(study, data)
    runs = runs_of(study, data_config)
    prepare_data(data, study.output / "data", progress=console_progress())
    return runs


def _done(runs: list[RunConfig]) -> list[str]:
    """Names of the runs that are complete; every other one's inputs and plan are checked before any starts."""
    from megatron_kis.training.inputs import open_inputs
    from megatron_kis.training.record import is_done

    names, checked, fingerprints = [], set(), None
    for run in runs:
        training = run.training
        plan = (run.infusion, training.token_budget, training.sequence_length, training.seed)
        if plan not in checked:  # sizes share their plans
            checked.add(plan)
            fingerprints = open_inputs(run).fingerprints
        if is_done(run, fingerprints):
            names.append(run.name)
    return names


def _plan(options: argparse.Namespace) -> int:
    from megatron_kis.study.executor import study_lock
    from megatron_kis.study.plan import plan_rows

    study, data, _ = _load(options)
    with study_lock(study.output):
        rows = plan_rows(_prepare(study, data))
    if options.json:
        print(json.dumps(rows, indent=1))
        return 0
    columns = ("run", "params", "tokens", "infusion_frequency", "infusion_ratio", "background_frequency", "epochs")
    _print_table(f"{study.name}: {len(rows)} runs", columns, [[_shown(row[name]) for name in columns] for row in rows])
    flops = sum(row["flops"] for row in rows)
    print(f"{flops:.3g} training FLOPs in all")
    return 0


def _run(options: argparse.Namespace) -> int:
    import yaml

    from megatron_kis.files import write_text
    from megatron_kis.study.executor import execute, last_lines, study_lock

    study, data, analysis = _load(options)
    settings = study.executor
    if options.workers is not None:
        if options.workers < 1:
            raise InputError(f"is {options.workers}", where="--workers", remedy="use at least 1")
        settings = settings.model_copy(update={"workers": options.workers})
    with study_lock(study.output) as lock:  # before the data: a run in flight elsewhere may be reading them
        runs = _prepare(study, data)
        done = _done(runs)
        write_text(study.output / "study.yaml", yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False))
        print(f"{study.name}: {len(runs)} runs, {len(done)} done already", file=sys.stderr, flush=True)
        with _shown_progress(runs) as report:
            ended = execute(runs, done=done, settings=settings, lock=lock, report=report)
    by_name = {run.name: run for run in runs}
    for name in ended.failed:
        print(f"{name} failed; the end of {by_name[name].output / 'log.txt'}:", file=sys.stderr)
        for line in last_lines(by_name[name]):
            print(f"    {line}", file=sys.stderr)
    if ended.done:
        _analyse(study, analysis, as_json=options.json)
    if ended.failed:
        raise JobError(f"{len(ended.failed)} of {ended.total} runs failed; run the study again to retry them")
    return 0


def _report(options: argparse.Namespace) -> int:
    study, _, analysis = _load(options)
    _analyse(study, analysis, as_json=options.json)
    return 0


def _next(options: argparse.Namespace) -> int:
    from dataclasses import asdict
    from datetime import date

    from analysis.curves import curve_table
    from analysis.load import load_runs
    from analysis.next_runs import propose
    from megatron_kis.settings import load_config
    from megatron_kis.study.config import StudyConfig
    from megatron_kis.study.grid import spots_of
    from megatron_kis.study.proposed import add_runs, place, trained_cells

    study, _, analysis = _load(options)
    params = options.params or max(study.predict, default=None)
    if params is None:
        raise InputError("no target size", where="--params", remedy="for example 7e9, or predict: in the study")
    tokens = options.tokens or max(spot.tokens for spot in spots_of(study))
    if options.count < 1:
        raise InputError(f"is {options.count}", where="--count", remedy="use at least 1")
    runs = load_runs(study.output)
    found = propose(curve_table(runs), params, tokens, analysis, count=options.count)
    planned = load_config(StudyConfig, options.study)  # as the file says, where they are to be added
    done = runs.runs[["run", "params", "tokens"]].itertuples(index=False, name=None)
    cells = trained_cells(planned, done)
    placed = place(planned, [(p.params, p.tokens, p.frequency) for p in found], cells, runs.runs["run"])
    new = [item.run for item in placed if item.run and not item.planned]
    if options.write and new:
        remark = f"kis study next, {date.today().isoformat()}, for N = {params:.3g} and D = {tokens:.3g}"
        add_runs(options.study, new, remark=remark)
    rows = [asdict(proposal) | _entry(at) for proposal, at in zip(found, placed, strict=True)]
    if options.json:
        print(json.dumps(rows, indent=1))
        return 0
    columns = ("size", "params", "tokens", "infusion_frequency", "seed", "FLOPs", "variance off", "why")
    table = [
        [row["size"] or "none", _shown(row["params"]), _shown(row["tokens"]), f"{row['frequency']:g}", str(row["seed"]),
         f"{row['flops']:.2g}", "-" if row["gain"] is None else f"{row['gain']:.1%}",
         row["reason"] + (" (planned already)" if row["planned"] else "")]
        for row in rows
    ]  # fmt: skip
    _print_table(f"{study.name}: next runs for N = {params:.3g}, D = {tokens:.3g}", columns, table)
    if not found:
        print("no run that is not there yet would tell more")
    for n, d in {(row["params"], row["tokens"]): None for row in rows if row["size"] is None}:
        print(f"N = {n:,}, D = {d:,} is no size and budget of the study; to train more of it, add it to the ladder")
    if options.write:
        print(f"{len(new)} runs added to {options.study}" + ("; kis study run trains them" if new else ""))
    return 0


def _entry(at: Placed) -> dict[str, Any]:
    """What the study says of a proposal."""
    if at.run is None:
        return {"size": None, "planned": False}
    return {"size": at.run.size, "seed": at.run.seed, "planned": at.planned}


def _analyse(study: StudyConfig, settings: AnalysisSettings, *, as_json: bool) -> None:
    from analysis.report.summary import seen
    from analysis.study import analyse_study

    result = analyse_study(study.output, settings, predict_params=study.predict)
    outputs = {name: str(study.output / name) for name in ("report.html", "points.csv", "law.json", "curves.csv")}
    if as_json:
        print(json.dumps({"study": study.name, **outputs}, indent=1))
        return
    for line in seen(result):
        print(f"- {line}")
    print(outputs["report.html"])


def _status(options: argparse.Namespace) -> int:
    from dataclasses import asdict

    from megatron_kis.study.grid import runs_of
    from megatron_kis.study.status import status_of

    study, data, _ = _load(options)
    rows = status_of(runs_of(study, _data_config(study, data)))
    if options.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
        return 0
    done = sum(row.state == "done" for row in rows)
    table = [
        [row.name, row.state, f"{row.share:.0%}", _shown(row.loss), _shown(row.tokens_per_second), row.last_line]
        for row in rows
    ]
    columns = ("run", "state", "steps", "loss", "tokens/s", "last line")
    _print_table(f"{study.name}: {done} of {len(rows)} runs done", columns, table)
    return 0


class _shown_progress:
    """A bar over all runs on a terminal, a plain line a change otherwise."""

    def __init__(self, runs: list[RunConfig]) -> None:
        self._runs = {run.name: run for run in runs}
        self._bar: Any = None
        self._last: tuple[int, int, int] | None = None

    def __enter__(self) -> Callable[[Progress], None]:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        console = Console(stderr=True)
        if console.is_terminal and console.width >= _SHORTEST_BAR:
            self._bar = Bar(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                TimeRemainingColumn(), console=console,
            )  # fmt: skip
            self._bar.start()
            self._task = self._bar.add_task("runs", total=1)
        return self._report

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def _report(self, progress: Progress) -> None:
        from megatron_kis.study.status import status_of

        running = ", ".join(
            f"{status.name} {status.share:.0%}" for status in status_of([self._runs[name] for name in progress.running])
        )
        if self._bar:
            description = running if running else "runs"
            self._bar.update(self._task, total=progress.total, completed=len(progress.done), description=description)
            return
        state = (len(progress.done), len(progress.failed), len(progress.running))
        if state != self._last:
            self._last = state
            failed = f", {len(progress.failed)} failed" if progress.failed else ""
            print(
                f"{len(progress.done)} of {progress.total} runs done{failed}; running: {running or 'none'}",
                file=sys.stderr,
                flush=True,
            )


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e5 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _print_table(title: str, columns: tuple[str, ...], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=number == 0)
    for row in rows:
        table.add_row(*row)
    # Piped output is not cut at 80 columns.
    Console(width=None if os.isatty(1) else 200).print(table)
