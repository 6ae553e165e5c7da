"""Leases of runs: one owner at a time, among all machines that share a folder, on NFS too.

The leases of a run are ``runs/<run>/claims/<number>.json``, one small file per lease, numbered from 1; the highest
number is the lease that counts. A process acquires a run by creating the next number, which the file system lets one
process alone do: the file is written under a name of its own and linked to the number (link(2) is exclusive on every
version of NFS, where locks are not always; O_EXCL where a file system has no links). Numbers are never removed or used
again, so it does not matter how late another machine sees a folder: whoever tries a number that exists finds it, and
reads it.

The next number may be created when the lease that counts is released, or when its owner is provably dead:

- on the same machine (same boot, same process namespace): its process is gone, and so is the run's;
- on the same node, of the same SLURM job: it belongs to an earlier start of the job, before it was requeued;
- elsewhere: its heartbeat, the file's modification time, which the owner renews ten times per lease, is older than the
  lease. Both times compared are those of the file server, so that clocks need not agree. A heartbeat in the future,
  because that server's clock was set back, is set to the present by whoever finds it.

An owner that was considered dead all the same (a machine that hung for longer than the lease) sees it at its next
heartbeat, by the higher number, and ends its run. Until then the lock of the run's folder (``files.locked``), which
``kis train`` holds, is the second fence.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from megatron_kis.executor import processes

FOLDER = "claims"
SCHEMA = "kis.claim/1"
LEASE_SECONDS = 600.0
"""Age of a heartbeat beyond which an owner elsewhere counts as dead. Attributes are cached for up to a minute on NFS,
and a file server that fails over is away for minutes."""

_BEATS_PER_LEASE = 10
_MISSED_BEATS = 3
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


@dataclass(frozen=True)
class Owner:
    """A process that executes runs, with what shows whether it is still alive."""

    host: str = ""
    """Name of its machine."""

    pid: int = 0
    """Number of its process."""

    boot: str = ""
    """Identity of its machine since it was started, from the kernel; empty where there is none."""

    namespace: str = ""
    """Process namespace in which the numbers of processes count (a container has its own)."""

    start_ticks: int = 0
    """Start of the process in the kernel's ticks: the number alone may be reused by another process."""

    job: str = ""
    """SLURM's number of its job; empty outside of a job."""

    restart: int = 0
    """Number of times that the job was requeued before."""

    run_process: tuple[int, int] | None = None
    """Number and start of the run's own process, once it has started."""

    def __str__(self) -> str:
        """Names the owner in messages."""
        return f"{self.host}, process {self.pid}" + (f", job {self.job}" if self.job else "")


_KEYS = {one.name: one.name for one in fields(Owner)} | {"start_ticks": "began", "run_process": "cell"}
"""Keys of an owner's attributes in the file."""


@dataclass(frozen=True)
class Lease:
    """A lease as any process may read it."""

    number: int
    """Number of the lease among those of the run."""

    owner: Owner
    """Process that holds it."""

    released: bool
    """Whether the owner has released the lease."""

    heartbeat: float
    """Time of its last heartbeat, seconds since the epoch, by the file server's clock."""


@dataclass
class HeldLease:
    """A lease that this process holds."""

    folder: Path
    """Folder of the run."""

    number: int
    """Number of the lease among those of the run; also the number of the attempt."""

    owner: Owner
    """This process, which holds the lease."""

    seconds: float = LEASE_SECONDS
    """Age of its heartbeat after which others may consider this process dead."""

    _renewed: float = field(default_factory=time.monotonic)

    def renew(self) -> bool:
        """Renews the heartbeat if that is due; cheap otherwise. Call it ten times per lease or more often.

        Returns:
            Whether the lease still counts; if not, another process has the run, and this one must end it.
        """
        if time.monotonic() - self._renewed < self.seconds / _BEATS_PER_LEASE:
            return True
        self._renewed = time.monotonic()
        try:
            os.utime(_path(self.folder, self.number))
        except FileNotFoundError:  # the whole folder was moved away
            return False
        return not _path(self.folder, self.number + 1).exists()

    def record_process(self, process: int) -> None:
        """Records the run's process, which may outlive this one for a moment."""
        self.owner = replace(self.owner, run_process=(process, processes.start_ticks(process)))
        self._write(released=False)

    def release(self) -> None:
        """Lets others acquire the run."""
        self._write(released=True)

    def _write(self, *, released: bool) -> None:
        path = _path(self.folder, self.number)
        partial = path.with_name(f".{uuid4().hex}")
        try:
            partial.write_text(_text(self.owner, released=released), encoding="utf-8")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def this_process(environment: Mapping[str, str] = os.environ) -> Owner:
    """Returns this process as an owner of leases."""
    return Owner(
        host=socket.gethostname(),
        pid=os.getpid(),
        boot=_boot(),
        namespace=_namespace(),
        start_ticks=processes.start_ticks(os.getpid()),
        job=environment.get("SLURM_JOB_ID", ""),
        restart=int(environment.get("SLURM_RESTART_COUNT", "0") or 0),
    )


def acquire(
    folder: Path,
    *,
    owner: Owner | None = None,
    seconds: float = LEASE_SECONDS,
) -> HeldLease | Lease:
    """Acquires a run, unless another living process holds it.

    Args:
        folder: folder of the run; made if it does not exist.
        owner: who acquires it; this process if not given.
        seconds: duration of a lease; see ``LEASE_SECONDS``. All who acquire runs of a study use the same.

    Returns:
        The lease, or that of the other process, as it was found.
    """
    owner = owner or this_process()
    claims = folder / FOLDER
    claims.mkdir(parents=True, exist_ok=True)
    mine = claims / f".{uuid4().hex}"
    try:
        mine.write_text(_text(owner, released=False), encoding="utf-8")
        number = _last(claims)
        while True:
            lease = _read(folder, number) if number else None
            if lease is not None:
                now = _now(mine)
                if not _is_over(lease, owner, now=now, seconds=seconds):
                    if _is_in_future(lease, owner, now=now, seconds=seconds):
                        with suppress(OSError):  # no lease ends later than one lease duration from now
                            os.utime(_path(folder, number))
                    return lease
            if _create(mine, _path(folder, number + 1)):
                return HeldLease(folder, number + 1, owner, seconds)
            number += 1  # another process was faster; is it alive?
    finally:
        mine.unlink(missing_ok=True)


def read_lease(folder: Path) -> Lease | None:
    """Returns the lease of a run that counts, without acquiring anything; None where there never was one."""
    number = _last(folder / FOLDER)
    return _read(folder, number) if number else None


def is_live(
    lease: Lease, *, owner: Owner | None = None, now: float | None = None, seconds: float = LEASE_SECONDS
) -> bool:
    """Tells whether a lease is held, as far as can be told without writing anything.

    Args:
        lease: the lease.
        owner: who asks; this process if not given.
        now: time of the file server; this machine's if not given.
        seconds: duration of a lease.
    """
    owner = owner or this_process()
    now = time.time() if now is None else now
    over = _is_over(lease, owner, now=now, seconds=seconds)
    return not over and not _is_in_future(lease, owner, now=now, seconds=seconds)


def is_suspect(lease: Lease, owner: Owner, *, now: float | None = None, seconds: float = LEASE_SECONDS) -> bool:
    """Tells whether the owner of a lease may well turn out to be dead when the lease expires.

    It has missed several heartbeats, or its last one is in the future (``acquire`` sets it back), or it is an earlier
    start of our own job on another node: the scheduler may have lost that node, or merely its connection to it.
    """
    theirs = lease.owner
    now = time.time() if now is None else now
    ours = bool(theirs.job) and theirs.job == owner.job and theirs.restart < owner.restart
    silent = now - lease.heartbeat > _MISSED_BEATS * seconds / _BEATS_PER_LEASE
    return ours or silent or _is_in_future(lease, owner, now=now, seconds=seconds)


def _is_in_future(lease: Lease, mine: Owner, *, now: float, seconds: float) -> bool:
    """Tells whether the heartbeat of an owner elsewhere is more than a lease in the future.

    The file server's clock was set back since. An owner that lives renews it, with the present time.
    """
    return not _is_local(lease.owner, mine) and lease.heartbeat - now > seconds


def _is_local(theirs: Owner, mine: Owner) -> bool:
    """Tells whether the kernel shows whether an owner is alive."""
    return bool(theirs.boot) and (theirs.boot, theirs.namespace) == (mine.boot, mine.namespace)


def _is_over(lease: Lease, mine: Owner, *, now: float, seconds: float) -> bool:
    """Tells whether a lease is released, or its owner provably dead."""
    theirs = lease.owner
    if lease.released:
        return True
    if _is_local(theirs, mine):
        return not any(
            _lives(*process) for process in ((theirs.pid, theirs.start_ticks), theirs.run_process) if process
        )
    if theirs.job and (theirs.job, theirs.host) == (mine.job, mine.host) and theirs.restart < mine.restart:
        return True
    return now - lease.heartbeat > seconds


def _create(written: Path, path: Path) -> bool:
    """Gives a written file another name, if that is free; exactly one of many processes succeeds."""
    try:
        os.link(written, path)
        return True
    except FileExistsError:
        # NFS repeats a request whose answer was lost, and then finds its own link: two names mean that it was made.
        return written.stat().st_nlink > 1
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(written.read_text(encoding="utf-8"))
        return True
    except FileExistsError:
        return False


def _path(folder: Path, number: int) -> Path:
    return folder / FOLDER / f"{number}.json"


def _last(claims: Path) -> int:
    """Returns the highest number that this machine sees; 0 if there is none."""
    try:
        names = [path.name for path in claims.iterdir()]
    except OSError:
        return 0
    return max((int(name[:-5]) for name in names if name.endswith(".json") and name[:-5].isdecimal()), default=0)


def _read(folder: Path, number: int) -> Lease | None:
    """Reads a lease; None if there is no such file.

    One that cannot be read has an unknown owner, who lives until the lease expires.
    """
    path = _path(folder, number)
    content: Any = None
    for _ in range(3):  # a file that is renamed over while it is read is stale on NFS
        try:
            with open(path, encoding="utf-8") as file:
                heartbeat = os.fstat(file.fileno()).st_mtime
                text = file.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            continue
        try:
            content = json.loads(text)
        except ValueError:
            content = None
        break
    else:
        heartbeat = time.time()
    if not isinstance(content, dict) or not isinstance(content.get("owner"), dict):
        return Lease(number, Owner(), False, heartbeat)
    written = content["owner"]
    known = {name: written[key] for name, key in _KEYS.items() if key in written}
    if known.get("run_process") is not None:
        process, ticks = known["run_process"]
        known["run_process"] = (int(process), int(ticks))
    return Lease(number, Owner(**known), content.get("released") is True, heartbeat)


def _text(owner: Owner, *, released: bool) -> str:
    written = {key: getattr(owner, name) for name, key in _KEYS.items()}
    return json.dumps({"schema": SCHEMA, "owner": written, "released": released}) + "\n"


def _now(written: Path) -> float:
    """Returns the file server's time, from a file of our own."""
    os.utime(written)
    return written.stat().st_mtime


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _lives(process: int, ticks: int) -> bool:
    return process > 0 and ticks > 0 and processes.start_ticks(process) == ticks
