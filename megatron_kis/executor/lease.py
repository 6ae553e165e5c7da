"""Who runs a cell: claims that hold between machines, on NFS too.

A cell's claims lie in ``runs/<cell>/claims``, one small file a claim, numbered from 1; the highest number is the claim
that counts. To claim a cell is to create the next number, and the file system lets one process alone do that: the file
is written under a name of its own and linked to the number (link(2) is exclusive on every version of NFS, where locks
are not always; O_EXCL where a file system has no links). Numbers are never taken away or used again, so that it does
not matter how late another machine sees a folder: who tries a number that is there finds it there, and looks at it.

The next number may be created when the claim that counts is released, or when its owner is provably dead:

- on the same machine (same boot, same process namespace): its process is gone, and so is the cell's;
- on the same node, of the same SLURM job: it belongs to an earlier start of the job, before it was requeued;
- elsewhere: its heartbeat, the file's modification time, which the owner renews ten times a lease, is older than the
  lease. Both times compared are those of the file server, so that clocks need not agree. One that is in the future,
  because that server's clock was set back, is set to the present by who meets it.

An owner that was taken for dead all the same (a machine that hung for longer than the lease) sees it at its next
heartbeat, by the higher number, and ends its cell. Until then the lock of the run's folder (``files.locked``), which
``kis train`` holds, is the second fence.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from megatron_kis.executor import processes

FOLDER = "claims"
SCHEMA = "kis.claim/1"
LEASE_SECONDS = 600.0
"""Age of a heartbeat beyond which an owner elsewhere is dead. Attributes are cached for up to a minute on NFS, and a
file server that fails over is away for minutes."""

_BEATS_A_LEASE = 10
_MISSED_BEATS = 3
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


@dataclass(frozen=True)
class Owner:
    """A process that runs cells, and what is needed to tell whether it still lives."""

    host: str = ""
    """Name of its machine."""

    pid: int = 0
    """Its process."""

    boot: str = ""
    """Identity of its machine since it was started, from the kernel; empty where there is none."""

    namespace: str = ""
    """Process namespace in which the numbers of processes count (a container has its own)."""

    began: int = 0
    """When the process began, in the kernel's ticks: a number is given to another process some day."""

    job: str = ""
    """SLURM's number of its job; empty outside of one."""

    restart: int = 0
    """How often that job was requeued before."""

    cell: tuple[int, int] | None = None
    """Process of the cell and when it began, once it runs."""

    def __str__(self) -> str:
        """For messages."""
        return f"{self.host}, process {self.pid}" + (f", job {self.job}" if self.job else "")


@dataclass(frozen=True)
class Seen:
    """A claim that counts, as another process sees it."""

    number: int
    """Which claim of the cell it is."""

    owner: Owner
    """Who claimed it."""

    released: bool
    """Whether the owner has let go of it."""

    beat: float
    """Time of its last heartbeat, seconds since the epoch, by the file server's clock."""


@dataclass
class Claim:
    """A claim that this process holds."""

    folder: Path
    """The cell's folder."""

    number: int
    """Which claim of the cell it is; also the number of the attempt."""

    owner: Owner
    """This process."""

    lease: float = LEASE_SECONDS
    """Seconds after which others may take it for dead."""

    _beat: float = field(default_factory=time.monotonic)

    def renew(self) -> bool:
        """A heartbeat, if one is due; cheap otherwise. Call it at least as often.

        Returns:
            Whether the claim still counts; if not, another process runs the cell, and this one must not.
        """
        if time.monotonic() - self._beat < self.lease / _BEATS_A_LEASE:
            return True
        self._beat = time.monotonic()
        try:
            os.utime(_path(self.folder, self.number))
        except FileNotFoundError:  # the whole folder was moved away
            return False
        return not _path(self.folder, self.number + 1).exists()

    def started(self, process: int) -> None:
        """Notes the cell's process, which may outlive this one by moments."""
        self.owner = replace(self.owner, cell=(process, processes.began(process)))
        self._write(released=False)

    def release(self) -> None:
        """Lets go of the cell."""
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
    """This process as an owner of claims."""
    return Owner(
        host=socket.gethostname(),
        pid=os.getpid(),
        boot=_boot(),
        namespace=_namespace(),
        began=processes.began(os.getpid()),
        job=environment.get("SLURM_JOB_ID", ""),
        restart=int(environment.get("SLURM_RESTART_COUNT", "0") or 0),
    )


def claim(
    folder: Path,
    *,
    owner: Owner | None = None,
    lease: float = LEASE_SECONDS,
    dead: Callable[[Owner], bool] | None = None,
) -> Claim | Seen:
    """Claims a cell, unless another living process has it.

    Args:
        folder: the cell's folder; made if it is not there.
        owner: who claims it; this process if not given.
        lease: seconds; see ``LEASE_SECONDS``. All who claim cells of a study use the same.
        dead: a further proof that an owner elsewhere is dead, such as a scheduler that says its job is over.

    Returns:
        The claim, or whose claim was met instead, as it was.
    """
    owner = owner or this_process()
    claims = folder / FOLDER
    claims.mkdir(parents=True, exist_ok=True)
    mine = claims / f".{uuid4().hex}"
    try:
        mine.write_text(_text(owner, released=False), encoding="utf-8")
        number = _last(claims)
        while True:
            seen = _read(folder, number) if number else None
            if seen is not None:
                now = _now(mine)
                if not _over(seen, owner, now=now, lease=lease, dead=dead):
                    if _ahead(seen, owner, now=now, lease=lease):
                        with suppress(OSError):  # nobody's lease ends later than a lease from now
                            os.utime(_path(folder, number))
                    return seen
            if _create(mine, _path(folder, number + 1)):
                return Claim(folder, number + 1, owner, lease)
            number += 1  # somebody was faster; is it alive?
    finally:
        mine.unlink(missing_ok=True)


def look(folder: Path) -> Seen | None:
    """The claim of a cell that counts, without claiming anything; None where there never was one."""
    number = _last(folder / FOLDER)
    return _read(folder, number) if number else None


def alive(seen: Seen, *, owner: Owner | None = None, now: float | None = None, lease: float = LEASE_SECONDS) -> bool:
    """Whether a claim is held, as far as can be told without writing anything.

    Args:
        seen: the claim.
        owner: who asks; this process if not given.
        now: time of the file server; this machine's if not given.
        lease: seconds.
    """
    owner, now = owner or this_process(), time.time() if now is None else now
    over = _over(seen, owner, now=now, lease=lease, dead=None)
    return not over and not _ahead(seen, owner, now=now, lease=lease)


def doubtful(seen: Seen, owner: Owner, *, now: float | None = None, lease: float = LEASE_SECONDS) -> bool:
    """Whether it may well turn out, when the lease is over, that the owner of a claim is dead.

    It has missed several heartbeats, or its last one is in the future (``claim`` sets it back), or it is an earlier
    start of our own job on another node: the scheduler may have lost that node, or merely its connection to it.
    """
    theirs, now = seen.owner, time.time() if now is None else now
    ours = bool(theirs.job) and theirs.job == owner.job and theirs.restart < owner.restart
    silent = now - seen.beat > _MISSED_BEATS * lease / _BEATS_A_LEASE
    return ours or silent or _ahead(seen, owner, now=now, lease=lease)


def _ahead(seen: Seen, mine: Owner, *, now: float, lease: float) -> bool:
    """Whether the heartbeat of an owner elsewhere is more than a lease in the future.

    The file server's clock was set back since. An owner that lives renews it, with the present time.
    """
    return not _is_here(seen.owner, mine) and seen.beat - now > lease


def _is_here(theirs: Owner, mine: Owner) -> bool:
    """Whether the kernel can tell us what has become of an owner."""
    return bool(theirs.boot) and (theirs.boot, theirs.namespace) == (mine.boot, mine.namespace)


def _over(seen: Seen, mine: Owner, *, now: float, lease: float, dead: Callable[[Owner], bool] | None) -> bool:
    """Whether a claim is released, or its owner provably dead."""
    theirs = seen.owner
    if seen.released:
        return True
    if _is_here(theirs, mine):
        return not any(_lives(*process) for process in ((theirs.pid, theirs.began), theirs.cell) if process)
    if theirs.job and (theirs.job, theirs.host) == (mine.job, mine.host) and theirs.restart < mine.restart:
        return True
    return now - seen.beat > lease or bool(dead and theirs.pid and dead(theirs))


def _create(written: Path, path: Path) -> bool:
    """Gives a written file another name, if nothing has it; exactly one of many processes succeeds."""
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
    """The highest number that this machine sees."""
    try:
        names = [path.name for path in claims.iterdir()]
    except OSError:
        return 0
    return max((int(name[:-5]) for name in names if name.endswith(".json") and name[:-5].isdecimal()), default=0)


def _read(folder: Path, number: int) -> Seen | None:
    """A claim; one that cannot be read has an unknown owner, who lives for a lease. None if it is not there."""
    path = _path(folder, number)
    content: Any = None
    for _ in range(3):  # a file that is renamed over while it is read is stale on NFS
        try:
            with open(path, encoding="utf-8") as file:
                beat = os.fstat(file.fileno()).st_mtime
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
        beat = time.time()
    if not isinstance(content, dict) or not isinstance(content.get("owner"), dict):
        return Seen(number, Owner(), False, beat)
    known = {name.name for name in fields(Owner)}
    owner = Owner(**{key: value for key, value in content["owner"].items() if key in known})
    if owner.cell is not None:
        owner = replace(owner, cell=(int(owner.cell[0]), int(owner.cell[1])))
    return Seen(number, owner, content.get("released") is True, beat)


def _text(owner: Owner, *, released: bool) -> str:
    return json.dumps({"schema": SCHEMA, "owner": asdict(owner), "released": released}) + "\n"


def _now(written: Path) -> float:
    """The file server's time, from a file of our own."""
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


def _lives(process: int, began: int) -> bool:
    return process > 0 and began > 0 and processes.began(process) == began
