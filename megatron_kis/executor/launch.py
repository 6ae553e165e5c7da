"""How one cell is started: its command and environment. Another launcher starts cells elsewhere, as ``srun`` does."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from megatron_kis.config.run import RunConfig
from megatron_kis.executor.resources import Place


@dataclass(frozen=True)
class Command:
    """What starts a cell."""

    arguments: list[str]
    """The program and its arguments. They end with those of ``kis train``: the executor may add ``--restart``."""

    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables beside those of the executor."""

    signal_children: bool = False
    """Whether a request to stop goes to the program's children and not to itself: for a program that would end them
    hastily, as torchrun does, which gives its ranks 30 seconds. ``srun`` passes signals on."""


Launcher = Callable[[RunConfig, Path, Place], Command]
"""From a run, the file of its configuration (``config.yaml`` in its folder) and its place among the executor's GPUs
and cores to the command. The executor sees to the place's cores, its log, its attempts and its signals."""


def local_command(run: RunConfig, config: Path, place: Place) -> Command:
    """A process of its own on this machine, or torchrun with as many as the run has ranks."""
    train = ["-m", "megatron_kis", "train", str(config)]
    environment = place.environment()
    ranks = run.parallel.ranks
    if ranks == 1:
        return Command([sys.executable, *train], environment)
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return Command([sys.executable, *torchrun, *train], environment, signal_children=True)
