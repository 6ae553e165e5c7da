"""NVIDIA apex is picked where it can be imported; a package that only has its name is not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = "from megatron.core.optimizer import Adam; print('picked', Adam.__module__)"
FUSED = """
class FusedAdam:
    pass
class FusedSGD:
    pass
"""


def picked(folder: Path) -> str:
    """The module of the Adam that Megatron-Core takes with ``folder`` first on the path."""
    program = f"import sys, warnings; warnings.simplefilter('ignore'); sys.path.insert(0, {str(folder)!r}); {SCRIPT}"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    return next(line for line in ended.stdout.splitlines() if line.startswith("picked")).split()[1]


@pytest.mark.parametrize(("nvidia", "module"), [(True, "apex.optimizers"), (False, "torch.optim")])
def test_the_fused_adam_is_nvidias_or_none(tmp_path: Path, nvidia: bool, module: str) -> None:
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex" / "__init__.py").write_text("RootFactory = object\n")
    if nvidia:
        (tmp_path / "apex" / "optimizers.py").write_text(FUSED)
        (tmp_path / "apex" / "multi_tensor_apply.py").write_text("multi_tensor_applier = None\n")
        (tmp_path / "amp_C.py").write_text("multi_tensor_l2norm = multi_tensor_scale = None\n")
    assert picked(tmp_path).startswith(module)
