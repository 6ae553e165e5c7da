from __future__ import annotations

from pathlib import Path

import pytest

from tests.analysis.synthetic import Truth, write_study


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of 4 sizes x 9 frequencies from the default truth. Shared: read it, do not write into it."""
    return write_study(tmp_path_factory.mktemp("study"), Truth())
