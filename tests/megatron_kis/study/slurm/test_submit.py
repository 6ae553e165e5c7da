"""``kis study submit --dry-run``, the scripts that it shows, and templates that users edit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from megatron_kis.cli.main import main
from megatron_kis.executor.slurm.scripts import TEMPLATES, comment, job_name
from tests.sources import Sources
from tests.studies import write_study

ROOT = Path(__file__).parents[4]
STUDIES = sorted((ROOT / "run_scripts" / "studies").glob("*.yaml"))


def dry_run(study: Path, capsys: pytest.CaptureFixture[str], *options: str, setting: str = "") -> dict[str, Any]:
    capsys.readouterr()
    assert main(["study", "submit", "--dry-run", "--json", *options, str(study), *setting.split()]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dry run needs none of its programs."""
    monkeypatch.setenv("PATH", "/nowhere")


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.stem)
def test_every_study_is_shown_without_data_and_without_slurm(
    study: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    output = f"output={tmp_path / 'out'}"  # where nothing is done yet, whatever this checkout has run
    shown = dry_run(study, capsys, setting=output)
    jobs = shown["jobs"]
    assert (jobs[0]["job"], jobs[-1]["job"]) == ("data", "report")
    assert shown["cells"] == sum(job["cells"] for job in jobs) > 0
    assert all("--dependency=afterok:data" in " ".join(job["options"]) for job in jobs[1:])
    for script in shown["scripts"].values():
        assert script.startswith("#!/bin/bash\n")
        ended = subprocess.run(["/bin/bash", "-n"], input=script, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, f"{script}\n{ended.stderr}"
    assert not list(tmp_path.iterdir())

    assert main(["study", "submit", "--dry-run", str(study), output]) == 0
    said = capsys.readouterr().out
    assert "#SBATCH --signal=B:USR1@" in said
    assert "nothing was submitted" in said


def test_the_chain_cancels_runs_without_data_and_waits_for_runs_however_they_end(
    tmp_path: Path, tiny_sources: Sources, capsys: pytest.CaptureFixture[str]
) -> None:
    study = write_study(tmp_path, tiny_sources, cluster={"small": {"cells_per_task": 2, "at_once": 4}})
    data, small, report = dry_run(study, capsys)["jobs"]
    assert data["options"] == []
    assert small["options"] == ["--array=0-1%4", "--dependency=afterok:data", "--kill-on-invalid-dep=yes"]
    assert report["options"] == ["--dependency=afterok:data,afterany:small", "--kill-on-invalid-dep=yes"]


def test_a_name_that_a_script_might_run_is_refused(
    tmp_path: Path, tiny_sources: Sources, capsys: pytest.CaptureFixture[str]
) -> None:
    study = write_study(tmp_path, tiny_sources, name="a$(touch pwned)\n#SBATCH --account=other")
    assert main(["study", "submit", "--dry-run", str(study)]) == 2
    assert ": name: the name " in capsys.readouterr().err


def test_no_name_adds_a_line_or_a_command_to_a_script(
    tmp_path: Path, tiny_sources: Sources, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / 'it\'s "here"; touch pwned #$(touch pwned)'
    folder.mkdir()
    monkeypatch.chdir(folder)
    study = write_study(
        folder,
        tiny_sources,
        cluster={
            "python": "/bin/echo",
            "environment": {"OWN": "$(touch pwned) it's"},
            "setup": ["echo set up >&2"],
            "account": "lab",
            "options": ["--comment=two words"],
        },
    )
    shown = dry_run(study, capsys)
    plain = {"--account=lab", "--comment=two words"}
    for label, script in shown["scripts"].items():
        lines = [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")]
        assert plain <= set(lines)
        known = ("--output", "--open-mode", "--requeue", "--signal", "--job-name", "--nodes", "--ntasks", "--cpus")
        assert all(line.startswith(known) for line in set(lines) - plain), lines
        # Run as it is, with an echo in Python's place: its words come through whole.
        ended = subprocess.run(
            ["/bin/bash", "-s", "--", "7"],
            input=script,
            capture_output=True,
            text=True,
            check=False,
            env={"PATH": "/usr/bin:/bin"},
        )
        words = f"-m megatron_kis study work {shown['folder']} small --first 7"
        expected = words if label == "small" else f"-m megatron_kis study {'prepare' if label == 'data' else 'report'}"
        assert expected in ended.stdout, ended.stderr
        assert ended.stderr == "set up\n"
    assert [path for path in (*tmp_path.rglob("pwned"), Path("pwned")) if path.exists()] == []
    assert {job["name"].rpartition("-")[0] for job in shown["jobs"]} == {
        f"kis-small-{label}" for label in ("data", "small", "report")
    }


def test_a_container_wraps_what_the_scripts_run(
    tmp_path: Path, tiny_sources: Sources, capsys: pytest.CaptureFixture[str]
) -> None:
    container = {"kind": "apptainer", "image": "/images/kis.sif"}
    section = {"gpus_per_node": 4, "container": container, "modules": ["apptainer/1.3"]}
    scripts = dry_run(write_study(tmp_path, tiny_sources, cluster=section), capsys)["scripts"]
    assert "module load apptainer/1.3 || exit 1" in scripts["small"]
    assert "apptainer exec --nv --bind" in scripts["small"]
    assert "--nv" not in scripts["data"]  # no GPUs there
    assert "/images/kis.sif python -m megatron_kis study work" in scripts["small"]
    section["container"] = {**container, "kind": "pyxis"}
    scripts = dry_run(write_study(tmp_path, tiny_sources, cluster=section), capsys)["scripts"]
    assert (
        "srun --nodes=1 --ntasks=1 --cpus-per-task=4 --input=none --container-image=/images/kis.sif" in scripts["small"]
    )
    assert "#SBATCH --gres=gpu:1" in scripts["small"]


def test_edited_templates_take_the_place_of_ours_and_their_mistakes_are_named(
    tmp_path: Path, tiny_sources: Sources, capsys: pytest.CaptureFixture[str]
) -> None:
    study = write_study(tmp_path, tiny_sources)
    edited = tmp_path / "edited"
    edited.mkdir()
    shutil.copy(TEMPLATES / "_environment.j2", edited)
    with open(edited / "_environment.j2", "a") as file:
        file.write("echo edited\n")
    for options in (["--templates", str(edited)], ["--", str(study), f"cluster.templates={edited}"]):
        arguments = ["study", "submit", "--dry-run", *options, *([] if "--" in options else [str(study)])]
        assert main(arguments) == 0
        assert "echo edited" in capsys.readouterr().out

    for text, problem in (("{{ job.colour }}", "colour"), ("a\n{% if %}", "_environment.j2:2")):
        (edited / "_environment.j2").write_text(text)
        assert main(["study", "submit", "--dry-run", "--templates", str(edited), str(study)]) == 2
        assert problem in capsys.readouterr().err
    (edited / "_environment.j2").unlink()
    assert main(["study", "submit", "--dry-run", "--templates", str(edited), str(study)]) == 2
    assert "has no template" in capsys.readouterr().err
    assert main(["study", "submit", "--dry-run", "--templates", str(tmp_path / "nowhere"), str(study)]) == 2


def test_without_slurm_a_submission_says_so_and_writes_nothing(
    tmp_path: Path, tiny_sources: Sources, capsys: pytest.CaptureFixture[str]
) -> None:
    study = write_study(tmp_path, tiny_sources)
    assert main(["study", "submit", str(study)]) == 2
    assert "SLURM: scontrol is not installed here" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_study_on_cuda_must_say_how_many_gpus_a_node_has(
    tmp_path: Path, tiny_sources: Sources, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", "submit", "--dry-run", str(write_study(tmp_path, tiny_sources, device="cuda"))]) == 2
    assert "cluster.gpus_per_node: is 0" in capsys.readouterr().err


def test_runs_can_be_chosen(tmp_path: Path, tiny_sources: Sources, capsys: pytest.CaptureFixture[str]) -> None:
    study = write_study(tmp_path, tiny_sources)
    assert main(["study", "submit", "--dry-run", "--json", str(study), "--only", "1x16_D5.12k_F3_s0"]) == 0
    assert json.loads(capsys.readouterr().out)["cells"] == 1
    assert main(["study", "submit", "--dry-run", str(study), "--only", "1x16_D5.12k_F3_s1"]) == 2
    assert "did you mean" in capsys.readouterr().err


def test_names_in_the_queue_are_plain_and_never_the_same() -> None:
    assert job_name("größe \n x", "small", "ab12") == "kis-gr_e_x-small-ab12"
    assert job_name("---", "data", "1").startswith("kis-")
    assert "\n" not in comment("a\n\tb\x00c") and comment("a\n\tb") == "a b"
    assert len(job_name("x" * 500, "report", "1")) < 70


def test_the_templates_travel_with_an_installed_package(tmp_path: Path) -> None:
    """What setup.py packs is all that the scripts need, and lies where they look for it."""
    copy = tmp_path / "source"
    skipped = shutil.ignore_patterns(
        ".git", ".venv*", "*.egg-info", "build", "tests", "docs", "benchmarks", "shared", "studies", "data"
    )
    shutil.copytree(ROOT, copy, ignore=lambda folder, names: skipped(folder, names) if Path(folder) == ROOT else set())
    import sys

    ended = subprocess.run(
        [sys.executable, "setup.py", "-q", "build", "--build-lib", str(tmp_path / "lib")],
        cwd=copy,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    packed = {path.name for path in (tmp_path / "lib" / "megatron_kis" / "run_scripts" / "slurm").iterdir()}
    assert packed == {path.name for path in TEMPLATES.iterdir()}
    assert (tmp_path / "lib" / "megatron_kis").is_dir()
    studies = tmp_path / "lib" / "megatron_kis" / "run_scripts" / "studies"
    assert {path.name for path in studies.glob("*.yaml")} == {path.name for path in STUDIES}
    assert (studies / "templates" / "one-word.yaml").is_file()  # which amount.yaml names
