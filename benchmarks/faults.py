"""Kills a run of two replicas repeatedly at random moments, and compares it with one that was never killed.

    python -m benchmarks.faults --kills 100

One of the two ranks gets SIGKILL at a random moment between its start and some steps after it began to train; the same
command is repeated until the run is done. At the end every loss, every probe and the ledger must be those of the
uninterrupted run. Prints one JSON object. Makes its own small data from ``tests/sources.py``.

Ranks are forked from this process, which has imported PyTorch and Megatron-Core once: importing them is nine tenths of
the time of a short run. The killed processes are still separate; no thread has been started by then.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.small_data import make_data
from megatron_kis.common.configuration import parse_config
from megatron_kis.common.files import read_json
from megatron_kis.config.run import RunConfig
from tests.megatron_kis.ranks import Ranks
from tests.run_files import losses, rows


def finish(config: RunConfig, size: int) -> None:
    """Runs to the end."""
    with Ranks(config, size) as ranks:
        if ranks.wait(3600) != [0] * size:
            raise SystemExit(ranks.said())


def configure(name: str, folder: Path, data: Path, steps: int) -> RunConfig:
    """A run of ``steps`` that is saved every other step."""
    content: dict[str, Any] = {
        "name": name,
        "output": folder / "runs" / name,
        "device": "cpu",
        "data": {
            "corpus": data / "corpus",
            "validation": data / "corpus.validation",
            "exposures": data / "exposures",
            "tokenizer": data / "tokenizer.model",
        },
        "model": {"layers": 2, "width": 32, "heads": 4},
        "training": {"token_budget": steps * 8 * 64, "sequence_length": 64, "global_batch_size": 8},
        "infusion": {"frequency": 12, "background": {"frequency": 6}},
        "probes": {"moments": {"every": 25}, "templates": {"train": 2, "held_out": 1}},
        "logging": {"every": 1},
        "checkpoints": {"moments": {"every": 2}},
    }
    return parse_config(RunConfig, content, source="benchmark")


def kill_once(config: RunConfig, chance: random.Random) -> str:
    """Starts the run and kills one rank; says when."""
    seen = rows(config.output, "metrics.jsonl")
    begun = max((row["step"] for row in seen), default=0)
    with Ranks(config, 2) as ranks:
        if chance.random() < 0.2:
            time.sleep(chance.uniform(0.0, 1.5))  # while it builds or loads
        else:
            ranks.wait_for_step(begun + chance.randrange(1, 5))
            time.sleep(chance.uniform(0.0, 0.02))
        ranks.processes[chance.randrange(2)].kill()
    return "done" if (config.output / "DONE").exists() else "killed"


def main() -> int:
    """Kills, finishes, compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="how often to kill (default 100)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    parser.add_argument("--output", type=Path, default=None, help="folder; a temporary one if not given")
    options = parser.parse_args()
    folder = options.output or Path(tempfile.mkdtemp(prefix="kis-faults-"))
    data, steps = make_data(folder), 4 * options.kills + 20
    chance, started = random.Random(options.seed), time.perf_counter()
    whole, killed = (configure(name, folder, data, steps) for name in ("whole", "killed"))
    finish(whole, 2)
    kills = 0
    while kills < options.kills and kill_once(killed, chance) == "killed":
        kills += 1
        print(f"kill {kills}: step {max(losses(killed.output), default=0)} of {steps}", file=sys.stderr, flush=True)
    finish(killed, 2)
    probes = [
        [{key: value for key, value in row.items() if key != "seconds"} for row in rows(run.output, "probes.jsonl")]
        for run in (killed, whole)
    ]
    ledgers = [read_json(run.output / "exposures.json", "kis.ledger/1") for run in (killed, whole)]
    result = {
        "kills": kills,
        "steps": steps,
        "sessions": len(read_json(killed.output / "run.json", "kis.run/1")["sessions"]),
        "losses_identical": losses(killed.output) == losses(whole.output),
        "probes_identical": probes[0] == probes[1],
        "ledgers_identical": ledgers[0] == ledgers[1],
        "ledger_exact": ledgers[0]["exact"],
        "seconds": round(time.perf_counter() - started, 1),
    }
    print(json.dumps(result, indent=1))
    return 0 if all(value for key, value in result.items() if key.endswith(("identical", "exact"))) else 1


if __name__ == "__main__":
    sys.exit(main())
