"""A study that is done, trained once for the tests that only need one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.forked import run_kis
from tests.sources import Sources
from tests.studies import ONE, write_study


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_sources: Sources, tiny_data: Path) -> Path:
    """A study of one run, which is done. Shared: copy it."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(tiny_data, folder / "out" / "data")
    ended = run_kis("study", "run", write_study(folder, tiny_sources, **ONE))
    assert ended.returncode == 0, ended.stderr
    return folder


@pytest.fixture
def done(trained: Path, tmp_path: Path) -> Path:
    """The file of a study that is done, in a folder of its own."""
    shutil.copytree(trained, tmp_path / "w")
    return tmp_path / "w" / "study.yaml"
