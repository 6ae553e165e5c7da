"""Compiles ``shim.cpp`` once per source and installed PyTorch, and loads it. Nothing here imports torch."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path

SOURCE = Path(__file__).with_name("shim.cpp")
MODULE = "kis_dry_shim"


def install() -> None:
    """Registers the device. To be called before torch is imported: its hooks are looked up once."""
    assert "torch" not in sys.modules, "the device must be there before torch is imported"
    loader = importlib.machinery.ExtensionFileLoader(MODULE, str(compiled()))
    shim = importlib.util.module_from_spec(importlib.util.spec_from_loader(MODULE, loader))
    loader.exec_module(shim)
    assert shim.install()


def compiled() -> Path:
    """The compiled module; parallel processes wait for the one that compiles."""
    torch = Path(importlib.util.find_spec("torch").origin).resolve().parent  # whose libraries the module loads
    known = f"{torch} {version('torch')} {sys.version} {SOURCE.read_text()}"
    key = hashlib.sha256(known.encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kis-dry-device"
    cache.mkdir(parents=True, exist_ok=True)
    module = cache / f"{MODULE}-{key}.so"
    with open(cache / f"{key}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not module.exists():
            _compile(module, torch)
    return module


def _compile(module: Path, torch: Path) -> None:
    partial = module.with_suffix(".partial")
    folders = [torch / "include", torch / "include/torch/csrc/api/include", sysconfig.get_paths()["include"]]
    command = [
        shutil.which("g++"),
        "-std=c++20",
        "-O0",
        "-fPIC",
        "-shared",
        "-w",
        *(f"-I{folder}" for folder in folders),
        str(SOURCE),
        f"-L{torch / 'lib'}",
        "-lc10",
        "-ltorch_cpu",
        f"-Wl,-rpath,{torch / 'lib'}",
        "-o",
        str(partial),
    ]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, f"shim.cpp does not compile:\n{ended.stderr[-4000:]}"
    partial.rename(module)
