"""The GPUs and cores of one machine, and which of them each run gets."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_kis.common.errors import InputError
from megatron_kis.common.units import plural
from megatron_kis.config.executor import ExecutorConfig
from megatron_kis.executor.interface import Run, Slot


@dataclass(frozen=True)
class Machine:
    """GPUs and cores that an executor may use."""

    gpus: tuple[str, ...] = ()
    """GPUs as CUDA_VISIBLE_DEVICES names them: numbers, or UUIDs."""

    cores: tuple[int, ...] = (0,)
    """Numbers of the cores."""


def this_machine(
    settings: ExecutorConfig, *, environment: Mapping[str, str] = os.environ, devices: Path = Path("/dev")
) -> Machine:
    """Returns the GPUs and cores that this process may use, within a job's share of a node.

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
            f"is {settings.gpus}, and CUDA_VISIBLE_DEVICES shows {len(found)}",
            where="executor.gpus",
            remedy="lower it, or use auto",
        )
    return Machine(found[: settings.gpus] if visible is not None else tuple(map(str, range(settings.gpus))), cores)


class ResourcePool:
    """The slots of a machine, which runs acquire and release."""

    def __init__(self, machine: Machine, settings: ExecutorConfig) -> None:
        """Begins with everything free.

        Args:
            machine: GPUs and cores.
            settings: how to divide them.
        """
        self._machine = machine
        self._settings = settings
        self._free_shares = dict.fromkeys(machine.gpus, settings.cells_per_gpu)
        self._free_workers = list(range(self.workers))

    @property
    def workers(self) -> int:
        """Number of runs side by side: the settings', or as many as the GPUs take, or as the cores do."""
        if self._settings.workers is not None:
            return self._settings.workers
        if self._machine.gpus:
            return len(self._machine.gpus) * self._settings.cells_per_gpu
        return max(1, len(self._machine.cores) // self._settings.threads)

    def check(self, runs: Sequence[Run]) -> None:
        """Refuses runs that could never start.

        Raises:
            InputError: a run of more ranks than there are GPUs.
        """
        for run in runs:
            if self._uses_gpus(run) and run.ranks > len(self._machine.gpus):
                raise InputError(
                    f"needs {plural(run.ranks, 'GPU')}; this machine has {len(self._machine.gpus)}",
                    where=f"run {run.name}: parallel",
                    remedy="run it on a machine with more, or with another layout",
                )

    def acquire(self, run: Run) -> Slot | None:
        """Returns a slot for a run; None while there is none.

        A run of one rank gets a share of the GPU that has most shares free; one of several ranks gets that many whole
        GPUs.
        """
        if not self._free_workers:
            return None
        gpus: tuple[str, ...] | None = None
        if self._uses_gpus(run):
            whole = self._settings.cells_per_gpu
            if run.ranks == 1:
                gpu = max(self._free_shares, key=lambda name: self._free_shares[name])
                gpus = (gpu,) if self._free_shares[gpu] else ()
            else:
                gpus = tuple(gpu for gpu, free in self._free_shares.items() if free == whole)[: run.ranks]
            if len(gpus) < run.ranks:
                return None
            for gpu in gpus:
                self._free_shares[gpu] -= self._shares(run)
        worker = self._free_workers.pop(0)
        return Slot(worker, gpus, self._cores(worker), self._settings.threads)

    def release(self, run: Run, slot: Slot) -> None:
        """Frees the slot of a run that has ended."""
        for gpu in slot.gpus or ():
            self._free_shares[gpu] += self._shares(run)
        self._free_workers = sorted([*self._free_workers, slot.worker])

    def _shares(self, run: Run) -> int:
        """Returns how many shares of each of its GPUs a run takes."""
        return 1 if run.ranks == 1 else self._settings.cells_per_gpu

    def _uses_gpus(self, run: Run) -> bool:
        return bool(self._machine.gpus) and run.device != "cpu"

    def _cores(self, worker: int) -> tuple[int, ...] | None:
        """Returns the cores of a worker: an equal, contiguous share of all.

        With ``auto``, runs are pinned where all workers together use every core. Otherwise two studies on one machine
        would use the same few and leave the rest idle.
        """
        cores = self._machine.cores
        workers = self.workers
        full = bool(self._machine.gpus) or workers * self._settings.threads >= len(cores)
        if self._settings.pin is False or (self._settings.pin == "auto" and not full):
            return None
        if workers >= len(cores):
            return (cores[worker % len(cores)],)
        return cores[worker * len(cores) // workers : (worker + 1) * len(cores) // workers]
