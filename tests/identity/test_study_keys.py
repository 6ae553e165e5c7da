"""Every key of a study is changed between two commands: what was trained is not mixed, not mislabelled, not touched.

The table is checked against the configuration's own classes: a key that is added later has to be entered.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_kis.cli.main import main
from megatron_kis.cli.study.common import data_config
from megatron_kis.common.configuration import load_config
from megatron_kis.config.study import StudyConfig
from megatron_kis.data_tools.readers.documents import iter_documents
from megatron_kis.data_tools.tokenizers.training import TokenizerConfig, train_tokenizer
from megatron_kis.study.grid import runs_of
from megatron_kis.training.record import config_fingerprint
from tests.forked import run_kis
from tests.identity.keys import keys_of
from tests.runs import hashes
from tests.sources import Sources

RUNS = ["1x16_D5.12k_F0_s0", "1x16_D5.12k_F3_s0", "1x16_D5.12k_F8_s0"]

SETTINGS: dict[str, Any] = {
    "training.sequence_length": 128,
    "training.global_batch_size": 4,
    "training.precision": "fp32",
    "training.optimizer.learning_rate": 1e-3,
    "training.optimizer.reference_width": 64,
    "training.optimizer.schedule": "wsd",
    "training.optimizer.warmup_share": 0.3,
    "training.optimizer.decay_share": 0.3,
    "training.optimizer.minimum_share": 0.2,
    "training.optimizer.weight_decay": 0.2,
    "training.optimizer.beta1": 0.8,
    "training.optimizer.beta2": 0.9,
    "training.optimizer.epsilon": 1e-7,
    "training.optimizer.gradient_clip": 0.5,
    "training.guard.skip_in_a_row": 2,
    "training.guard.loss_rise": 5.0,
    "background.policy": "protected",
    "background.frequency": 3,
    "trunk.share": 0.2,
    "background.groups.facts": 8,
    "background.groups.frequency": 5,
    "background.schedule": "back_loaded",
    "schedule": "front_loaded",
    "templates": "random",
    "documents.reset_attention": True,
    "documents.mask_boundaries": True,
    "validation.moments.shares": [0.5, 1.0],
    "validation.moments.every": 4,
    "validation.moments.tokens": [1024],
    "validation.max_tokens": 256,
    "ladder.layers": 2,
    "ladder.heads": 4,
    "ladder.query_groups": 1,
    "ladder.ffn_width": 64,
    "ladder.tied_embeddings": False,
    "ladder.rope_base": 5000,
    "ladder.norm_epsilon": 1e-6,
    "ladder.head_width": 4,
    "ladder.qkv_bias": True,
    "ladder.qk_norm": True,
    "ladder.rope_scaling": 8.0,
    "ladder.init_std": 0.03,
    "ladder.learning_rate": 1e-3,
}
"""Keys that can change the result of every run; with ``name: 1x16`` the shape's are refused by name, too."""

NAMED_OTHERWISE = (
    {"schedule": "infusion.schedule", "templates": "infusion.templates"}
    | {key: key.replace("ladder.", "model.") for key in SETTINGS if key.startswith("ladder.")}
    | {
        "trunk.share": "infusion.begins",
        "background.policy": "infusion.background.policy",
        "background.frequency": "infusion.background.frequency",
        "background.groups.facts": "infusion.background.groups",
        "background.groups.frequency": "infusion.background.groups",
        "background.schedule": "infusion.background.schedule",
        "ladder.learning_rate": "training.optimizer.learning_rate",
    }
)
"""What a key of the study is called in a run."""

GRID: dict[str, dict[str, Any]] = {
    "token_budgets": {"token_budgets": [10240]},
    "facts": {"facts": [0, 8], "frequencies": [3]},
    "frequencies": {"frequencies": [0, 3]},
    "infusion_ratios": {"infusion_ratios": [0.1], "frequencies": [3]},
    "seeds": {"seeds": [1]},
    "ladder.preset": {"ladder": [{"preset": "cpu-48"}]},
    "ladder.name": {"ladder": [{"layers": 1, "width": 16, "heads": 2, "name": "small"}]},
    "ladder.width": {"ladder": [{"layers": 1, "width": 32, "heads": 2}]},
    "ladder.token_budgets": {"ladder": [{"layers": 1, "width": 16, "heads": 2, "token_budgets": [10240]}]},
    "ladder.facts": {"ladder": [{"layers": 1, "width": 16, "heads": 2, "facts": [8]}]},
    "ladder.infusion_ratios": {"ladder": [{"layers": 1, "width": 16, "heads": 2, "infusion_ratios": [0.1]}]},
    "ladder.frequencies": {"ladder": [{"layers": 1, "width": 16, "heads": 2, "frequencies": [0, 3]}]},
    "ladder.seeds": {"ladder": [{"layers": 1, "width": 16, "heads": 2, "seeds": [1]}]},
    "runs.size": {
        "ladder": [{"layers": 1, "width": 16, "heads": 2}, {"layers": 1, "width": 32, "heads": 2}],
        "runs": [{"size": "1x32", "tokens": 5120, "frequency": 5}],
    },
    "runs.tokens": {"runs": [{"size": "1x16", "tokens": 10240, "frequency": 8}]},
    "runs.facts": {"runs": [{"size": "1x16", "tokens": 5120, "facts": 4, "frequency": 8}]},
    "runs.infusion_ratio": {"runs": [{"size": "1x16", "tokens": 5120, "infusion_ratio": 0.1}]},
    "runs.frequency": {"runs": [{"size": "1x16", "tokens": 5120, "frequency": 5}]},
    "runs.seed": {"runs": [{"size": "1x16", "tokens": 5120, "frequency": 8, "seed": 3}]},
}
"""Keys that say which runs there are."""

DATA: dict[str, Any] = {
    "data.text": ["OTHER/text.jsonl"],
    "data.facts": "OTHER/triples.tsv",
    "data.templates": "OTHER/templates.yaml",
    "data.facts_format": "csv",
    "data.facts_columns": ["subject=1", "relation=2", "object=3"],
    "data.text_key": "title",
    "data.text_format": "txt",
    "data.tokenizer": "OTHER/tokenizer.model",
    "data.vocab_size": 390,
    "data.tokenizer_model": "bpe",
    "data.character_coverage": 0.99,
    "data.select.infused": 14,
    "data.select.background": 14,
    "data.select.control": 14,
    "data.select.relations": ["town_region"],
    "data.select.infused_relations": ["town_region"],
    "data.select.background_relations": ["town_region"],
    "data.select.control_relations": ["town_region"],
    "data.select.permute_objects": True,
    "data.select.facts_per_object": 2,
    "data.select.longest_name": 20,
    "data.select.keep_telling_names": True,
    "data.select.seed": 1,
    "data.select.spread": "proportional",
    "data.select.memory_limit": 1000,
    "data.validation_share": 0.1,
    "data.seed": 1,
}
"""Keys that say what the data are made of."""

ASKED: dict[str, Any] = {
    "probes.moments.shares": [0.5, 1.0],
    "probes.moments.every": 4,
    "probes.moments.tokens": [1024],
    "probes.templates": {"train": 2, "held_out": 1, "question": 1},
    "probes.facts_per_group": 8,
    "data.select.distractors": 2,
}
"""Keys that say what runs are asked, and when: those that have ended are asked again."""

ANALYSIS: dict[str, Any] = {
    "analysis.split": "train",
    "analysis.criterion": "tolerance_rule",
    "analysis.axis": "frequency",
    "analysis.margin_share": 0.25,
    "analysis.outcome": "pairwise",
    "analysis.scoring": "sum",
    "analysis.r": 0.2,
    "analysis.delta_min": 0.1,
    "analysis.alpha": 0.1,
    "analysis.tolerance": 0.1,
    "analysis.overdispersion": 0.02,
    "analysis.reference_loss": 0.4,
    "analysis.power": 0.7,
    "analysis.resamples": 199,
    "analysis.law_resamples": 99,
    "analysis.onset_share": 0.25,
    "analysis.bend": 0.05,
    "analysis.law": "N",
    "analysis.confidence": 0.9,
    "analysis.looks": 3,
    "analysis.looked": 2,
    "analysis.seed": 1,
}

FREE: dict[str, Any] = {
    "device": "auto",
    "predict": [1e6],
    "training.micro_batch_size": 4,
    "training.guard.hang_minutes": 5.0,
    "training.deterministic": True,
    "probes.batch_size": 64,
    "logging.every": 5,
    "logging.tensorboard": True,
    "logging.wandb": "offline",
    "checkpoints.moments.shares": [0.5],
    "checkpoints.moments.every": 5,
    "checkpoints.moments.tokens": [1024],
    "checkpoints.moments.minutes": 1.0,
    "checkpoints.keep_last": 3,
    "checkpoints.keep_best": False,
    "checkpoints.asynchronous": False,
    "executor.workers": 1,
    "executor.threads": 2,
    "executor.gpus": 0,
    "executor.cells_per_gpu": 2,
    "executor.pin": False,
    "executor.retries": 3,
    "executor.grace_seconds": 5.0,
    "executor.lease_minutes": 2.0,
    "cluster.account": "lab",
    "cluster.partition": "cpu",
    "cluster.qos": "low",
    "cluster.constraint": "x",
    "cluster.time_limit": "01:00:00",
    "cluster.memory": "2G",
    "cluster.options": ["--exclusive"],
    "cluster.gpus_per_node": 2,
    "cluster.gres": "gpu:x",
    "cluster.grace_seconds": 20,
    "cluster.requeues_without_progress": 1,
    "cluster.modules": ["cuda"],
    "cluster.environment": {"A": "b"},
    "cluster.setup": ["true"],
    "cluster.python": "python3",
    "cluster.max_array_size": 10,
    "cluster.templates": ".",
    "ladder.micro_batch_size": 4,
    "ladder.transformer_impl": "local",
    "ladder.parallel.replicas": 2,
    "ladder.parallel.tensor": 2,
    "ladder.parallel.context": 2,
    "ladder.parallel.recompute": "full",
    **{
        f"cluster.{job}.{key}": value
        for job in ("data", "small", "large", "report")
        for key, value in {
            "account": "lab",
            "partition": "cpu",
            "qos": "low",
            "constraint": "x",
            "time_limit": "01:00:00",
            "memory": "2G",
            "options": ["--exclusive"],
        }.items()
    },
    "cluster.data.cpus": 2,
    "cluster.report.cpus": 2,
    "cluster.small.cells_per_task": 2,
    "cluster.small.cpus": 2,
    "cluster.small.at_once": 2,
    "cluster.large.launcher": "torchrun",
    "cluster.large.cpus_per_rank": 2,
    "cluster.large.at_once": 1,
}
"""Keys that say how runs are executed and told of."""

ELSEWHERE = {
    "documents.eod_belongs_to": "counts with reset_attention: tests/megatron_kis/test_documents.py",
    "name": "below",
    "output": "below",
    "ladder.init_from": "counts by its weights: tests/megatron_kis/imports/test_huggingface.py",
    "ladder.parallel.pipeline": "needs more layers: tests/megatron_kis/test_resume.py",
    "ladder.parallel.virtual": "needs stages: tests/megatron_kis/test_resume.py",
    "ladder.parallel.sequence": "needs tensor ranks: tests/megatron_kis/test_parallel.py",
    "cluster.small.gpus": "needs GPUs of a node: tests/megatron_kis/study/slurm/test_config.py",
    "cluster.large.ranks_per_node": "needs GPUs of a node: tests/megatron_kis/study/slurm/test_config.py",
    **dict.fromkeys(
        ("cluster.container.kind", "cluster.container.image", "cluster.container.mounts", "cluster.container.python"),
        "how jobs are started: tests/megatron_kis/study/slurm",
    ),
}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, tiny_sources: Sources) -> Path:
    """A study of three runs, trained to its report. Every test leaves it as it was."""
    folder = tmp_path_factory.mktemp("study")
    other = folder / "other"
    other.mkdir()
    text = tiny_sources.text.read_text(encoding="utf-8").splitlines(keepends=True)
    (other / "text.jsonl").write_text("".join(text[:-20]), encoding="utf-8")
    rows = tiny_sources.triples.read_text(encoding="utf-8").splitlines(keepends=True)
    (other / "triples.tsv").write_text("".join(rows[:-3]), encoding="utf-8")
    templates = yaml.safe_load(tiny_sources.templates.read_text(encoding="utf-8"))
    for splits in templates.values():
        splits["train"] = splits["train"][::-1]
    (other / "templates.yaml").write_text(yaml.safe_dump(templates), encoding="utf-8")
    content = {
        "name": "small",
        "output": "out",
        "device": "cpu",
        "data": {
            "text": [str(tiny_sources.text)],
            "facts": str(tiny_sources.triples),
            "templates": str(tiny_sources.templates),
            "vocab_size": 400,
            "validation_share": 0.05,
            "select": {"infused": 16, "background": 16, "control": 16},
        },
        "ladder": [{"layers": 1, "width": 16, "heads": 2}],
        "token_budgets": [10 * 8 * 64],
        "frequencies": [0, 3, 8],
        "training": {"sequence_length": 64, "global_batch_size": 8},
        "background": {"frequency": 4},
        "probes": {"moments": {"shares": [1.0]}, "templates": {"train": 1, "held_out": 1, "question": 1}},
        "validation": {"moments": {"shares": [1.0]}},
        "executor": {"workers": 2},
        "analysis": {"resamples": 99, "law_resamples": 0},
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    ended = run_kis("study", "run", path)
    assert ended.returncode == 0, ended.stderr
    texts = [document.text for document in iter_documents([tiny_sources.text])]
    train_tokenizer(texts, other / "tokenizer.model", TokenizerConfig(vocab_size=340))
    return path


def overrides(study: Path, key: str, value: Any) -> list[str]:
    """What the command line says for a key; one of the ladder is the only entry's."""
    if key.startswith("ladder."):
        *path, last = key.split(".")[1:]
        entry: dict[str, Any] = {"layers": 1, "width": 16, "heads": 2, "name": "1x16"}
        section = entry
        for part in path:
            section = section.setdefault(part, {})
        section[last] = value
        return [f"ladder={json.dumps([entry])}"]
    if key.startswith("background.groups."):
        group = {"facts": 16, "frequency": 4} | {key.rsplit(".", maxsplit=1)[-1]: value}
        return [f"background={json.dumps({'policy': 'displaced', 'groups': [group]})}"]
    if key == "background.schedule":
        return [f"background={json.dumps({'policy': 'protected', 'frequency': 4, 'schedule': value})}"]
    text = json.dumps(value).replace("OTHER", str(study.parent / "other"))
    return [f"{key}={text}"]


def of_a_grid(values: Mapping[str, Any]) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def kis(*arguments: str) -> int:
    return main(["study", *arguments])


def states(study: Path, changes: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    capsys.readouterr()
    assert kis("status", str(study), *changes, "--json") == 0
    return {
        row["run"] if "run" in row else row["name"]: row["state"] for row in json.loads(capsys.readouterr().out)["runs"]
    }


def results(out: Path) -> dict[str, str]:
    """Of every file of the runs and the data, but for what remembers where files were seen."""
    found = {f"runs/{name}": text for name, text in hashes(out / "runs").items()}
    found |= {f"data/{name}": text for name, text in hashes(out / "data").items()}
    return {name: text for name, text in found.items() if name != "data/stamps/seen.json"}


def test_the_table_holds_every_key_of_a_study() -> None:
    tables = (SETTINGS, GRID, DATA, ASKED, ANALYSIS, FREE, ELSEWHERE)
    entered = [key for table in tables for key in table]
    assert sorted(keys_of(StudyConfig)) == sorted(entered)


@pytest.mark.slow
@pytest.mark.parametrize("key", SETTINGS)
def test_a_setting_that_counts_is_refused_before_training_and_pools_nothing(
    study: Path, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, before, named = (
        overrides(study, key, SETTINGS[key]),
        hashes(study.parent / "out"),
        NAMED_OTHERWISE.get(key, key),
    )
    for command in ("plan", "run", "report", "next"):
        more = ["--params", "1e6"] if command == "next" else []
        assert kis(command, str(study), *changes, *more) == 2, command
        said = capsys.readouterr().err.splitlines()[-1]
        assert named in said, (command, said)
        assert hashes(study.parent / "out") == before, command
    assert "done" not in states(study, changes, capsys).values()


@pytest.mark.slow
def test_the_law_of_a_folder_is_of_the_study_as_it_was_run(study: Path, tmp_path: Path) -> None:
    """``kis law`` reads a study's folder and not its file: an edited file changes nothing there until it is run."""
    out = study.parent / "out"
    before = (out / "points.csv").read_text(encoding="utf-8")
    text = study.read_text(encoding="utf-8")
    try:
        study.write_text(text.replace("frequency: 4", "frequency: 5"), encoding="utf-8")
        assert main(["law", "collapse", str(out), "--output", str(tmp_path / "points.csv")]) == 0
    finally:
        study.write_text(text, encoding="utf-8")
    assert (tmp_path / "points.csv").read_text(encoding="utf-8") == before


@pytest.mark.slow
@pytest.mark.parametrize("key", GRID)
def test_the_report_of_another_grid_holds_the_runs_that_it_names(
    study: Path, key: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shutil.copytree(study.parent / "out", tmp_path / "out")
    changes = [*of_a_grid(GRID[key]), f"output={tmp_path / 'out'}"]
    before = results(tmp_path / "out")
    shown = states(study, changes, capsys)
    done = {name for name, state in shown.items() if state == "done"}
    assert done == set(shown) & set(RUNS)
    status = kis("report", str(study), *changes)
    said = capsys.readouterr()
    if done:
        assert status == 0
        levels = {line.split(",")[2] for line in (tmp_path / "out" / "curves.csv").read_text().splitlines()[1:]}
        assert levels == {name.split("_F")[1].split("_")[0] for name in done}
        for name in set(RUNS) - done:
            assert name in said.out + said.err
    else:
        assert status == 2
    assert results(tmp_path / "out") == before


@pytest.mark.slow
@pytest.mark.parametrize("key", DATA)
def test_data_that_runs_were_made_with_stay(study: Path, key: str, capsys: pytest.CaptureFixture[str]) -> None:
    changes, before = overrides(study, key, DATA[key]), hashes(study.parent / "out")
    for command in ("plan", "run", "report", "next"):
        more = ["--params", "1e6"] if command == "next" else []
        status = kis(command, str(study), *changes, *more)
        said = capsys.readouterr().err
        assert hashes(study.parent / "out") == before, command
        assert status == 2, (command, said)
        if command != "plan":
            assert key in said, (command, said)


@pytest.mark.slow
@pytest.mark.parametrize("key", ASKED)
def test_what_runs_are_asked_makes_them_no_others_and_they_are_asked_again(
    study: Path, key: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(study.parent / "out", out)
    changes, before = [*overrides(study, key, ASKED[key]), f"output={out}"], hashes(out)
    assert kis("plan", str(study), *changes) == 0
    assert hashes(out) == before
    others = key.startswith("probes.moments.")  # moments change no question
    old = others or key.startswith("data.")  # the data, and with them the questions, are not made again yet
    assert set(states(study, changes, capsys).values()) == {"done" if old else "unasked"}
    if not others:
        assert kis("report", str(study), *changes) == 2
        assert "kis study probe" in capsys.readouterr().err
    assert kis("probe", str(study), *changes) == 0
    assert kis("report", str(study), *changes) == 0
    assert kis("run", str(study), *changes) == 0
    after = hashes(out / "runs")
    assert {f"runs/{name}" for name in after} >= {name for name in before if name.startswith("runs/")}
    assert all(before.get(f"runs/{name}", text) == text for name, text in after.items())
    asked = {name.split("/")[0] for name in after if "/asked/" in name}
    assert asked == (set() if others else set(RUNS))


@pytest.mark.slow
@pytest.mark.parametrize("key", ["text", "facts", "templates", "tokenizer"])
def test_files_count_by_their_content_and_not_by_their_place(
    study: Path, key: str, tmp_path: Path, tiny_sources: Sources
) -> None:
    files = {
        "text": tiny_sources.text,
        "facts": tiny_sources.triples,
        "templates": tiny_sources.templates,
        "tokenizer": study.parent / "out" / "data" / "tokenizer.model",
    }
    out = tmp_path / "out"
    shutil.copytree(study.parent / "out", out)
    moved = shutil.copy(files[key], tmp_path)
    before = results(out)
    change = f"data.{key}={json.dumps([str(moved)] if key == 'text' else str(moved))}"
    for command in ("plan", "report", "run", "report"):
        assert kis(command, str(study), change, f"output={out}") == 0, command
        assert results(out) == before, command


@pytest.mark.slow
@pytest.mark.parametrize("criterion", ["hinge", ANALYSIS["analysis.criterion"]])
def test_criteria_leave_what_was_trained_as_it_is(study: Path, criterion: str, tmp_path: Path) -> None:
    shutil.copytree(study.parent / "out", tmp_path / "out")
    before = hashes(tmp_path / "out" / "runs")
    changes = [f"{key}={json.dumps(value)}" for key, value in (ANALYSIS | {"analysis.criterion": criterion}).items()]
    assert kis("report", str(study), *changes, f"output={tmp_path / 'out'}") == 0
    assert hashes(tmp_path / "out" / "runs") == before


@pytest.mark.slow
@pytest.mark.parametrize("key", FREE)
def test_how_runs_are_executed_makes_them_no_others(study: Path, key: str, capsys: pytest.CaptureFixture[str]) -> None:
    def runs(changes: list[str]) -> dict[str, str]:
        config = load_config(StudyConfig, study, changes)
        return {run.name: config_fingerprint(run) for run in runs_of(config, data_config(config))}

    changes = overrides(study, key, FREE[key])
    assert runs(changes) == runs([])
    assert set(states(study, changes, capsys).values()) == {"done"}


IN_PARALLEL = [key for key in FREE if key.startswith("ladder.parallel.")]
TOGETHER = [key for key in FREE if not key.startswith("cluster.") and key not in IN_PARALLEL]


@pytest.mark.slow
@pytest.mark.parametrize("keys", [TOGETHER, *([key] for key in IN_PARALLEL)], ids=lambda keys: keys[-1])
def test_a_rerun_that_is_executed_otherwise_trains_nothing(study: Path, keys: list[str]) -> None:
    of_size = {key.removeprefix("ladder."): FREE[key] for key in keys if key.startswith("ladder.")}
    changes = [word for key in keys if not key.startswith("ladder.") for word in overrides(study, key, FREE[key])]
    if of_size:
        entry: dict[str, Any] = {"layers": 1, "width": 16, "heads": 2, "name": "1x16"}
        for key, value in of_size.items():
            section, _, name = key.rpartition(".")
            (entry.setdefault(section, {}) if section else entry)[name] = value
        changes.append(f"ladder={json.dumps([entry])}")
    before = results(study.parent / "out")
    assert kis("run", str(study), *changes) == 0
    assert results(study.parent / "out") == before
