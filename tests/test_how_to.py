"""The steps, the README and the how-to pages: every command runs as it stands there, on files as small as they may be.

What a reader must put in by himself (STUDY.yaml, RUN, RUN_DIR) is put in here; what needs another machine (pip, a
network, a cluster) is left to the tests of those parts. The tutorial, the notebook and the extensions have their own.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from megatron_kis.analysis import AnalysisConfig, find_transitions
from megatron_kis.analysis.design.outline import outline_of, sketch
from megatron_kis.analysis.design_check import design_check
from megatron_kis.analysis.runs.load_csv import load_curves_csv, write_points_csv
from megatron_kis.analysis.simulate import Truth, simulate_table
from megatron_kis.common.configuration import load_config, parse_config
from megatron_kis.common.errors import InputError
from megatron_kis.config.run import RunConfig
from megatron_kis.config.study import StudyConfig
from megatron_kis.data_tools.rendering.templates import load_templates
from tests.evaluations import evaluate
from tests.pages import PAGES, ROOT, blocks, run
from tests.sources import Sources, write_sources

MakeRun = Callable[..., RunConfig]
HOW_TO = ROOT / "docs" / "how-to"
STUDY: dict[str, Any] = {
    "name": "small",
    "output": "studies/small",
    "device": "cpu",
    "data": {
        "text": ["data/demo/text.jsonl"],
        "facts": "data/demo/triples.tsv",
        "templates": "data/demo/templates.yaml",
        "vocab_size": 400,
        "validation_share": 0.05,
        "select": {"infused": 16, "background": 16, "control": 16, "distractors": 3},
    },
    "ladder": [{"layers": 1, "width": 16, "heads": 2}],
    "token_budgets": [5120],
    "frequencies": [0, 4],
    "training": {"sequence_length": 64, "global_batch_size": 8},
    "probes": {"templates": {"held_out": 1}},
    "analysis": {"resamples": 99, "law_resamples": 0},
}
RUN = "1x16_D5.12k_F0_s0"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the demo's sources and a study of them that is done. Shared: copy it."""
    folder = tmp_path_factory.mktemp("finished")
    _demo(folder / "data" / "demo")
    (folder / "study.yaml").write_text(yaml.safe_dump(STUDY), encoding="utf-8")
    execute("kis study run study.yaml", folder)
    return folder


def lines(page: Path) -> Iterator[str]:
    """The commands of a page's shell blocks, one a line."""
    for block in blocks(page):
        if block.language == "sh":
            yield from (line.strip() for line in block.text.replace("\\\n", " ").splitlines() if line.strip())


def yaml_blocks(page: Path) -> Iterator[str]:
    """The pieces of YAML of a page."""
    yield from (block.text for block in blocks(page) if block.language == "yaml")


def execute(line: str, folder: Path) -> str:
    ended = run(line, folder)
    assert ended.returncode == 0, f"{line}\n{ended.stdout}\n{ended.stderr}"
    return ended.stdout


def replaced(line: str, words: dict[str, str]) -> str:
    for old, new in words.items():
        line = line.replace(old, new)
    return line


@pytest.mark.slow
def test_the_commands_for_large_corpora(folder: Path, tiny_data: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    sources = write_sources(folder, documents=60)
    (folder / "raw").mkdir()
    for part in range(2):
        packed = zstandard.ZstdCompressor().compress(sources.text.read_bytes() + b'{"no": "text"}\n')
        (folder / "raw" / f"{part}.jsonl.zst").write_bytes(packed)
    shutil.copy(sources.text, folder / "raw" / "2.jsonl")
    shutil.copy(tiny_data / "facts.jsonl", folder)
    execute("kis data tokenizer --input text.jsonl --model byte-bpe --vocab-size 400 --output tokenizer.json", folder)
    sharded = " --shard 1/2"
    ran = 0
    for line in lines(HOW_TO / "large-corpora.md"):
        if line.startswith("kis"):
            if sharded in line:  # one line a machine
                execute(line.replace(sharded, " --shard 2/2 --on-error skip"), folder)
            elif "merge" in line:
                whole = (folder / "corpus.bin").read_bytes()
                for file in folder.glob("corpus.*"):
                    file.unlink()
            execute(line.replace(sharded, f"{sharded} --on-error skip"), folder)
            ran += 1
    assert ran == 5
    assert (folder / "corpus.bin").read_bytes() == whole  # what two machines made, joined
    assert "no" in (folder / "corpus-00001-of-00002.quarantine.jsonl").read_text(encoding="utf-8")
    assert (folder / "clean.jsonl").stat().st_size


@pytest.mark.slow
def test_the_commands_for_continued_pretraining(folder: Path, tiny_data: Path, tiny_run: MakeRun) -> None:
    pytest.importorskip("transformers")
    from tests.megatron_kis.imports.models import make_model

    write_sources(folder, documents=60)
    shutil.copy(tiny_data / "facts.jsonl", folder)
    make_model(folder / "my_llama", tiny_data)
    shutil.copy(folder / "text.jsonl", folder / "held_out.jsonl")
    page = HOW_TO / "continued-pretraining.md"
    settings = next(content for content in map(yaml.safe_load, yaml_blocks(page)) if "model" in content)
    ran = 0
    for command in lines(page):
        line = command
        if line.startswith("kis train"):
            small = tiny_run().model_dump(mode="json")
            model = json.loads((folder / "start" / "start.json").read_text())["model"]
            settings["model"] |= {**model, "qkv_bias": False}
            settings |= {"training": small["training"], "infusion": {"frequency": 2}, "device": "cpu"}
            settings["probes"]["templates"] = small["probes"]["templates"]
            (folder / "run.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
        if line.startswith("kis import megatron"):  # here a checkpoint that was exported
            execute("kis export megatron runs/continued --output checkpoints", folder)
            line = line.replace("--output start", "--output again").replace(" tokenizer.json", " start/tokenizer.json")
        if line.startswith("kis export"):
            line = line.replace("--output checkpoints", "--output release")
        if line.startswith("kis"):
            execute(line, folder)
            ran += 1
    assert ran == 8
    record = json.loads((folder / "runs/continued/run.json").read_text())
    assert record["config"]["model"]["init_from"] == "../../start"
    first = (folder / "runs/continued/probes.jsonl").read_text(encoding="utf-8").splitlines()[0]
    assert json.loads(first)["step"] == 0
    weights = [sorted((folder / name / "weights").glob("*.distcp")) for name in ("start", "again")]
    assert [path.stat().st_size for path in weights[0]] == [path.stat().st_size for path in weights[1]]


@pytest.mark.slow
def test_the_commands_for_running_and_submitting_a_study(folder: Path, finished: Path) -> None:
    shutil.copytree(finished, folder, dirs_exist_ok=True)
    words = {"STUDY_DIR": "studies/small", "STUDY.yaml": "study.yaml", "my_study.yaml": "study.yaml", "RUN": RUN}
    words["137m_D10B_F0_s0"] = RUN
    said = [execute(replaced(line, words), folder) for line in lines(HOW_TO / "running-studies.md")]
    assert len(said) == 13
    assert (folder / "studies" / "small" / "report.html").is_file()
    assert (folder / "report.html").is_file()
    assert (folder / "survival.csv").is_file()
    submitting = [replaced(line, words) for line in lines(HOW_TO / "slurm.md")]
    assert len(submitting) == 6
    shutil.rmtree(folder / "studies")
    execute("kis study plan study.yaml", folder)
    assert "sbatch" in execute(submitting[0], folder)  # the others need the cluster that tests/slurm has


@pytest.mark.slow
def test_the_steps_one_at_a_time(folder: Path, finished: Path, tiny_run: MakeRun) -> None:
    pytest.importorskip("transformers")
    shutil.copytree(finished, folder, dirs_exist_ok=True)
    words = {
        "studies/quickstart": "studies/small",
        "run_scripts/studies/small.yaml": "study.yaml",
        "RUN_DIR": "runs/tiny",
        "RUN": RUN,
        "MODEL_DIR": "model",
        "CHECKPOINT_DIR": "checkpoints",
        "START": "start",
        "--step 500": "--step 20",
        "FILE.csv": "histories.csv",
        "--vocab-size 2048": "--vocab-size 400",
        "docs/study/results": str(ROOT / "docs" / "study" / "results"),
    }
    ran = 0
    for block in [*blocks(ROOT / "README.md"), *blocks(HOW_TO / "steps.md")]:
        for command in block.text.replace("\\\n", " ").splitlines():
            if not command.startswith("kis ") or "data demo" in command or "my_study" in command:
                continue
            line = replaced(command, words)
            if line.startswith("kis export"):
                line = line.replace("DIR", {"hf": "model", "megatron": "checkpoints"}.get(line.split()[2], "tasks"))
            if line.startswith("kis import megatron"):
                line = line.replace("start", "again")
            if line.startswith("kis train"):
                data = {name: name for name in ("corpus", "exposures")}
                data |= {"validation": "corpus.validation", "tokenizer": "tokenizer.model"}
                config = tiny_run(
                    output="runs/tiny", data=data, infusion={"frequency": 2, "background": {"frequency": 1}}
                )

                (folder / "run.yaml").write_text(config.model_dump_json(), encoding="utf-8")
            if line.startswith("kis law fit"):
                _points(folder / "points.csv")
            execute(line, folder)
            ran += 1
    assert ran == 29
    assert (folder / "studies" / "small" / "report.html").is_file()


@pytest.mark.slow
def test_your_own_logs(folder: Path) -> None:
    page = HOW_TO / "your-own-logs.md"
    for block in blocks(page):
        if block.title:
            (folder / block.title).write_text(block.text, encoding="utf-8")
    for frequency, right in ((0, 30), (400, 20)):
        tasks = {
            "my_facts": [0] * right + [1] * (40 - right),
            "triviaqa_subset": [1] * right + [0] * (40 - right),
            "capitals": [1, 0],
        }
        evaluate(folder / "evals" / f"160m-F{frequency}", tasks)
    said = "".join(execute(line, folder) for line in lines(page))
    text = page.read_text(encoding="utf-8")
    for told, found in (
        ("F = 117", "at F = 117.1;"),
        ("F = 375", "at F = 375.5;"),
    ):
        assert told in text and found in said
    assert "about F = 590, with a prediction interval of about 350 to 950" in text
    centre = re.search(r"centre +F = (\d+)\n", said)
    interval = re.search(r"prediction interval of a model +(\d+) to (\d+)\n", said)
    assert centre and interval
    assert [int(each) for each in (centre[1], *interval.groups())] == pytest.approx([590, 350, 950], rel=0.1)
    assert said.count("written: 4 rows of 2 runs in curves.csv") == 2
    assert (folder / "report.html").is_file()
    messages = next(block.text for block in blocks(page) if block.language == "text").splitlines()
    head, *rows = (folder / "my_curves.csv").read_text(encoding="utf-8").splitlines()
    wrong = (
        [head.replace("params", "N").replace("frequency", "F"), *rows],
        [head.replace("correct", "accuracy"), *rows],
        [head, *rows[:5], rows[5].replace("230", "0.61"), *rows[6:]],
        [head, *rows[:7], rows[7].replace("40M", "160"), *rows[8:]],
    )
    for content, message in zip(wrong, messages, strict=True):
        (folder / "my_curves.csv").write_text("\n".join(content), encoding="utf-8")
        with pytest.raises(InputError) as refused:
            load_curves_csv(Path("my_curves.csv"))
        assert f"kis: error: {refused.value}" == message


def _demo(folder: Path) -> Sources:
    """Sources with the names of the demo's files and relations."""
    sources = write_sources(folder, documents=360, facts_a_relation=120)
    names = ("airport_region", "iata_city", "country_capital")
    head, *rows = sources.triples.read_text(encoding="utf-8").splitlines()
    cells = [row.split("\t") for row in rows]
    renamed = ["\t".join((subject, names[at % 3], target)) for at, (subject, _, target) in enumerate(cells)]
    sources.triples.write_text("\n".join([head, *renamed]) + "\n", encoding="utf-8")
    templates = yaml.safe_load(sources.templates.read_text(encoding="utf-8"))
    (first, *_) = templates.values()
    sources.templates.write_text(yaml.safe_dump(dict.fromkeys(names, first)), encoding="utf-8")
    return sources


def _points(path: Path) -> None:
    """The points of simulated models, which carry a law."""
    cells = [(params, 2_000_000_000) for params in (30_000_000, 100_000_000, 300_000_000, 1_000_000_000)]
    levels = [0, 40, 100, 200, 300, 400, 600, 900, 1400]
    table, _ = simulate_table(Truth(), cells, levels, 2, np.random.default_rng(5))
    write_points_csv(find_transitions(table, AnalysisConfig(resamples=99)), path)


def test_the_template_of_a_study_leads_to_a_law(folder: Path) -> None:
    sources = write_sources(folder, documents=400, facts_a_relation=320)
    for path, name in ((sources.text, "my_corpus.jsonl"), (sources.triples, "my_triples.tsv")):
        path.rename(folder / name)
    sources.templates.rename(folder / "my_templates.yaml")
    shutil.copy(ROOT / "run_scripts" / "studies" / "template.yaml", folder / "my_study.yaml")
    fewer = "data.select.infused=384 facts=[0,12,24,48,96,192,384]"  # as many as these triples allow
    said = execute(f"kis study plan my_study.yaml --json data.vocab_size=400 {fewer}", folder)
    plan = json.loads(said)
    assert len({row["params"] for row in plan["runs"]}) >= 5
    # These sources are small: their text is read many times, and a vocabulary of 400 makes the models smaller.
    assert {remark["key"] for remark in plan["design"]["remarks"]} <= {"data.text", "background.frequency"}
    for one in plan["design"]["simulated"]:
        assert one["validated"] == one["studies"]
    of = load_config(StudyConfig, folder / "my_study.yaml", [])
    assert design_check(outline_of(of, sketch(of)), of.analysis, of.predict).remarks == ()
    assert not (folder / "studies" / "my_study" / "runs").exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_piece_of_yaml_is_one_that_is_read(page: Path, tmp_path: Path) -> None:
    for block in blocks(page):
        if block.language != "yaml":
            continue
        content = yaml.safe_load(block.text)
        if "model" in content:
            parse_config(RunConfig, content, source=str(page))
        elif set(content) <= set(StudyConfig.model_fields):
            grid = {} if "ladder" in content else {"ladder": STUDY["ladder"]}
            parse_config(StudyConfig, {**STUDY, **grid, **content}, source=str(page))
        else:
            (tmp_path / "templates.yaml").write_text(block.text, encoding="utf-8")
            assert load_templates(tmp_path / "templates.yaml")
