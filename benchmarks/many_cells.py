"""A study of ten thousand cells: planning, status, finding what is done, loading.

    python -m benchmarks.many_cells [--cells 10000] [--folder DIR] [--output many_cells.json]

One cell is trained for real; nine of ten others are copies of its folder with a record of their own, some have failed,
some stopped, the rest waits. Commands are processes of their own, as users start them. Processor time counts: the wall
clock of a shared machine says little, and is printed next to it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

SIZES, FREQUENCIES, SEEDS = 10, 20, 5
STEP = 8 * 64  # tokens
COMMANDS = ("plan", "plan --json", "status", "status --json", "status --all")


def main() -> None:
    """Makes the folders and times everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=10_000, help="cells, a multiple of 1,000 (10000)")
    parser.add_argument("--folder", type=Path, help="where to make them, or where they are (temporary)")
    parser.add_argument("--output", type=Path, help="write the results here, as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        study = write_study(folder, options.cells)
        made = folder / "out" / "runs"
        if not made.exists():
            fill(study)
        folders = sum(1 for _ in made.iterdir())
        files = sum(len(names) for _, _, names in os.walk(made))
        print(f"{options.cells:,} cells, {folders:,} folders, {files:,} files", flush=True)
        results: dict[str, Any] = {"cells": options.cells, "folders": folders, "files": files}
        for command in COMMANDS:
            results[f"kis study {command}"] = timed_command(["study", *command.split(), str(study)])
        results["finding what is done"] = timed(lambda: find_done(study))
        results["analysis.load_runs"] = timed(lambda: load(folder / "out"))
        for name, row in results.items():
            if isinstance(row, dict):
                print(f"  {name:24}{row['processor']:7.2f} s processor{row['wall']:8.2f} s wall", flush=True)
    if options.output:
        options.output.write_text(json.dumps(results, indent=1), encoding="utf-8")


def timed_command(arguments: list[str]) -> dict[str, float]:
    """Processor and wall time of a command."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-m", "megatron_kis", *arguments], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"processor": processor, "wall": time.perf_counter() - started}


def timed(call: Callable[[], object]) -> dict[str, float]:
    """Processor and wall time of a call."""
    before, started = time.process_time(), time.perf_counter()
    call()
    return {"processor": time.process_time() - before, "wall": time.perf_counter() - started}


def runs(study: Path) -> list[Any]:
    """The runs of the study."""
    options = argparse.Namespace(study=study, overrides=[])
    from megatron_kis.cli.study.common import data_config, load_study
    from megatron_kis.study.grid import runs_of

    loaded = load_study(options)
    return runs_of(loaded, data_config(loaded))


def find_done(study: Path) -> None:
    """What ``kis study run`` does before it starts anything."""
    from megatron_kis.cli.study.common import done_runs, load_study, look_over

    loaded = load_study(argparse.Namespace(study=study, overrides=[]))
    assert done_runs(loaded, look_over(loaded))[0]


def load(folder: Path) -> None:
    """What the analysis does first."""
    from megatron_kis.analysis.runs.load import load_runs

    assert len(load_runs(folder).runs)


def write_study(folder: Path, cells: int) -> Path:
    """A study of so many cells on invented text and facts, its data prepared."""
    folder.mkdir(parents=True, exist_ok=True)
    random.seed(0)
    words = ["".join(random.choices("abdeginorstu", k=random.randint(3, 8))) for _ in range(400)]
    texts = (json.dumps({"text": " ".join(random.choices(words, k=60)).capitalize() + "."}) for _ in range(800))
    (folder / "text.jsonl").write_text("\n".join(texts) + "\n", encoding="utf-8")
    names = list(dict.fromkeys("".join(random.choices("bdgklmnprstvaeiou", k=7)).capitalize() for _ in range(800)))
    rows = [f"{names[2 * n]}\tteacher\t{names[2 * n + 1]}" for n in range(300)]
    (folder / "triples.tsv").write_text("subject\trelation\tobject\n" + "\n".join(rows) + "\n", encoding="utf-8")
    sentences = ["[X] was taught by [Y].", "The teacher of [X] was [Y].", "[Y] taught [X]."]
    asked = {"held_out": ["[X] learned from [Y]."], "question": ["Question: Who taught [X]? Answer: [Y]"]}
    templates = {"teacher": {"train": sentences, **asked}}
    (folder / "templates.yaml").write_text(yaml.safe_dump(templates), encoding="utf-8")
    budgets = cells // (SIZES * FREQUENCIES * SEEDS)
    content = {
        "name": "many",
        "output": str(folder / "out"),
        "device": "cpu",
        "data": {
            "text": [str(folder / "text.jsonl")],
            "facts": str(folder / "triples.tsv"),
            "templates": str(folder / "templates.yaml"),
            "vocab_size": 512,
            "validation_share": 0.05,
            "select": {"infused": 48, "background": 48, "control": 48},
        },
        "ladder": [{"layers": 1, "width": 16 * (size + 1), "heads": 2} for size in range(SIZES)],
        "token_budgets": [(budget + 80) * STEP for budget in range(budgets)],
        "frequencies": list(range(FREQUENCIES)),
        "seeds": list(range(SEEDS)),
        "training": {"sequence_length": 64, "global_batch_size": 8},
        "background": {"frequency": 4},
        "logging": {"every": 1},
        "probes": {"moments": {"shares": [0.5, 1.0]}},
        "validation": {"moments": {"shares": [0.5, 1.0]}},
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    from megatron_kis.cli.study.common import load_study, prepare

    study = load_study(argparse.Namespace(study=path, overrides=[]))
    prepare(study)
    return path


def fill(study: Path) -> None:
    """Trains the cheapest cell and copies its folder for the others."""
    from megatron_kis.config.executor import ExecutorConfig
    from megatron_kis.executor.attempts import end_attempt, start_attempt
    from megatron_kis.executor.executor import execute
    from megatron_kis.executor.lease import HeldLease, acquire, this_process
    from megatron_kis.training.record import CLOSED, config_fingerprint

    every = runs(study)
    first = every[-1]
    assert execute([first], done=(), settings=ExecutorConfig(workers=1)).done == (first.name,)
    source = first.output
    record = json.loads((source / "run.json").read_text(encoding="utf-8"))
    contents = {path.name: path.read_bytes() for path in source.iterdir() if path.is_file()}
    owner = this_process()
    for number, run in enumerate(every[:-1]):
        if number % 10 == 9:
            if number % 20 == 9:  # failed once or given up, or stopped; the others wait
                held = acquire(run.output, owner=owner)
                assert isinstance(held, HeldLease)
                start_attempt(held, run.settings_fingerprint())
                stopped = number % 40 == 9
                end_attempt(held, status=75 if stopped else 1, outcome="stopped" if stopped else "failed")
                held.release()
                for name in ("log.txt", "metrics.jsonl"):
                    (run.output / name).write_bytes(contents[name])
            continue
        shutil.copytree(source / "claims", run.output / "claims")
        training = run.training
        own = {
            "run": run.name,
            "tokens": training.steps * training.step_tokens,
            "seed": training.seed,
            "infusion_frequency": run.infusion.frequency,
            "params": 10_000 + run.model.width,
            "config": run.model_dump(mode="json"),
            "config_fingerprint": config_fingerprint(run),
        }
        files = {**contents, "run.json": json.dumps(record | own, indent=1).encode()}
        tokens = f'"tokens": {record["tokens"]},'.encode()
        files["probes.jsonl"] = contents["probes.jsonl"].replace(tokens, f'"tokens": {own["tokens"]},'.encode())
        done = json.loads(contents["DONE"])
        done["files"] = {name: hashlib.sha256(files[name]).hexdigest() for name in CLOSED}
        for name, content in {**files, "DONE": json.dumps(done).encode()}.items():
            if not name.startswith("."):
                (run.output / name).write_bytes(content)


if __name__ == "__main__":
    main()
