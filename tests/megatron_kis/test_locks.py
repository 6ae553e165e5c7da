"""One at work in a folder, and who is still dying there."""

import subprocess
import sys

import pytest

from megatron_kis.common.errors import JobError
from megatron_kis.common.files import locked

HOLDING = "import sys, time; print('ready', flush=True); time.sleep({seconds})"


def holder(folder, seconds):
    """A process that has inherited the lock, as the children of one that was killed have."""
    with locked(folder, "kis") as descriptor:
        command = [sys.executable, "-c", HOLDING.format(seconds=seconds)]
        process = subprocess.Popen(command, pass_fds=[descriptor], stdout=subprocess.PIPE)
        assert process.stdout
        process.stdout.readline()
    return process


def test_a_lock_is_had_as_soon_as_what_was_killed_is_gone(tmp_path):
    process = holder(tmp_path, 0.3)
    with locked(tmp_path, "kis"):
        assert process.wait() == 0


def test_a_lock_that_is_held_on_is_refused(tmp_path):
    process = holder(tmp_path, 60)
    with pytest.raises(JobError, match="another 'kis' is running here"), locked(tmp_path, "kis"):
        pass
    process.kill()
    process.wait()
