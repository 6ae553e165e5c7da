"""Claims, with many real processes that want the same cell."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_kis.executor import lease as module
from megatron_kis.executor import processes
from megatron_kis.executor.lease import Claim, Owner, Seen, alive, claim, doubtful, look, this_process

PROCESSES, WINS = 10, 4

# Claims a cell again and again; counts in a file what only the holder may, without any other lock.
CONTENDER = """
import sys, time
from pathlib import Path
from megatron_kis.executor.lease import Claim, claim
folder, wins = Path(sys.argv[1]), int(sys.argv[2])
while wins:
    held = claim(folder)
    if isinstance(held, Claim):
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
from megatron_kis.executor.lease import claim
claim(Path(sys.argv[1]))
os._exit(0)
"""


def elsewhere(**changes: Any) -> Owner:
    """An owner on another machine."""
    return replace(Owner(host="far", pid=4711, boot="another boot", namespace="pid:[1]", began=17), **changes)


def beaten(folder: Path, number: int, seconds_ago: float) -> None:
    path = folder / "claims" / f"{number}.json"
    os.utime(path, (time.time() - seconds_ago,) * 2)


def names(folder: Path) -> list[str]:
    return [path.name for path in (folder / "claims").iterdir()]


def held(found: Claim | Seen) -> Claim:
    assert isinstance(found, Claim)
    return found


def test_a_claimed_cell_is_claimed_once_and_again_when_it_is_released(tmp_path: Path) -> None:
    first = held(claim(tmp_path))
    second = claim(tmp_path)
    assert isinstance(second, Seen)
    assert second.owner == this_process()
    assert alive(second)
    first.release()
    again = held(claim(tmp_path))
    assert (first.number, again.number) == (1, 2)
    found = look(tmp_path)
    assert found is not None and (found.number, found.released) == (2, False)


def test_many_processes_hold_a_cell_one_at_a_time(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CONTENDER, str(tmp_path), str(WINS)]
    contenders = [subprocess.Popen(command) for _ in range(PROCESSES)]
    assert [contender.wait(timeout=120) for contender in contenders] == [0] * PROCESSES
    assert int((tmp_path / "count").read_text()) == WINS * PROCESSES
    assert sorted(names(tmp_path)) == sorted(f"{n}.json" for n in range(1, WINS * PROCESSES + 1))


def _take(folder: str, start: Any, results: Any) -> None:
    start.wait()
    results.put(isinstance(claim(Path(folder)), Claim))
    start.wait()  # the winner lives until all have tried


@pytest.mark.parametrize("links", [True, False], ids=["link", "exclusive creation"])
def test_of_many_takers_of_a_dead_owners_cell_one_wins(
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


def test_a_process_here_is_dead_when_it_is_gone_and_its_cell_is_too(tmp_path: Path) -> None:
    owner = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    cell = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    here = replace(this_process(), pid=owner.pid, began=processes.began(owner.pid))
    held(claim(tmp_path, owner=here)).started(cell.pid)
    beaten(tmp_path, 1, 1e6)  # however long it is silent, it is there
    assert isinstance(claim(tmp_path), Seen)
    owner.communicate(b"\n")
    assert isinstance(claim(tmp_path), Seen)
    cell.communicate(b"\n")
    assert isinstance(claim(tmp_path), Claim)


def test_a_process_that_has_the_number_of_a_dead_one_is_not_taken_for_it(tmp_path: Path) -> None:
    held(claim(tmp_path, owner=replace(this_process(), began=processes.began(os.getpid()) - 1)))
    assert isinstance(claim(tmp_path), Claim)


def test_an_owner_elsewhere_lives_for_a_lease_after_its_last_heartbeat(tmp_path: Path) -> None:
    theirs = held(claim(tmp_path, owner=elsewhere(), lease=100))
    beaten(tmp_path, 1, 99)
    assert isinstance(claim(tmp_path, lease=100), Seen)
    theirs._beat -= 11
    assert theirs.renew()
    beaten_at = (tmp_path / "claims" / "1.json").stat().st_mtime
    assert abs(time.time() - beaten_at) < 10
    beaten(tmp_path, 1, 101)
    mine = held(claim(tmp_path, lease=100))
    assert mine.number == 2
    theirs._beat -= 11
    assert not theirs.renew()  # it sees that it was taken for dead
    theirs.release()  # too late to matter
    assert isinstance(claim(tmp_path), Seen)


def test_heartbeats_cost_nothing_until_they_are_due(tmp_path: Path) -> None:
    mine = held(claim(tmp_path, lease=100))
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
    held(claim(tmp_path, owner=elsewhere(**theirs)))
    assert isinstance(claim(tmp_path, owner=elsewhere(namespace="pid:[2]", **mine)), Claim) == dead


def test_an_owner_is_doubtful_that_missed_beats_or_is_our_own_jobs_earlier_start(tmp_path: Path) -> None:
    held(claim(tmp_path, owner=elsewhere(job="7"), lease=100))
    mine = elsewhere(job="7", restart=1, host="near", boot="b")
    seen = look(tmp_path)
    assert seen is not None
    assert doubtful(seen, mine, lease=100)
    assert not doubtful(seen, replace(mine, job="8"), lease=100)
    beaten(tmp_path, 1, 50)
    seen = look(tmp_path)
    assert seen is not None and doubtful(seen, replace(mine, job="8"), lease=100)


def test_a_scheduler_may_prove_an_owner_dead(tmp_path: Path) -> None:
    held(claim(tmp_path, owner=elsewhere(job="7")))
    ask: Callable[[Owner], bool] = lambda owner: owner.job == "7"  # noqa: E731
    assert isinstance(claim(tmp_path, dead=lambda owner: not ask(owner)), Seen)
    assert isinstance(claim(tmp_path, dead=ask), Claim)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"owner": 3}'])
def test_a_claim_that_cannot_be_read_lives_for_a_lease(content: str, tmp_path: Path) -> None:
    (tmp_path / "claims").mkdir()
    (tmp_path / "claims" / "1.json").write_text(content)
    assert isinstance(claim(tmp_path, lease=100, dead=lambda _: True), Seen)
    beaten(tmp_path, 1, 101)
    assert isinstance(claim(tmp_path, lease=100), Claim)


def test_a_folder_seen_late_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS may show a folder as it was a minute ago."""
    held(claim(tmp_path)).release()
    mine = held(claim(tmp_path))
    monkeypatch.setattr(module, "_last", lambda _: 0)
    found = claim(tmp_path)
    assert isinstance(found, Seen) and found.number == 2
    mine.release()
    assert held(claim(tmp_path)).number == 3


def test_a_link_whose_answer_was_lost_is_still_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS repeats the request, and finds the name taken: by itself."""
    link = os.link

    def repeated(source: Path, path: Path) -> None:
        link(source, path)
        raise FileExistsError

    monkeypatch.setattr(os, "link", repeated)
    assert held(claim(tmp_path)).number == 1


def test_the_file_says_who_holds_the_cell(tmp_path: Path) -> None:
    mine = held(claim(tmp_path))
    mine.started(os.getpid())
    content = json.loads((tmp_path / "claims" / "1.json").read_text())
    assert content["schema"] == "kis.claim/1"
    assert content["owner"]["pid"] == os.getpid()
    assert content["owner"]["cell"][0] == os.getpid()
    assert names(tmp_path) == ["1.json"]


def test_a_heartbeat_in_the_future_is_set_back_and_ends_a_lease_later(tmp_path: Path) -> None:
    """The file server's clock was set back since."""
    theirs = held(claim(tmp_path, owner=elsewhere(), lease=100))
    beaten(tmp_path, 1, -1e6)
    seen = look(tmp_path)
    assert seen is not None
    assert not alive(seen, lease=100)
    assert doubtful(seen, this_process(), lease=100)
    assert isinstance(claim(tmp_path, lease=100), Seen)  # it may well live
    assert abs(time.time() - (tmp_path / "claims" / "1.json").stat().st_mtime) < 10
    assert isinstance(claim(tmp_path, lease=100), Seen)
    theirs._beat -= 11
    assert theirs.renew()  # nothing was taken from it
    beaten(tmp_path, 1, 101)
    assert isinstance(claim(tmp_path, lease=100), Claim)


def test_clocks_that_disagree_by_less_than_a_lease_change_nothing(tmp_path: Path) -> None:
    held(claim(tmp_path, owner=elsewhere(), lease=100))
    beaten(tmp_path, 1, -90)
    before = (tmp_path / "claims" / "1.json").stat().st_mtime
    seen = claim(tmp_path, lease=100)
    assert isinstance(seen, Seen)
    assert alive(seen, lease=100)
    assert not doubtful(seen, this_process(), lease=100)
    assert (tmp_path / "claims" / "1.json").stat().st_mtime == before


def test_a_process_here_is_believed_whatever_its_heartbeat_says(tmp_path: Path) -> None:
    held(claim(tmp_path))
    beaten(tmp_path, 1, -1e6)
    seen = look(tmp_path)
    assert seen is not None and alive(seen, lease=100) and not doubtful(seen, this_process(), lease=100)
