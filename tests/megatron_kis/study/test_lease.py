"""Leases, with many real processes that want the same run."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_kis.executor import lease as module
from megatron_kis.executor import processes
from megatron_kis.executor.lease import HeldLease, Lease, Owner, acquire, is_live, is_suspect, read_lease, this_process

PROCESSES, WINS = 10, 4

# Acquires a run again and again; counts in a file what only the holder may, without any other lock.
CONTENDER = """
import sys, time
from pathlib import Path
from megatron_kis.executor.lease import HeldLease, acquire
folder, wins = Path(sys.argv[1]), int(sys.argv[2])
while wins:
    held = acquire(folder)
    if isinstance(held, HeldLease):
        alone = folder / "alone"
        alone.open("x").close()  # fails if another is in here
        count = folder / "count"
        before = int(count.read_text()) if count.exists() else 0
        time.sleep(0.002)
        count.write_text(str(before + 1))
        alone.unlink()
        held.release()
        wins -= 1
    time.sleep(0.001)
"""

DIES = """
import os, sys
from pathlib import Path
from megatron_kis.executor.lease import acquire
acquire(Path(sys.argv[1]))
os._exit(0)
"""


def elsewhere(**changes: Any) -> Owner:
    """An owner on another machine."""
    return replace(Owner(host="far", pid=4711, boot="another boot", namespace="pid:[1]", start_ticks=17), **changes)


def beaten(folder: Path, number: int, seconds_ago: float) -> None:
    path = folder / "claims" / f"{number}.json"
    os.utime(path, (time.time() - seconds_ago,) * 2)


def names(folder: Path) -> list[str]:
    return [path.name for path in (folder / "claims").iterdir()]


def held(found: HeldLease | Lease) -> HeldLease:
    assert isinstance(found, HeldLease)
    return found


def test_a_acquired_run_is_acquired_once_and_again_when_it_is_released(tmp_path: Path) -> None:
    first = held(acquire(tmp_path))
    second = acquire(tmp_path)
    assert isinstance(second, Lease)
    assert second.owner == this_process()
    assert is_live(second)
    first.release()
    again = held(acquire(tmp_path))
    assert (first.number, again.number) == (1, 2)
    found = read_lease(tmp_path)
    assert found is not None and (found.number, found.released) == (2, False)


def test_many_processes_hold_a_run_one_at_a_time(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CONTENDER, str(tmp_path), str(WINS)]
    contenders = [subprocess.Popen(command) for _ in range(PROCESSES)]
    assert [contender.wait(timeout=120) for contender in contenders] == [0] * PROCESSES
    assert int((tmp_path / "count").read_text()) == WINS * PROCESSES
    assert sorted(names(tmp_path)) == sorted(f"{n}.json" for n in range(1, WINS * PROCESSES + 1))


def _take(folder: str, start: Any, results: Any) -> None:
    start.wait()
    results.put(isinstance(acquire(Path(folder)), HeldLease))
    start.wait()  # the winner lives until all have tried


@pytest.mark.parametrize("links", [True, False], ids=["link", "exclusive creation"])
def test_of_many_takers_of_a_dead_owners_run_one_wins(
    links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not links:

        def refuse(*_: Any) -> None:
            raise PermissionError(1, "a file system without links")

        monkeypatch.setattr(os, "link", refuse)
    context = multiprocessing.get_context("fork")
    for trial in range(5):
        folder = tmp_path / str(trial)
        subprocess.run([sys.executable, "-c", DIES, str(folder)], check=True)
        start, results = context.Barrier(PROCESSES), context.SimpleQueue()
        takers = [context.Process(target=_take, args=(str(folder), start, results)) for _ in range(PROCESSES)]
        for taker in takers:
            taker.start()
        for taker in takers:
            taker.join()
        assert sum(results.get() for _ in takers) == 1


def test_a_process_here_is_dead_when_it_is_gone_and_its_run_is_too(tmp_path: Path) -> None:
    owner = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    cell = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    here = replace(this_process(), pid=owner.pid, start_ticks=processes.start_ticks(owner.pid))
    held(acquire(tmp_path, owner=here)).record_process(cell.pid)
    beaten(tmp_path, 1, 1e6)  # however long it is silent, it is there
    assert isinstance(acquire(tmp_path), Lease)
    owner.communicate(b"\n")
    assert isinstance(acquire(tmp_path), Lease)
    cell.communicate(b"\n")
    assert isinstance(acquire(tmp_path), HeldLease)


def test_a_process_that_has_the_number_of_a_dead_one_is_not_taken_for_it(tmp_path: Path) -> None:
    held(acquire(tmp_path, owner=replace(this_process(), start_ticks=processes.start_ticks(os.getpid()) - 1)))
    assert isinstance(acquire(tmp_path), HeldLease)


def test_an_owner_elsewhere_lives_for_a_lease_after_its_last_heartbeat(tmp_path: Path) -> None:
    theirs = held(acquire(tmp_path, owner=elsewhere(), seconds=100))
    beaten(tmp_path, 1, 99)
    assert isinstance(acquire(tmp_path, seconds=100), Lease)
    theirs._renewed -= 11
    assert theirs.renew()
    beaten_at = (tmp_path / "claims" / "1.json").stat().st_mtime
    assert abs(time.time() - beaten_at) < 10
    beaten(tmp_path, 1, 101)
    mine = held(acquire(tmp_path, seconds=100))
    assert mine.number == 2
    theirs._renewed -= 11
    assert not theirs.renew()  # it sees that it was taken for dead
    theirs.release()  # too late to matter
    assert isinstance(acquire(tmp_path), Lease)


def test_heartbeats_cost_nothing_until_they_are_due(tmp_path: Path) -> None:
    mine = held(acquire(tmp_path, seconds=100))
    beaten(tmp_path, 1, 50)
    before = (tmp_path / "claims" / "1.json").stat().st_mtime
    assert mine.renew()
    assert (tmp_path / "claims" / "1.json").stat().st_mtime == before


@pytest.mark.parametrize(
    ("theirs", "mine", "dead"),
    [
        ({"job": "7", "restart": 0}, {"job": "7", "restart": 1}, True),
        ({"job": "7", "restart": 1}, {"job": "7", "restart": 1}, False),
        ({"job": "7", "restart": 0}, {"job": "8", "restart": 1}, False),
        ({"job": "", "restart": 0}, {"job": "", "restart": 1}, False),
        ({"job": "7", "restart": 0}, {"job": "7", "restart": 1, "host": "near"}, False),
    ],
)
def test_a_requeued_job_takes_over_from_its_earlier_start_on_the_same_node(
    theirs: dict[str, Any], mine: dict[str, Any], dead: bool, tmp_path: Path
) -> None:
    held(acquire(tmp_path, owner=elsewhere(**theirs)))
    assert isinstance(acquire(tmp_path, owner=elsewhere(namespace="pid:[2]", **mine)), HeldLease) == dead


def test_an_owner_is_suspect_that_missed_beats_or_is_our_own_jobs_earlier_start(tmp_path: Path) -> None:
    held(acquire(tmp_path, owner=elsewhere(job="7"), seconds=100))
    mine = elsewhere(job="7", restart=1, host="near", boot="b")
    seen = read_lease(tmp_path)
    assert seen is not None
    assert is_suspect(seen, mine, seconds=100)
    assert not is_suspect(seen, replace(mine, job="8"), seconds=100)
    beaten(tmp_path, 1, 50)
    seen = read_lease(tmp_path)
    assert seen is not None and is_suspect(seen, replace(mine, job="8"), seconds=100)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"owner": 3}'])
def test_a_lease_that_cannot_be_read_lives_for_a_lease(content: str, tmp_path: Path) -> None:
    (tmp_path / "claims").mkdir()
    (tmp_path / "claims" / "1.json").write_text(content)
    assert isinstance(acquire(tmp_path, seconds=100), Lease)
    beaten(tmp_path, 1, 101)
    assert isinstance(acquire(tmp_path, seconds=100), HeldLease)


def test_a_folder_seen_late_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS may show a folder as it was a minute ago."""
    held(acquire(tmp_path)).release()
    mine = held(acquire(tmp_path))
    monkeypatch.setattr(module, "_last", lambda _: 0)
    found = acquire(tmp_path)
    assert isinstance(found, Lease) and found.number == 2
    mine.release()
    assert held(acquire(tmp_path)).number == 3


def test_a_link_whose_answer_was_lost_is_still_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS repeats the request, and finds the name taken: by itself."""
    link = os.link

    def repeated(source: Path, path: Path) -> None:
        link(source, path)
        raise FileExistsError

    monkeypatch.setattr(os, "link", repeated)
    assert held(acquire(tmp_path)).number == 1


def test_the_file_says_who_holds_the_run(tmp_path: Path) -> None:
    mine = held(acquire(tmp_path))
    mine.record_process(os.getpid())
    content = json.loads((tmp_path / "claims" / "1.json").read_text())
    assert content["schema"] == "kis.claim/1"
    assert content["owner"]["pid"] == os.getpid()
    assert content["owner"]["cell"][0] == os.getpid()
    assert names(tmp_path) == ["1.json"]


def test_a_heartbeat_in_the_future_is_set_back_and_ends_a_lease_later(tmp_path: Path) -> None:
    """The file server's clock was set back since."""
    theirs = held(acquire(tmp_path, owner=elsewhere(), seconds=100))
    beaten(tmp_path, 1, -1e6)
    seen = read_lease(tmp_path)
    assert seen is not None
    assert not is_live(seen, seconds=100)
    assert is_suspect(seen, this_process(), seconds=100)
    assert isinstance(acquire(tmp_path, seconds=100), Lease)  # it may well live
    assert abs(time.time() - (tmp_path / "claims" / "1.json").stat().st_mtime) < 10
    assert isinstance(acquire(tmp_path, seconds=100), Lease)
    theirs._renewed -= 11
    assert theirs.renew()  # nothing was taken from it
    beaten(tmp_path, 1, 101)
    assert isinstance(acquire(tmp_path, seconds=100), HeldLease)


def test_clocks_that_disagree_by_less_than_a_lease_change_nothing(tmp_path: Path) -> None:
    held(acquire(tmp_path, owner=elsewhere(), seconds=100))
    beaten(tmp_path, 1, -90)
    before = (tmp_path / "claims" / "1.json").stat().st_mtime
    seen = acquire(tmp_path, seconds=100)
    assert isinstance(seen, Lease)
    assert is_live(seen, seconds=100)
    assert not is_suspect(seen, this_process(), seconds=100)
    assert (tmp_path / "claims" / "1.json").stat().st_mtime == before


def test_a_process_here_is_believed_whatever_its_heartbeat_says(tmp_path: Path) -> None:
    held(acquire(tmp_path))
    beaten(tmp_path, 1, -1e6)
    seen = read_lease(tmp_path)
    assert seen is not None and is_live(seen, seconds=100) and not is_suspect(seen, this_process(), seconds=100)
