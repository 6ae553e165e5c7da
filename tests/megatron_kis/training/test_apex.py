"""NVIDIA apex is used where it can be imported; a package that only has its name is not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

SCRIPT = """
import json, types
from megatron.core.optimizer import Adam
from megatron_kis.distributed.device import open_device
from megatron_kis.model.build import ModelSpec, assemble_model
from megatron_kis.config.ladder import ModelShape
from megatron_kis.model.norm import RmsNorm
from megatron_kis.distributed.groups import open_groups

device = open_device("cpu")
model = assemble_model(ModelSpec(ModelShape(2, 32, 2, 2, 64), 256, 16, open_groups(device), device))
on_cuda = RmsNorm(types.SimpleNamespace(use_cpu_initialization=False, sequence_parallel=True), hidden_size=32, eps=1e-6)
norms = [module for name, module in model.named_modules() if name.endswith("layernorm") and list(module.parameters())]
on_host = {type(module).__module__ for module in norms}
print(json.dumps({
    "adam": Adam.__module__, "norms": len(norms), "on_host": sorted(on_host), "on_cuda": type(on_cuda).__module__,
    "shape": list(on_cuda.weight.shape), "epsilon": on_cuda.eps, "summed": on_cuda.weight.sequence_parallel,
}))
"""
OPTIMIZERS = """
class FusedAdam:
    pass
class FusedSGD:
    pass
"""
NORMALIZATION = """
import torch
class FusedRMSNorm(torch.nn.Module):
    def __init__(self, normalized_shape, eps=1e-5, elementwise_affine=True, memory_efficient=False):
        super().__init__()
        self.eps, self.weight = eps, torch.nn.Parameter(torch.ones(normalized_shape))
"""


def picked(folder: Path) -> dict[str, Any]:
    """What is taken with ``folder`` first on the path."""
    program = f"import sys, warnings; warnings.simplefilter('ignore'); sys.path.insert(0, {str(folder)!r})\n{SCRIPT}"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == 0, ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("nvidia", [True, False])
def test_fused_adam_and_norm_are_nvidias_or_none(tmp_path: Path, nvidia: bool) -> None:
    """On PyPI ``apex`` is a web toolkit: Megatron-Core alone would take its own LayerNorm for our RMSNorm."""
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex" / "__init__.py").write_text("RootFactory = object\n")
    if nvidia:
        (tmp_path / "apex" / "optimizers.py").write_text(OPTIMIZERS)
        (tmp_path / "apex" / "multi_tensor_apply.py").write_text("multi_tensor_applier = None\n")
        (tmp_path / "apex" / "normalization.py").write_text(NORMALIZATION)
        (tmp_path / "amp_C.py").write_text("multi_tensor_l2norm = multi_tensor_scale = None\n")
        (tmp_path / "fused_layer_norm_cuda.py").write_text("")
    found = picked(tmp_path)
    assert found["adam"].startswith("apex.optimizers" if nvidia else "torch.optim")
    assert found["on_cuda"] == ("apex.normalization" if nvidia else "megatron_kis.model.norm")
    assert (found["norms"], found["on_host"]) == (5, ["megatron_kis.model.norm"])
    assert (found["shape"], found["epsilon"], found["summed"]) == ([32], 1e-6, True)


def test_apex_without_its_kernels_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex" / "__init__.py").write_text("")
    (tmp_path / "apex" / "normalization.py").write_text(NORMALIZATION)
    assert picked(tmp_path)["on_cuda"] == "megatron_kis.model.norm"
