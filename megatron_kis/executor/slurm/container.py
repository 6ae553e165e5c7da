"""Command lines inside a container: pyxis (srun's ``--container-image``) and apptainer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from megatron_kis.common.errors import InputError
from megatron_kis.config.slurm import ContainerConfig
from megatron_kis.config.study import StudyConfig
from megatron_kis.executor.slurm.jobs import Job


def contained(command: Sequence[str], study: StudyConfig, job: Job, *, folder: Path) -> list[str]:
    """A command of a batch script, inside the study's container if it has one.

    Args:
        command: python and its arguments.
        study: the study.
        job: what it is part of; its cores and GPUs are passed on.
        folder: where the command is run.
    """
    container = study.cluster.container
    if container is None:
        return list(command)
    inside = [container.python, *command[1:]]
    if container.kind == "apptainer":
        return [*apptainer(container, study, gpus=job.gpus, folder=folder), *inside]
    step = ["srun", "--nodes=1", "--ntasks=1", f"--cpus-per-task={job.cpus}", "--input=none"]
    return [*step, *pyxis(container, study, folder=folder), *inside]


def pyxis(container: ContainerConfig, study: StudyConfig, *, folder: Path) -> list[str]:
    """Options of srun."""
    return [
        f"--container-image={container.image}",
        f"--container-mounts={','.join(_mounts(container, study, folder))}",
        f"--container-workdir={folder}",
    ]


def apptainer(container: ContainerConfig, study: StudyConfig, *, gpus: int, folder: Path) -> list[str]:
    """A command line that another one follows."""
    binds = [word for mount in _mounts(container, study, folder) for word in ("--bind", mount)]
    return ["apptainer", "exec", *(["--nv"] if gpus else []), *binds, "--pwd", str(folder), container.image]


def _mounts(container: ContainerConfig, study: StudyConfig, folder: Path) -> list[str]:
    """The container's mounts; our own folders under the names that they have outside."""
    own = dict.fromkeys(str(path) for path in (folder, study.output.resolve()))
    for path in own:
        if "," in path or ":" in path:
            raise InputError(
                f"{path!r} cannot be mounted: it has a comma or a colon", where="cluster.container",
                remedy="choose another folder",
            )  # fmt: skip
    given = list(container.mounts)
    return [*given, *(f"{path}:{path}" for path in own if path not in {mount.split(":")[0] for mount in given})]
