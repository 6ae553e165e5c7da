"""The environment of a rank that ``srun`` started directly: what torchrun would have set."""

from __future__ import annotations

import re
from collections.abc import Mapping

from megatron_kis.common.errors import InputError


def environment_of_srun(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables that torchrun would have set, for a process that srun started directly.

    Args:
        environment: the process's variables.

    Returns:
        RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR (the first node of the step) and MASTER_PORT (the same for all tasks
        of a step, another for the next step); nothing under torchrun or outside a job step, as in a batch script.

    Raises:
        InputError: a list of nodes that cannot be parsed.
    """
    if "RANK" in environment or "SLURM_STEP_ID" not in environment or "SLURM_PROCID" not in environment:
        return {}
    size = environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS", "1")
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "localhost")
    step = int(environment.get("SLURM_JOB_ID", "0")) * 100 + int(environment["SLURM_STEP_ID"])
    return {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": size,
        "LOCAL_RANK": environment.get("SLURM_LOCALID", "0"),
        "MASTER_ADDR": environment.get("MASTER_ADDR", first_node(nodes)),
        "MASTER_PORT": environment.get("MASTER_PORT", str(20000 + step % 10000)),
    }


def first_node(nodes: str) -> str:
    """Returns the first node of SLURM's compressed list of nodes: ``gpu[007-012,020],login1`` -> ``gpu007``.

    Raises:
        InputError: the text is no such list.
    """
    match = re.match(r"([\w.-]+)(?:\[(\d+)[^\]]*\]([\w.-]*))?(?:,|$)", nodes)
    if match is None:
        raise InputError(f"is {nodes!r}", where="SLURM_JOB_NODELIST", remedy="set MASTER_ADDR")
    stem, number, rest = match.groups(default="")
    return stem + number + rest
