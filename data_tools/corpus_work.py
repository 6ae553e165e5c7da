"""Encodes the parts of a corpus, in this process or in several."""

from __future__ import annotations

import ctypes
import errno
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_tools.corpus_part import PartEncoder, PartRecord
from data_tools.progress import Meter, Progress
from data_tools.text_parts import TextPart
from megatron_kis.errors import JobError

_LOOK = 0.2  # seconds between two looks at how far the processes are
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

_encoder: PartEncoder
_counts: Any


def encode_parts(
    encoder: PartEncoder,
    jobs: Sequence[tuple[TextPart, Path]],
    *,
    workers: int | None,
    progress: Progress,
    started: Callable[[], None],
) -> list[PartRecord]:
    """Encodes those parts that are not done yet.

    Args:
        encoder: what encodes a part.
        jobs: parts and the prefixes of their files.
        workers: processes; None for one a core.
        progress: where to report.
        started: called once when the processes are there; threads may be started from then on.

    Returns:
        The record of every part, in order.

    Raises:
        InputError: a part is damaged; parts that are at work then are finished first.
        JobError: the disk is full, or a process died.
    """
    records = [encoder.finished(part, prefix) for part, prefix in jobs]
    left = [number for number, record in enumerate(records) if record is None]
    done = sum(part.size for (part, _), record in zip(jobs, records, strict=True) if record is not None)
    if len(left) < len(jobs):
        progress.say(f"{len(jobs) - len(left)} of {len(jobs)} parts were done before")
    count = min(workers or len(os.sched_getaffinity(0)), len(left))
    with full_disk_told(), progress.meter("corpus", sum(part.size for part, _ in jobs)) as meter:
        if count <= 1:
            started()
            _encode_here(encoder, jobs, records, left, done, meter)
        else:
            _encode_apart(encoder, jobs, records, left, done, meter, workers=count, started=started)
    return [record for record in records if record is not None]


@contextmanager
def full_disk_told() -> Iterator[None]:
    """Turns the error of a full disk into one that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        remedy = "make room and give the same command again: finished parts are kept"
        raise JobError(f"the disk is full ({error.strerror}); {remedy}") from None


def _encode_here(
    encoder: PartEncoder,
    jobs: Sequence[tuple[TextPart, Path]],
    records: list[PartRecord | None],
    left: Sequence[int],
    done: int,
    meter: Meter,
) -> None:
    text = documents = 0

    def report(more_text: int, more_documents: int) -> None:
        nonlocal text, documents
        text, documents = text + more_text, documents + more_documents
        meter(done, text, documents)

    for number in left:
        part, prefix = jobs[number]
        records[number] = encoder.encode(part, prefix, report)
        done += part.size


def _encode_apart(
    encoder: PartEncoder,
    jobs: Sequence[tuple[TextPart, Path]],
    records: list[PartRecord | None],
    left: Sequence[int],
    done: int,
    meter: Meter,
    *,
    workers: int,
    started: Callable[[], None],
) -> None:
    # Forked: the processes share what is loaded, and start in milliseconds.
    context = multiprocessing.get_context("fork")
    counts = context.Array("q", 2)
    pool = ProcessPoolExecutor(workers, context, initializer=_adopt, initargs=(encoder, counts, os.getpid()))
    with pool:
        waiting: dict[Future[PartRecord], int] = {pool.submit(_encode, *jobs[number]): number for number in left}
        started()
        try:
            while waiting:
                finished, _ = wait(waiting, timeout=_LOOK, return_when=FIRST_COMPLETED)
                for future in finished:
                    number = waiting.pop(future)
                    records[number] = future.result()
                    done += jobs[number][0].size
                meter(done, *counts[:])
        except BrokenProcessPool:
            problem = "a worker process died (out of memory?); the same command goes on from the finished parts"
            raise JobError(problem) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _adopt(encoder: PartEncoder, counts: Any, parent: int) -> None:
    """Prepares a worker: it ends with its parent, however that ends, and leaves Ctrl-C to it."""
    global _encoder, _counts
    _encoder, _counts = encoder, counts
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _encode(part: TextPart, prefix: Path) -> PartRecord:
    return _encoder.encode(part, prefix, _report)


def _report(text: int, documents: int) -> None:
    with _counts.get_lock():
        _counts[0] += text
        _counts[1] += documents
