"""What may import what, and what no source file may do; read from the sources, or seen in a fresh interpreter."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("megatron_kis", "data_tools", "analysis", "run_scripts")
"""Of the checkout; what is installed is ``megatron_kis`` alone, with the others inside it."""

PATHS = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
HEAVY = {"torch", "megatron", "transformer_engine"}


def module_of(path: Path) -> str:
    """The name under which a source file is imported."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    inside = parts if parts[0] == "megatron_kis" else ("megatron_kis", *parts)
    return ".".join(inside).removesuffix(".__init__")


MODULES = {module_of(path): path for path in PATHS if "examples" not in path.parts}


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports(path: Path, *, everywhere: bool = True) -> tuple[str, ...]:
    """Modules that a file imports, also late ones; without ``everywhere`` only those at its top."""
    tree = parsed(path)
    found: list[str] = []
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            found += (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for name in node.names:
                inner = f"{node.module}.{name.name}"
                found.append(inner if inner in MODULES else node.module or "")
    return tuple(found)


def loaded_by(code: str) -> set[str]:
    """Modules in a fresh interpreter after ``code``."""
    script = f"import sys\n{code}\nprint(*sys.modules)"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(ended.stdout.splitlines()[-1].split())


def floors() -> dict[str, int]:
    """Rooms of the floor plan with their floor; the ground has the highest number."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    (plan,) = re.findall(r"^## Floor plan\n(?:(?!^#).)*?^```text\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return {
        f"megatron_kis.{room.replace('/', '.')}": floor
        for floor, line in enumerate(plan.splitlines())
        for room in re.split(r"\s{2,}", line)[0].split()
    }


def room_of(module: str, rooms: dict[str, int]) -> str | None:
    """The innermost room that a module is in; None for the package's own face."""
    inside = [room for room in rooms if module == room or module.startswith(f"{room}.")]
    return max(inside, key=len, default=None)


def test_every_source_has_a_room_on_the_floor_plan_and_every_room_has_sources() -> None:
    rooms = floors()
    homeless = [name for name in MODULES if room_of(name, rooms) is None]
    assert homeless == ["megatron_kis", "megatron_kis.__main__"]
    assert {room_of(name, rooms) for name in MODULES} - {None} == set(rooms)


def test_imports_go_down_the_floor_plan() -> None:
    rooms = floors()
    upwards = []
    for name, path in MODULES.items():
        own = room_of(name, rooms)
        for used in imports(path):
            other = room_of(used, rooms)
            if own is None or other is None or other == own:
                continue
            if rooms[other] <= rooms[own]:
                upwards.append(f"{path.relative_to(ROOT)} imports {used}")
    assert upwards == []


def test_no_files_import_each_other_in_a_circle() -> None:
    graph = {name: {used for used in imports(path) if used in MODULES} for name, path in MODULES.items()}
    for name, used in graph.items():
        # A package's face hands on names of its modules, which may import one another by their own names.
        used.discard(name)
    tuple(graphlib.TopologicalSorter(graph).static_order())


def test_the_executor_knows_runs_and_no_studies_or_facts() -> None:
    known = (
        "megatron_kis.common",
        "megatron_kis.config.executor",
        "megatron_kis.config.slurm",
        "megatron_kis.executor",
    )
    foreign = [
        f"{name} imports {used}"
        for name in MODULES
        if name.startswith("megatron_kis.executor")
        for used in imports(MODULES[name])
        if used.startswith("megatron_kis.") and not used.startswith(known)
    ]
    assert foreign == []


def test_what_comes_before_and_after_training_needs_no_torch() -> None:
    for room in ("analysis", "data_tools", "common"):
        names = [name for name in MODULES if name.startswith(f"megatron_kis.{room}")]
        heavy = [f"{name}: {used}" for name in names for used in imports(MODULES[name]) if used.split(".")[0] in HEAVY]
        assert heavy == []
    analysis = sorted(name for name in MODULES if name.startswith("megatron_kis.analysis"))
    assert not loaded_by("".join(f"import {name}\n" for name in analysis)) & HEAVY


def test_the_analysis_is_imported_without_what_takes_longest() -> None:
    assert not loaded_by("import megatron_kis.analysis\n") & {"scipy.special", "scipy.optimize", "matplotlib", "jinja2"}


def test_training_starts_without_pytorchs_compiler() -> None:
    assert not loaded_by("import megatron_kis.training.trainer\n") & {"torch._dynamo", "torch._inductor"}


def test_the_plan_and_the_scoring_rules_need_no_torch() -> None:
    code = "from megatron_kis.data import ExposurePlan\nfrom megatron_kis.probes import score_rules\n"
    assert not loaded_by(code + "import megatron_kis.study.grid\n") & HEAVY


def test_models_of_others_are_asked_without_megatron_core() -> None:
    assert not loaded_by("import megatron_kis.huggingface\n") & {"megatron.core", "transformers"}


def test_a_study_is_checked_and_its_runs_started_without_torch() -> None:
    code = "import megatron_kis.training.inputs\nimport megatron_kis.study.conflicts\n"
    assert not loaded_by(code + "import megatron_kis.executor.executor\n") & HEAVY


def test_help_is_instant() -> None:
    code = "from megatron_kis.cli.main import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    print()\n"
    assert not loaded_by(code) & {*HEAVY, "numpy", "pandas", "scipy", "pydantic", "yaml", "rich", "sentencepiece"}


def unsafe(path: Path) -> Iterator[str]:
    """Calls and imports of a file that unpickle, evaluate text, load YAML objects or start a shell."""
    for name in {"pickle", "cPickle", "dill", "marshal", "shelve"} & {name.split(".")[0] for name in imports(path)}:
        yield f"{path.relative_to(ROOT)} imports {name}"
    for node in ast.walk(parsed(path)):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if (
            called in {"eval", "exec", "compile", "__import__"}
            or called in {"yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all"}
            or called in {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"}
            or keywords.get("shell", "False") != "False"
            or keywords.get("allow_pickle", "False") != "False"
            or (called == "torch.load" and keywords.get("weights_only") != "True")
        ):
            yield f"{path.relative_to(ROOT)}:{node.lineno}: {called}"


def test_no_source_does_what_is_unsafe() -> None:
    assert [found for path in PATHS for found in unsafe(path)] == []


def test_every_file_says_what_it_is_for() -> None:
    assert [str(path.relative_to(ROOT)) for path in PATHS if not ast.get_docstring(parsed(path))] == []


def test_commands_import_only_the_standard_library_at_their_top() -> None:
    light = {"megatron_kis", "megatron_kis.common.errors", "megatron_kis.common.ending", "megatron_kis.common.paths"}
    light |= {"megatron_kis.common.console", "megatron_kis.common.log", "megatron_kis.common.terms"}
    light |= {"megatron_kis.common.units", "megatron_kis.config.ladder"}
    heavy = [
        f"{path.relative_to(ROOT)} imports {used}"
        for name, path in MODULES.items()
        if name.startswith("megatron_kis.cli")
        for used in imports(path, everywhere=False)
        if used not in light and not used.startswith("megatron_kis.cli")
        if used.split(".")[0] not in sys.stdlib_module_names
    ]
    assert heavy == []


def test_no_test_file_imports_another() -> None:
    borrowed = [
        f"{path.relative_to(ROOT)} imports {node.module}"
        for path in (ROOT / "tests").rglob("*.py")
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.ImportFrom)
        for module in (node.module or "", *(f"{node.module}.{name.name}" for name in node.names))
        if module.rpartition(".")[2].startswith("test_")
        if (ROOT / f"{module.replace('.', '/')}.py").exists()
    ]
    assert borrowed == []
