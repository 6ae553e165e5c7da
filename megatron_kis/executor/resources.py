"""Where cells run on one machine: which GPUs and which cores each of them gets."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from megatron_kis.common.errors import InputError
from megatron_kis.config.run import RunConfig
from megatron_kis.config.study import ExecutorConfig


@dataclass(frozen=True)
class Machine:
    """What an executor may use."""

    gpus: tuple[str, ...] = ()
    """GPUs as CUDA_VISIBLE_DEVICES names them: numbers, or UUIDs."""

    cores: tuple[int, ...] = (0,)
    """Cores."""


@dataclass(frozen=True)
class Place:
    """What one cell gets."""

    worker: int = 0
    """Which of the executor's workers it is, from 0."""

    gpus: tuple[str, ...] | None = None
    """Its GPUs; None where the executor deals out none, and the cell sees what the executor sees."""

    cores: tuple[int, ...] | None = None
    """Its cores; None if it is not pinned."""

    threads: int = 1
    """Threads of each of its processes."""

    def environment(self) -> dict[str, str]:
        """Variables for the cell."""
        threads = str(self.threads)
        variables = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        if self.gpus is not None:
            variables["CUDA_VISIBLE_DEVICES"] = ",".join(self.gpus)
        return variables


def this_machine(
    settings: ExecutorConfig, *, environment: Mapping[str, str] = os.environ, devices: Path = Path("/dev")
) -> Machine:
    """The GPUs and cores that this process may use, a job's share of a node included.

    Args:
        settings: ``gpus`` as a number or a list takes the place of what is found.
        environment: CUDA_VISIBLE_DEVICES says which GPUs are ours, if it is set.
        devices: where the driver shows its GPUs otherwise; nothing of CUDA is started to count them.
    """
    cores = tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()
    cores = cores or tuple(range(os.cpu_count() or 1))
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if isinstance(settings.gpus, tuple):
        return Machine(settings.gpus, cores)
    if visible is not None:
        names = [name.strip() for name in visible.split(",") if name.strip()]
        # CUDA sees no device at or after one that is not there, and -1 is none.
        found = tuple(names[: names.index("-1")] if "-1" in names else names)
    else:
        numbered = [path for path in devices.glob("nvidia[0-9]*") if path.name.removeprefix("nvidia").isdecimal()]
        found = tuple(str(number) for number in range(len(numbered)))
    if settings.gpus == "auto":
        return Machine(found, cores)
    if visible is not None and settings.gpus > len(found):
        raise InputError(
            f"is {settings.gpus}, and CUDA_VISIBLE_DEVICES shows {len(found)}", where="executor.gpus",
            remedy="lower it, or use auto",
        )  # fmt: skip
    return Machine(found[: settings.gpus] if visible is not None else tuple(map(str, range(settings.gpus))), cores)


@dataclass
class Places:
    """The places of a machine, dealt out to cells."""

    machine: Machine
    """What there is."""

    settings: ExecutorConfig
    """How to divide it."""

    _free: dict[str, int] = field(default_factory=dict)
    _workers: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Everything is free."""
        self._free = dict.fromkeys(self.machine.gpus, self.settings.cells_per_gpu)
        self._workers = list(range(self.workers))

    @property
    def workers(self) -> int:
        """Cells side by side: the settings', or as many as the GPUs take, or as the cores do."""
        if self.settings.workers is not None:
            return self.settings.workers
        if self.machine.gpus:
            return len(self.machine.gpus) * self.settings.cells_per_gpu
        return max(1, len(self.machine.cores) // self.settings.threads)

    @property
    def free_workers(self) -> int:
        """How many more cells could run, GPUs aside."""
        return len(self._workers)

    def check(self, runs: Sequence[RunConfig]) -> None:
        """Refuses runs for which there will never be a place.

        Raises:
            InputError: a run of more ranks than there are GPUs.
        """
        for run in runs:
            if self._uses_gpus(run) and run.parallel.ranks > len(self.machine.gpus):
                raise InputError(
                    f"needs {run.parallel.ranks} GPUs, and there are {len(self.machine.gpus)}",
                    where=f"run {run.name}: parallel",
                    remedy="run it on a machine with more, or with another layout",
                )

    def take(self, run: RunConfig) -> Place | None:
        """A place for a cell; None while there is none.

        A cell of one rank takes a share of the GPU that has most of them free; one of several ranks takes that many
        whole GPUs.
        """
        if not self._workers:
            return None
        gpus: tuple[str, ...] | None = None
        if self._uses_gpus(run):
            ranks, whole = run.parallel.ranks, self.settings.cells_per_gpu
            if ranks == 1:
                gpu = max(self._free, key=lambda name: self._free[name])
                gpus = (gpu,) if self._free[gpu] else ()
            else:
                gpus = tuple(gpu for gpu, free in self._free.items() if free == whole)[:ranks]
            if len(gpus) < ranks:
                return None
            for gpu in gpus:
                self._free[gpu] -= 1 if ranks == 1 else whole
        worker = self._workers.pop(0)
        return Place(worker, gpus, self._cores(worker), self.settings.threads)

    def give_back(self, run: RunConfig, place: Place) -> None:
        """The cell has ended."""
        for gpu in place.gpus or ():
            self._free[gpu] += 1 if run.parallel.ranks == 1 else self.settings.cells_per_gpu
        self._workers = sorted([*self._workers, place.worker])

    def _uses_gpus(self, run: RunConfig) -> bool:
        return bool(self.machine.gpus) and run.device != "cpu"

    def _cores(self, worker: int) -> tuple[int, ...] | None:
        """The cores of a worker: an equal share of all, in one piece.

        By themselves (``auto``) cells are pinned where all workers together use every core. Otherwise two studies on
        one machine would press on the same few and leave the rest idle.
        """
        cores, workers = self.machine.cores, self.workers
        full = bool(self.machine.gpus) or workers * self.settings.threads >= len(cores)
        if self.settings.pin is False or (self.settings.pin == "auto" and not full):
            return None
        if workers >= len(cores):
            return (cores[worker % len(cores)],)
        return cores[worker * len(cores) // workers : (worker + 1) * len(cores) // workers]
