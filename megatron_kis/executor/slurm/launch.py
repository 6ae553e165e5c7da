"""Commands on the nodes of a job: a run of several ranks by ``srun`` or torchrun, how its ranks meet, containers.

Containers are those of pyxis (srun's ``--container-image``) and apptainer.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from megatron_kis.common.errors import InputError
from megatron_kis.config.slurm import ClusterConfig, ContainerConfig
from megatron_kis.executor.interface import Command, Launcher, Run, Slot
from megatron_kis.executor.slurm import client
from megatron_kis.executor.slurm.jobs import Job, jobs_of

_LAST_RANKS_SECONDS = 120
"""Time that ranks may continue after the first has ended: a checkpoint that all have written is named by one of them. A
rank that waits for a dead one is killed then."""

_SIOCGIFADDR = 0x8915  # linux/sockios.h: the address of an interface


def srun_launcher(
    cluster: ClusterConfig, *, output: Path, folder: Path, environment: Mapping[str, str] = os.environ
) -> Launcher:
    """Returns a launcher of runs on all nodes of the job in whose batch script this process is.

    Args:
        cluster: settings of the cluster.
        output: folder of the study, which a container mounts.
        folder: where the ranks are started.
        environment: variables of the batch script.
    """

    def launch(run: Run, config: Path, slot: Slot) -> Command:
        (job,) = jobs_of([run], cluster)
        torchrun = cluster.large.launcher == "torchrun"
        ranks = 1 if torchrun else job.ranks_per_node
        cores = job.cpus * (job.ranks_per_node if torchrun else 1)
        # No --kill-on-bad-exit: the first rank that has saved its checkpoint ends with 75, and is not a failure.
        step = [
            "srun",
            f"--nodes={job.nodes}",
            f"--ntasks={job.nodes * ranks}",
            f"--ntasks-per-node={ranks}",
            f"--cpus-per-task={cores}",
            f"--wait={_LAST_RANKS_SECONDS}",
            "--kill-on-bad-exit=0",
            "--input=none",
        ]
        variables = rendezvous_variables(job.nodes, environment)
        container = cluster.container
        python = [cluster.python or sys.executable]
        if container is not None:
            python = [container.python]
            if container.kind == "pyxis":
                step += pyxis(container, output, folder=folder)
            else:
                step += apptainer(container, output, gpus=job.gpus, folder=folder)
        start = []
        if torchrun:
            rendezvous = f"{variables['MASTER_ADDR']}:{variables['MASTER_PORT']}"
            start = [
                "-m",
                "torch.distributed.run",
                f"--nnodes={job.nodes}",
                f"--nproc-per-node={job.ranks_per_node}",
                "--rdzv-backend=c10d",
                f"--rdzv-endpoint={rendezvous}",
                f"--rdzv-id={environment.get('SLURM_JOB_ID', run.name)}",
                "--max-restarts=0",
            ]
        threads = str(slot.threads)
        variables |= {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        if not job.gpus:
            variables["CUDA_VISIBLE_DEVICES"] = ""  # a node may have GPUs that are not ours
        return Command([*step, *python, *start, "-m", "megatron_kis", "train", str(config)], variables)

    return launch


def contained(
    command: Sequence[str], container: ContainerConfig | None, output: Path, job: Job, *, folder: Path
) -> list[str]:
    """Returns a command of a batch script as it is called inside the study's container, if there is one.

    Args:
        command: python and its arguments.
        container: settings of the container.
        output: folder of the study, which the container mounts.
        job: the job whose cores and GPUs the command gets.
        folder: where the command is run.
    """
    if container is None:
        return list(command)
    inside = [container.python, *command[1:]]
    if container.kind == "apptainer":
        return [*apptainer(container, output, gpus=job.gpus, folder=folder), *inside]
    step = ["srun", "--nodes=1", "--ntasks=1", f"--cpus-per-task={job.cpus}", "--input=none"]
    return [*step, *pyxis(container, output, folder=folder), *inside]


def pyxis(container: ContainerConfig, output: Path, *, folder: Path) -> list[str]:
    """Returns the options of srun for a container."""
    return [
        f"--container-image={container.image}",
        f"--container-mounts={','.join(_mounts(container, output, folder))}",
        f"--container-workdir={folder}",
    ]


def apptainer(container: ContainerConfig, output: Path, *, gpus: int, folder: Path) -> list[str]:
    """Returns the beginning of a command line that another command follows."""
    binds = [word for mount in _mounts(container, output, folder) for word in ("--bind", mount)]
    return ["apptainer", "exec", *(["--nv"] if gpus else []), *binds, "--pwd", str(folder), container.image]


def _mounts(container: ContainerConfig, output: Path, folder: Path) -> list[str]:
    """Returns the container's mounts; our own folders have the same names inside as outside."""
    own = dict.fromkeys(str(path) for path in (folder, output.resolve()))
    for path in own:
        if "," in path or ":" in path:
            raise InputError(
                f"{path!r} cannot be mounted: it has a comma or a colon",
                where="cluster.container",
                remedy="choose another folder",
            )
    given = list(container.mounts)
    return [*given, *(f"{path}:{path}" for path in own if path not in {mount.split(":")[0] for mount in given})]


def rendezvous_variables(
    nodes: int,
    environment: Mapping[str, str] = os.environ,
    *,
    resolves: Callable[[str], str | None] | None = None,
    node_address: Callable[[str], str | None] = client.node_address,
) -> dict[str, str]:
    """Returns the variables by which ranks find each other; what the environment sets is left as it is.

    The first node is the one on which batch scripts run. Its name is used if it resolves, and SLURM's address of it
    (NodeAddr) otherwise.

    Args:
        nodes: number of nodes of the job.
        environment: variables of its batch script.
        resolves: returns the address of a name, or None; the system's if not given.
        node_address: returns SLURM's address of a node.

    Raises:
        InputError: no address can be found.
    """
    resolve = resolves or _resolve
    host = environment.get("MASTER_ADDR") or _master(nodes, environment, resolve, node_address)
    variables = {
        "MASTER_ADDR": host,
        "MASTER_PORT": environment.get("MASTER_PORT") or str(_free_port(int(environment.get("SLURM_JOB_ID") or 0))),
        "NCCL_DEBUG": "WARN",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",  # a rank that died ends the others, which would wait for it
    }
    address = resolve(host) or host
    own = resolve(socket.gethostname()) or "127.0.0.1"
    if address.startswith("127."):
        # All nodes are this machine; NCCL would skip its loopback.
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
    """Returns a free port below those that the kernel assigns; jobs of neighbouring numbers get different ones."""
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
    """Returns the network interface that has an IPv4 address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None
