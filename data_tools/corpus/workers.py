"""Encodes the parts of a corpus, in this process or in several."""

from __future__ import annotations

import ctypes
import errno
import itertools
import multiprocessing
import os
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, ClassVar

from megatron_kis.common.errors import JobError
from megatron_kis.common.progress import Meter, Progress
from megatron_kis.common.units import plural
from megatron_kis.data_tools.corpus.part import PartEncoder, PartRecord
from megatron_kis.data_tools.readers.parts import TextPart

_POLL = 0.2  # seconds between two reports of progress
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class _Worker:
    """The state of a worker process, set when it starts."""

    encoder: ClassVar[PartEncoder]
    counts: ClassVar[Any]
    """Bytes of text and documents that all workers have encoded, in shared memory."""


def encode_parts(
    encoder: PartEncoder,
    jobs: Sequence[tuple[TextPart, Path]],
    *,
    workers: int | None,
    progress: Progress,
    started: Callable[[], None],
) -> Iterator[PartRecord]:
    """Encodes those parts that are not done yet, and meanwhile yields what is done.

    Args:
        encoder: encodes a part.
        jobs: parts and the prefixes of their files.
        workers: number of processes; None for one per core.
        progress: where to report.
        started: called once when the processes are forked; threads may be started from then on.

    Yields:
        The record of every part, in order, as soon as it and those before it are finished.

    Raises:
        InputError: a part is damaged; parts that are at work then are finished first.
        JobError: the disk is full, or a process died.
    """
    records = [encoder.finished(part, prefix) for part, prefix in jobs]
    left = [number for number, record in enumerate(records) if record is None]
    done = sum(part.size for (part, _), record in zip(jobs, records, strict=True) if record is not None)
    if len(left) < len(jobs):
        progress.say(f"{len(jobs) - len(left)} of {plural(len(jobs), 'part')} done before")
    count = min(workers or len(os.sched_getaffinity(0)), len(left))
    with explained_full_disk(), progress.meter("corpus", sum(part.size for part, _ in jobs)) as meter:
        if count <= 1:
            started()
            work = _encode_in_process(encoder, jobs, left, done, meter)
        else:
            work = _encode_in_workers(encoder, jobs, left, done, meter, workers=count, started=started)
        yielded = 0
        with closing(work):
            for finished in itertools.chain([()], work):
                for number, record in finished:
                    records[number] = record
                while yielded < len(records) and (ready := records[yielded]) is not None:
                    yield ready
                    yielded += 1


@contextmanager
def explained_full_disk() -> Iterator[None]:
    """Turns the error of a full disk into one with a remedy."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        remedy = "make room and give the same command again: finished parts are kept"
        raise JobError(f"the disk is full ({error.strerror}); {remedy}") from None


def _encode_in_process(
    encoder: PartEncoder, jobs: Sequence[tuple[TextPart, Path]], left: Sequence[int], done: int, meter: Meter
) -> Generator[list[tuple[int, PartRecord]], None, None]:
    """Yields (number, record) of one part after the other."""
    text = 0
    documents = 0

    def report(more_text: int, more_documents: int) -> None:
        nonlocal text, documents
        text += more_text
        documents += more_documents
        meter(done, text, documents)

    for number in left:
        part, prefix = jobs[number]
        record = encoder.encode(part, prefix, report)
        done += part.size
        yield [(number, record)]


def _encode_in_workers(
    encoder: PartEncoder,
    jobs: Sequence[tuple[TextPart, Path]],
    left: Sequence[int],
    done: int,
    meter: Meter,
    *,
    workers: int,
    started: Callable[[], None],
) -> Generator[list[tuple[int, PartRecord]], None, None]:
    """Yields (number, record) of the parts that were finished since the last time, in any order."""
    # Forked: the processes share what is loaded, and start in milliseconds.
    context = multiprocessing.get_context("fork")
    counts = context.Array("q", 2)
    pool = ProcessPoolExecutor(workers, context, initializer=_init_worker, initargs=(encoder, counts, os.getpid()))
    with pool:
        waiting: dict[Future[PartRecord], int] = {pool.submit(_encode, *jobs[number]): number for number in left}
        started()
        try:
            while waiting:
                finished, _ = wait(waiting, timeout=_POLL, return_when=FIRST_COMPLETED)
                numbers = [waiting.pop(future) for future in finished]
                done += sum(jobs[number][0].size for number in numbers)
                meter(done, *counts[:])
                yield [(number, future.result()) for number, future in zip(numbers, finished, strict=True)]
        except BrokenProcessPool:
            problem = "a worker process died (out of memory?); the same command resumes from the finished parts"
            raise JobError(problem) from None
        except BaseException as error:
            # Until they have ended, the processes hold the lock of the parts, which may be encoded again next.
            pool.shutdown(wait=not isinstance(error, KeyboardInterrupt), cancel_futures=True)
            raise


def _init_worker(encoder: PartEncoder, counts: Any, parent: int) -> None:
    """Prepares a worker, which ends with its parent, however that ends, and leaves Ctrl-C to it."""
    _Worker.encoder = encoder
    _Worker.counts = counts
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _encode(part: TextPart, prefix: Path) -> PartRecord:
    return _Worker.encoder.encode(part, prefix, _report)


def _report(text: int, documents: int) -> None:
    with _Worker.counts.get_lock():
        _Worker.counts[0] += text
        _Worker.counts[1] += documents
