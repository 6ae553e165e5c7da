"""A cell of several ranks on the nodes of a job: ``srun`` alone, or ``srun`` and torchrun, and how its ranks meet."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from megatron_kis.common.errors import InputError
from megatron_kis.config.run import RunConfig
from megatron_kis.config.study import StudyConfig
from megatron_kis.executor.launch import Command, Launcher
from megatron_kis.executor.resources import Place
from megatron_kis.executor.slurm import client
from megatron_kis.executor.slurm.container import apptainer, pyxis
from megatron_kis.executor.slurm.jobs import jobs_of

_LAST_RANKS_SECONDS = 120
"""How long ranks may live on when the first has ended: a checkpoint that all have written is named by one of them. A
rank that waits for a dead one is killed then."""

_SIOCGIFADDR = 0x8915  # linux/sockios.h: the address of an interface


def srun_launcher(study: StudyConfig, *, folder: Path, environment: Mapping[str, str] = os.environ) -> Launcher:
    """Starts a cell on all nodes of the job in whose batch script this process is.

    Args:
        study: the study.
        folder: where the ranks are started.
        environment: of the batch script.
    """

    def launch(run: RunConfig, config: Path, place: Place) -> Command:
        cluster, job = study.cluster, jobs_of([run], study.cluster)[0]
        torchrun = cluster.large.launcher == "torchrun"
        ranks = 1 if torchrun else job.ranks_per_node
        cores = job.cpus * (job.ranks_per_node if torchrun else 1)
        # No --kill-on-bad-exit: the first rank that has saved its checkpoint ends with 75, and is no failure.
        step = [
            "srun", f"--nodes={job.nodes}", f"--ntasks={job.nodes * ranks}", f"--ntasks-per-node={ranks}",
            f"--cpus-per-task={cores}", f"--wait={_LAST_RANKS_SECONDS}", "--kill-on-bad-exit=0", "--input=none",
        ]  # fmt: skip
        variables = meeting_point(job.nodes, environment)
        container = cluster.container
        python = [cluster.python or sys.executable]
        if container is not None:
            python = [container.python]
            if container.kind == "pyxis":
                step += pyxis(container, study, folder=folder)
            else:
                step += apptainer(container, study, gpus=job.gpus, folder=folder)
        start = []
        if torchrun:
            place_of_meeting = f"{variables['MASTER_ADDR']}:{variables['MASTER_PORT']}"
            start = [
                "-m", "torch.distributed.run", f"--nnodes={job.nodes}", f"--nproc-per-node={job.ranks_per_node}",
                "--rdzv-backend=c10d", f"--rdzv-endpoint={place_of_meeting}",
                f"--rdzv-id={environment.get('SLURM_JOB_ID', run.name)}", "--max-restarts=0",
            ]  # fmt: skip
        threads = str(place.threads)
        variables |= {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        if not job.gpus:
            variables["CUDA_VISIBLE_DEVICES"] = ""  # a node may have GPUs that are not ours
        return Command([*step, *python, *start, "-m", "megatron_kis", "train", str(config)], variables)

    return launch


def meeting_point(
    nodes: int,
    environment: Mapping[str, str] = os.environ,
    *,
    resolves: Callable[[str], str | None] | None = None,
    node_address: Callable[[str], str | None] = client.node_address,
) -> dict[str, str]:
    """Variables by which ranks find each other, for what the environment does not say already.

    The first node is the one on which batch scripts run. Its name is taken if it resolves, and SLURM's address of it
    (NodeAddr) otherwise.

    Args:
        nodes: nodes of the job.
        environment: of its batch script; what is set there is left as it is.
        resolves: from a name to an address, or None; the system's if not given.
        node_address: from a node's name to SLURM's address of it.

    Raises:
        InputError: no address can be found.
    """
    resolve = resolves or _resolve
    host = environment.get("MASTER_ADDR") or _master(nodes, environment, resolve, node_address)
    variables = {
        "MASTER_ADDR": host,
        "MASTER_PORT": environment.get("MASTER_PORT") or str(_free_port(int(environment.get("SLURM_JOB_ID") or 0))),
        "NCCL_DEBUG": "WARN",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",  # a rank that is gone ends the others, who would wait for it
    }
    address = resolve(host) or host
    own = resolve(socket.gethostname()) or "127.0.0.1"
    if address.startswith("127."):
        # All nodes are this machine; NCCL would pass over its loopback.
        variables |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    elif nodes > 1 and own.startswith("127.") and (interface := _interface_of(address)):
        # Gloo offers the address of the machine's own name, and here (as Debian does) that is the loopback's. NCCL
        # looks for its interfaces itself, and prefers InfiniBand.
        variables["GLOO_SOCKET_IFNAME"] = interface
    return {name: environment.get(name) or value for name, value in variables.items()}


def _master(
    nodes: int,
    environment: Mapping[str, str],
    resolve: Callable[[str], str | None],
    node_address: Callable[[str], str | None],
) -> str:
    if nodes == 1:
        return "127.0.0.1"
    name = environment.get("SLURMD_NODENAME", "")
    if name and resolve(name):
        return name
    address = node_address(name) if name else None
    if address and resolve(address):
        return address
    raise InputError(
        f"the address of node {name!r} cannot be found", where="SLURM", remedy="set MASTER_ADDR in cluster.environment"
    )


def _resolve(host: str) -> str | None:
    try:
        return str(socket.getaddrinfo(host, None, family=socket.AF_INET)[0][4][0])
    except OSError:
        return None


def _free_port(job: int) -> int:
    """A port below those that the kernel gives away, another one for jobs next to each other, and free at this time."""
    for attempt in range(100):
        port = 20000 + (job * 7 + attempt * 131) % 10000
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
        return port
    raise InputError(
        "no free port between 20000 and 30000", where="MASTER_PORT", remedy="set it in cluster.environment"
    )


def _interface_of(address: str) -> str | None:
    """The network interface that has an IPv4 address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None
