"""What may import what, and what no source file may do; read from the sources, or seen in a fresh interpreter."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("megatron_kis", "data_tools", "analysis")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
HEAVY = {"torch", "megatron", "transformer_engine"}
GROUND = {f"megatron_kis.{name}" for name in ("errors", "files", "identity", "names", "parsing", "paths", "units")}


def imports(path: Path, *, everywhere: bool = True) -> Iterator[str]:
    """Modules that a file imports, also late ones; without ``everywhere`` only those at its top."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


def offenders(package: str, forbidden: set[str], *, but: str = "") -> list[str]:
    return [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in SOURCES
        if path.is_relative_to(ROOT / package) and not (but and path.is_relative_to(ROOT / but))
        for name in imports(path)
        if name.split(".")[0] in forbidden
    ]


def loaded_by(code: str) -> set[str]:
    """Modules in a fresh interpreter after ``code``."""
    script = f"import sys\n{code}\nprint(*sys.modules)"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(ended.stdout.splitlines()[-1].split())


def test_there_are_sources_to_check() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in SOURCES} == set(PACKAGES)
    assert len(SOURCES) > 50


def test_analysis_needs_no_torch() -> None:
    assert offenders("analysis", HEAVY) == []
    modules = [path.relative_to(ROOT).with_suffix("") for path in SOURCES if path.is_relative_to(ROOT / "analysis")]
    names = {".".join(module.parts).removesuffix(".__init__") for module in modules}
    assert not loaded_by("".join(f"import {name}\n" for name in sorted(names))) & HEAVY


def test_data_tools_need_neither_torch_nor_models_nor_analysis() -> None:
    assert offenders("data_tools", {*HEAVY, "analysis"}) == []
    own = [name for path in SOURCES if path.is_relative_to(ROOT / "data_tools") for name in imports(path)]
    ours = {name for name in own if name.startswith("megatron_kis")}
    assert ours <= GROUND


def test_the_ground_needs_nothing_above_it() -> None:
    for name in GROUND:
        used = set(imports(ROOT / f"{name.replace('.', '/')}.py"))
        assert {one for one in used if one.split(".")[0] in PACKAGES} <= GROUND, name


def test_training_starts_without_pytorchs_compiler() -> None:
    assert not loaded_by("import megatron_kis.training.run\n") & {"torch._dynamo", "torch._inductor"}


def test_training_and_probes_know_nothing_of_the_analysis() -> None:
    assert offenders("megatron_kis", {"analysis"}, but="megatron_kis/commands") == []


def test_analysis_reads_files_and_not_our_training() -> None:
    used = {name for path in SOURCES if path.is_relative_to(ROOT / "analysis") for name in imports(path)}
    ours = {name for name in used if name.split(".")[0] == "megatron_kis"}
    assert ours <= {"megatron_kis", *GROUND}


def test_the_plan_and_the_scoring_rules_need_no_torch() -> None:
    code = "from megatron_kis.data import ExposurePlan\nfrom megatron_kis.probes import score_options\n"
    assert not loaded_by(code + "import megatron_kis.study.grid\n") & HEAVY


def test_help_is_instant() -> None:
    code = "from megatron_kis.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    print()\n"
    assert not loaded_by(code) & {*HEAVY, "numpy", "pandas", "scipy", "pydantic", "yaml", "rich", "sentencepiece"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_does_what_is_unsafe(path: Path) -> None:
    """Nothing unpickles, evaluates text, loads YAML objects or starts a shell."""
    assert not {"pickle", "cPickle", "dill", "marshal", "shelve"} & {name.split(".")[0] for name in imports(path)}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        where = f"{path.relative_to(ROOT)}:{node.lineno}: {called}"
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        assert called not in {"eval", "exec", "compile", "__import__"}, where
        assert called not in {"yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all"}, where
        assert called not in {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"}, where
        assert keywords.get("shell", "False") == "False", where
        assert keywords.get("allow_pickle", "False") == "False", where
        if called == "torch.load":
            assert keywords.get("weights_only") == "True", where


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_says_what_it_is_for_and_has_one_job(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)), "no docstring"
    assert len(text.splitlines()) <= 480


def test_commands_import_only_the_standard_library_at_their_top() -> None:
    light = {"megatron_kis.errors", "megatron_kis.model.ladder", "megatron_kis.commands", "megatron_kis.units"}
    for path in sorted((ROOT / "megatron_kis" / "commands").glob("*.py")):
        for name in imports(path, everywhere=False):
            assert name in light or name.split(".")[0] in sys.stdlib_module_names, f"{path.name} imports {name}"
