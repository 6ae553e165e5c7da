"""NVIDIA apex is used where it can be imported; a package that only has its name is not."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from typing import Any

import pytest

pytestmark = pytest.mark.slow

SCRIPT = """
import json, types
from megatron_kis.distributed.device import open_device
from megatron_kis.distributed.megatron_imports import quiet_megatron
from megatron_kis.model.build import ModelSpec, assemble_model
from megatron_kis.config.ladder import ModelShape
from megatron_kis.model.norm import RmsNorm
from megatron_kis.distributed.groups import open_groups
with quiet_megatron():
    from megatron.core.optimizer import Adam

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


FORKED = f"""
import os, sys, warnings
import torch  # which looks for no apex
warnings.simplefilter("ignore")
for folder in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        sys.path.insert(0, folder)
{textwrap.indent(SCRIPT, " " * 8)}
        sys.exit()
    assert os.waitpid(child, 0)[1] == 0
"""


@pytest.fixture(scope="module")
def picked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What is taken with each of three packages of the name first on the path."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("nvidia", "web", "bare")}
    for folder in folders.values():
        (folder / "apex").mkdir()
    for name in ("nvidia", "web"):
        (folders[name] / "apex" / "__init__.py").write_text("RootFactory = object\n")
    nvidia = folders["nvidia"]
    (nvidia / "apex" / "optimizers.py").write_text(OPTIMIZERS)
    (nvidia / "apex" / "multi_tensor_apply.py").write_text("multi_tensor_applier = None\n")
    (nvidia / "apex" / "normalization.py").write_text(NORMALIZATION)
    (nvidia / "amp_C.py").write_text("multi_tensor_l2norm = multi_tensor_scale = None\n")
    (nvidia / "fused_layer_norm_cuda.py").write_text("")
    (folders["bare"] / "apex" / "__init__.py").write_text("")
    (folders["bare"] / "apex" / "normalization.py").write_text(NORMALIZATION)
    command = [sys.executable, "-c", FORKED, *map(str, folders.values())]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == 0, ended.stderr
    lines = [line for line in ended.stdout.splitlines() if line.startswith("{")]
    return {name: json.loads(line) for name, line in zip(folders, lines, strict=True)}


@pytest.mark.parametrize("name", ["nvidia", "web"])
def test_fused_adam_and_norm_are_nvidias_or_none(picked: dict[str, dict[str, Any]], name: str) -> None:
    """On PyPI ``apex`` is a web toolkit: Megatron-Core alone would take its own LayerNorm for our RMSNorm."""
    found = picked[name]
    assert found["adam"].startswith("apex.optimizers" if name == "nvidia" else "torch.optim")
    assert found["on_cuda"] == ("apex.normalization" if name == "nvidia" else "megatron_kis.model.norm")
    assert (found["norms"], found["on_host"]) == (5, ["megatron_kis.model.norm"])
    assert (found["shape"], found["epsilon"], found["summed"]) == ([32], 1e-6, True)


def test_apex_without_its_kernels_is_passed_over(picked: dict[str, dict[str, Any]]) -> None:
    assert picked["bare"]["on_cuda"] == "megatron_kis.model.norm"
