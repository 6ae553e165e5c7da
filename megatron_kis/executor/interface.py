"""Input and output of the executor: runs, the slots they get, the commands that start them, and its progress."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


class Run(Protocol):
    """A run as the executor knows it. What its settings mean is the command's business."""

    @property
    def name(self) -> str:
        """Name of the run, unique among all runs."""

    @property
    def output(self) -> Path:
        """Folder of the run: its lease, attempts, configuration and log are written there."""

    @property
    def device(self) -> str:
        """``cpu`` for a run that needs no GPU."""

    @property
    def ranks(self) -> int:
        """Number of its processes; each needs a GPU unless the run trains on the CPU."""

    @property
    def trunk(self) -> Path | None:
        """Folder of a run that comes first, since this one continues from a checkpoint of it; None if there is none."""

    def settings_fingerprint(self) -> str:
        """Returns what identifies its settings: failures count only against the settings they happened with."""

    def absolute_content(self) -> dict[str, Any]:
        """Returns the content of its configuration file."""


@dataclass(frozen=True)
class Slot:
    """The share of a machine that one run gets."""

    worker: int = 0
    """Number of the executor's worker, from 0."""

    gpus: tuple[str, ...] | None = None
    """GPUs of the run; None where the executor assigns none and the run sees what the executor sees."""

    cores: tuple[int, ...] | None = None
    """Cores of the run; None if it is not pinned."""

    threads: int = 1
    """Threads of each of its processes."""

    def environment(self) -> dict[str, str]:
        """Returns the variables that keep a run to its slot."""
        threads = str(self.threads)
        variables = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        if self.gpus is not None:
            variables["CUDA_VISIBLE_DEVICES"] = ",".join(self.gpus)
        return variables


@dataclass(frozen=True)
class Command:
    """The command that starts a run."""

    arguments: list[str]
    """The program and its arguments. They end with those of ``kis train``: the executor may add ``--restart``."""

    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables in addition to those of the executor."""

    signal_children: bool = False
    """Whether a request to stop goes to the program's children and not to itself: for a program that would end them
    hastily, as torchrun does, which gives its ranks 30 seconds. ``srun`` passes signals on."""


Launcher = Callable[[Run, Path, Slot], Command]
"""Returns the command of a run, given the file of its configuration (``config.yaml`` in its folder) and its slot. The
executor handles the slot's cores, the log, the attempts and the signals."""


def local_command(run: Run, config: Path, slot: Slot) -> Command:
    """Returns the command of a process on this machine, or of torchrun with as many processes as the run has ranks."""
    train = ["-m", "megatron_kis", "train", str(config)]
    if run.ranks == 1:
        return Command([sys.executable, *train], slot.environment())
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={run.ranks}"]
    return Command([sys.executable, *torchrun, *train], slot.environment(), signal_children=True)


@dataclass(frozen=True)
class Progress:
    """How far the execution has come, by the names of the runs."""

    done: tuple[str, ...]
    """Runs that are DONE, including those that were skipped."""

    failed: tuple[str, ...]
    """Runs that are given up, including those that were given up before."""

    running: tuple[str, ...]
    """Runs that are running."""

    total: int
    """Number of runs that were asked for."""

    stopped: tuple[str, ...] = ()
    """Runs that were asked to stop, or were not started because the executor was."""

    elsewhere: tuple[tuple[str, str], ...] = ()
    """Runs that another executor holds, each with that executor."""

    retried: tuple[str, ...] = ()
    """Runs with a failed attempt that were, or will be, tried again."""

    signal: int = 0
    """The signal that asked the executor to stop; 0 for none."""


Report = Callable[[Progress], None]
"""Function that shows the executor's progress."""
