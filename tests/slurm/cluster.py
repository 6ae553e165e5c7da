"""A SLURM of virtual nodes on this machine, without systemd: munge, a controller, and a daemon a node.

Needs root (the daemons start jobs as their users) and Debian's or Ubuntu's ``slurm-wlm``, which it installs where it is
missing. Everything lies in one folder, on ports that were free, so that several clusters can live side by side.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

NODES = 6
CPUS = 4
_PACKAGE = "slurm-wlm"
_PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scontrol", "squeue", "scancel")
_PR_SET_PDEATHSIG = 1
_DAEMON = "KIS_TEST_DAEMON"
"""Variable of a daemon and of what it starts, until a job's own environment takes its place."""


def missing() -> str:
    """Why there can be no cluster here; empty if there can. Installs the package if that is all that lacks."""
    if os.geteuid() != 0:
        return "starting SLURM's daemons needs root"
    if all(shutil.which(name) for name in _PROGRAMS):
        return ""
    apt = shutil.which("apt-get")
    if apt is None:
        return f"{_PACKAGE} is not installed, and there is no apt-get"
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = [apt, "install", "-y", "-qq", "--no-install-recommends", _PACKAGE]
    for command in (install, [apt, "update", "-qq"], install):
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if all(shutil.which(name) for name in _PROGRAMS):
            return ""
    return f"apt-get could not install {_PACKAGE}: {ended.stderr.strip()[-300:]}"


class Cluster:
    """A running SLURM."""

    def __init__(self, folder: Path, *, settings: Mapping[str, str] | None = None, partitions: str = "") -> None:
        """Starts it and waits until all nodes are idle.

        Args:
            folder: where everything lies.
            settings: further lines of slurm.conf, by key.
            partitions: further lines of slurm.conf that describe partitions.
        """
        self.folder, self._settings, self._partitions = folder, dict(settings or {}), partitions
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        for name in ("run", "log", "spool", "state", "run/munge"):
            (folder / name).mkdir(parents=True)
        try:
            self._start_munge()
            self._configure(_free_ports(NODES + 1))
            self._start("slurmctld", ["slurmctld", "-D", "-c"])
            for number in range(1, NODES + 1):
                self.start_node(f"kis{number}")
            wait_for(lambda: self.states().count("idle") == NODES, 30, "the nodes are not idle", self.log)
        except BaseException:
            self.stop()
            raise

    def run(self, *command: str) -> str:
        """What a SLURM command prints."""
        ended = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, f"{command}: {ended.stderr}"
        return ended.stdout

    def states(self) -> list[str]:
        """State of every node."""
        ask = ["sinfo", "-h", "-N", "-p", "main", "-o", "%T"]
        ended = subprocess.run(ask, env=self.environment, capture_output=True, text=True, check=False)
        return ended.stdout.split()

    def start_node(self, name: str) -> None:
        """Starts a node's daemon."""
        self._start(name, ["slurmd", "-D", "-N", name])

    def kill_node(self, name: str) -> None:
        """What a power cut does: the node's daemon and all that runs there end without a word."""
        self._daemons.pop(name).kill()
        marks = {f"{_DAEMON}={name}".encode(), f"SLURMD_NODENAME={name}".encode()}  # its own, and its jobs'
        for number, environment in self._processes():
            if marks & set(environment):
                _kill(number)

    def log(self) -> str:
        """The ends of the daemons' logs."""
        logs = sorted((self.folder / "log").glob("*.log"))
        return "\n".join(f"{path.name}: {path.read_text(errors='replace')[-1500:]}" for path in logs)

    def stop(self) -> None:
        """Ends every job and every daemon, whatever state they are in."""
        with suppress(subprocess.SubprocessError, OSError):
            cancel = ["scancel", "--state=running", "--state=pending", "--user=root"]
            subprocess.run(cancel, env=self.environment, capture_output=True, check=False, timeout=5)
        for daemon in self._daemons.values():
            daemon.terminate()
        deadline = time.monotonic() + 5
        for daemon in self._daemons.values():
            with suppress(subprocess.TimeoutExpired):
                daemon.wait(max(0.1, deadline - time.monotonic()))
            daemon.kill()
            daemon.wait()
        for number, _ in self._processes():
            _kill(number)

    def _processes(self) -> list[tuple[int, list[bytes]]]:
        """Processes of this cluster, by the variable that all of them inherit, and their variables."""
        mark = f"SLURM_CONF={self.folder / 'slurm.conf'}".encode()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                environment = (folder / "environ").read_bytes().split(b"\0")
                if mark in environment and int(folder.name) != os.getpid():
                    found.append((int(folder.name), environment))
        return found

    def _start(self, name: str, command: list[str], *, user: str | None = None) -> None:
        with open(self.folder / "log" / f"{name}.out.log", "ab") as log:
            self._daemons[name] = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                env={**self.environment, _DAEMON: name},
                user=user,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - one system call, looked up before the fork
            )

    def _start_munge(self) -> None:
        """A munge of its own, with the machine's key."""
        run = self.folder / "run" / "munge"
        for path in (self.folder, *self.folder.parents[:-2]):
            path.chmod(path.stat().st_mode | 0o055)  # munge's user comes through
        shutil.chown(run, "munge", "munge")
        run.chmod(0o755)
        self._socket = run / "munge.socket"
        options = {"socket": self._socket, "pid-file": run / "pid", "log-file": run / "log", "seed-file": run / "seed"}
        command = ["munged", "--foreground", "--force", *(f"--{name}={path}" for name, path in options.items())]
        self._start("munged", command, user="munge")
        wait_for(self._socket.exists, 10, "munged did not start", self.log)

    def _configure(self, ports: list[int]) -> None:
        folder = self.folder
        lines = {
            "ClusterName": "kistest",
            "SlurmctldHost": "localhost",
            "SlurmUser": "root",
            "SlurmdUser": "root",
            "AuthType": "auth/munge",
            # How long a job waits after it was requeued goes by the life of a credential.
            "AuthInfo": f"socket={self._socket},cred_expire=5",
            "CredType": "cred/munge",
            "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": "task/none",
            "JobAcctGatherType": "jobacct_gather/none",
            "AccountingStorageType": "accounting_storage/none",
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_Core",
            "GresTypes": "gpu",
            "SchedulerParameters": "batch_sched_delay=0,sched_interval=1,bf_interval=1,sched_min_interval=0",
            "SwitchType": "switch/none",
            "MpiDefault": "none",
            "ReturnToService": "2",
            "SlurmctldPort": str(ports[0]),
            "StateSaveLocation": str(folder / "state"),
            "SlurmctldPidFile": str(folder / "run" / "slurmctld.pid"),
            "SlurmctldLogFile": str(folder / "log" / "slurmctld.log"),
            "SlurmdSpoolDir": str(folder / "spool" / "%n"),
            "SlurmdPidFile": str(folder / "run" / "slurmd.%n.pid"),
            "SlurmdLogFile": str(folder / "log" / "slurmd.%n.log"),
            "SlurmdParameters": "config_overrides",
            "KillWait": "10",
            "MinJobAge": "86400",
            "MaxArraySize": "8",
            **self._settings,
        }
        span = f"[{ports[1]}-{ports[-1]}]"
        text = "".join(f"{key}={value}\n" for key, value in lines.items())
        text += f"NodeName=kis[1-{NODES}] NodeHostname=localhost NodeAddr=127.0.0.1 Port={span} CPUs={CPUS} "
        text += "RealMemory=8000 Gres=gpu:2 State=UNKNOWN\n"
        text += "PartitionName=main Nodes=ALL Default=YES MaxTime=1-00:00:00 State=UP\n" + self._partitions
        (folder / "slurm.conf").write_text(text)
        (folder / "gres.conf").write_text(f"NodeName=kis[1-{NODES}] Name=gpu File=/dev/null,/dev/zero\n")


def wait_for(
    condition: Callable[[], object],
    seconds: float,
    problem: str,
    explain: Callable[[], str] = lambda: "",
    *,
    every: float = 0.1,
) -> None:
    """Waits until something is true, and looks every so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{problem} after {seconds} s\n{explain()}"
        time.sleep(every)


def _free_ports(count: int) -> list[int]:
    """A row of ports that nothing listens on, below those that the kernel gives to outgoing connections."""
    first = int(re.split(r"\s+", Path("/proc/sys/net/ipv4/ip_local_port_range").read_text())[0])
    for start in range(first - 64 - os.getpid() % 5000, 2000, -64):
        ports = list(range(start, start + count))
        if all(_free(port) for port in ports):
            return ports
    msg = "no free ports"
    raise RuntimeError(msg)


def _free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def _kill(process: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


_prctl = ctypes.CDLL(None).prctl


def _die_with_parent() -> None:
    """No daemon outlives the tests, however they end."""
    _prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
