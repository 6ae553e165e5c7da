"""The C library's use of freed memory, seen by the pages that a process has made."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

CODE = """
import ctypes, resource, sys
from megatron_kis.distributed.cpu_backend import keep_freed_memory
raised = keep_freed_memory()
library = ctypes.CDLL(None)
library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
library.free.argtypes = [ctypes.c_void_p]
def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [library.malloc(8 << 20) for _ in range(8)]
    for block in blocks:
        ctypes.memset(block, 1, 8 << 20)
    for block in blocks:
        library.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
pages(), pages()
print(int(raised), pages())
"""


def pages_of_the_third_round(**environment: str) -> tuple[bool, int]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    ended = subprocess.run(
        [sys.executable, "-c", CODE], env=kept | environment, capture_output=True, text=True, check=True
    )
    raised, pages = ended.stdout.split()
    return bool(int(raised)), int(pages)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's thresholds")
def test_what_was_freed_is_used_again_unless_the_environment_has_a_say() -> None:
    """64 MB in blocks of 8 MB are 16,384 pages of 4 kB; a few belong to Python itself."""
    raised, pages = pages_of_the_third_round()
    assert raised
    assert pages < 500
    for own in ({"GLIBC_TUNABLES": "glibc.malloc.check=0"}, {"MALLOC_TRIM_THRESHOLD_": "131072"}):
        raised, pages = pages_of_the_third_round(**own)
        assert not raised
        assert pages > 1000
