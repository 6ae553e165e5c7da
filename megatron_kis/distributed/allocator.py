"""The C library's memory on the host: what is freed is kept for the next use.

Probes, validation and steps on the host free tens of megabytes of logits again and again. glibc gives what lies free
at the top of its heap back to the system, and the next ones have every page made anew: half of a small run's page
faults and an eighth of its processor time (docs/PERFORMANCE.md). The most that a process holds is the same either way.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc, malloc.h
_KEPT = 2**31 - 1  # bytes free at the top of the heap before any go back; mallopt takes an int
_LARGEST_IN_HEAP = 2**25  # bytes; glibc allows no more (HEAP_MAX_SIZE / 2). Larger blocks are pages of their own


def keep_freed_memory(environment: Mapping[str, str] = os.environ) -> bool:
    """Raises glibc's thresholds for giving memory back, for the whole process.

    Args:
        environment: of the process; what it says of glibc's allocator counts, and then nothing is changed.

    Returns:
        Whether they were raised: not where the environment sets them, or the C library is another.
    """
    chosen = any(name.startswith("MALLOC_") for name in environment)
    if chosen or "glibc.malloc." in environment.get("GLIBC_TUNABLES", "") or not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    raised = [library.mallopt(_M_TRIM_THRESHOLD, _KEPT), library.mallopt(_M_MMAP_THRESHOLD, _LARGEST_IN_HEAP)]
    return all(raised)
