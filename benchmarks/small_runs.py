"""Where the seconds of a small run are spent, next to a plain PyTorch loop of the same shape in the same process.

    OMP_NUM_THREADS=1 python -m benchmarks.small_runs RUN.yaml [key=value ...]

``RUN.yaml`` is a run's configuration, such as ``config.yaml`` in the folder of a study's run; it is trained into a
temporary folder. The parts: ``imports``, ``start`` (inputs opened, the run's folder made), ``data`` (sequences laid out
and counted), ``training`` (steps of the engine), ``probes``, ``validation``, ``checkpoints``, ``rest``. The peer is the
model of ``benchmarks.training_cpu`` with as many layers, heads and tokens, causal attention and no data to read: its
seconds are those of as many steps, from 100 of them before and after the run. Times are the process's processor time,
which other programs lengthen least; use one thread. Prints JSON.

A run of a study that is forked (``executor.starter``) has no ``imports``.
"""

from __future__ import annotations

import time

BEGAN = time.process_time()

import argparse  # noqa: E402 - after the clock
import functools  # noqa: E402
import json  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

from megatron_kis.common.configuration import load_config  # noqa: E402
from megatron_kis.config.run import RunConfig  # noqa: E402

PEER_STEPS = 100


class Clock:
    """Processor seconds by part; what a part calls of another counts for that one."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inner: list[float] = []

    def watch(self, owner: Any, name: str, part: str) -> None:
        """Counts all calls of a method for a part."""
        call: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(call)
        def timed(*values: Any, **named: Any) -> Any:
            began = time.process_time()
            self._inner.append(0.0)
            try:
                return call(*values, **named)
            finally:
                spent = time.process_time() - began
                self.seconds[part] = self.seconds.get(part, 0.0) + spent - self._inner.pop()
                if self._inner:
                    self._inner[-1] += spent

        setattr(owner, name, timed)


def peer_seconds(config: RunConfig, vocabulary: int) -> float:
    """Seconds of the peer for as many steps as the run has."""
    import torch

    from benchmarks.training_cpu import plain_step

    training, shape = config.training, config.model.shape()
    size, length = training.global_batch_size, training.sequence_length
    step = plain_step(shape, vocabulary, length)
    rows = torch.randint(0, vocabulary, (size, length + 1), generator=torch.Generator().manual_seed(0))
    samples = [{"tokens": row[:-1], "labels": row[1:]} for row in rows]
    torch.use_deterministic_algorithms(False)
    for _ in range(10):
        step(samples)
    began = time.process_time()
    for _ in range(PEER_STEPS):
        step(samples)
    return (time.process_time() - began) / PEER_STEPS * training.steps


def main() -> int:
    """Trains and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, metavar="RUN.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_args()
    config = load_config(RunConfig, options.config, options.overrides)

    from megatron_kis.cli.train import import_trainer

    train = import_trainer()
    from megatron_kis.config.vocabulary import padded_vocabulary
    from megatron_kis.data.dataset import InfusedDataset
    from megatron_kis.training import trainer as module
    from megatron_kis.training.callbacks.probe import ProbeCallback
    from megatron_kis.training.callbacks.validation import ValidationCallback
    from megatron_kis.training.checkpointer import Checkpointer

    imports = time.process_time() - BEGAN
    trainer: Any = module  # its imports are not re-exported
    clock = Clock()
    clock.watch(trainer, "open_inputs", "start")
    clock.watch(trainer.Engine, "__init__", "start")
    clock.watch(trainer.RunDir, "prepare", "start")
    clock.watch(ProbeCallback, "__init__", "probes")
    clock.watch(ProbeCallback, "on_schedule", "probes")
    clock.watch(ValidationCallback, "on_schedule", "validation")
    clock.watch(Checkpointer, "after_step", "checkpoints")
    clock.watch(trainer.Engine, "train_step", "training")
    clock.watch(trainer.ReplicatedLedger, "observe", "data")
    clock.watch(InfusedDataset, "read", "data")
    inputs = trainer.open_inputs(config)
    clock.seconds.clear()
    vocabulary = padded_vocabulary(inputs.vocabulary)
    peer = [peer_seconds(config, vocabulary)]
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        train(config.model_copy(update={"output": Path(folder) / "run"}))
        whole = time.process_time() - began
    peer.append(peer_seconds(config, vocabulary))
    parts = {"imports": imports, **clock.seconds, "rest": whole - sum(clock.seconds.values())}
    total = imports + whole
    result = {
        "run": config.name,
        "steps": config.training.steps,
        "seconds": {name: round(seconds, 2) for name, seconds in parts.items()},
        "total": round(total, 2),
        "plain_loop": [round(seconds, 2) for seconds in peer],
        "runs_an_hour_and_core": {"alone": round(3600 / total), "forked": round(3600 / whole)},
    }
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
