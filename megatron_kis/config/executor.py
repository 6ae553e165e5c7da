"""The ``executor`` section of a study: how its runs are executed on one machine."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt

from megatron_kis.common.configuration import Config


class ExecutorConfig(Config):
    """Execution of runs on this machine."""

    workers: int | None = Field(None, gt=0)
    """Number of runs side by side; if not given, as many as fit on the GPUs, or on the cores (with ``threads``
    each)."""

    threads: int = Field(1, gt=0)
    """Number of threads of each process. Small models gain more from runs side by side than from threads."""

    gpus: Literal["auto"] | NonNegativeInt | tuple[str, ...] = "auto"
    """GPUs to use: those of CUDA_VISIBLE_DEVICES, or all; or their number; or their names."""

    cells_per_gpu: int = Field(1, gt=0)
    """Number of runs of one rank that share a GPU. Several small runs use it better than one."""

    pin: bool | Literal["auto"] = "auto"
    """Whether each run is pinned to cores of its own; ``auto``: if GPUs are assigned, or all workers together use every
    core."""

    retries: int = Field(1, ge=0)
    """Number of times that a failed run is tried again before it is given up. Wrong input (status 2) is given up at
    once."""

    grace_seconds: float = Field(60.0, gt=0)
    """Seconds that runs have to save and end when the executor is asked to stop; then they are killed."""

    lease_minutes: float = Field(10.0, gt=0)
    """Minutes without a sign of life after which an executor on another machine counts as dead, and its runs are taken
    over."""
