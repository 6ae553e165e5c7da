"""What is built to be installed: a source distribution, and a wheel made of that, which works by itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from megatron_kis.config.run import RunConfig

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
_FOLDERS = ("megatron_kis", "data_tools", "analysis", "run_scripts")
_OTHERS = ("tests", "docs", "benchmarks", ".ci")
_FILES = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in", "CITATION.cff", "Makefile")
_LEFT_BEHIND = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.pyc")


def run(*command: str, cwd: Path, path: Path | None = None) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    ended = subprocess.run(
        [sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout, in which building leaves its traces."""
    tree = tmp_path_factory.mktemp("tree")
    for name in (*_FOLDERS, *_OTHERS):
        shutil.copytree(ROOT / name, tree / name, ignore=_LEFT_BEHIND, symlinks=True)
    for name in _FILES:
        shutil.copy(ROOT / name, tree / name)
    return tree


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel, built out of the unpacked source distribution."""
    built = tmp_path_factory.mktemp("built")
    build = "import sys, setuptools.build_meta as b; getattr(b, sys.argv[1])(sys.argv[2])"
    run("-c", build, "build_sdist", str(built), cwd=tree)
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(built, filter="data")
    (source,) = (path for path in built.iterdir() if path.is_dir())
    for name in ("tests/conftest.py", "run_scripts/studies/quickstart.yaml", ".ci/constraints.txt", "docs/tutorial.md"):
        assert (source / name).is_file(), f"{name} is missing in the source distribution"
    run("-c", build, "build_wheel", str(built), cwd=source)
    (wheel,) = built.glob("*.whl")
    return wheel


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(wheel: Path) -> None:
    wanted = set()
    for folder in _FOLDERS:
        inside = "" if folder == "megatron_kis" else "megatron_kis/"
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                wanted.add(f"{inside}{path.relative_to(ROOT)}")
    with zipfile.ZipFile(wheel) as file:
        found = {name for name in file.namelist() if ".dist-info/" not in name}
        (metadata,) = (name for name in file.namelist() if name.endswith(".dist-info/top_level.txt"))
        assert file.read(metadata).decode().split() == ["megatron_kis"]
    assert found == wanted


def test_what_encodes_fast_is_installed_without_an_extra(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        (name,) = (name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
        required = [line for line in file.read(name).decode().splitlines() if line.startswith("Requires-Dist: ")]
    always = " ".join(line for line in required if "extra ==" not in line)
    assert all(package in always for package in ("gigatoken", "tokenizers", "zstandard", "sentencepiece"))


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the wheel is installed."""
    folder = tmp_path_factory.mktemp("installed")
    target = folder / "site"
    run("-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(target), str(wheel), cwd=folder)
    return target


def test_an_installed_wheel_works_away_from_the_checkout(site: Path, tmp_path: Path) -> None:
    where = run("-c", "import megatron_kis; print(megatron_kis.__file__)", cwd=tmp_path, path=site)
    assert Path(where.strip()).is_relative_to(site)
    assert run("-m", "megatron_kis", "--version", cwd=tmp_path, path=site).startswith("megatron_kis ")
    assert "STUDY.yaml" in run("-m", "megatron_kis", "study", "plan", "--help", cwd=tmp_path, path=site)
    example = "megatron_kis.run_scripts.examples.infuse_ddp"
    assert "--frequency" in run("-m", example, "--help", cwd=tmp_path, path=site)


@pytest.fixture
def folder_of_a_user(tmp_path: Path) -> Path:
    """A folder with packages of the user's own, named as folders of the checkout are."""
    for name in ("analysis", "data_tools", "run_scripts", "tests"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f'raise RuntimeError("{name} of the user was imported")\n')
    return tmp_path


@pytest.mark.parametrize("install", ["wheel", "editable"])
def test_a_run_works_in_a_folder_with_an_analysis_package_of_its_own(
    install: str, request: pytest.FixtureRequest, folder_of_a_user: Path, tiny_run: Callable[..., RunConfig]
) -> None:
    path = request.getfixturevalue("site") if install == "wheel" else None
    settings = folder_of_a_user / "run.yaml"
    config = tiny_run(output=str(folder_of_a_user / "runs" / "tiny"))
    settings.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    run("-m", "megatron_kis", "train", str(settings), cwd=folder_of_a_user, path=path)
    assert (config.output / "DONE").exists()
    curves = [str(config.output.parent), "--output", str(folder_of_a_user / "points.csv")]
    run("-m", "megatron_kis", "law", "collapse", *curves, cwd=folder_of_a_user, path=path)
    assert (folder_of_a_user / "points.csv").exists()
    run("-m", "megatron_kis", "study", "plan", "--help", cwd=folder_of_a_user, path=path)
